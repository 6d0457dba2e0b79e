#include "nat.h"

static uint64_t idle_ns(const struct dp_walk *w) {
    switch (w->id.proto) {
    case DP_IP_TCP:
        return w->flows->timers.tcp_transitory; /* after its last flow, which had its own time */
    case DP_IP_UDP:
        return w->flows->timers.udp;
    default:
        return dp_proto_is_icmp(w->id.proto) ? w->flows->timers.icmp : w->flows->timers.other;
    }
}

static struct dp_binding_inside inside_of(const struct dp_walk *w, const struct dp_pool *pool) {
    struct dp_binding_inside in = {.addr = w->id.src,
                                   .vni = w->id.vni,
                                   .place = w->from.port,
                                   .port = w->id.sport,
                                   .proto = w->id.proto,
                                   .portless = !dp_key_has_port(&w->id)};
    if (pool->flags & DP_POOL_SYMMETRIC) {
        in.remote = w->id.dst;
        in.remote_port = dp_proto_has_ports(w->id.proto) ? w->id.dport : 0;
    }
    return in;
}

bool dp_nat_expect(struct dp_walk *w, struct dp_key *id) {
    const struct dp_snapshot *s = w->policy;
    const struct dp_span groups = s->endpoints[w->from.index].groups[DP_OUT];
    const struct dp_group *last = groups.count ? s->groups[groups.first + groups.count - 1] : NULL;
    const struct dp_rule *r = last && last->n_rules ? &last->rules[last->n_rules - 1] : NULL;
    if (!r || r->action != DP_SNAT) {
        return false;
    }
    const struct dp_pool *pool = &s->pools[r->arg];
    const struct dp_binding_inside in = inside_of(w, pool);
    id->src = dp_addr_load(pool->addr);
    id->sport = dp_bindings_expect(w->bindings, &in, pool, &w->chain);
    return true;
}

enum dp_reason dp_nat_bind(struct dp_walk *w, const struct dp_pool *pool) {
    const struct dp_binding_inside in = inside_of(w, pool);
    uint16_t port = 0;
    w->binding = dp_bindings_find(w->bindings, &in, pool, w->now_ns);
    if (w->binding != DP_NONE) {
        port = w->bindings->items[w->binding].out.port;
    } else if (!dp_bindings_may_add(w->bindings, in.place, pool, w->now_ns, w->trace != NULL)) {
        return DP_R_nat_quota;
    } else if (!dp_bindings_choose(w->bindings, &in, pool, &w->policy->services, w->now_ns,
                                   &port)) {
        return DP_R_nat_exhausted;
    } else if (w->trace && !dp_bindings_has_room(w->bindings, pool, in.proto, port)) {
        return DP_R_nat_table_full;
    } else if (!w->trace) {
        w->binding = dp_bindings_add(w->bindings, &in, pool, port, w->now_ns, idle_ns(w));
        if (w->binding == DP_NONE) {
            return DP_R_nat_table_full;
        }
        w->bound_now = true;
    }
    w->translated = true;
    w->id.src = dp_addr_load(pool->addr);
    w->id.sport = port;
    return DP_R_none;
}

static enum dp_reason translate_out(struct dp_walk *w, const struct dp_rule *r) {
    if (dp_key_is_icmp(&w->id) && !dp_key_is_echo_request(&w->id)) {
        return DP_R_nat_untranslatable;
    }
    if (w->id.proto == DP_IP_UDP && w->id.dport == w->policy->udp_port) {
        return DP_R_nat_vxlan;
    }
    if (w->policy->host == DP_PORT_NONE) {
        return DP_R_no_host_port;
    }
    w->outside = true;
    return dp_nat_bind(w, &w->policy->pools[r->arg]);
}

/* What a route of the endpoint's own network leads to is never translated: a VIP, too, with which a
 * flow is handed on to the backend's node. */
static bool stays_inside(const struct dp_walk *w, const struct dp_endpoint *e) {
    return dp_snapshot_route(w->policy, e->network, &w->id.dst) != NULL;
}

enum dp_reason dp_nat_out(struct dp_walk *w) {
    const struct dp_endpoint *e = &w->policy->endpoints[w->from.index];
    dp_layer_enter(w, DP_LAYER_NAT);
    if (stays_inside(w, e)) {
        return dp_layer_leave(w, DP_LAYER_NAT, DP_OUT, DP_R_none);
    }
    if (w->chain != DP_NONE) {
        dp_bindings_expect_chain(w->bindings, w->chain);
    }
    const struct dp_rule *r = dp_decide(w, e, DP_LAYER_NAT, DP_OUT);
    enum dp_reason reason = DP_R_none;
    if (r && r->action == DP_SNAT) {
        reason = translate_out(w, r);
        w->rule = reason ? r->id : w->rule;
    }
    return dp_layer_leave(w, DP_LAYER_NAT, DP_OUT, reason);
}

static bool is_outside(const struct dp_snapshot *s, const struct dp_addr *a) {
    for (uint32_t i = 0; i < s->n_pools; i++) {
        const struct dp_addr addr = dp_addr_load(s->pools[i].addr);
        if (dp_addr_equal(&addr, a)) {
            return true;
        }
    }
    return false;
}

/* Whether the endpoint's own NAT takes in anyone at the outside; others may share the address. */
static bool is_open(const struct dp_snapshot *s, const struct dp_endpoint *e,
                    const struct dp_binding_outside *out) {
    for (uint32_t g = 0; g < e->groups[DP_OUT].count; g++) {
        const struct dp_group *group = s->groups[e->groups[DP_OUT].first + g];
        for (uint32_t i = 0; i < group->n_rules; i++) {
            if (group->rules[i].action != DP_SNAT) {
                continue;
            }
            const struct dp_pool *pool = &s->pools[group->rules[i].arg];
            const struct dp_addr addr = dp_addr_load(pool->addr);
            if ((pool->flags & DP_POOL_OPEN) && dp_addr_equal(&addr, &out->addr) &&
                out->port >= pool->lo && out->port <= pool->hi) {
                return true;
            }
        }
    }
    return false;
}

enum dp_reason dp_nat_in(struct dp_walk *w) {
    const struct dp_snapshot *s = w->policy;
    const struct dp_binding_outside out = {
        w->id.dst, dp_proto_has_ports(w->id.proto) ? w->id.dport : 0, w->id.proto};
    if (!is_outside(s, &out.addr)) {
        return DP_R_none;
    }
    const uint32_t i = dp_bindings_of(w->bindings, &out, w->now_ns);
    const bool own = w->bound_now && i == w->binding; /* bound for the packet that asks */
    if (i == DP_NONE || own || !dp_proto_has_ports(w->id.proto)) {
        return DP_R_nat_no_binding;
    }
    const struct dp_binding_inside *in = &w->bindings->items[i].in;
    const struct dp_port_slot *slot = in->place < s->n_slots ? &s->slots[in->place] : NULL;
    if (!slot || !slot->endpoint || !dp_endpoint_owns(s, slot->endpoint, &in->addr) ||
        !is_open(s, slot->endpoint, &out)) {
        return DP_R_nat_no_binding;
    }
    w->translated = true;
    w->network = slot->endpoint->network;
    w->id.vni = in->vni;
    w->id.dst = in->addr;
    w->id.dport = in->port;
    w->to = (struct dp_place){DP_PORT_ENDPOINT, in->place, slot->place};
    return DP_R_none;
}
