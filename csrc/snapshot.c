/* snapshot.c: copy, check every reference, index. */
#include "snapshot.h"
#include "array.h"
#include "limit.h"

enum {
    PORT_ID_MAX = 65535,
    WIRE_FLAGS = 127,
    ITEMS_MAX = 1 << 24,                                          /* of one kind */
    OVERLAY_MTU_MAX = 65535 - 14 - (int)sizeof(struct dp_outer6), /* the outer length has 16 bits */
};

bool dp_snapshot_has_vtep(const struct dp_snapshot *s, uint32_t network, const struct dp_addr *a) {
    const uint32_t domain = s->networks[network].domain;
    if (dp_vteps_find(&s->vteps, network, a)) {
        return true;
    }
    for (uint32_t i = 0; domain && i < s->n_networks; i++) {
        if (s->networks[i].domain == domain && dp_vteps_find(&s->vteps, i, a)) {
            return true;
        }
    }
    return false;
}

/* ---- checks ------------------------------------------------------------------------------- */

static bool fault(struct dp_error *err, int status, const char *what, uint32_t index,
                  const char *why) {
    *err = (struct dp_error){status, what, index, why};
    return false;
}

static bool is_underlay(const struct dp_snapshot *s, uint16_t id) {
    return id < s->n_slots && s->slots[id].port && s->slots[id].port->kind == DP_PORT_UNDERLAY;
}

static bool check_icmp_rate(const struct dp_icmp_rate *r, struct dp_error *err) {
    const bool given = r->port && r->port_burst && r->all && r->all_burst;
    const bool none = !(r->port | r->port_burst | r->all | r->all_burst);
    return none || (given && dp_limit_allows(r))
               ? true
               : fault(err, DP_EINVAL, "icmp", 0, "a rate or burst is not in 1-1000000");
}

static bool check_ports(struct dp_snapshot *s, struct dp_error *err) {
    for (uint32_t i = 0; i < s->n_slots; i++) {
        s->slots[i].stamp = UINT32_MAX; /* no flow over a port that is gone is fresh */
    }
    for (uint32_t i = 0; i < s->n_ports; i++) {
        const struct dp_port *p = &s->ports[i];
        if (p->kind == DP_PORT_UNUSED || p->kind > DP_PORT_HOST) {
            return fault(err, DP_EINVAL, "port", i, "unknown kind");
        }
        if (s->slots[p->id].port) {
            return fault(err, DP_EDUP, "port", i, "the same port id twice");
        }
        if (p->kind == DP_PORT_HOST && s->host != DP_PORT_NONE) {
            return fault(err, DP_EDUP, "port", i, "a second host port");
        }
        if (p->mtu < 68) {
            return fault(err, DP_EINVAL, "port", i, "MTU below 68");
        }
        s->slots[p->id].port = p;
        s->slots[p->id].place = DP_NONE;
        s->slots[p->id].stamp = p->kind == DP_PORT_ENDPOINT ? UINT32_MAX : p->stamp;
        s->host = p->kind == DP_PORT_HOST ? p->id : s->host;
        s->udp_port = p->kind == DP_PORT_UNDERLAY ? p->udp_port : s->udp_port;
    }
    return true;
}

static bool check_networks(struct dp_snapshot *s, struct dp_error *err) {
    for (uint32_t i = 0; i < s->n_networks; i++) {
        const struct dp_network *n = &s->networks[i];
        if (n->vni >= 1u << 24) {
            return fault(err, DP_EINVAL, "network", i, "VNI beyond 24 bits");
        }
        if (dp_snapshot_network(s, n->vni) != DP_NONE) {
            return fault(err, DP_EDUP, "network", i, "the same VNI twice");
        }
        if (n->mtu < 68 || n->mtu > OVERLAY_MTU_MAX) {
            return fault(err, DP_EINVAL, "network", i, "MTU is not in 68-65451");
        }
        if (n->dscp > DP_DSCP_COPY || n->wire > WIRE_FLAGS ||
            (n->wire & DP_WIRE_DF_CLEAR && n->wire & DP_WIRE_DF_INHERIT)) {
            return fault(err, DP_EINVAL, "network", i, "no such DSCP or wire option");
        }
        if (n->routes >= s->n_routes) {
            return fault(err, DP_EREF, "network", i, "routes out of range");
        }
        uint32_t at = n->vni * 0x9e3779b1u >> 7;
        while (s->vnis[at & s->vni_mask].network) {
            at++;
        }
        s->vnis[at & s->vni_mask] = (struct dp_vni_slot){n->vni, i + 1};
    }
    return true;
}

static bool check_groups(struct dp_snapshot *s, const struct dp_endpoint *e, uint32_t i,
                         struct dp_error *err) {
    for (int d = 0; d < 2; d++) {
        if (!dp_span_fits(e->groups[d], s->n_groups)) {
            return fault(err, DP_EREF, "endpoint", i, "groups out of range");
        }
        if (e->fallback[d] != DP_ALLOW && e->fallback[d] != DP_BLOCK) {
            return fault(err, DP_EINVAL, "endpoint", i, "fallback is neither allow nor block");
        }
    }
    return true;
}

static bool check_endpoints(struct dp_snapshot *s, struct dp_error *err) {
    for (uint32_t i = 0; i < s->n_endpoints; i++) {
        const struct dp_endpoint *e = &s->endpoints[i];
        if (e->network >= s->n_networks) {
            return fault(err, DP_EREF, "endpoint", i, "no such network");
        }
        if (e->port >= s->n_slots || !s->slots[e->port].port ||
            s->slots[e->port].port->kind != DP_PORT_ENDPOINT) {
            return fault(err, DP_EREF, "endpoint", i, "its port is not an endpoint port");
        }
        if (s->slots[e->port].endpoint) {
            return fault(err, DP_EDUP, "endpoint", i, "its port belongs to another endpoint");
        }
        if (!dp_span_fits(e->addrs, s->n_addrs)) {
            return fault(err, DP_EREF, "endpoint", i, "addresses out of range");
        }
        if (!check_groups(s, e, i, err)) {
            return false;
        }
        s->slots[e->port].endpoint = e;
        s->slots[e->port].place = i;
        s->slots[e->port].stamp = e->stamp;
    }
    return true;
}

/* ---- adjacencies -------------------------------------------------------------------------- */

static bool open_tunnel(struct dp_snapshot *s, uint32_t id, struct dp_error *err) {
    const struct dp_adjacency *a = &s->adjacencies[id];
    if (a->network >= s->n_networks || !is_underlay(s, a->port)) {
        return fault(err, DP_EREF, "adjacency", id, "no such network or underlay port");
    }
    if (a->mtu < 68 || a->mtu > OVERLAY_MTU_MAX) {
        return fault(err, DP_EINVAL, "adjacency", id, "MTU is not in 68-65451");
    }
    const struct dp_addr remote = dp_addr_load(a->remote);
    const struct dp_port *port = s->slots[a->port].port;
    const struct dp_addr own = dp_addr_load(dp_addr_is_v4(&remote) ? port->ip4 : port->ip6);
    if (dp_addr_is_zero(&remote) || dp_addr_is_zero(&own)) {
        return fault(err, DP_EINVAL, "adjacency", id, "no provider address of the remote's family");
    }
    dp_tunnel_init(&s->vteps.arrays->tunnels[id], a, &s->networks[a->network], port);
    return true;
}

/* Whether tunnels of the same adjacencies are the same. */
static bool tunnels_alike(const struct dp_snapshot *s, const struct dp_snapshot *base) {
    if (s->n_ports < base->n_ports || s->n_networks < base->n_networks) {
        return false;
    }
    for (uint32_t i = 0; i < base->n_ports; i++) {
        const struct dp_port *p = &base->ports[i];
        if (p->kind == DP_PORT_UNDERLAY &&
            (!is_underlay(s, p->id) || memcmp(s->slots[p->id].port, p, sizeof *p) != 0)) {
            return false;
        }
    }
    for (uint32_t i = 0; i < base->n_networks; i++) {
        const struct dp_network *a = &s->networks[i];
        const struct dp_network *b = &base->networks[i];
        if (a->vni != b->vni || a->mtu != b->mtu || a->ttl != b->ttl || a->dscp != b->dscp ||
            a->wire != b->wire || memcmp(a->dr_mac, b->dr_mac, sizeof a->dr_mac) != 0) {
            return false;
        }
    }
    return true;
}

static bool open_vteps(struct dp_snapshot *s, const struct dp_policy *p, struct dp_error *err) {
    const struct dp_vteps *known = p->base ? &p->base->vteps : NULL;
    if (!dp_vteps_init(&s->vteps, known, p->base && tunnels_alike(s, p->base), p->adjacency_ids,
                       p->adjacencies, p->n_adjacencies)) {
        return fault(err, DP_ENOMEM, "adjacency", 0, "no memory");
    }
    s->adjacencies = s->vteps.arrays->adjacencies;
    s->tunnels = s->vteps.arrays->tunnels;
    const uint32_t n = s->vteps.shared ? p->n_adjacencies : s->vteps.n;
    for (uint32_t i = 0; i < n; i++) {
        const uint32_t id = s->vteps.shared && p->adjacency_ids ? p->adjacency_ids[i] : i;
        if (dp_vteps_have(&s->vteps, id) && !open_tunnel(s, id, err)) {
            return false;
        }
    }
    return true;
}

/* ---- ports -------------------------------------------------------------------------------- */

static bool is_group_mac(const uint8_t mac[6]) {
    return mac[0] & 1;
}

static struct dp_macs macs_of(const uint8_t dst[6], const uint8_t *src) {
    uint8_t wanted[12] = {0};
    uint8_t mask[12] = {0xff, 0xff, 0xff, 0xff, 0xff, 0xff};
    struct dp_macs m;
    memcpy(wanted, dst, 6);
    if (src) {
        memcpy(wanted + 6, src, 6);
        memset(mask + 6, 0xff, 6);
    }
    memcpy(&m.word[0], wanted, 8);
    memcpy(&m.word[1], wanted + 4, 8);
    memcpy(&m.mask[0], mask, 8);
    memcpy(&m.mask[1], mask + 4, 8);
    return m;
}

/* What the express lane goes by. */
static void open_express(struct dp_snapshot *s) {
    for (uint32_t i = 0; i < s->n_slots; i++) {
        struct dp_port_slot *slot = &s->slots[i];
        const struct dp_endpoint *e = slot->endpoint;
        if (!slot->port || (slot->port->kind == DP_PORT_ENDPOINT && !e)) {
            continue;
        }
        const uint8_t *router = e ? s->networks[e->network].dr_mac : slot->port->mac;
        slot->vni = e ? s->networks[e->network].vni : 0;
        slot->macs = macs_of(router, e ? e->mac : NULL);
        slot->express =
            slot->port->kind == DP_PORT_UNDERLAY || !is_group_mac(router) ? slot->port->kind : 0;
    }
}

/* ---- routes ------------------------------------------------------------------------------- */

/* A network reaches into another one of its routing domain only. */
static bool reaches(const struct dp_snapshot *s, uint32_t from, uint32_t to) {
    const uint32_t domain = s->networks[from].domain;
    return from == to || (domain && domain == s->networks[to].domain);
}

static const char *hop_fault(const struct dp_snapshot *s, uint32_t network,
                             const struct dp_hop *h) {
    switch (h->kind) {
    case DP_TO_ENDPOINT:
        return h->target < s->n_endpoints && reaches(s, network, s->endpoints[h->target].network)
                   ? NULL
                   : "its target is not of the network";
    case DP_TO_REMOTE:
        return dp_vteps_have(&s->vteps, h->target) &&
                       reaches(s, network, s->adjacencies[h->target].network)
                   ? NULL
                   : "its target is not of the network";
    case DP_TO_HOST:
    case DP_TO_DIRECT:
        return s->host != DP_PORT_NONE ? NULL : "there is no host port";
    default:
        return NULL;
    }
}

struct hop_check {
    const struct dp_snapshot *policy;
    uint32_t network;
    uint32_t done;
    struct dp_error *err;
};

static bool check_hop(void *context, const struct dp_hop *h) {
    struct hop_check *c = context;
    const char *why = hop_fault(c->policy, c->network, h);
    return why ? fault(c->err, DP_EREF, "route", c->done, why) : ++c->done;
}

/* Whether what base was right about, but for adjacencies that are gone, is right here, too. */
static bool targets_stand(const struct dp_snapshot *s, const struct dp_snapshot *base) {
    if (!base || !s->vteps.shared || s->host != base->host || s->n_endpoints < base->n_endpoints) {
        return false;
    }
    for (uint32_t i = 0; i < base->n_endpoints; i++) {
        if (s->endpoints[i].network != base->endpoints[i].network) {
            return false;
        }
    }
    for (uint32_t i = 0; i < base->n_networks; i++) {
        if (s->networks[i].domain != base->networks[i].domain) {
            return false;
        }
    }
    return true;
}

/* Whether nothing leads to an adjacency that is gone. */
static bool check_gone(const struct dp_policy *p, const struct dp_routes *t, struct dp_error *err) {
    for (uint32_t i = 0; i < p->n_adjacencies; i++) {
        const uint32_t id = p->adjacency_ids ? p->adjacency_ids[i] : i;
        if (p->adjacencies[i].port == DP_PORT_NONE && dp_routes_uses(t, id)) {
            return fault(err, DP_EREF, "route", 0, "its target is not of the network");
        }
    }
    return true;
}

/* Of a table that base has, or that was edited from it, only what is new is looked at. */
static bool check_routes(const struct dp_snapshot *s, const struct dp_policy *p,
                         struct dp_error *err) {
    const struct dp_snapshot *base = targets_stand(s, p->base) ? p->base : NULL;
    for (uint32_t n = 0; n < s->n_networks; n++) {
        const struct dp_routes *t = s->routes[s->networks[n].routes];
        const struct dp_routes *known =
            base && n < base->n_networks ? base->routes[base->networks[n].routes] : NULL;
        struct hop_check c = {s, n, 0, err};
        if (known && (t == known || t->base == known->serial)) {
            for (uint32_t i = 0; i < t->n_fresh; i++) {
                if (!check_hop(&c, &t->fresh[i])) {
                    return false;
                }
            }
            if (!check_gone(p, t, err)) {
                return false;
            }
        } else if (!dp_trie_each(t->root, check_hop, &c)) {
            return false;
        }
    }
    return true;
}

/* ---- services and rules ------------------------------------------------------------------- */

static const char *service_fault(const struct dp_snapshot *s, const struct dp_service *v) {
    if (v->met_at == DP_PORT_UNUSED || v->met_at > DP_PORT_HOST ||
        v->affinity > DP_BY_SOURCE_PROTOCOL || v->flags & ~DP_SERVICE_DSR) {
        return "unknown place, affinity or flag";
    }
    if (v->port == 0 || !dp_proto_has_ports(v->proto)) {
        return "neither TCP nor UDP, or port 0";
    }
    if (v->network >= s->n_networks || v->balance >= s->n_balances ||
        (v->pool != DP_NONE && v->pool >= s->n_pools)) {
        return "no such network, backends or pool";
    }
    return NULL;
}

static bool check_services(struct dp_snapshot *s, struct dp_error *err) {
    for (uint32_t i = 0; i < s->services.n; i++) {
        const struct dp_service *v = &s->services.items[i];
        const char *why = service_fault(s, v);
        if (why) {
            return fault(err, DP_EINVAL, "service", i, why);
        }
        if (!dp_services_add(&s->services, i)) {
            return fault(err, DP_EDUP, "service", i, "its address, protocol and port are taken");
        }
        s->max_rule = v->rule > s->max_rule ? v->rule : s->max_rule;
    }
    return true;
}

static bool check_rules(struct dp_snapshot *s, struct dp_error *err) {
    for (uint32_t g = 0; g < s->n_groups; g++) {
        for (uint32_t i = 0; i < s->groups[g]->n_rules; i++) {
            const struct dp_rule *r = &s->groups[g]->rules[i];
            if (r->action == DP_SNAT && r->arg >= s->n_pools) {
                return fault(err, DP_EREF, "rule", i, "no such NAT pool");
            }
            s->max_rule = r->id > s->max_rule ? r->id : s->max_rule;
        }
    }
    for (uint32_t i = 0; i < s->n_pools; i++) {
        if (s->pools[i].lo > s->pools[i].hi || s->pools[i].lo == 0) {
            return fault(err, DP_EINVAL, "pool", i, "ports are 1-65535, first not above last");
        }
        if (s->pools[i].flags & ~(uint32_t)(DP_POOL_SYMMETRIC | DP_POOL_OPEN)) {
            return fault(err, DP_EINVAL, "pool", i, "unknown flag");
        }
    }
    return true;
}

/* ---- build -------------------------------------------------------------------------------- */

static uint32_t power_above(uint32_t n) {
    uint32_t size = 16;
    while (size < n * 2) {
        size *= 2;
    }
    return size;
}

static bool copy_policy(struct dp_snapshot *s, const struct dp_policy *p) {
    s->ports = dp_array_copy(p->ports, p->n_ports, sizeof *p->ports);
    s->networks = dp_array_copy(p->networks, p->n_networks, sizeof *p->networks);
    s->endpoints = dp_array_copy(p->endpoints, p->n_endpoints, sizeof *p->endpoints);
    s->pools = dp_array_copy(p->pools, p->n_pools, sizeof *p->pools);
    s->addrs = dp_array_copy(p->addrs, p->n_addrs, sizeof *s->addrs);
    s->groups = calloc((size_t)p->n_groups + 1, sizeof *s->groups);
    s->routes = calloc((size_t)p->n_routes + 1, sizeof *s->routes);
    s->balances = calloc((size_t)p->n_balances + 1, sizeof *s->balances);
    const bool services = dp_services_init(&s->services, p->services, p->n_services);
    s->n_slots = 1;
    for (uint32_t i = 0; i < p->n_ports; i++) {
        s->n_slots = p->ports[i].id >= s->n_slots ? p->ports[i].id + 1u : s->n_slots;
    }
    s->slots = calloc(s->n_slots, sizeof *s->slots);
    s->vni_mask = power_above(p->n_networks) - 1;
    s->vnis = calloc((size_t)s->vni_mask + 1, sizeof *s->vnis);
    if (!s->ports || !s->networks || !s->endpoints || !s->pools || !s->addrs || !s->groups ||
        !s->routes || !services || !s->balances || !s->slots || !s->vnis) {
        return false;
    }
    for (; s->n_groups < p->n_groups; s->n_groups++) {
        s->groups[s->n_groups] = dp_group_retain(p->groups[s->n_groups]);
    }
    for (; s->n_routes < p->n_routes; s->n_routes++) {
        s->routes[s->n_routes] = dp_routes_retain(p->routes[s->n_routes]);
    }
    for (; s->n_balances < p->n_balances; s->n_balances++) {
        s->balances[s->n_balances] = dp_balance_retain(p->balances[s->n_balances]);
    }
    s->n_ports = p->n_ports;
    s->n_networks = p->n_networks;
    s->n_endpoints = p->n_endpoints;
    s->n_pools = p->n_pools;
    s->n_addrs = p->n_addrs;
    return true;
}

static bool check_arrays(const struct dp_policy *p, struct dp_error *err) {
    if (!p) {
        return fault(err, DP_EINVAL, "policy", 0, "no policy");
    }
    if (p->n_ports > PORT_ID_MAX || p->n_networks > ITEMS_MAX || p->n_endpoints > PORT_ID_MAX ||
        p->n_adjacencies > ITEMS_MAX || p->n_pools > ITEMS_MAX || p->n_addrs > ITEMS_MAX ||
        p->n_groups > ITEMS_MAX || p->n_routes > ITEMS_MAX || p->n_services > ITEMS_MAX ||
        p->n_balances > ITEMS_MAX) {
        return fault(err, DP_ELIMIT, "policy", 0, "more objects than can be numbered");
    }
    if (!dp_array_given(p->ports, p->n_ports) || !dp_array_given(p->networks, p->n_networks) ||
        !dp_array_given(p->endpoints, p->n_endpoints) ||
        !dp_array_given(p->adjacencies, p->n_adjacencies) ||
        !dp_array_given(p->pools, p->n_pools) || !dp_array_given(p->addrs, p->n_addrs) ||
        !dp_array_given(p->groups, p->n_groups) || !dp_array_given(p->routes, p->n_routes) ||
        !dp_array_given(p->services, p->n_services) ||
        !dp_array_given(p->balances, p->n_balances)) {
        return fault(err, DP_EINVAL, "policy", 0, "an array is NULL, its count is not 0");
    }
    return true;
}

static bool check_items(const struct dp_policy *p, struct dp_error *err) {
    for (uint32_t i = 0; i < p->n_ports; i++) {
        if (p->ports[i].id >= DP_PORT_NONE) {
            return fault(err, DP_EINVAL, "port", i, "port id 65535 is no port");
        }
    }
    for (uint32_t i = 0; p->adjacency_ids && i < p->n_adjacencies; i++) {
        const uint32_t id = p->adjacency_ids[i];
        if (id >= ITEMS_MAX || (i > 0 && id <= p->adjacency_ids[i - 1])) {
            return fault(err, DP_EINVAL, "adjacency", i, "ids ascend, and are below 16,777,216");
        }
    }
    for (uint32_t i = 0; i < p->n_groups; i++) {
        if (!p->groups[i]) {
            return fault(err, DP_EREF, "group", i, "no group");
        }
    }
    for (uint32_t i = 0; i < p->n_routes; i++) {
        if (!p->routes[i]) {
            return fault(err, DP_EREF, "routes", i, "no routes");
        }
    }
    for (uint32_t i = 0; i < p->n_balances; i++) {
        if (!p->balances[i]) {
            return fault(err, DP_EREF, "balance", i, "no backends");
        }
    }
    return true;
}

struct dp_snapshot *dp_snapshot_create(const struct dp_policy *policy, struct dp_error *err) {
    if (!check_arrays(policy, err) || !check_items(policy, err)) {
        return NULL;
    }
    struct dp_snapshot *s = calloc(1, sizeof *s);
    fault(err, DP_ENOMEM, "policy", 0, "no memory");
    if (!s) {
        return NULL;
    }
    s->references = 1;
    if (!copy_policy(s, policy)) {
        dp_snapshot_release(s);
        return NULL;
    }
    s->generation = policy->generation;
    s->timers = policy->timers;
    s->host = DP_PORT_NONE;
    s->icmp = policy->icmp;
    if (!check_icmp_rate(&s->icmp, err) || !check_ports(s, err) || !check_networks(s, err) ||
        !check_endpoints(s, err) || !open_vteps(s, policy, err) || !check_routes(s, policy, err) ||
        !check_rules(s, err) || !check_services(s, err)) {
        dp_snapshot_release(s);
        return NULL;
    }
    open_express(s);
    *err = (struct dp_error){DP_OK, NULL, 0, NULL};
    return s;
}

struct dp_snapshot *dp_snapshot_retain(struct dp_snapshot *s) {
    atomic_fetch_add(&s->references, 1);
    return s;
}

void dp_snapshot_release(struct dp_snapshot *s) {
    if (!s || atomic_fetch_sub(&s->references, 1) != 1) {
        return;
    }
    for (uint32_t i = 0; i < s->n_groups; i++) {
        dp_group_release(s->groups[i]);
    }
    for (uint32_t i = 0; i < s->n_routes; i++) {
        dp_routes_release(s->routes[i]);
    }
    for (uint32_t i = 0; i < s->n_balances; i++) {
        dp_balance_release(s->balances[i]);
    }
    free(s->ports);
    free(s->networks);
    free(s->endpoints);
    dp_vteps_fini(&s->vteps);
    free(s->pools);
    free(s->addrs);
    free(s->groups);
    free(s->routes);
    dp_services_fini(&s->services);
    free(s->balances);
    free(s->slots);
    free(s->vnis);
    free(s);
}
