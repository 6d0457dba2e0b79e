/* parse_outer.c: the outer Ethernet, IP, UDP and VXLAN headers of a packet from the underlay (RFC
 * 7348). */
#include "checksum.h"
#include "cursor.h"
#include "parse.h"

/* A port without an address of the family has all zeros there, and owns nothing. */
static bool is_own(struct dp_addr dst, const uint8_t own[16]) {
    const struct dp_addr mine = dp_addr_load(own);
    return !dp_addr_is_zero(&mine) && dp_addr_equal(&dst, &mine);
}

/* Of a super-frame the outer lengths are those of its first packet. */
static bool trim(const struct dp_packet *p, struct dp_cursor *c, uint32_t len) {
    return dp_unlikely(p->frame->gso_type) ? len <= c->left : dp_trim(c, len);
}

static enum dp_reason outer_ip4(struct dp_packet *p, struct dp_cursor *c,
                                const struct dp_port *port) {
    const struct dp_ip4 *ip = dp_peek(c, sizeof *ip);
    if (!ip) {
        return DP_R_outer_malformed;
    }
    const uint32_t header = (uint32_t)(ip->version_ihl & 15) * 4;
    const uint32_t total = be16_get(ip->total);
    if (ip->version_ihl >> 4 != 4 || header < sizeof *ip || total < header || !trim(p, c, total)) {
        return DP_R_outer_malformed;
    }
    dp_pull(c, header);
    if (!(p->frame->flags & DP_OUTER_CHECKED) &&
        dp_csum_fold(dp_csum_add(dp_csum_add(0, ip, sizeof *ip), ip + 1, header - sizeof *ip)) !=
            0xffff) {
        return DP_R_outer_checksum;
    }
    if (be16_get(ip->frag) & (DP_IP4_MF | DP_IP4_OFFSET)) {
        return DP_R_outer_fragment;
    }
    if (ip->proto != DP_IP_UDP || !is_own(dp_addr_from4(ip->dst), port->ip4)) {
        return DP_R_outer_not_vxlan;
    }
    p->outer_src = dp_addr_from4(ip->src);
    p->outer_tos = ip->tos;
    return DP_R_none;
}

static enum dp_reason outer_ip6(struct dp_packet *p, struct dp_cursor *c,
                                const struct dp_port *port) {
    const struct dp_ip6 *ip = dp_pull(c, sizeof *ip);
    if (!ip || be32_get(ip->version_class_flow) >> 28 != 6 || !trim(p, c, be16_get(ip->payload))) {
        return DP_R_outer_malformed;
    }
    if (ip->next == DP_IP_FRAGMENT) {
        return DP_R_outer_fragment;
    }
    if (ip->next != DP_IP_UDP || !is_own(dp_addr_load(ip->dst), port->ip6)) {
        return DP_R_outer_not_vxlan;
    }
    p->outer_src = dp_addr_load(ip->src);
    p->outer_tos = (uint8_t)(be32_get(ip->version_class_flow) >> 20);
    return DP_R_none;
}

static enum dp_reason outer_udp(struct dp_packet *p, struct dp_cursor *c,
                                const struct dp_port *port, bool v6) {
    const struct dp_udp *udp = dp_peek(c, sizeof *udp);
    if (!udp) {
        return DP_R_outer_malformed;
    }
    if (be16_get(udp->dport) != port->udp_port) {
        return DP_R_outer_not_vxlan;
    }
    const uint32_t len = be16_get(udp->len);
    if (len < sizeof *udp || !trim(p, c, len)) {
        return DP_R_outer_malformed;
    }
    if (!(p->frame->flags & DP_OUTER_CHECKED)) {
        const struct dp_addr dst = v6 ? dp_addr_load(port->ip6) : dp_addr_load(port->ip4);
        if (v6 && udp->csum == 0) {
            p->outer_odd |= DP_OUTER_ZERO6;
        }
        const uint64_t pseudo = dp_csum_pseudo(&p->outer_src, &dst, DP_IP_UDP, len);
        if (udp->csum != 0 && dp_csum_fold(dp_csum_add(pseudo, udp, len)) != 0xffff) {
            return DP_R_outer_checksum;
        }
    }
    dp_pull(c, sizeof *udp);
    return DP_R_none;
}

enum dp_reason dp_parse_outer(struct dp_packet *p, const struct dp_port *port) {
    struct dp_cursor c = {p->data, p->len};
    const struct dp_eth *eth = dp_pull(&c, sizeof *eth);
    if (!eth) {
        return DP_R_short_ethernet;
    }
    const uint16_t type = be16_get(eth->type);
    if (type != DP_ETH_IP4 && type != DP_ETH_IP6) {
        return DP_R_outer_not_vxlan;
    }
    const bool v6 = type == DP_ETH_IP6;
    enum dp_reason r = v6 ? outer_ip6(p, &c, port) : outer_ip4(p, &c, port);
    if (r || (r = outer_udp(p, &c, port, v6))) {
        return r;
    }
    const struct dp_vxlan *vxlan = dp_pull(&c, sizeof *vxlan);
    if (!vxlan) {
        return DP_R_no_vni_flag;
    }
    if (dp_unlikely(!dp_vxlan_is_plain(vxlan))) {
        if (!(vxlan->flags & DP_VXLAN_I)) {
            return DP_R_no_vni_flag;
        }
        p->outer_odd |= DP_OUTER_RESERVED;
    }
    p->key.vni = dp_vxlan_vni(vxlan);
    p->data = c.at;
    p->len = c.left;
    return DP_R_none;
}
