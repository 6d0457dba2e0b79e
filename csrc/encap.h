/* encap.h: outer headers: made once for each adjacency, pasted in front of each frame (RFC 7348
 * section 5). */
#ifndef DP_ENCAP_H
#define DP_ENCAP_H
#include "packet.h"

/* The outer headers of one adjacency, complete but for lengths, ECN, DSCP if it is the inner one's,
 * checksum and UDP source port. */
struct dp_tunnel {
    union {
        struct dp_outer4 v4;
        struct dp_outer6 v6;
    } head;
    uint8_t head_len;  /* 50 or 70 */
    uint8_t odd;       /* IPv4: enum dp_wire_flag of what is not as usual */
    uint16_t ip_sum;   /* IPv4: folded sum of the header as it stands */
    uint8_t tos_copy;  /* bits of the outer TOS or traffic class that are the inner packet's, */
    uint8_t tos_fixed; /* and the rest of them */
    struct dp_addr remote;
};

void dp_tunnel_init(struct dp_tunnel *t, const struct dp_adjacency *a, const struct dp_network *n,
                    const struct dp_port *port);

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
