/* walk.c: the layers in the order a flow meets them.
 *
 *   from an endpoint:     guard ► acl out ► lb ► nat ► vnet ─┬► acl in of the receiver (local)
 *                                                            ├► underlay (remote)
 *                                                            └► host
 *   from the underlay:    underlay ► lb ► vnet ─┬► acl in of the receiver
 *                                               └► host
 *   from the host:        lb ► nat ► vnet ─┬► acl in of the receiver
 *                                          └► underlay
 *
 * The functions follow in that order; compose() at the end turns the decision into a pair. */
#include "walk.h"
#include "lb.h"
#include "nat.h"
#include "transpose.h"

static const struct dp_endpoint *endpoint_at(const struct dp_walk *w, const struct dp_place *at) {
    return &w->policy->endpoints[at->index];
}

/* ---- ahead -------------------------------------------------------------------------------- */

/* The flow's answers most probably come in at that port of that network: the lines of the index
 * where they will be put are asked for now, and have come when the walk ends. */
static void expect_answers(const struct dp_walk *w, const struct dp_key *id, uint16_t port,
                           uint32_t vni) {
    struct dp_key answers = dp_key_mirrored(id);
    answers.port = port;
    answers.vni = vni;
    dp_flow_expect(w->flows, &answers);
}

/* As far as the route of the destination tells, before any layer has changed it. */
static dp_hint void expect(struct dp_walk *w, const struct dp_hop *r) {
    const struct dp_snapshot *s = w->policy;
    struct dp_key id = w->id;
    if (!r) {
        if (w->from.kind == DP_PORT_ENDPOINT && dp_nat_expect(w, &id)) {
            expect_answers(w, &id, s->host, 0);
        }
    } else if (r->kind == DP_TO_REMOTE) {
        expect_answers(w, &id, s->adjacencies[r->target].port, id.vni);
    } else if (r->kind == DP_TO_ENDPOINT) {
        expect_answers(w, &id, s->endpoints[r->target].port, id.vni);
    }
}

/* ---- guard -------------------------------------------------------------------------------- */

static enum dp_reason guard_out(struct dp_walk *w) {
    const struct dp_endpoint *e = endpoint_at(w, &w->from);
    const struct dp_key *id = &w->id;
    const uint16_t server = dp_addr_is_v4(&id->src) ? 67 : 547;
    dp_layer_enter(w, DP_LAYER_GUARD);
    if (dp_addr_is_multicast(&id->dst)) {
        return dp_layer_leave(w, DP_LAYER_GUARD, DP_OUT, DP_R_multicast);
    }
    if (!dp_endpoint_owns(w->policy, e, &id->src)) {
        return dp_layer_leave(w, DP_LAYER_GUARD, DP_OUT, DP_R_guard_ip);
    }
    if (id->proto == DP_IP_UDP && id->sport == server) {
        return dp_layer_leave(w, DP_LAYER_GUARD, DP_OUT, DP_R_guard_dhcp);
    }
    const struct dp_hop *r = dp_snapshot_route(w->policy, w->network, &id->dst);
    expect(w, r);
    const bool gateway = r && r->kind == DP_TO_GATEWAY;
    return dp_layer_leave(w, DP_LAYER_GUARD, DP_OUT, gateway ? DP_R_to_gateway : DP_R_none);
}

/* ---- acl ---------------------------------------------------------------------------------- */

static enum dp_reason judge(struct dp_walk *w, const struct dp_endpoint *e,
                            enum dp_direction direction) {
    const struct dp_rule *r = dp_decide(w, e, DP_LAYER_ACL, direction);
    if (!r) {
        if (e->fallback[direction] == DP_BLOCK) {
            w->rule = DP_NONE;
            return DP_R_acl_deny;
        }
        return DP_R_none;
    }
    w->rule = r->id;
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
    dp_layer_enter(w, DP_LAYER_ACL);
    return dp_layer_leave(w, DP_LAYER_ACL, direction, judge(w, endpoint_at(w, at), direction));
}

/* ---- vnet --------------------------------------------------------------------------------- */

static const struct dp_hop *route_to(const struct dp_walk *w, const struct dp_addr *a) {
    return dp_snapshot_route(w->policy, w->network, a);
}

static enum dp_reason to_host(struct dp_walk *w) {
    w->to = (struct dp_place){DP_PORT_HOST, w->policy->host, 0};
    return w->policy->host == DP_PORT_NONE ? DP_R_no_host_port : DP_R_none;
}

static struct dp_place at_remote(const struct dp_walk *w, const struct dp_hop *r) {
    return (struct dp_place){DP_PORT_UNDERLAY, w->policy->adjacencies[r->target].port, r->target};
}

/* Where the route leads, on its own network: of one routing domain, that may be another VNI. */
static enum dp_reason to_route(struct dp_walk *w, const struct dp_hop *r) {
    const struct dp_snapshot *s = w->policy;
    if (!r) {
        return DP_R_no_route;
    }
    switch (r->kind) {
    case DP_TO_REMOTE:
        w->to = at_remote(w, r);
        w->id.vni = s->networks[s->adjacencies[r->target].network].vni;
        w->any_vtep = r->flags & DP_ROUTE_ANY_VTEP;
        return DP_R_none;
    case DP_TO_ENDPOINT:
        w->to = (struct dp_place){DP_PORT_ENDPOINT, s->endpoints[r->target].port, r->target};
        w->id.vni = s->networks[s->endpoints[r->target].network].vni;
        return w->to.port == w->from.port && !w->service ? DP_R_no_such_endpoint : DP_R_none;
    case DP_TO_GATEWAY:
        return DP_R_to_gateway;
    case DP_TO_VIP:
        return DP_R_lb_no_service;
    case DP_TO_HOST:
    case DP_TO_DIRECT:
        return to_host(w);
    default:
        return DP_R_no_such_endpoint;
    }
}

/* To another endpoint's outside address, if it takes new flows; else to the host. */
static enum dp_reason to_outside(struct dp_walk *w) {
    const enum dp_reason r = dp_nat_in(w);
    return r || w->to.kind == DP_PORT_ENDPOINT ? r : to_host(w);
}

static enum dp_reason vnet_out(struct dp_walk *w) {
    dp_layer_enter(w, DP_LAYER_VNET);
    enum dp_reason r = w->outside ? to_outside(w) : to_route(w, route_to(w, &w->backend));
    if (!r) {
        r = dp_lb_source(w);
    }
    return dp_layer_leave(w, DP_LAYER_VNET, DP_OUT, r);
}

static enum dp_reason vnet_in(struct dp_walk *w) {
    dp_layer_enter(w, DP_LAYER_VNET);
    if (dp_addr_is_multicast(&w->id.dst)) {
        return dp_layer_leave(w, DP_LAYER_VNET, DP_IN, DP_R_multicast);
    }
    const struct dp_hop *r = route_to(w, &w->id.dst);
    expect(w, r);
    const bool away = !r || r->kind == DP_TO_REMOTE || r->kind == DP_TO_DIRECT;
    return dp_layer_leave(w, DP_LAYER_VNET, DP_IN, away ? DP_R_not_local : to_route(w, r));
}

/* ---- underlay ----------------------------------------------------------------------------- */

/* The inner source must live behind the VTEP that sent it; a client whose balancer left the rest to
 * us (DSR) anywhere but here. Our answers go to where it lives. */
static bool source_stands(struct dp_walk *w) {
    const struct dp_hop *r = route_to(w, &w->id.src);
    const bool remote = r && r->kind == DP_TO_REMOTE;
    w->from.index = remote ? r->target : DP_NONE;
    w->back = remote ? at_remote(w, r) : (struct dp_place){DP_PORT_HOST, w->policy->host, 0};
    if (dp_services_have(&w->policy->services, DP_PORT_UNDERLAY, w->network, &w->id.dst)) {
        w->any_vtep = true;
        const bool beyond = !r || r->kind == DP_TO_DIRECT;
        return remote || (beyond && w->policy->host != DP_PORT_NONE);
    }
    w->any_vtep = remote && (r->flags & DP_ROUTE_ANY_VTEP);
    return remote && (!w->outer_src || w->any_vtep ||
                      dp_addr_equal(&w->policy->tunnels[r->target].remote, w->outer_src));
}

static enum dp_reason underlay_in(struct dp_walk *w) {
    dp_layer_enter(w, DP_LAYER_UNDERLAY);
    return dp_layer_leave(w, DP_LAYER_UNDERLAY, DP_IN,
                          source_stands(w) ? DP_R_none : DP_R_source_not_behind_vtep);
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

static void set_macs(struct dp_act *act, const uint8_t dst[6], const uint8_t src[6]) {
    memcpy(act->macs, dst, 6);
    memcpy(act->macs + 6, src, 6);
}

/* The half that carries packets coming from one place to another. */
static void compose_half(const struct dp_walk *w, struct dp_half *half, const struct dp_place *from,
                         const struct dp_place *to) {
    const struct dp_snapshot *s = w->policy;
    struct dp_act *act = &half->act;
    act->generation = s->generation;
    act->rule = w->rule;
    act->egress = to->port;
    act->adjacency = DP_NONE;
    act->flags |= w->translated ? DP_ACT_NAT : 0;
    act->flags |= from->kind == DP_PORT_UNDERLAY ? DP_ACT_DECAP : DP_ACT_TTL;
    uint16_t way = 0;
    if (from->kind == DP_PORT_UNDERLAY) {
        act->adjacency = from->index;
        act->flags |= w->any_vtep ? DP_ACT_ANY_VTEP : 0;
    }
    if (to->kind == DP_PORT_ENDPOINT) {
        const struct dp_network *n = &s->networks[s->endpoints[to->index].network];
        set_macs(act, s->endpoints[to->index].mac, n->dr_mac);
        way = act->adjacency != DP_NONE ? s->adjacencies[act->adjacency].mtu : n->mtu;
    } else if (to->kind == DP_PORT_UNDERLAY) {
        const struct dp_adjacency *a = &s->adjacencies[to->index];
        act->flags |= DP_ACT_ENCAP;
        act->adjacency = to->index;
        set_macs(act, a->dr_mac, s->networks[a->network].dr_mac);
        way = a->mtu;
    } else {
        const struct dp_port *p = s->slots[to->port].port;
        act->flags |= DP_ACT_HOST;
        set_macs(act, p->peer_mac, p->mac);
        way = p->mtu;
    }
    act->mtu = from->kind == DP_PORT_UNDERLAY ? 0 : way;
    half->mss = (uint16_t)(way - (dp_addr_is_v4(&half->key.src) ? 40 : 60));
}

static void compose(struct dp_walk *w, const struct dp_key *key) {
    struct dp_half *half = w->pair.half;
    memset(&w->pair, 0, sizeof w->pair);
    half[0].key = *key;
    half[1].key = dp_key_mirrored(&w->id);
    half[1].key.port = w->to.port;
    half[1].key.vni = w->to.kind == DP_PORT_HOST ? 0 : w->id.vni;
    half[0].kept = w->binding;
    half[1].kept = w->idle_s;
    half[0].act.flags = DP_ACT_INDEXED;
    half[1].act.flags = answers_allowed(w, key) ? DP_ACT_INDEXED : 0;
    compose_half(w, &half[0], &w->from, &w->to);
    compose_half(w, &half[1], &w->to, &w->back);
    half[0].act.outer_sport = half[1].act.outer_sport = outer_sport(w, key);
    if (w->translated) {
        dp_transpose_deltas(&half[0], &half[1]);
        dp_transpose_deltas(&half[1], &half[0]);
    }
}

/* ---- the way ------------------------------------------------------------------------------ */

static enum dp_reason deliver(struct dp_walk *w) {
    if (w->to.kind == DP_PORT_ENDPOINT) {
        return acl(w, &w->to, DP_IN);
    }
    if (w->to.kind == DP_PORT_UNDERLAY) {
        dp_layer_enter(w, DP_LAYER_UNDERLAY);
        return dp_layer_leave(w, DP_LAYER_UNDERLAY, DP_OUT, DP_R_none);
    }
    return DP_R_none;
}

static enum dp_reason walk_from_endpoint(struct dp_walk *w) {
    enum dp_reason r = guard_out(w);
    if (!r) {
        r = acl(w, &w->from, DP_OUT);
    }
    if (!r) {
        r = dp_lb(w, DP_OUT);
    }
    if (!r) {
        r = dp_nat_out(w);
    }
    if (!r) {
        r = vnet_out(w);
    }
    return r ? r : deliver(w);
}

static enum dp_reason walk_from_underlay(struct dp_walk *w) {
    enum dp_reason r = underlay_in(w);
    if (!r) {
        r = dp_lb(w, DP_IN);
    }
    if (!r) {
        r = vnet_in(w);
    }
    return r ? r : deliver(w);
}

/* What lives there comes by the host port. */
static bool is_by_host(const struct dp_hop *r) {
    return r->kind == DP_TO_HOST || r->kind == DP_TO_DIRECT;
}

/* The host reaches all who live on the network, nodes that are direct those who live here. */
static bool host_reaches(const struct dp_hop *src, const struct dp_hop *dst) {
    if (!src || !dst || !is_by_host(src)) {
        return false;
    }
    return dst->kind == DP_TO_ENDPOINT || (dst->kind == DP_TO_REMOTE && src->kind == DP_TO_HOST);
}

/* The first network that has such a way. */
static bool host_route(struct dp_walk *w) {
    for (w->network = 0; w->network < w->policy->n_networks; w->network++) {
        if (host_reaches(route_to(w, &w->id.src), route_to(w, &w->id.dst))) {
            return true;
        }
    }
    return false;
}

/* What takes in a flow from the host port: a service, a NAT binding open to anyone, or a network
 * that the host has a route to. */
static enum dp_reason admit_from_host(struct dp_walk *w) {
    enum dp_reason r = dp_lb(w, DP_IN);
    if (!r && !w->service) {
        r = dp_nat_in(w);
    }
    if (r) {
        return r;
    }
    if (!w->service && w->to.kind != DP_PORT_ENDPOINT && !host_route(w)) {
        return DP_R_no_route;
    }
    const struct dp_hop *src = route_to(w, &w->id.src);
    return src && !is_by_host(src) ? DP_R_guard_ip : DP_R_none;
}

static enum dp_reason walk_from_host(struct dp_walk *w) {
    const struct dp_port *port = w->policy->slots[w->id.port].port;
    const struct dp_addr own = dp_addr_load(port->ip4);
    const struct dp_addr own6 = dp_addr_load(port->ip6);
    const bool ours = dp_addr_equal(&w->id.dst, &own) || dp_addr_equal(&w->id.dst, &own6);
    if (dp_addr_is_multicast(&w->id.dst)) {
        return DP_R_multicast;
    }
    if (ours && dp_key_is_echo_request(&w->id)) {
        return DP_R_to_gateway;
    }
    enum dp_reason r = admit_from_host(w);
    if (!r) {
        dp_layer_enter(w, DP_LAYER_VNET);
        r = w->to.kind == DP_PORT_ENDPOINT ? DP_R_none : to_route(w, route_to(w, &w->backend));
        if (!r) {
            r = dp_lb_source(w);
        }
        r = dp_layer_leave(w, DP_LAYER_VNET, DP_IN, r);
    }
    return r ? r : deliver(w);
}

static enum dp_reason lead(struct dp_walk *w) {
    switch (w->from.kind) {
    case DP_PORT_HOST:
        return walk_from_host(w);
    case DP_PORT_ENDPOINT:
        return walk_from_endpoint(w);
    default:
        return walk_from_underlay(w);
    }
}

enum dp_reason dp_walk_flow(struct dp_walk *w, const struct dp_key *key) {
    const struct dp_snapshot *s = w->policy;
    const struct dp_port_slot *slot = dp_snapshot_ingress(s, key->port);
    w->rule = DP_NONE;
    if (!slot) {
        return DP_R_port_not_configured;
    }
    w->id = *key;
    w->backend = key->dst;
    w->idle_s = 0;
    w->stateless = w->reject = w->translated = w->quiet = false;
    w->outside = w->any_vtep = w->bound_now = false;
    w->service = NULL;
    w->binding = w->chain = DP_NONE;
    w->to = (struct dp_place){0, DP_PORT_NONE, DP_NONE};
    w->from = w->back = (struct dp_place){slot->port->kind, key->port, slot->place};
    w->network = slot->endpoint ? slot->endpoint->network : dp_snapshot_network(s, key->vni);
    if (w->from.kind != DP_PORT_HOST &&
        (w->network == DP_NONE || s->networks[w->network].vni != key->vni)) {
        return DP_R_unknown_vni;
    }
    const enum dp_reason r = lead(w);
    if (!r) {
        compose(w, key);
    }
    return r;
}
