/* transpose.h: header transposition: what a flow does to each of its packets, hit or miss alike. */
#ifndef DP_TRANSPOSE_H
#define DP_TRANSPOSE_H
#include "checksum.h"
#include "flow.h"
#include "parse.h"
#include "snapshot.h"

/* Largest IP packet on the way of this one: the policy's, or what was learned of the path. */
static inline uint16_t dp_way_mtu(const struct dp_packet *p, const struct dp_act *act) {
    const bool narrower =
        dp_unlikely(p->path_mtu) && (dp_get(act->flags) & DP_ACT_ENCAP) && p->path_mtu < act->mtu;
    return narrower ? p->path_mtu : act->mtu;
}

/* Checks TTL and size, then rewrites the packet by half (whose mirror is other), pushing the outer
 * headers where the way asks for them. Returns 0, DP_UNNUMBERED of dp_encap,
 * or the reason with the packet untouched. */
int dp_transpose(struct dp_packet *p, const struct dp_half *half, const struct dp_half *other,
                 const struct dp_snapshot *policy);

/* NAT, by parts: addresses, ports and the transport's checksum become those of the other half's
 * key, mirrored. */
static inline void dp_translate_addresses(uint8_t *l3, const struct dp_half *half,
                                          const struct dp_key *mirror, bool v4) {
    if (v4) {
        struct dp_ip4 *ip = (struct dp_ip4 *)l3;
        memcpy(ip->src, dp_addr_v4(&mirror->dst), 4);
        memcpy(ip->dst, dp_addr_v4(&mirror->src), 4);
        dp_csum_fix_at(l3 + offsetof(struct dp_ip4, csum), half->delta_addr);
    } else {
        struct dp_ip6 *ip = (struct dp_ip6 *)l3;
        memcpy(ip->src, &mirror->dst, 16);
        memcpy(ip->dst, &mirror->src, 16);
    }
}
static inline void dp_translate_ports(void *l4, const struct dp_key *mirror) {
    struct dp_udp *ports = l4;
    ports->sport = be16_put(mirror->dport);
    ports->dport = be16_put(mirror->sport);
}
static inline void dp_fix_transport(struct dp_packet *p, const struct dp_half *half) {
    void *field = dp_packet_l4_checksum(p);
    uint16_t csum;
    memcpy(&csum, field, 2);
    if (dp_unlikely(p->frame->flags & DP_CSUM_PARTIAL)) {
        csum = dp_csum_fix_partial(csum, half->delta_addr);
    } else if (p->key.proto == DP_IP_UDP && csum == 0 && p->family == 4) {
        return; /* none was made: RFC 768 */
    } else {
        const bool pseudo = p->key.proto != DP_IP_ICMP;
        csum = dp_csum_fix(csum, (uint32_t)half->delta_port + (pseudo ? half->delta_addr : 0));
        csum = p->key.proto == DP_IP_UDP && csum == 0 ? 0xffff : csum;
    }
    memcpy(field, &csum, 2);
}

/* Does to an ICMP error what its flow does to packets of its direction: the error goes where they
 * go, and what it quotes is turned back to what its addressee has sent (RFC 5508 REQ-4, REQ-5). */
int dp_transpose_error(struct dp_packet *p, const struct dp_quote *q, const struct dp_half *half,
                       const struct dp_half *other, const struct dp_snapshot *policy);

/* The checksum deltas of a half that turns its own key into the other's mirror. */
void dp_transpose_deltas(struct dp_half *half, const struct dp_half *other);

#endif
