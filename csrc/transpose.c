/* transpose.c: the checks first, none of which changes the packet, then the rewrite from the
 * outside in. */
#include "transpose.h"
#include "checksum.h"
#include "encap.h"

enum { MSS_OPTION = 2, IP4_MIN = 20, IP6_MIN = 40 };

/* ---- checks ------------------------------------------------------------------------------- */

/* A neighbour may be addressed as such, translated or not: a server on the client's link answers it
 * there, whatever it was asked as. */
static bool l2_allowed(const struct dp_packet *p, const struct dp_act *act) {
    return p->l2 == DP_L2_ROUTED || (!(act->flags & (DP_ACT_ENCAP | DP_ACT_HOST)) &&
                                     dp_mac_equal(dp_packet_eth(p)->dst, act->macs));
}

static uint8_t ttl_of(const struct dp_packet *p) {
    return p->family == 4 ? dp_packet_ip4(p)->ttl : dp_packet_ip6(p)->hops;
}

/* Bytes of IP packet the way has to carry: of a super-frame, those of one segment. */
static uint32_t wire_size(const struct dp_packet *p) {
    return dp_packet_first_len(p) - p->l3;
}

/* A super-frame is not cut into pieces: its sender is told, and makes smaller packets. */
static enum dp_reason check_size(const struct dp_packet *p, uint16_t mtu) {
    if (dp_likely(mtu == 0 || wire_size(p) <= mtu)) {
        return DP_R_none;
    }
    if (p->family == 4 && !p->more && !(be16_get(dp_packet_ip4(p)->frag) & DP_IP4_DF)) {
        return DP_R_needs_fragmentation;
    }
    return DP_R_too_big;
}

/* ---- rewrite ------------------------------------------------------------------------------ */

static void translate(struct dp_packet *p, const struct dp_half *half,
                      const struct dp_key *mirror) {
    dp_translate_addresses(p->data + p->l3, half, mirror, p->family == 4);
    if (dp_unlikely(p->fragment == DP_LATER)) {
        return; /* the first one has what there is above IP, the checksum of all of them included */
    }
    if (dp_proto_has_ports(p->key.proto)) {
        dp_translate_ports(dp_packet_l4(p), mirror);
    } else if (dp_key_is_echo(&p->key)) {
        ((struct dp_icmp *)dp_packet_l4(p))->id = be16_put(mirror->sport);
    } else {
        return; /* of other protocols the checksum is not known: the address alone */
    }
    dp_fix_transport(p, half);
}

/* Lowers a SYN's MSS option to mss, never raises it, never adds one (RFC 9293 section 3.7.1). */
static void clamp_mss(struct dp_packet *p, uint16_t mss) {
    struct dp_tcp *tcp = dp_packet_l4(p);
    uint8_t *at = (uint8_t *)(tcp + 1);
    uint32_t left = (uint32_t)(tcp->offset >> 4) * 4 - (uint32_t)sizeof *tcp;
    while (left >= 2 && at[0] != 0) {
        if (at[0] == 1) {
            at++;
            left--;
            continue;
        }
        if (at[1] < 2 || at[1] > left) {
            return;
        }
        if (at[0] == MSS_OPTION && at[1] == 4) {
            const uint16_t old = (uint16_t)(at[2] << 8 | at[3]);
            if (old > mss) {
                /* at an odd offset the two bytes lie in two words of the sum, each in the other's
                 * place */
                const bool odd = (size_t)(at + 2 - (uint8_t *)tcp) & 1;
                const uint16_t was = odd ? old : be16_put(old).net;
                const uint16_t is = odd ? mss : be16_put(mss).net;
                at[2] = (uint8_t)(mss >> 8);
                at[3] = (uint8_t)mss;
                if (!(p->frame->flags & DP_CSUM_PARTIAL)) {
                    dp_csum_fix_at(dp_packet_l4_checksum(p), dp_csum_term(was, is));
                }
            }
            return;
        }
        left -= at[1];
        at += at[1];
    }
}

/* Both ways: what one side announces is what the other one will send. */
static uint16_t mss_limit(const struct dp_packet *p, const struct dp_half *half) {
    const uint16_t headers = p->family == 4 ? 40 : 60;
    return p->path_mtu && p->path_mtu - headers < half->mss ? (uint16_t)(p->path_mtu - headers)
                                                            : half->mss;
}

static void hop(struct dp_packet *p) {
    if (p->family == 4) {
        dp_ip4_hop(dp_packet_ip4(p));
    } else {
        dp_packet_ip6(p)->hops--;
    }
}

static void set_tos(struct dp_packet *p, uint8_t tos) {
    if (p->family == 6) {
        struct dp_ip6 *ip = dp_packet_ip6(p);
        const uint32_t word = be32_get(ip->version_class_flow);
        ip->version_class_flow = be32_put((word & ~(0xffu << 20)) | (uint32_t)tos << 20);
        return;
    }
    struct dp_ip4 *ip = dp_packet_ip4(p);
    uint16_t old;
    uint16_t new;
    memcpy(&old, ip, 2);
    ip->tos = tos;
    memcpy(&new, ip, 2);
    dp_csum_fix_at((uint8_t *)ip + offsetof(struct dp_ip4, csum), dp_csum_term(old, new));
}

static bool is_syn(const struct dp_packet *p) {
    return p->key.proto == DP_IP_TCP && p->fragment != DP_LATER &&
           (((struct dp_tcp *)dp_packet_l4(p))->flags & DP_TCP_SYN);
}

/* Puts n new bytes in the place of old ones inside an ICMP message; returns the delta of its
 * checksum. */
static uint32_t replace(void *at, const void *new, size_t n) {
    const uint32_t delta = dp_csum_delta(at, new, n);
    memcpy(at, new, n);
    return delta;
}

static uint32_t restore_quoted_ip(struct dp_packet *p, const struct dp_quote *q,
                                  const struct dp_key *sent, uint32_t *addresses) {
    if (p->family == 6) {
        struct dp_ip6 *ip = (struct dp_ip6 *)(p->data + q->l3);
        *addresses = replace(ip->src, &sent->src, 16) + replace(ip->dst, &sent->dst, 16);
        return *addresses;
    }
    struct dp_ip4 *ip = (struct dp_ip4 *)(p->data + q->l3);
    *addresses =
        replace(ip->src, dp_addr_v4(&sent->src), 4) + replace(ip->dst, dp_addr_v4(&sent->dst), 4);
    const uint16_t csum = dp_csum_fix(ip->csum, *addresses);
    return *addresses + replace((uint8_t *)ip + offsetof(struct dp_ip4, csum), &csum, 2);
}

/* The quoted packet went out as the mirror of half's key; it was sent as other's key says. Returns
 * the delta of the bytes quoted. */
static uint32_t restore_quote(struct dp_packet *p, const struct dp_quote *q,
                              const struct dp_key *sent) {
    uint32_t addresses = 0;
    const uint32_t delta = restore_quoted_ip(p, q, sent, &addresses);
    const be16 sport = be16_put(sent->sport);
    const be16 dport = be16_put(sent->dport);
    if (!dp_proto_has_ports(sent->proto)) {
        struct dp_icmp *echo = (struct dp_icmp *)(p->data + q->l4);
        const uint32_t id = replace(&echo->id, &sport, 2);
        const uint32_t pseudo = sent->proto == DP_IP_ICMP ? 0 : addresses;
        const uint16_t csum = dp_csum_fix(echo->csum, id + pseudo);
        return delta + id + replace(&echo->csum, &csum, 2);
    }
    struct dp_udp *udp = (struct dp_udp *)(p->data + q->l4);
    const uint32_t ports = replace(&udp->sport, &sport, 2) + replace(&udp->dport, &dport, 2);
    const bool tcp = sent->proto == DP_IP_TCP;
    const uint32_t field = tcp ? offsetof(struct dp_tcp, csum) : offsetof(struct dp_udp, csum);
    if ((uint32_t)q->l4 + field + 2 > p->len || (!tcp && udp->csum == 0)) {
        return delta + ports; /* TCP's lies behind the eight bytes that are always quoted */
    }
    uint16_t csum;
    memcpy(&csum, (uint8_t *)udp + field, 2);
    csum = dp_csum_fix(csum, addresses + ports);
    return delta + ports + replace((uint8_t *)udp + field, &csum, 2);
}

/* The error as its addressee must see it: about the packet that this one sent. Where the half
 * translates the source, the error's source is inside too and becomes the same (RFC 5508 REQ-5). */
static void translate_error(struct dp_packet *p, const struct dp_quote *q,
                            const struct dp_half *half, const struct dp_key *sent) {
    const bool from_inside = !dp_addr_equal(&half->key.src, &sent->dst);
    const struct dp_addr *src = from_inside ? &sent->dst : &p->key.src;
    uint32_t delta = restore_quote(p, q, sent);
    if (p->family == 4) {
        struct dp_ip4 *ip = dp_packet_ip4(p);
        dp_csum_fix_at((uint8_t *)ip + offsetof(struct dp_ip4, csum),
                       replace(ip->src, dp_addr_v4(src), 4) +
                           replace(ip->dst, dp_addr_v4(&sent->src), 4));
    } else {
        struct dp_ip6 *ip = dp_packet_ip6(p);
        delta += replace(ip->src, src, 16) + replace(ip->dst, &sent->src, 16);
    }
    dp_csum_fix_at(dp_packet_l4_checksum(p), delta);
}

/* What the inner TOS becomes on decapsulation: ECN by RFC 6040; DSCP stays, or is the outer one's
 * (RFC 2983: pipe, uniform). */
static enum dp_reason take_outer_tos(const struct dp_packet *p, const struct dp_network *n,
                                     uint8_t *tos) {
    const bool uniform = n->wire & DP_WIRE_DSCP_BACK;
    if (dp_likely(!(p->outer_tos & 3) && !uniform)) {
        return DP_R_none; /* an outer Not-ECT changes nothing */
    }
    const uint8_t ecn = dp_ecn_decap(*tos, p->outer_tos);
    *tos = (uint8_t)(((uniform ? p->outer_tos : *tos) & 0xfc) | (ecn & 3));
    return ecn > 3 ? DP_R_ecn_ce_on_not_ect : DP_R_none;
}

/* All that can refuse the packet; *tos is what its inner header will say. */
static enum dp_reason check(const struct dp_packet *p, const struct dp_act *act,
                            const struct dp_snapshot *policy, uint8_t *tos) {
    *tos = dp_tos_of(p);
    if (!l2_allowed(p, act)) {
        return DP_R_not_our_mac;
    }
    if (p->l2 == DP_L2_ROUTED && (act->flags & DP_ACT_TTL) && ttl_of(p) <= 1) {
        return DP_R_ttl_expired;
    }
    if (act->flags & DP_ACT_DECAP) {
        return take_outer_tos(p, &policy->networks[p->network], tos);
    }
    return check_size(p, dp_way_mtu(p, act));
}

/* The router's part: hop, MAC addresses, outer headers. Returns what dp_encap says. */
static int route(struct dp_packet *p, const struct dp_act *act, uint8_t tos,
                 const struct dp_snapshot *policy) {
    if (dp_unlikely(tos != dp_tos_of(p))) {
        set_tos(p, tos);
    }
    if (p->l2 == DP_L2_ROUTED) {
        if (act->flags & DP_ACT_TTL) {
            hop(p);
        }
        memcpy(p->data, act->macs, sizeof act->macs);
    }
    return act->flags & DP_ACT_ENCAP
               ? dp_encap(p, &policy->tunnels[act->adjacency], act->outer_sport, tos)
               : DP_R_none;
}

int dp_transpose(struct dp_packet *p, const struct dp_half *half, const struct dp_half *other,
                 const struct dp_snapshot *policy) {
    uint8_t tos;
    const enum dp_reason r = check(p, &half->act, policy, &tos);
    if (dp_unlikely(r)) {
        return r;
    }
    if (dp_unlikely(is_syn(p))) {
        clamp_mss(p, mss_limit(p, half));
    }
    if (half->act.flags & DP_ACT_NAT) {
        translate(p, half, &other->key);
    }
    return route(p, &half->act, tos, policy);
}

int dp_transpose_error(struct dp_packet *p, const struct dp_quote *q, const struct dp_half *half,
                       const struct dp_half *other, const struct dp_snapshot *policy) {
    uint8_t tos;
    const enum dp_reason r = check(p, &half->act, policy, &tos);
    if (r) {
        return r;
    }
    if (half->act.flags & DP_ACT_NAT) {
        translate_error(p, q, half, &other->key);
    }
    return route(p, &half->act, tos, policy);
}

void dp_transpose_deltas(struct dp_half *half, const struct dp_half *other) {
    const struct dp_key *old = &half->key;
    const struct dp_key *new = &other->key; /* mirrored: its destination is our new source */
    const size_t skip = dp_addr_is_v4(&old->src) ? 12 : 0;
    half->delta_addr = dp_csum_fold(
        dp_csum_delta(dp_addr_bytes(&old->src) + skip, dp_addr_bytes(&new->dst) + skip, 16 - skip) +
        dp_csum_delta(dp_addr_bytes(&old->dst) + skip, dp_addr_bytes(&new->src) + skip, 16 - skip));
    if (dp_proto_has_ports(old->proto)) {
        half->delta_port =
            dp_csum_fold(dp_csum_term(be16_put(old->sport).net, be16_put(new->dport).net) +
                         dp_csum_term(be16_put(old->dport).net, be16_put(new->sport).net));
    } else {
        half->delta_port =
            dp_csum_fold(dp_csum_term(be16_put(old->sport).net, be16_put(new->sport).net));
    }
}
