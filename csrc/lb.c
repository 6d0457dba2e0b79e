#include "lb.h"
#include "nat.h"

static uint64_t spread(const struct dp_walk *w, const struct dp_service *v) {
    const struct dp_key *id = &w->id;
    const bool by_flow = v->affinity == DP_BY_FLOW;
    const uint64_t proto = v->affinity == DP_BY_SOURCE ? 0 : id->proto;
    const uint64_t ports = by_flow ? (uint64_t)id->sport << 16 | id->dport : 0;
    const uint64_t m[DP_HASH_WORDS] = {id->src.word[0], id->src.word[1],     id->dst.word[0],
                                       id->dst.word[1], proto << 32 | ports, 0};
    return dp_hash(w->spread, m);
}

static const struct dp_hop *route_to(const struct dp_walk *w, const struct dp_backend *b) {
    const struct dp_addr a = dp_addr_load(b->addr);
    return dp_snapshot_route(w->policy, w->network, &a);
}

static bool is_remote(const struct dp_walk *w, const struct dp_backend *b) {
    const struct dp_hop *r = route_to(w, b);
    return r && r->kind == DP_TO_REMOTE;
}

/* The backend that a flow under re-simulation has, as long as it is a member: by its address, or,
 * where the flow was handed on with the VIP, one on the node that it goes to. */
static const struct dp_backend *held_backend(const struct dp_walk *w, const struct dp_service *v) {
    const struct dp_balance *b = w->policy->balances[v->balance];
    if (!w->held) {
        return NULL;
    }
    const struct dp_half *there = &w->held->half[0];
    const struct dp_key *answer = &w->held->half[1].key;
    const struct dp_backend *found = dp_balance_find(b, &answer->src, answer->sport);
    if (found || !(v->flags & DP_SERVICE_DSR) || !(there->act.flags & DP_ACT_ENCAP)) {
        return found;
    }
    for (uint32_t i = 0; i < b->n; i++) {
        if (is_remote(w, &b->backends[i]) &&
            route_to(w, &b->backends[i])->target == there->act.adjacency) {
            return &b->backends[i];
        }
    }
    return NULL;
}

static enum dp_reason balance(struct dp_walk *w, const struct dp_service *v) {
    const struct dp_backend *b = held_backend(w, v);
    b = b ? b : dp_balance_choose(w->policy->balances[v->balance], spread(w, v));
    w->service = v;
    w->rule = v->rule;
    if (!b) {
        return DP_R_lb_no_backend;
    }
    if (!w->quiet) {
        dp_count(&w->count->rules[v->rule], 1);
    }
    w->backend = dp_addr_load(b->addr);
    if (v->met_at != DP_PORT_UNDERLAY && (v->flags & DP_SERVICE_DSR) && is_remote(w, b)) {
        return DP_R_none; /* its node does the rest */
    }
    w->translated = true;
    w->id.dst = w->backend;
    w->id.dport = b->port;
    return DP_R_none;
}

enum dp_reason dp_lb(struct dp_walk *w, enum dp_direction direction) {
    const struct dp_services *services = &w->policy->services;
    const enum dp_port_kind at = (enum dp_port_kind)w->from.kind;
    w->backend = w->id.dst;
    if (dp_likely(!dp_services_have(services, at, w->network, &w->id.dst))) {
        return DP_R_none;
    }
    dp_layer_enter(w, DP_LAYER_LB);
    const struct dp_service *v =
        dp_services_find(services, at, w->network, &w->id.dst, w->id.proto, w->id.dport);
    if (!v) {
        return dp_layer_leave(w, DP_LAYER_LB, direction, DP_R_none);
    }
    w->network = v->network;
    return dp_layer_leave(w, DP_LAYER_LB, direction, balance(w, v));
}

enum dp_reason dp_lb_source(struct dp_walk *w) {
    const struct dp_service *v = w->service;
    const bool hairpin = w->to.port == w->from.port && w->to.kind == DP_PORT_ENDPOINT;
    const bool astray = w->from.kind == DP_PORT_HOST && w->to.kind != DP_PORT_ENDPOINT;
    if (!v || !w->translated || w->outside || !(hairpin || astray)) {
        return DP_R_none;
    }
    if (v->pool == DP_NONE) {
        return hairpin ? DP_R_no_such_endpoint : DP_R_none;
    }
    return dp_nat_bind(w, &w->policy->pools[v->pool]);
}
