#include "nd.h"
#include "checksum.h"
#include "cursor.h"

enum { HOPS = 255 }; /* what has crossed no router (RFC 4861 section 7.1) */

/* A solicitation or advertisement that its receiver need not discard. */
struct message {
    struct dp_addr target;
    uint8_t type;
    bool claims; /* has an option that tells its sender's MAC */
    bool lies;   /* and there it is another one than the frame's source */
};

static uint8_t type_of(const struct dp_packet *p) {
    return (uint8_t)(p->key.dport >> 8);
}

static bool is_link_local(const struct dp_addr *a) {
    const uint8_t *b = dp_addr_bytes(a);
    return b[0] == 0xfe && (b[1] & 0xc0) == 0x80;
}

/* ff02::1:ff00:0 and the last three bytes (RFC 4291 section 2.7.1). */
static struct dp_addr solicited_node(const struct dp_addr *a) {
    uint8_t b[16] = {0xff, 0x02, [11] = 1, [12] = 0xff};
    memcpy(b + 13, dp_addr_bytes(a) + 13, 3);
    return dp_addr_load(b);
}

/* fe80:: and the MAC as modified EUI-64 (RFC 4291 appendix A). */
static struct dp_addr link_local_of(const uint8_t mac[6]) {
    const uint8_t b[16] = {0xfe, 0x80, [8] = mac[0] ^ 2, mac[1], mac[2],
                           0xff, 0xfe, mac[3],           mac[4], mac[5]};
    return dp_addr_load(b);
}

/* ---- validation --------------------------------------------------------------------------- */

static bool checksum_is_right(const struct dp_packet *p) {
    const uint32_t len = p->len - p->l4;
    const uint64_t sum = dp_csum_pseudo(&p->key.src, &p->key.dst, DP_IP_ICMP6, len);
    return dp_csum_fold(dp_csum_add(sum, dp_packet_l4(p), len)) == 0xffff;
}

/* Options to the end of the message. False: one has no length, is cut, or is an Ethernet address
 * of another length. Options of other types are stepped over. */
static bool read_options(struct dp_cursor *c, uint8_t wanted, const uint8_t mac[6],
                         struct message *m) {
    while (c->left > 0) {
        const struct dp_nd_mac *head = dp_peek(c, sizeof *head);
        if (!head || head->len == 0) {
            return false;
        }
        const bool is_mac = head->type == DP_ND_SOURCE_MAC || head->type == DP_ND_TARGET_MAC;
        if ((is_mac && head->len != 1) || !dp_pull(c, head->len * 8u)) {
            return false;
        }
        if (head->type == wanted) {
            m->claims = true;
            m->lies = m->lies || !dp_mac_equal(head->mac, mac);
        }
    }
    return true;
}

/* RFC 4861 sections 7.1.1 and 7.1.2. A fragment header is forbidden (RFC 6980 section 5); other
 * extension headers are not, but no host sends them here, and a filter that steps over them is how
 * such guards have been evaded (RFC 7113 section 2). */
static bool read_message(const struct dp_packet *p, struct message *m) {
    const struct dp_ip6 *ip = dp_packet_ip6(p);
    struct dp_cursor c = {dp_packet_l4(p), p->len - p->l4};
    const struct dp_nd *nd = dp_pull(&c, sizeof *nd);
    if (p->l4 != p->l3 + sizeof *ip || !nd || ip->hops != HOPS || nd->code != 0 ||
        !checksum_is_right(p)) {
        return false;
    }
    const bool solicits = nd->type == DP_ICMP6_SOLICIT;
    *m = (struct message){.target = dp_addr_load(nd->target), .type = nd->type};
    if (nd->target[0] == 0xff || dp_addr_is_no_ip6(&m->target) ||
        !read_options(&c, solicits ? DP_ND_SOURCE_MAC : DP_ND_TARGET_MAC, dp_packet_eth(p)->src,
                      m)) {
        return false;
    }
    if (!solicits) {
        return !(nd->flags & DP_ND_SOLICITED) || !dp_addr_is_multicast(&p->key.dst);
    }
    const struct dp_addr group = solicited_node(&m->target);
    return !dp_addr_is_zero(&p->key.src) || (dp_addr_equal(&p->key.dst, &group) && !m->claims);
}

/* ---- answer ------------------------------------------------------------------------------- */

struct advertisement {
    struct dp_eth eth;
    struct dp_ip6 ip;
    struct dp_nd nd;
    struct dp_nd_mac option;
} dp_packed;

/* To who asked; of a probe for duplicates, which has no sender, to all nodes (RFC 4861 section
 * 7.2.4). */
static void advertise(struct dp_packet *p, const struct message *m, const uint8_t mac[6],
                      uint8_t flags) {
    static const struct dp_addr all_nodes = {{0x02ff, (uint64_t)1 << 56}};
    static const uint8_t all_nodes_mac[6] = {0x33, 0x33, 0, 0, 0, 1};
    const bool probe = dp_addr_is_zero(&p->key.src);
    const struct dp_addr *to = probe ? &all_nodes : &p->key.src;
    const uint32_t len = sizeof(struct dp_nd) + sizeof(struct dp_nd_mac);
    struct advertisement a = {
        .eth = {.type = be16_put(DP_ETH_IP6)},
        .ip = {.version_class_flow = be32_put(6u << 28),
               .payload = be16_put(len),
               .next = DP_IP_ICMP6,
               .hops = HOPS},
        .nd = {.type = DP_ICMP6_ADVERT, .flags = flags | (probe ? 0 : DP_ND_SOLICITED)},
        .option = {.type = DP_ND_TARGET_MAC, .len = 1}};
    memcpy(a.eth.dst, probe ? all_nodes_mac : dp_packet_eth(p)->src, 6);
    memcpy(a.eth.src, mac, 6);
    memcpy(a.ip.src, &m->target, 16);
    memcpy(a.ip.dst, to, 16);
    memcpy(a.nd.target, &m->target, 16);
    memcpy(a.option.mac, mac, 6);
    const uint64_t pseudo = dp_csum_pseudo(&m->target, to, DP_IP_ICMP6, len);
    a.nd.csum = (uint16_t)~dp_csum_fold(dp_csum_add(pseudo, &a.nd, len));
    if (p->len < sizeof a) { /* a probe has no option: room is in front */
        p->data -= sizeof a - p->len;
    }
    p->len = sizeof a;
    memcpy(p->data, &a, sizeof a);
    p->frame->gso_size = 0;
    p->frame->gso_type = 0;
}

/* ---- who says what ------------------------------------------------------------------------ */

/* An endpoint's own address, or a link-local one: those it chooses itself, but not the router's. */
static bool may_speak_as(const struct dp_snapshot *s, const struct dp_endpoint *e,
                         const struct dp_addr *a) {
    const struct dp_addr router = link_local_of(s->networks[e->network].dr_mac);
    return dp_endpoint_owns(s, e, a) || (is_link_local(a) && !dp_addr_equal(a, &router));
}

static enum dp_reason solicited(struct dp_packet *p, const struct dp_snapshot *s,
                                const struct dp_endpoint *e, const struct message *m) {
    const struct dp_network *n = &s->networks[e->network];
    const struct dp_addr router = link_local_of(n->dr_mac);
    if (m->lies || (!dp_addr_is_zero(&p->key.src) && !may_speak_as(s, e, &p->key.src))) {
        return DP_R_guard_nd;
    }
    if (dp_endpoint_owns(s, e, &m->target)) {
        return DP_R_nd_announcement;
    }
    const struct dp_hop *r = dp_snapshot_route(s, e->network, &m->target);
    if (dp_addr_equal(&m->target, &router) || (r && r->kind == DP_TO_GATEWAY)) {
        advertise(p, m, n->dr_mac, DP_ND_ROUTER | DP_ND_OVERRIDE);
        return DP_R_none;
    }
    if (is_link_local(&m->target) || !r || r->kind == DP_TO_SUBNET) {
        return DP_R_nd_unknown_target;
    }
    /* as a proxy, without the override flag (RFC 4861 section 7.2.8) */
    advertise(p, m, r->kind == DP_TO_ENDPOINT ? s->endpoints[r->target].mac : n->dr_mac, 0);
    return DP_R_none;
}

enum dp_reason dp_nd_from_endpoint(struct dp_packet *p, const struct dp_snapshot *s,
                                   const struct dp_endpoint *e) {
    struct message m;
    switch (type_of(p)) {
    case DP_ICMP6_ROUTER_SOLICIT:
        return DP_R_nd_router_solicit;
    case DP_ICMP6_ROUTER_ADVERT:
    case DP_ICMP6_REDIRECT:
        return DP_R_guard_ra;
    default:
        break;
    }
    if (!read_message(p, &m)) {
        return DP_R_bad_nd;
    }
    if (m.type == DP_ICMP6_SOLICIT) {
        return solicited(p, s, e, &m);
    }
    const bool own = may_speak_as(s, e, &p->key.src) && may_speak_as(s, e, &m.target);
    return own && m.claims && !m.lies ? DP_R_nd_announcement : DP_R_guard_nd;
}

enum dp_reason dp_nd_from_host(struct dp_packet *p, const struct dp_port *port) {
    const struct dp_addr own = dp_addr_load(port->ip6);
    struct message m;
    if (type_of(p) != DP_ICMP6_SOLICIT) {
        return DP_R_nd_unknown_target;
    }
    if (!read_message(p, &m)) {
        return DP_R_bad_nd;
    }
    if (!dp_addr_equal(&m.target, &own)) {
        return DP_R_nd_unknown_target;
    }
    advertise(p, &m, port->mac, DP_ND_ROUTER | DP_ND_OVERRIDE);
    return DP_R_none;
}
