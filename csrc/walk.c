/* walk.c: the layers in the order a flow meets them.
 *
 *   from an endpoint:     guard ► acl out ► nat ► vnet ─┬► acl in of the receiver (local)
 *                                                       ├► underlay (remote)
 *                                                       └► host
 *   from the underlay:    underlay ► vnet ► acl in of the receiver
 *   from the host:        only what NAT bindings have opened, and that hits the flow table
 *
 * The functions follow in that order; compose() at the end turns the decision into a pair. */
#include "walk.h"
#include "transpose.h"

static const struct dp_endpoint *endpoint_at(const struct dp_walk *w, const struct dp_place *at) {
    return &w->policy->endpoints[at->index];
}

static void enter(struct dp_walk *w, enum dp_layer layer) {
    dp_count(&w->count->layers[layer], 1);
}

static enum dp_reason leave(struct dp_walk *w, enum dp_layer layer, enum dp_direction direction,
                            enum dp_reason r) {
    struct dp_step *s = dp_trace_step(w->trace, DP_STEP_LAYER, &w->id);
    if (s) {
        s->layer = (uint8_t)layer;
        s->direction = (uint8_t)direction;
        s->reason = (uint8_t)r;
        s->rule = w->rule;
        s->action = r ? DP_BLOCK : DP_ALLOW;
        s->adjacency = w->to.kind == DP_PORT_UNDERLAY ? w->to.index : DP_NONE;
        s->port = w->to.port;
    }
    return r;
}

/* ---- rules -------------------------------------------------------------------------------- */

static bool rule_accepts(const struct dp_group *g, const struct dp_rule *r,
                         const struct dp_key *id);

/* Tells of every rule up to the one that matched, each judged by itself. */
static dp_cold void trace_rules(struct dp_walk *w, const struct dp_group *g,
                                enum dp_direction direction, const struct dp_rule *found) {
    for (uint32_t i = 0; i <= g->n_rules; i++) {
        const bool summary = i == g->n_rules || &g->rules[i] == found;
        if (!summary) {
            struct dp_step *s = dp_trace_step(w->trace, DP_STEP_RULE, &w->id);
            if (s) {
                s->layer = g->layer;
                s->direction = (uint8_t)direction;
                s->group = g->name;
                s->rule = g->rules[i].id;
                s->action = g->rules[i].action;
                s->matched = rule_accepts(g, &g->rules[i], &w->id);
            }
            continue;
        }
        struct dp_step *s = dp_trace_step(w->trace, DP_STEP_GROUP, &w->id);
        if (s) {
            s->layer = g->layer;
            s->direction = (uint8_t)direction;
            s->group = g->name;
            s->matched = found != NULL;
            s->rule = found ? found->id : DP_NONE;
            s->action = found ? found->action : 0;
        }
        return;
    }
}

static bool in_prefixes(const struct dp_group *g, struct dp_span span, const struct dp_addr *a) {
    const struct dp_point p = dp_point_of(a);
    bool in = span.count == 0;
    for (uint32_t i = 0; i < span.count && !in; i++) {
        const struct dp_prefix *x = &g->prefixes[span.first + i];
        const struct dp_addr base = dp_addr_load(x->addr);
        in = !(x->len < DP_V4_BITS && dp_addr_is_v4(a)) &&
             dp_point_equal(dp_point_first(p, x->len), dp_point_first(dp_point_of(&base), x->len));
    }
    return in;
}

static bool in_ranges(const struct dp_group *g, struct dp_span span, uint16_t n) {
    bool in = span.count == 0;
    for (uint32_t i = 0; i < span.count && !in; i++) {
        in = n >= g->ranges[span.first + i].lo && n <= g->ranges[span.first + i].hi;
    }
    return in;
}

static bool rule_accepts(const struct dp_group *g, const struct dp_rule *r,
                         const struct dp_key *id) {
    return in_prefixes(g, r->src, &id->src) && in_prefixes(g, r->dst, &id->dst) &&
           in_ranges(g, r->proto, id->proto) &&
           (id->fragment ||
            (in_ranges(g, r->sport, id->sport) && in_ranges(g, r->dport, id->dport)));
}

/* The rule of a layer's groups that has the last word: of each group the first match; a terminating
 * one ends the walk, a pass leaves the group, else the last match stands. NULL: none. */
static const struct dp_rule *decide(struct dp_walk *w, const struct dp_endpoint *e,
                                    enum dp_layer layer, enum dp_direction direction) {
    const struct dp_rule *decision = NULL;
    const struct dp_span span = e->groups[direction];
    for (uint32_t i = 0; i < span.count; i++) {
        const struct dp_group *g = w->policy->groups[span.first + i];
        if (g->layer != layer) {
            continue;
        }
        const struct dp_rule *r = dp_group_match(g, &w->id);
        if (dp_unlikely(w->trace != NULL)) {
            trace_rules(w, g, direction, r);
        }
        if (!r) {
            continue;
        }
        if (!w->quiet) {
            dp_count(&w->count->rules[r->id], 1);
        }
        const bool unknown = w->id.fragment && dp_rule_needs_ports(r);
        if (r->action == DP_PASS && !unknown) {
            continue;
        }
        decision = r;
        if ((r->flags & DP_TERMINATING) || unknown) {
            break;
        }
    }
    return decision;
}

/* ---- guard -------------------------------------------------------------------------------- */

static enum dp_reason guard_out(struct dp_walk *w) {
    const struct dp_endpoint *e = endpoint_at(w, &w->from);
    const struct dp_key *id = &w->id;
    const uint16_t server = dp_addr_is_v4(&id->src) ? 67 : 547;
    enter(w, DP_LAYER_GUARD);
    if (dp_addr_is_multicast(&id->dst)) {
        return leave(w, DP_LAYER_GUARD, DP_OUT, DP_R_multicast);
    }
    if (!dp_endpoint_owns(w->policy, e, &id->src)) {
        return leave(w, DP_LAYER_GUARD, DP_OUT, DP_R_guard_ip);
    }
    if (id->proto == DP_IP_UDP && !id->fragment && id->sport == server) {
        return leave(w, DP_LAYER_GUARD, DP_OUT, DP_R_guard_dhcp);
    }
    const struct dp_network *n = &w->policy->networks[w->network];
    const struct dp_route *r = dp_routes_lookup(w->policy->routes[n->routes], &id->dst);
    const bool gateway = r && r->kind == DP_TO_GATEWAY;
    return leave(w, DP_LAYER_GUARD, DP_OUT, gateway ? DP_R_to_gateway : DP_R_none);
}

/* ---- acl ---------------------------------------------------------------------------------- */

static enum dp_reason judge(struct dp_walk *w, const struct dp_endpoint *e,
                            enum dp_direction direction) {
    const struct dp_rule *r = decide(w, e, DP_LAYER_ACL, direction);
    if (!r) {
        if (e->fallback[direction] == DP_BLOCK) {
            w->rule = DP_NONE;
            return DP_R_acl_deny;
        }
        return DP_R_none;
    }
    w->rule = r->id;
    if (w->id.fragment && dp_rule_needs_ports(r)) {
        return DP_R_fragment_untracked;
    }
    if (r->action == DP_BLOCK || r->action == DP_REJECT) {
        w->reject = r->action == DP_REJECT;
        return w->reject ? DP_R_acl_reject : DP_R_acl_deny;
    }
    w->stateless = w->stateless || !(r->flags & DP_STATEFUL);
    w->idle_s = r->idle_s ? r->idle_s : w->idle_s;
    return DP_R_none;
}

static enum dp_reason acl(struct dp_walk *w, const struct dp_place *at,
                          enum dp_direction direction) {
    enter(w, DP_LAYER_ACL);
    return leave(w, DP_LAYER_ACL, direction, judge(w, endpoint_at(w, at), direction));
}

/* ---- nat ---------------------------------------------------------------------------------- */

static uint64_t binding_idle_ns(const struct dp_walk *w) {
    switch (w->id.proto) {
    case DP_IP_TCP:
        return w->flows->timers.tcp_established;
    case DP_IP_UDP:
        return w->flows->timers.udp;
    default:
        return w->flows->timers.icmp;
    }
}

/* Finds or makes the binding of the walk's inside; sets the translated source. */
static enum dp_reason bind_source(struct dp_walk *w, const struct dp_pool *pool) {
    const struct dp_binding_inside in = {.addr = w->id.src,
                                         .vni = w->id.vni,
                                         .place = w->from.port,
                                         .port = w->id.sport,
                                         .proto = w->id.proto};
    uint16_t port = 0;
    w->binding = dp_bindings_find(w->bindings, &in, pool, w->now_ns);
    if (w->binding != DP_NONE) {
        port = w->bindings->items[w->binding].out.port;
    } else {
        port = dp_bindings_choose(w->bindings, &in, pool, w->now_ns);
        if (port == 0) {
            return DP_R_nat_exhausted;
        }
        if (!w->trace) {
            w->binding =
                dp_bindings_add(w->bindings, &in, pool, port, w->now_ns, binding_idle_ns(w));
            if (w->binding == DP_NONE) {
                return DP_R_nat_table_full;
            }
        }
    }
    w->translated = true;
    w->id.src = dp_addr_load(pool->addr);
    w->id.sport = port;
    return DP_R_none;
}

static enum dp_reason nat_out(struct dp_walk *w) {
    enter(w, DP_LAYER_NAT);
    const struct dp_rule *r = decide(w, endpoint_at(w, &w->from), DP_LAYER_NAT, DP_OUT);
    enum dp_reason reason = DP_R_none;
    if (r && r->action == DP_SNAT) {
        if (w->id.fragment) {
            reason = DP_R_fragment_untracked;
        } else if (!dp_proto_has_ports(w->id.proto) && !dp_key_is_echo_request(&w->id)) {
            reason = DP_R_nat_untranslatable;
        } else if (w->policy->host == DP_PORT_NONE) {
            reason = DP_R_no_host_port;
        } else {
            reason = bind_source(w, &w->policy->pools[r->arg]);
        }
        w->rule = reason ? r->id : w->rule;
    }
    return leave(w, DP_LAYER_NAT, DP_OUT, reason);
}

/* ---- vnet --------------------------------------------------------------------------------- */

static const struct dp_route *route_to(const struct dp_walk *w, const struct dp_addr *a) {
    return dp_routes_lookup(w->policy->routes[w->policy->networks[w->network].routes], a);
}

static enum dp_reason to_host(struct dp_walk *w) {
    w->to = (struct dp_place){DP_PORT_HOST, w->policy->host, 0};
    return w->policy->host == DP_PORT_NONE ? DP_R_no_host_port : DP_R_none;
}

static enum dp_reason to_route(struct dp_walk *w, const struct dp_route *r) {
    if (!r) {
        return DP_R_no_route;
    }
    switch (r->kind) {
    case DP_TO_REMOTE:
        w->to =
            (struct dp_place){DP_PORT_UNDERLAY, w->policy->adjacencies[r->target].port, r->target};
        return DP_R_none;
    case DP_TO_ENDPOINT:
        w->to =
            (struct dp_place){DP_PORT_ENDPOINT, w->policy->endpoints[r->target].port, r->target};
        return w->to.port == w->from.port ? DP_R_no_such_endpoint : DP_R_none;
    case DP_TO_GATEWAY:
        return DP_R_to_gateway;
    default:
        return DP_R_no_such_endpoint;
    }
}

static enum dp_reason vnet_out(struct dp_walk *w) {
    enter(w, DP_LAYER_VNET);
    const enum dp_reason r = w->translated ? to_host(w) : to_route(w, route_to(w, &w->id.dst));
    return leave(w, DP_LAYER_VNET, DP_OUT, r);
}

static enum dp_reason vnet_in(struct dp_walk *w) {
    enter(w, DP_LAYER_VNET);
    enum dp_reason reason = DP_R_none;
    if (dp_addr_is_multicast(&w->id.dst)) {
        return leave(w, DP_LAYER_VNET, DP_IN, DP_R_multicast);
    }
    const struct dp_route *r = route_to(w, &w->id.dst);
    if (!r || r->kind == DP_TO_REMOTE) {
        reason = DP_R_not_local;
    } else {
        reason = to_route(w, r);
    }
    return leave(w, DP_LAYER_VNET, DP_IN, reason);
}

/* The inner source must live behind the VTEP that sent it. */
static enum dp_reason underlay_in(struct dp_walk *w) {
    enter(w, DP_LAYER_UNDERLAY);
    const struct dp_route *r = route_to(w, &w->id.src);
    enum dp_reason reason = DP_R_source_not_behind_vtep;
    if (r && r->kind == DP_TO_REMOTE) {
        w->from.index = r->target;
        if (!w->outer_src || dp_addr_equal(&w->policy->tunnels[r->target].remote, w->outer_src)) {
            reason = DP_R_none;
        }
    }
    return leave(w, DP_LAYER_UNDERLAY, DP_IN, reason);
}

/* ---- composition -------------------------------------------------------------------------- */

/* Where a stateless rule let the flow through, its answers are judged by rules of their own. */
static bool answers_allowed(const struct dp_walk *w, const struct dp_key *key) {
    if (!w->stateless) {
        return true;
    }
    struct dp_walk back = *w;
    back.trace = NULL;
    back.quiet = true;
    back.id = dp_key_mirrored(&w->id);
    if (w->to.kind == DP_PORT_ENDPOINT && judge(&back, endpoint_at(w, &w->to), DP_OUT)) {
        return false;
    }
    back.id = dp_key_mirrored(key);
    return w->from.kind != DP_PORT_ENDPOINT || !judge(&back, endpoint_at(w, &w->from), DP_IN);
}

static uint16_t outer_sport(const struct dp_walk *w, const struct dp_key *key) {
    uint64_t m[DP_HASH_WORDS];
    dp_key_words(key, m);
    return (uint16_t)(49152 + (dp_hash(w->entropy, m) >> 50));
}

/* The half that carries packets coming from one place to another. */
static void compose_half(const struct dp_walk *w, struct dp_half *half, const struct dp_place *from,
                         const struct dp_place *to) {
    const struct dp_snapshot *s = w->policy;
    struct dp_act *act = &half->act;
    act->generation = s->generation;
    act->rule = w->rule;
    act->binding = w->binding;
    act->egress = to->port;
    act->adjacency = DP_NONE;
    act->flags |= w->translated ? DP_ACT_NAT : 0;
    act->flags |= from->kind == DP_PORT_UNDERLAY ? DP_ACT_DECAP : DP_ACT_TTL;
    uint16_t way = 0;
    if (from->kind == DP_PORT_UNDERLAY) {
        act->adjacency = from->index;
    }
    if (to->kind == DP_PORT_ENDPOINT) {
        const struct dp_network *n = &s->networks[w->network];
        memcpy(act->dst_mac, s->endpoints[to->index].mac, 6);
        memcpy(act->src_mac, n->dr_mac, 6);
        way = from->kind == DP_PORT_UNDERLAY ? s->adjacencies[from->index].mtu : n->mtu;
    } else if (to->kind == DP_PORT_UNDERLAY) {
        const struct dp_adjacency *a = &s->adjacencies[to->index];
        act->flags |= DP_ACT_ENCAP;
        act->adjacency = to->index;
        memcpy(act->dst_mac, a->dr_mac, 6);
        memcpy(act->src_mac, s->networks[a->network].dr_mac, 6);
        way = a->mtu;
    } else {
        const struct dp_port *p = s->slots[to->port].port;
        memcpy(act->dst_mac, p->peer_mac, 6);
        memcpy(act->src_mac, p->mac, 6);
        way = p->mtu;
    }
    act->mtu = from->kind == DP_PORT_UNDERLAY ? 0 : way;
    act->mss = (uint16_t)(way - (dp_addr_is_v4(&half->key.src) ? 40 : 60));
}

static void compose(struct dp_walk *w, const struct dp_key *key) {
    struct dp_half *half = w->pair.half;
    memset(&w->pair, 0, sizeof w->pair);
    half[0].key = *key;
    half[1].key = dp_key_mirrored(&w->id);
    half[1].key.port = w->to.port;
    half[1].key.vni = w->to.kind == DP_PORT_HOST ? 0 : w->id.vni;
    half[0].idle_s = w->idle_s;
    half[0].act.flags = DP_ACT_INDEXED;
    half[1].act.flags = answers_allowed(w, key) ? DP_ACT_INDEXED : 0;
    compose_half(w, &half[0], &w->from, &w->to);
    compose_half(w, &half[1], &w->to, &w->from);
    half[0].act.outer_sport = half[1].act.outer_sport = outer_sport(w, key);
    if (w->translated) {
        dp_transpose_deltas(&half[0], &half[1]);
        dp_transpose_deltas(&half[1], &half[0]);
    }
}

/* ---- the way ------------------------------------------------------------------------------ */

static enum dp_reason walk_from_endpoint(struct dp_walk *w) {
    enum dp_reason r = guard_out(w);
    if (!r) {
        r = acl(w, &w->from, DP_OUT);
    }
    if (!r) {
        r = nat_out(w);
    }
    if (!r) {
        r = vnet_out(w);
    }
    if (!r && w->to.kind == DP_PORT_ENDPOINT) {
        r = acl(w, &w->to, DP_IN);
    }
    if (!r && w->to.kind == DP_PORT_UNDERLAY) {
        enter(w, DP_LAYER_UNDERLAY);
        leave(w, DP_LAYER_UNDERLAY, DP_OUT, DP_R_none);
    }
    return r;
}

static enum dp_reason walk_from_underlay(struct dp_walk *w) {
    enum dp_reason r = vnet_in(w);
    if (!r) {
        r = underlay_in(w);
    }
    return r ? r : acl(w, &w->to, DP_IN);
}

static enum dp_reason walk_from_host(const struct dp_walk *w) {
    const struct dp_snapshot *s = w->policy;
    const struct dp_addr own = dp_addr_load(s->slots[w->id.port].port->ip4);
    const struct dp_addr own6 = dp_addr_load(s->slots[w->id.port].port->ip6);
    const bool ours = dp_addr_equal(&w->id.dst, &own) || dp_addr_equal(&w->id.dst, &own6);
    if (dp_addr_is_multicast(&w->id.dst)) {
        return DP_R_multicast;
    }
    if (ours && dp_key_is_echo_request(&w->id)) {
        return DP_R_to_gateway;
    }
    for (uint32_t i = 0; i < s->n_pools; i++) {
        const struct dp_addr pool = dp_addr_load(s->pools[i].addr);
        if (dp_addr_equal(&pool, &w->id.dst)) {
            return DP_R_nat_no_binding;
        }
    }
    return DP_R_no_route;
}

/* The port the flow comes from, or NULL if the policy has it no more. */
static const struct dp_port_slot *ingress(const struct dp_snapshot *s, const struct dp_key *key) {
    const struct dp_port_slot *slot = key->port < s->n_slots ? &s->slots[key->port] : NULL;
    return slot && slot->port && (slot->port->kind != DP_PORT_ENDPOINT || slot->endpoint) ? slot
                                                                                          : NULL;
}

enum dp_reason dp_walk_flow(struct dp_walk *w, const struct dp_key *key) {
    const struct dp_snapshot *s = w->policy;
    const struct dp_port_slot *slot = ingress(s, key);
    w->rule = DP_NONE;
    if (!slot) {
        return DP_R_port_not_configured;
    }
    w->id = *key;
    w->idle_s = 0;
    w->stateless = w->reject = w->translated = w->quiet = false;
    w->binding = DP_NONE;
    w->to = (struct dp_place){0, DP_PORT_NONE, DP_NONE};
    w->from = (struct dp_place){slot->port->kind, key->port, slot->place};
    w->network = slot->endpoint ? slot->endpoint->network : dp_snapshot_network(s, key->vni);
    if (slot->port->kind == DP_PORT_HOST) {
        return walk_from_host(w);
    }
    if (w->network == DP_NONE || s->networks[w->network].vni != key->vni) {
        return DP_R_unknown_vni;
    }
    const enum dp_reason r = slot->endpoint ? walk_from_endpoint(w) : walk_from_underlay(w);
    if (!r) {
        compose(w, key);
    }
    return r;
}
