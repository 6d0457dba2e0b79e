/* snapshot.h: the policy of one generation: immutable, checked whole before it can be committed, so
 * that the data path follows its indices without looking back. Holds no pointer into the caller's
 * memory. */
#ifndef DP_SNAPSHOT_H
#define DP_SNAPSHOT_H
#include "balance.h"
#include "group.h"
#include "routes.h"
#include "services.h"
#include "vteps.h"

struct dp_vni_slot {
    uint32_t vni;
    uint32_t network; /* index + 1, 0 = free */
};

/* The first twelve bytes of an Ethernet header, as two words that overlap, and which bits of them
 * matter. */
struct dp_macs {
    uint64_t word[2];
    uint64_t mask[2];
};
static inline bool dp_macs_differ(const struct dp_macs *m, const uint8_t *frame) {
    uint64_t head;
    uint64_t tail;
    memcpy(&head, frame, sizeof head);
    memcpy(&tail, frame + 4, sizeof tail);
    return ((head ^ m->word[0]) & m->mask[0]) | ((tail ^ m->word[1]) & m->mask[1]);
}

/* What the data path wants to know of a port, by port id. One cache line. */
struct dp_port_slot {
    const struct dp_port *port;         /* NULL: not in the policy */
    const struct dp_endpoint *endpoint; /* endpoint ports only */
    uint32_t place;                     /* index of the endpoint */
    uint32_t stamp;                     /* generation that last changed it */
    uint32_t vni;                       /* of the endpoint's network */
    uint8_t express;     /* enum dp_port_kind, or 0: nothing from here takes the express lane */
    struct dp_macs macs; /* of frames from an endpoint or host port to our router */
};

struct dp_snapshot {
    atomic_uint references;
    uint32_t generation;
    uint32_t n_ports, n_networks, n_endpoints, n_pools, n_addrs, n_groups, n_routes;
    uint32_t n_balances;
    struct dp_port *ports;
    struct dp_network *networks;
    struct dp_endpoint *endpoints;
    struct dp_vteps vteps;
    const struct dp_adjacency *adjacencies; /* of vteps */
    const struct dp_tunnel *tunnels;        /* by adjacency */
    struct dp_pool *pools;
    struct dp_addr *addrs;
    struct dp_group **groups;
    struct dp_routes **routes;
    struct dp_services services;
    struct dp_balance **balances;
    uint32_t n_slots; /* one above the highest port id */
    struct dp_port_slot *slots;
    uint32_t vni_mask;
    struct dp_vni_slot *vnis;
    uint16_t host;     /* port id of the way out, or DP_PORT_NONE */
    uint16_t udp_port; /* VXLAN's, on the underlay */
    uint32_t max_rule; /* highest rule id */
    struct dp_timers timers;
    struct dp_icmp_rate icmp; /* all 0: the engine's */
};

struct dp_snapshot *dp_snapshot_retain(struct dp_snapshot *s);

/* Index of the network with the VNI, or DP_NONE. */
static inline uint32_t dp_snapshot_network(const struct dp_snapshot *s, uint32_t vni) {
    for (uint32_t at = vni * 0x9e3779b1u >> 7;; at++) {
        const struct dp_vni_slot *slot = &s->vnis[at & s->vni_mask];
        if (slot->network == 0) {
            return DP_NONE;
        }
        if (slot->vni == vni) {
            return slot->network - 1;
        }
    }
}

/* Where frames may come in: NULL if the policy does not have the port, or not whole. */
static inline const struct dp_port_slot *dp_snapshot_ingress(const struct dp_snapshot *s,
                                                             uint16_t port) {
    const struct dp_port_slot *slot = port < s->n_slots ? &s->slots[port] : NULL;
    const bool whole =
        slot && slot->port && (slot->port->kind != DP_PORT_ENDPOINT || slot->endpoint);
    return whole ? slot : NULL;
}

/* Where the network's routes lead to the address, or NULL. */
static inline const struct dp_hop *dp_snapshot_route(const struct dp_snapshot *s, uint32_t network,
                                                     const struct dp_addr *a) {
    return dp_routes_lookup(s->routes[s->networks[network].routes], a);
}

/* Whether the network accepts packets from the provider address: it has an adjacency with it, or
 * another one of its routing domain has. */
bool dp_snapshot_has_vtep(const struct dp_snapshot *s, uint32_t network, const struct dp_addr *a);

/* Whether the endpoint owns the address. */
static inline bool dp_endpoint_owns(const struct dp_snapshot *s, const struct dp_endpoint *e,
                                    const struct dp_addr *a) {
    const struct dp_addr *own = s->addrs + e->addrs.first;
    for (uint32_t i = 0; i < e->addrs.count; i++) {
        if (dp_addr_equal(&own[i], a)) {
            return true;
        }
    }
    return false;
}

#endif
