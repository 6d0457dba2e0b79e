#include "encap.h"
#include "checksum.h"

enum { OUTER_TTL = 64, ECN_BITS = 3, DSCP_SHIFT = 2 };

static void fill_vxlan(struct dp_vxlan *v, uint32_t vni) {
    *v = (struct dp_vxlan){.flags = DP_VXLAN_I,
                           .vni = {(uint8_t)(vni >> 16), (uint8_t)(vni >> 8), (uint8_t)vni}};
}

static void fill_eth(struct dp_eth *eth, const struct dp_adjacency *a, const struct dp_port *port,
                     uint16_t type) {
    memcpy(eth->dst, a->outer_mac, 6);
    memcpy(eth->src, port->mac, 6);
    eth->type = be16_put(type);
}

static uint8_t outer_ttl(const struct dp_network *n) {
    return n->ttl ? n->ttl : OUTER_TTL;
}

static void init4(struct dp_tunnel *t, const struct dp_adjacency *a, const struct dp_network *n,
                  const struct dp_port *port) {
    struct dp_outer4 *o = &t->head.v4;
    const uint16_t usual = n->wire & (DP_WIRE_DF_CLEAR | DP_WIRE_DF_INHERIT) ? 0 : DP_IP4_DF;
    fill_eth(&o->eth, a, port, DP_ETH_IP4);
    o->ip = (struct dp_ip4){
        .version_ihl = 0x45, .frag = be16_put(usual), .ttl = outer_ttl(n), .proto = DP_IP_UDP};
    t->odd = n->wire & (DP_WIRE_DF_CLEAR | DP_WIRE_DF_INHERIT | DP_WIRE_UDP_CHECKSUM);
    memcpy(o->ip.src, port->ip4 + 12, 4);
    memcpy(o->ip.dst, a->remote + 12, 4);
    o->udp = (struct dp_udp){.dport = be16_put(port->udp_port)};
    fill_vxlan(&o->vxlan, n->vni);
    t->head_len = sizeof *o;
    t->usual = !t->odd;
    t->ip_sum = dp_csum_fold(dp_csum_add(0, &o->ip, sizeof o->ip));
}

static void init6(struct dp_tunnel *t, const struct dp_adjacency *a, const struct dp_network *n,
                  const struct dp_port *port) {
    struct dp_outer6 *o = &t->head.v6;
    fill_eth(&o->eth, a, port, DP_ETH_IP6);
    o->ip = (struct dp_ip6){
        .version_class_flow = be32_put(6u << 28), .next = DP_IP_UDP, .hops = outer_ttl(n)};
    memcpy(o->ip.src, port->ip6, 16);
    memcpy(o->ip.dst, a->remote, 16);
    o->udp = (struct dp_udp){.dport = be16_put(port->udp_port)};
    fill_vxlan(&o->vxlan, n->vni);
    t->head_len = sizeof *o;
}

void dp_tunnel_init(struct dp_tunnel *t, const struct dp_adjacency *a, const struct dp_network *n,
                    const struct dp_port *port) {
    memset(t, 0, sizeof *t);
    t->remote = dp_addr_load(a->remote);
    t->mtu = n->mtu;
    t->vni = n->vni;
    memcpy(t->own_mac, n->dr_mac, sizeof t->own_mac);
    t->trusted = !(n->dr_mac[0] & 1) && !(n->wire & DP_WIRE_DSCP_BACK);
    t->tos_copy = n->dscp == DP_DSCP_COPY ? 0xff : ECN_BITS;
    t->tos_fixed = n->dscp == DP_DSCP_COPY ? 0 : (uint8_t)(n->dscp << DSCP_SHIFT);
    if (dp_addr_is_v4(&t->remote)) {
        init4(t, a, n, port);
    } else {
        init6(t, a, n, port);
    }
}

/* What the inner frame will add to the outer sum. Once a partial checksum is complete, all from the
 * transport header on sums to the complement of what stands in its field now, so nobody has to
 * complete it for our sake (Linux calls this local checksum offload). */
static uint64_t inner_sum(const struct dp_packet *p) {
    if (!(p->frame->flags & DP_CSUM_PARTIAL)) {
        return dp_csum_add(0, p->data, p->len);
    }
    uint16_t field;
    memcpy(&field, dp_packet_l4_checksum(p), sizeof field);
    return dp_csum_add(0, p->data, p->l4) + (uint16_t)~field;
}

static uint16_t udp_checksum(const struct dp_udp *udp, const struct dp_addr *src,
                             const struct dp_addr *dst, uint64_t inner_sum) {
    const uint64_t pseudo = dp_csum_pseudo(src, dst, DP_IP_UDP, be16_get(udp->len));
    const uint16_t csum = (uint16_t)~dp_csum_fold(
        dp_csum_add(pseudo + inner_sum, udp, sizeof *udp + sizeof(struct dp_vxlan)));
    return csum ? csum : 0xffff;
}

/* Over IPv6 the UDP checksum is mandatory (RFC 8200 section 8.1); that of a super-frame is made for
 * each packet when it is cut. */
static void push6(uint8_t *at, const struct dp_tunnel *t, const struct dp_packet *p, uint16_t sport,
                  uint8_t tos) {
    struct dp_outer6 *o = (struct dp_outer6 *)at;
    *o = t->head.v6;
    const uint32_t udp = dp_packet_first_len(p) + (uint32_t)(sizeof o->udp + sizeof o->vxlan);
    o->ip.version_class_flow = be32_put(6u << 28 | (uint32_t)tos << 20);
    o->ip.payload = be16_put(udp);
    o->udp.sport = be16_put(sport);
    o->udp.len = be16_put(udp);
    const struct dp_addr src = dp_addr_load(o->ip.src);
    o->udp.csum = p->more ? 0 : udp_checksum(&o->udp, &src, &t->remote, inner_sum(p));
}

static void change_frag(struct dp_ip4 *ip, be16 frag, be16 id) {
    const uint32_t delta = dp_csum_term(ip->frag.net, frag.net) + dp_csum_term(ip->id.net, id.net);
    ip->csum = dp_csum_fix(ip->csum, delta);
    ip->frag = frag;
    ip->id = id;
}

void dp_outer_number(struct dp_packet *p, uint16_t id) {
    struct dp_ip4 *ip = &((struct dp_outer4 *)p->data)->ip;
    change_frag(ip, ip->frag, be16_put(id));
}

/* Outer IPv4 headers of a network that wants more of them than usual. */
static dp_cold int push_odd4(struct dp_packet *p, const struct dp_tunnel *t, uint16_t sport,
                             uint8_t tos) {
    struct dp_outer4 *o = (struct dp_outer4 *)(p->data - sizeof *o);
    dp_push4((uint8_t *)o, t, dp_packet_first_len(p), sport, tos);
    if ((t->odd & DP_WIRE_DF_INHERIT) &&
        (p->family == 6 || (p->family == 4 && be16_get(dp_packet_ip4(p)->frag) & DP_IP4_DF))) {
        change_frag(&o->ip, be16_put(DP_IP4_DF), o->ip.id);
    }
    if ((t->odd & DP_WIRE_UDP_CHECKSUM) && !p->more) {
        const struct dp_addr src = dp_addr_from4(o->ip.src);
        o->udp.csum = udp_checksum(&o->udp, &src, &t->remote, inner_sum(p));
    }
    return be16_get(o->ip.frag) & DP_IP4_DF ? DP_R_none : DP_UNNUMBERED;
}

int dp_encap(struct dp_packet *p, const struct dp_tunnel *t, uint16_t sport, uint8_t tos) {
    uint8_t *at = p->data - t->head_len;
    int said = DP_R_none;
    if (dp_unlikely(t->head_len != sizeof(struct dp_outer4))) {
        push6(at, t, p, sport, dp_outer_tos(t, tos));
    } else if (dp_unlikely(t->odd)) {
        said = push_odd4(p, t, sport, tos);
    } else {
        dp_push4(at, t, dp_packet_first_len(p), sport, tos);
    }
    p->data = at;
    p->len += t->head_len;
    return said;
}
