/* transpose.h: header transposition: what a flow does to each of its packets, hit or miss alike. */
#ifndef DP_TRANSPOSE_H
#define DP_TRANSPOSE_H
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

/* NAT: modifies addresses, ports and echo id to the other half's key, mirrored. */
void dp_translate(struct dp_packet *p, const struct dp_half *half, const struct dp_key *mirror);

/* Does to an ICMP error what its flow does to packets of its direction: the error goes where they
 * go, and what it quotes is turned back to what its addressee has sent (RFC 5508 REQ-4, REQ-5). */
int dp_transpose_error(struct dp_packet *p, const struct dp_quote *q, const struct dp_half *half,
                       const struct dp_half *other, const struct dp_snapshot *policy);

/* The checksum deltas of a half that turns its own key into the other's mirror. */
void dp_transpose_deltas(struct dp_half *half, const struct dp_half *other);

#endif
