/* encap.h: outer headers: made once for each adjacency, pasted in front of each frame (RFC 7348
 * section 5). */
#ifndef DP_ENCAP_H
#define DP_ENCAP_H
#include "checksum.h"
#include "packet.h"

/* The outer headers of one adjacency, complete but for lengths, ECN, DSCP if it is the inner one's,
 * checksum and UDP source port. */
struct dp_tunnel {
    struct dp_addr remote;
    uint32_t vni;
    uint8_t own_mac[6]; /* of its network's router here */
    bool trusted;       /* it may speak, to that router, and its DSCP ends with the outer header */
    uint8_t head_len;   /* 50 or 70 */
    uint8_t odd;        /* IPv4: enum dp_wire_flag of what is not as usual */
    bool usual;         /* IPv4, and nothing is: dp_push4 is all */
    uint16_t mtu;       /* of its network: of the largest inner packet */
    uint16_t ip_sum;    /* IPv4: folded sum of the header as it stands */
    uint8_t tos_copy;   /* bits of the outer TOS or traffic class that are the inner packet's, */
    uint8_t tos_fixed;  /* and the rest of them */
    union {
        struct dp_outer4 v4;
        struct dp_outer6 v6;
    } head;
};

void dp_tunnel_init(struct dp_tunnel *t, const struct dp_adjacency *a, const struct dp_network *n,
                    const struct dp_port *port);

static inline uint8_t dp_outer_tos(const struct dp_tunnel *t, uint8_t tos) {
    return (tos & t->tos_copy) | t->tos_fixed;
}

/* Writes the usual outer IPv4 headers of so many bytes of inner frame. */
static inline void dp_push4(uint8_t *at, const struct dp_tunnel *t, uint32_t inner, uint16_t sport,
                            uint8_t tos) {
    struct dp_outer4 *o = (struct dp_outer4 *)at;
    *o = t->head.v4;
    const uint32_t udp = inner + (uint32_t)(sizeof o->udp + sizeof o->vxlan);
    const be16 total = be16_put(udp + (uint32_t)sizeof o->ip);
    const uint8_t outer_tos = dp_outer_tos(t, tos);
    o->ip.tos = outer_tos;
    o->ip.total = total;
    o->ip.csum =
        (uint16_t)~dp_csum_fold32((uint32_t)t->ip_sum + be16_put(outer_tos).net + total.net);
    o->udp.sport = be16_put(sport);
    o->udp.len = be16_put(udp);
}

/* No reason to drop it: what dp_encap says of an outer packet that lacks its id. */
enum { DP_UNNUMBERED = DP_REASONS };

/* Pushes the outer headers; at least DP_HEADROOM bytes are free in front of p->data. tos: the inner
 * packet's TOS or traffic class. Returns 0, or DP_UNNUMBERED: its DF is clear, so dp_outer_number
 * must give it an id of its own (of a packet with DF it means nothing: RFC 6864 section 4). */
int dp_encap(struct dp_packet *p, const struct dp_tunnel *t, uint16_t sport, uint8_t tos);
void dp_outer_number(struct dp_packet *p, uint16_t id);

/* ECN of the inner packet after decapsulation, or 4: the packet must be dropped (RFC 6040
 * section 4.2). */
static inline uint8_t dp_ecn_decap(uint8_t inner, uint8_t outer) {
    static const uint8_t table[4][4] = {
        /* outer: Not-ECT, ECT(1), ECT(0), CE */
        {0, 0, 0, 4}, /* inner Not-ECT */
        {1, 1, 1, 3}, /* ECT(1) */
        {2, 1, 2, 3}, /* ECT(0) */
        {3, 3, 3, 3}, /* CE */
    };
    return table[inner & 3][outer & 3];
}

#endif
