#include "arp.h"

enum { REQUEST = 1, REPLY = 2 };

static struct dp_arp *message_of(struct dp_packet *p) {
    return (struct dp_arp *)(dp_packet_eth(p) + 1);
}

static void reply(struct dp_packet *p, const uint8_t mac[6]) {
    struct dp_eth *eth = dp_packet_eth(p);
    struct dp_arp *arp = message_of(p);
    uint8_t target[4];
    memcpy(target, arp->tpa, 4);
    memcpy(arp->tha, arp->sha, 6);
    memcpy(arp->tpa, arp->spa, 4);
    memcpy(arp->sha, mac, 6);
    memcpy(arp->spa, target, 4);
    arp->op = be16_put(REPLY);
    memcpy(eth->dst, eth->src, 6);
    memcpy(eth->src, mac, 6);
}

enum dp_reason dp_arp_from_endpoint(struct dp_packet *p, const struct dp_snapshot *s,
                                    const struct dp_endpoint *e) {
    const struct dp_arp *arp = message_of(p);
    const struct dp_network *n = &s->networks[p->network];
    const struct dp_addr sender = dp_addr_from4(arp->spa);
    const struct dp_addr target = dp_addr_from4(arp->tpa);
    const bool probe = sender.word[1] >> 32 == 0;
    if (be16_get(arp->op) != REQUEST || !dp_mac_equal(arp->sha, e->mac) ||
        (!probe && !dp_endpoint_owns(s, e, &sender))) {
        return DP_R_guard_arp;
    }
    if (dp_endpoint_owns(s, e, &target)) {
        return DP_R_arp_announcement;
    }
    const struct dp_hop *r = dp_snapshot_route(s, p->network, &target);
    if (!r || r->kind == DP_TO_SUBNET) {
        return DP_R_arp_unknown_target;
    }
    reply(p, r->kind == DP_TO_ENDPOINT ? s->endpoints[r->target].mac : n->dr_mac);
    return DP_R_none;
}

enum dp_reason dp_arp_from_host(struct dp_packet *p, const struct dp_port *port) {
    const struct dp_arp *arp = message_of(p);
    if (be16_get(arp->op) != REQUEST || memcmp(arp->tpa, port->ip4 + 12, 4) != 0) {
        return DP_R_arp_unknown_target;
    }
    reply(p, port->mac);
    return DP_R_none;
}
