#include "encap.h"
#include "checksum.h"

enum { OUTER_TTL = 64 };

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

static void init4(struct dp_tunnel *t, const struct dp_adjacency *a, const struct dp_network *n,
                  const struct dp_port *port) {
    struct dp_outer4 *o = &t->head.v4;
    fill_eth(&o->eth, a, port, DP_ETH_IP4);
    o->ip = (struct dp_ip4){
        .version_ihl = 0x45, .frag = be16_put(DP_IP4_DF), .ttl = OUTER_TTL, .proto = DP_IP_UDP};
    memcpy(o->ip.src, port->ip4 + 12, 4);
    memcpy(o->ip.dst, a->remote + 12, 4);
    o->udp = (struct dp_udp){.dport = be16_put(port->udp_port)};
    fill_vxlan(&o->vxlan, n->vni);
    t->head_len = sizeof *o;
    t->ip_sum = dp_csum_fold(dp_csum_add(0, &o->ip, sizeof o->ip));
}

static void init6(struct dp_tunnel *t, const struct dp_adjacency *a, const struct dp_network *n,
                  const struct dp_port *port) {
    struct dp_outer6 *o = &t->head.v6;
    fill_eth(&o->eth, a, port, DP_ETH_IP6);
    o->ip = (struct dp_ip6){
        .version_class_flow = be32_put(6u << 28), .next = DP_IP_UDP, .hops = OUTER_TTL};
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
    if (dp_addr_is_v4(&t->remote)) {
        init4(t, a, n, port);
    } else {
        init6(t, a, n, port);
    }
}

static void push4(uint8_t *at, const struct dp_tunnel *t, uint32_t inner, uint16_t sport,
                  uint8_t ecn) {
    struct dp_outer4 *o = (struct dp_outer4 *)at;
    *o = t->head.v4;
    const uint32_t udp = inner + (uint32_t)(sizeof o->udp + sizeof o->vxlan);
    o->ip.tos = ecn;
    o->ip.total = be16_put(udp + (uint32_t)sizeof o->ip);
    o->ip.csum = (uint16_t)~dp_csum_fold((uint64_t)t->ip_sum + be16_put(ecn).net + o->ip.total.net);
    o->udp.sport = be16_put(sport);
    o->udp.len = be16_put(udp);
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

/* Over IPv6 the UDP checksum is mandatory (RFC 8200 section 8.1). */
static void push6(uint8_t *at, const struct dp_tunnel *t, uint32_t inner, uint64_t inner_sum,
                  uint16_t sport, uint8_t ecn) {
    struct dp_outer6 *o = (struct dp_outer6 *)at;
    *o = t->head.v6;
    const uint32_t udp = inner + (uint32_t)(sizeof o->udp + sizeof o->vxlan);
    o->ip.version_class_flow = be32_put(6u << 28 | (uint32_t)ecn << 20);
    o->ip.payload = be16_put(udp);
    o->udp.sport = be16_put(sport);
    o->udp.len = be16_put(udp);
    const struct dp_addr src = dp_addr_load(o->ip.src);
    const uint64_t sum = dp_csum_add(dp_csum_pseudo(&src, &t->remote, DP_IP_UDP, udp) + inner_sum,
                                     &o->udp, sizeof o->udp + sizeof o->vxlan);
    const uint16_t csum = (uint16_t)~dp_csum_fold(sum);
    o->udp.csum = csum ? csum : 0xffff;
}

void dp_encap(struct dp_packet *p, const struct dp_tunnel *t, uint16_t sport, uint8_t ecn) {
    const uint32_t inner = p->len;
    const bool v4 = t->head_len == sizeof(struct dp_outer4);
    const uint64_t sum = dp_likely(v4) ? 0 : inner_sum(p);
    p->data -= t->head_len;
    p->len += t->head_len;
    if (dp_likely(v4)) {
        push4(p->data, t, inner, sport, ecn);
    } else {
        push6(p->data, t, inner, sum, sport, ecn);
    }
}
