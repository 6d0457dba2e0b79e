/* engine.c: the packet's way.
 *
 *   rx ─► parse ─► admit ─► lookup ─ hit ─► transpose ─► (encap|decap) ─► tx
 *                             │               ▲
 *                             └ miss ─► walk ─┘
 *
 * A burst goes through one stage after the other. Each frame leaves by exactly one exit: forwarded,
 * answered, or dropped under one reason of reason.def. The functions follow in the order packets
 * meet them. */
#include "engine.h"
#include "arp.h"
#include "checksum.h"
#include "express.h"
#include "nd.h"
#include "note.h"
#include "parse.h"
#include "respond.h"
#include "split.h"
#include "tcp.h"
#include "transpose.h"

/* Frames that go through the stages together: enough that what is asked of memory arrives
 * meanwhile, few enough that it is still in the first cache then. */
enum { STRIDE = 64 };
_Static_assert((int)STRIDE <= (int)DP_BURST, "a worker has so many packets");
enum { LONGEST = 65535 + 84 }; /* an IP packet behind two Ethernet headers and IPv6, UDP, VXLAN */

/* ---- rx ----------------------------------------------------------------------------------- */

/* Field by field: what the parser always fills is not cleared first. */
static void start(struct dp_packet *p, struct dp_frame *f) {
    p->key = (struct dp_key){.port = f->port};
    p->frame = f;
    p->l3 = p->l4 = 0;
    p->family = p->l2 = p->kind = p->discovery = 0;
    p->outer_tos = p->outer_odd = p->fragment = 0;
    p->lane = DP_GONE;
    p->path_mtu = 0;
    p->more = p->payload = 0;
    p->network = DP_NONE;
}

static enum dp_reason receive(const struct pass *x, struct dp_packet *p, struct dp_frame *f) {
    start(p, f);
    f->flags &= DP_CSUM_PARTIAL | DP_CSUM_UNKNOWN | DP_OUTER_CHECKED;
    if (f->off > x->arena_len || f->len > x->arena_len - f->off || f->len > LONGEST) {
        return DP_R_bad_descriptor;
    }
    p->data = x->arena + f->off;
    p->len = f->len;
    if (f->port < x->count->n_ports && !x->known) {
        dp_count(&x->count->ports[f->port].rx_frames, 1);
        dp_count(&x->count->ports[f->port].rx_bytes, f->len);
    }
    if (f->off < DP_HEADROOM) {
        return DP_R_no_headroom;
    }
    return dp_snapshot_ingress(x->policy, f->port) ? DP_R_none : DP_R_port_not_configured;
}

/* ---- parse, admit ------------------------------------------------------------------------- */

/* What RFC 7348 or RFC 6936 leaves to the network. */
static dp_cold enum dp_reason judge_odd(const struct dp_network *n, uint8_t odd) {
    if ((odd & DP_OUTER_ZERO6) && !(n->wire & DP_WIRE_UDP6_ZERO_RX)) {
        return DP_R_udp6_zero_checksum;
    }
    return (odd & DP_OUTER_RESERVED) && (n->wire & DP_WIRE_STRICT) ? DP_R_vxlan_reserved_bits
                                                                   : DP_R_none;
}

/* Outer headers off, and whether this VTEP may speak on this network. */
static enum dp_reason from_underlay(const struct pass *x, struct dp_packet *p,
                                    const struct dp_port *port) {
    enum dp_reason r = dp_parse_outer(p, port);
    if (r) {
        return r;
    }
    p->network = dp_snapshot_network(x->policy, p->key.vni);
    if (p->network == DP_NONE) {
        return DP_R_unknown_vni;
    }
    if (dp_unlikely(p->outer_odd) &&
        (r = judge_odd(&x->policy->networks[p->network], p->outer_odd))) {
        return r;
    }
    return dp_snapshot_has_vtep(x->policy, p->network, &p->outer_src) ? DP_R_none
                                                                      : DP_R_unknown_vtep;
}

/* The MAC addresses, which are no part of the flow id and so are looked at for every frame. */
static enum dp_reason admit(const struct pass *x, struct dp_packet *p,
                            const struct dp_port_slot *slot) {
    const struct dp_eth *eth = dp_packet_eth(p);
    const uint8_t *router =
        p->kind == DP_PORT_HOST ? slot->port->mac : x->policy->networks[p->network].dr_mac;
    if (slot->endpoint && !dp_mac_equal(eth->src, slot->endpoint->mac)) {
        return DP_R_guard_mac;
    }
    if (dp_unlikely(p->discovery)) {
        const enum dp_reason guard = p->family == 6 ? DP_R_guard_nd : DP_R_guard_arp;
        return p->kind == DP_PORT_UNDERLAY ? guard : DP_R_none;
    }
    if (eth->dst[0] & 1) {
        return DP_R_multicast;
    }
    p->l2 = dp_mac_equal(eth->dst, router) ? DP_L2_ROUTED : DP_L2_SWITCHED;
    return p->kind == DP_PORT_HOST && p->l2 == DP_L2_SWITCHED ? DP_R_not_our_mac : DP_R_none;
}

/* An endpoint's access or priority tag, where its network has it stripped (RFC 7348 section 6.1). A
 * second tag is then found where the first one was. */
static dp_cold enum dp_reason parse_untagged(const struct pass *x, struct dp_packet *p) {
    const struct dp_eth *eth = dp_packet_eth(p);
    if (!x->policy->slots[p->key.port].endpoint ||
        !(x->policy->networks[p->network].wire & DP_WIRE_VLAN_STRIP) ||
        be16_get(eth->type) != DP_ETH_VLAN || p->len < sizeof *eth + DP_VLAN_TAG) {
        return DP_R_vlan_tagged;
    }
    memmove(p->data + DP_VLAN_TAG, p->data, sizeof eth->dst + sizeof eth->src);
    p->data += DP_VLAN_TAG;
    p->len -= DP_VLAN_TAG;
    return dp_parse(p);
}

/* Larger than any packet of its network, as a kernel peer hands them over to a socket. */
static bool is_unsized(const struct pass *x, const struct dp_packet *p) {
    const uint8_t socket = DP_CSUM_UNKNOWN | DP_OUTER_CHECKED;
    return (p->frame->flags & socket) == socket && p->kind == DP_PORT_UNDERLAY &&
           p->len - p->l3 > x->policy->networks[p->network].mtu;
}

/* From here on a super-frame counts as the packets that it stands for. */
static dp_cold enum dp_reason unfold(const struct pass *x, struct dp_packet *p) {
    if (!p->frame->gso_type && is_unsized(x, p)) {
        dp_parse_unsized(p, x->policy->networks[p->network].mtu);
    }
    const enum dp_reason r = dp_parse_super(p);
    if (!r && p->more) {
        const uint32_t outer = (uint32_t)(p->data - (x->arena + p->frame->off));
        const uint64_t heads = outer + p->len - p->payload;
        dp_count(&x->count->totals.rx, p->more);
        dp_count(&x->count->ports[p->key.port].rx_frames, p->more);
        dp_count(&x->count->ports[p->key.port].rx_bytes, p->more * heads);
    }
    return r;
}

static enum dp_reason parse(const struct pass *x, struct dp_packet *p) {
    const struct dp_port_slot *slot = &x->policy->slots[p->key.port];
    p->kind = slot->port->kind;
    enum dp_reason r = DP_R_none;
    if (slot->endpoint) {
        p->network = slot->endpoint->network;
        p->key.vni = x->policy->networks[p->network].vni;
    } else if (p->kind == DP_PORT_UNDERLAY) {
        r = from_underlay(x, p, slot->port);
    }
    if ((r || (r = dp_parse(p))) && (r != DP_R_vlan_tagged || (r = parse_untagged(x, p)))) {
        return r;
    }
    if (p->frame->flags & (DP_CSUM_PARTIAL | DP_CSUM_UNKNOWN)) {
        dp_parse_checksum_state(p);
    }
    if (dp_unlikely(p->frame->gso_type | p->frame->gso_size || is_unsized(x, p)) &&
        (r = unfold(x, p))) {
        return r;
    }
    return admit(x, p, slot);
}

/* ---- exits -------------------------------------------------------------------------------- */

static void originate(const struct pass *x, struct dp_packet *p) {
    const uint16_t port = p->key.port;
    dp_count(&x->count->totals.originated, 1);
    dp_count(&x->count->ports[port].originated, 1);
    settle(x, p, port);
}

static void answer(const struct pass *x, struct dp_packet *p) {
    p->frame->verdict = DP_ANSWER;
    p->frame->reason = DP_R_none;
    dp_count(&x->count->totals.consumed, 1);
    dp_count(&x->count->ports[p->key.port].consumed, 1);
    originate(x, p);
}

static void drop(const struct pass *x, struct dp_packet *p, enum dp_reason reason) {
    struct dp_frame *f = p->frame;
    f->verdict = DP_DROP;
    f->reason = (uint8_t)reason;
    f->port = DP_PORT_NONE;
    dp_count(&x->count->totals.dropped, dp_packet_count(p));
    dp_count(&x->count->reasons[reason], dp_packet_count(p));
    if (p->key.port < x->count->n_ports) {
        dp_count(&x->count->ports[p->key.port].dropped, dp_packet_count(p));
    }
    if (dp_observed(&x->e->observer, DP_AT_DROP) && !x->trace) {
        dp_note_frame(x, f, DP_AT_DROP, p->key.port, dp_packet_count(p));
    }
}

static struct dp_speaker speaker_to(const struct pass *x, const struct dp_packet *p) {
    const struct dp_port_slot *slot = &x->policy->slots[p->key.port];
    if (slot->endpoint) {
        const struct dp_network *n = &x->policy->networks[p->network];
        return (struct dp_speaker){n->dr_mac, dp_addr_load(n->gateway4), dp_addr_load(n->gateway6)};
    }
    return (struct dp_speaker){slot->port->mac, dp_addr_load(slot->port->ip4),
                               dp_addr_load(slot->port->ip6)};
}

static bool may_send_error(const struct pass *x, const struct dp_packet *p) {
    const struct dp_icmp_rate *rate = x->policy->icmp.all ? &x->policy->icmp : &x->e->limits.icmp;
    const bool may = dp_limit_take(&x->e->limit, rate, p->key.port, x->w->now_ns, x->trace);
    dp_count(&x->count->totals.icmp_limited, !may);
    return may;
}

/* A drop that its sender is told of: a rejected TCP segment by a reset, else where an ICMP error is
 * due and not one too many. */
static void drop_loudly(const struct pass *x, struct dp_packet *p, enum dp_reason reason,
                        uint16_t mtu) {
    drop(x, p, reason);
    if (reason == DP_R_acl_reject && dp_is_segment(p)) {
        if (dp_respond_reset(p)) {
            originate(x, p);
        }
        return;
    }
    const struct dp_speaker speaker = speaker_to(x, p);
    if (dp_error_is_due(p, reason, &speaker) && may_send_error(x, p)) {
        dp_respond_error(p, reason, mtu, &speaker);
        originate(x, p);
    }
}

static void trace_parse(struct dp_trace *t, const struct dp_packet *p) {
    struct dp_step *s = dp_trace_step(t, DP_STEP_PARSE, &p->key);
    if (s) {
        s->ttl = p->family == 4   ? dp_packet_ip4(p)->ttl
                 : p->family == 6 ? dp_packet_ip6(p)->hops
                                  : 0;
        s->matched = p->family;
    }
}

/* ---- answers ------------------------------------------------------------------------------ */

static enum dp_reason judge_discovery(struct dp_packet *p, const struct dp_snapshot *s) {
    const struct dp_port_slot *slot = &s->slots[p->key.port];
    if (p->family == 6) {
        return slot->endpoint ? dp_nd_from_endpoint(p, s, slot->endpoint)
                              : dp_nd_from_host(p, slot->port);
    }
    return slot->endpoint ? dp_arp_from_endpoint(p, s, slot->endpoint)
                          : dp_arp_from_host(p, slot->port);
}

static dp_cold void answer_discovery(const struct pass *x, struct dp_packet *p) {
    trace_parse(x->trace, p);
    const enum dp_reason r = judge_discovery(p, x->policy);
    struct dp_step *s = dp_trace_step(x->trace, DP_STEP_LAYER, &p->key);
    if (s) {
        s->layer = DP_LAYER_GUARD;
        s->direction = DP_OUT;
        s->reason = (uint8_t)r;
        s->action = r ? DP_BLOCK : DP_ALLOW;
    }
    if (r) {
        drop(x, p, r);
    } else {
        answer(x, p);
    }
}

/* ---- hit ---------------------------------------------------------------------------------- */

static uint32_t stamp_of(const struct dp_snapshot *s, uint16_t port) {
    return port < s->n_slots ? s->slots[port].stamp : UINT32_MAX;
}

static bool adjacency_stands(const struct dp_snapshot *s, uint32_t i) {
    return i == DP_NONE || dp_vteps_have(&s->vteps, i);
}

/* Nothing the flow depends on has changed since it was composed. */
static bool fresh(const struct dp_snapshot *s, const struct dp_half *half) {
    const struct dp_act *act = &half->act;
    return act->generation >= stamp_of(s, half->key.port) &&
           act->generation >= stamp_of(s, act->egress) && adjacency_stands(s, act->adjacency);
}

/* The half stands under the policy at hand too, whose timers may be others. */
static void confirm(const struct pass *x, struct dp_pair *pair, uint32_t side) {
    if (dp_unlikely(pair->half[side].act.generation != x->policy->generation)) {
        dp_set(pair->half[side].act.generation, x->policy->generation);
        dp_flow_set_state(&x->e->flows, pair, pair->half[0].state);
    }
}

/* Keeps the pair alive, and notes who was seen; what says nothing credible of a TCP flow is counted
 * only. */
static void note_use(const struct pass *x, const struct dp_packet *p, struct dp_pair *pair,
                     uint32_t side) {
    struct dp_act *act = &pair->half[side].act;
    const uint8_t state = pair->half[0].state | dp_flow_side(side);
    dp_count(&act->packets, dp_packet_count(p));
    dp_count(&act->bytes, dp_packet_bytes(p));
    if (p->key.proto == DP_IP_TCP) {
        if (dp_unlikely(p->fragment == DP_LATER ||
                        !dp_tcp_note(&x->e->flows, pair, side, p, x->w->now_ns))) {
            return;
        }
    } else if (pair->half[0].state != state) { /* seldom, and a clean line is not written back */
        dp_flow_set_state(&x->e->flows, pair, state);
    }
    dp_set(act->last_ns, x->w->now_ns);
}

/* The next outer id; a trace foretells it. */
static dp_cold void number(const struct pass *x, struct dp_packet *p) {
    const uint16_t id = (uint16_t)(x->e->outer_id + 1);
    x->e->outer_id = x->trace ? x->e->outer_id : id;
    dp_outer_number(p, id);
}

/* What is left of a packet's way once its transposition said r. */
static void conclude(const struct pass *x, struct dp_packet *p, const struct dp_act *act, int r) {
    if (dp_likely(r == DP_R_none)) {
        dp_count(&x->count->totals.local,
                 act->flags & (DP_ACT_ENCAP | DP_ACT_DECAP) ? 0 : dp_packet_count(p));
        forward(x, p, act->egress);
    } else if (r == DP_UNNUMBERED) {
        number(x, p);
        forward(x, p, act->egress);
    } else {
        drop_loudly(x, p, (enum dp_reason)r, dp_way_mtu(p, act));
    }
}

/* An outer source that is not the flow's VTEP may not speak for it. */
static bool vtep_differs(const struct pass *x, const struct dp_packet *p,
                         const struct dp_act *act) {
    return (act->flags & (DP_ACT_DECAP | DP_ACT_ANY_VTEP)) == DP_ACT_DECAP &&
           !dp_addr_equal(&x->policy->tunnels[act->adjacency].remote, &p->outer_src);
}

/* Cuts a packet that may be cut; its other pieces come out by dp_more. */
static dp_cold bool split(const struct pass *x, struct dp_packet *p, uint16_t mtu) {
    const uint32_t more = dp_split(&x->e->fragments.store, p, mtu, x->trace);
    dp_count(&x->count->totals.copies, more);
    return more;
}

/* Applies a flow that stands: the last checks are per packet, so they are made here. */
static void apply(const struct pass *x, struct dp_packet *p, const struct dp_half *half,
                  const struct dp_half *other) {
    p->frame->rule = half->act.rule;
    if (dp_unlikely(vtep_differs(x, p, &half->act))) {
        drop(x, p, DP_R_source_not_behind_vtep);
        return;
    }
    if (dp_unlikely(x->narrow)) {
        p->path_mtu = path_mtu(x, p, &half->act);
    }
    int r = dp_transpose(p, half, other, x->policy);
    if (dp_unlikely(r == DP_R_needs_fragmentation) && split(x, p, dp_way_mtu(p, &half->act))) {
        r = dp_transpose(p, half, other, x->policy);
    }
    conclude(x, p, &half->act, r);
}

/* The side-th half's packet: counted, then applied. */
static void apply_hit(const struct pass *x, struct dp_packet *p, struct dp_pair *pair,
                      uint32_t side) {
    if (dp_likely(!vtep_differs(x, p, &pair->half[side].act))) {
        note_use(x, p, pair, side);
    }
    apply(x, p, &pair->half[side], &pair->half[!side]);
}

/* ---- miss --------------------------------------------------------------------------------- */

/* outer_src: of the packet the walk is for; NULL for none that came from the underlay. */
static struct dp_walk new_walk(const struct pass *x, const struct dp_addr *outer_src) {
    return (struct dp_walk){.policy = x->policy,
                            .flows = &x->e->flows,
                            .bindings = &x->e->bindings,
                            .count = x->count,
                            .trace = x->trace,
                            .entropy = &x->e->entropy,
                            .spread = &x->e->spread,
                            .now_ns = x->w->now_ns,
                            .outer_src = outer_src};
}

static void refuse(const struct pass *x, struct dp_packet *p, const struct dp_walk *w,
                   enum dp_reason r) {
    p->frame->rule = w->rule;
    if (r == DP_R_to_gateway && p->kind != DP_PORT_UNDERLAY && p->l2 == DP_L2_ROUTED &&
        dp_is_echo_request(p)) {
        dp_respond_echo(p);
        answer(x, p);
    } else {
        drop_loudly(x, p, r, 0);
    }
}

static void hold_binding(struct dp_engine *e, uint32_t binding) {
    if (binding != DP_NONE) {
        dp_bindings_hold(&e->bindings, binding);
    }
}

static void leave_binding(struct dp_engine *e, uint32_t binding, uint64_t last_ns) {
    if (binding != DP_NONE) {
        dp_bindings_leave(&e->bindings, binding, last_ns);
    }
}

/* What a walk bound that came to nothing. */
static void unbind(struct dp_engine *e, const struct dp_walk *w) {
    if (w->bound_now) {
        dp_bindings_undo(&e->bindings, w->binding);
    }
}

void dp_engine_forget(struct dp_engine *e, struct dp_pair *pair, uint64_t now_ns) {
    if (dp_observed(&e->observer, DP_AT_END)) {
        dp_note_end(e, pair, now_ns);
    }
    leave_binding(e, dp_pair_binding(pair), dp_pair_last(pair));
    dp_flow_remove(&e->flows, pair);
}

/* Judges a pair of an older policy again, by its initiator's key, and replaces both halves at once
 * or ends it; *pair is then where it is now. */
static dp_cold enum dp_reason resimulate(const struct pass *x, struct dp_walk *w,
                                         struct dp_pair **pair) {
    const struct dp_key key = (*pair)->half[0].key;
    w->held = *pair;
    const enum dp_reason r = dp_walk_flow(w, &key);
    dp_count(&x->count->totals.reconciled, 1);
    if (x->trace) {
        return r;
    }
    if (r) {
        dp_engine_forget(x->e, *pair, x->w->now_ns);
        unbind(x->e, w);
        return r;
    }
    const uint32_t old = dp_pair_binding(*pair);
    const uint64_t last = dp_pair_last(*pair);
    hold_binding(x->e, w->binding);
    *pair = dp_flow_replace(&x->e->flows, *pair, &w->pair);
    leave_binding(x->e, old, last);
    if (!*pair) {
        leave_binding(x->e, w->binding, last);
    }
    return *pair ? DP_R_none : DP_R_flow_table_full;
}

/* Where another pair holds the flow id of this one's answers (its endpoint was moved, say), that
 * pair gives it up if it is idle or its policy is no more. */
static dp_cold void claim_answers(const struct pass *x, struct dp_pair *pair) {
    struct dp_flows *flows = &x->e->flows;
    const struct dp_key *key = &pair->half[1].key;
    const uint32_t ref = dp_flow_find(flows, key, dp_flow_hash(flows, key));
    struct dp_pair *holder = ref ? dp_flow_pair(flows, ref) : NULL;
    if (holder == pair) {
        return; /* who speaks to itself through NAT: both directions have one flow id */
    }
    if (holder && dp_flow_is_idle(flows, holder, x->w->now_ns)) {
        dp_engine_forget(x->e, holder, x->w->now_ns);
    } else if (holder && !fresh(x->policy, dp_flow_half(flows, ref))) {
        struct dp_walk w = new_walk(x, NULL);
        resimulate(x, &w, &holder);
    }
    dp_flow_index_answers(flows, pair);
}

static bool is_indexed(const struct dp_half *half) {
    return half->act.flags & DP_ACT_INDEXED;
}

static bool is_leaving(const struct pass *x, const struct dp_key *key, enum dp_scope scope) {
    return x->leaving && dp_flow_in_scope(&x->leaving->half[0].key, key, scope);
}

/* Whose share of the flow table is used up; DP_R_none: there is room. */
static enum dp_reason crowded(const struct pass *x, const struct dp_key *key,
                              enum dp_scope *scope) {
    const struct dp_flows *flows = &x->e->flows;
    const struct dp_endpoint *from = x->policy->slots[key->port].endpoint;
    const uint32_t n = dp_snapshot_network(x->policy, key->vni);
    const uint32_t most = n == DP_NONE ? 0 : x->policy->networks[n].max_flows;
    *scope = DP_SCOPE_PORT;
    if (from && from->max_flows &&
        dp_share_of_port(&flows->shares, key->port) - is_leaving(x, key, *scope) >=
            from->max_flows) {
        return DP_R_flow_quota;
    }
    *scope = DP_SCOPE_NETWORK;
    if (most &&
        dp_share_of_network(&flows->shares, key->vni) - is_leaving(x, key, *scope) >= most) {
        return DP_R_flow_quota;
    }
    *scope = DP_SCOPE_TABLE;
    return flows->used < flows->max || x->leaving ? DP_R_none : DP_R_flow_table_full;
}

/* Where room is short, a half-open pair of the same share gives way, and its binding with it unless
 * others stand on it; binding: of the new flow. Work is bounded: a flood of
 * new flows costs established ones nothing but that. */
static enum dp_reason make_room(const struct pass *x, const struct dp_key *key, uint32_t binding) {
    struct dp_flows *flows = &x->e->flows;
    enum dp_scope scope;
    const enum dp_reason r = crowded(x, key, &scope);
    if (dp_likely(!r)) {
        return DP_R_none;
    }
    uint32_t hand = flows->hand;
    struct dp_pair *victim = dp_flows_next_half_open(flows, scope, key, x->leaving, &hand);
    if (x->trace) {
        return victim ? DP_R_none : r;
    }
    flows->hand = hand;
    if (!victim) {
        return r;
    }
    const uint32_t left = dp_pair_binding(victim);
    dp_engine_forget(x->e, victim, x->w->now_ns);
    if (left != DP_NONE && left != binding) {
        dp_bindings_undo(&x->e->bindings, left);
    }
    dp_count(&x->count->totals.evicted, 1);
    return DP_R_none;
}

static void miss(const struct pass *x, struct dp_packet *p) {
    struct dp_walk w = new_walk(x, p->kind == DP_PORT_UNDERLAY ? &p->outer_src : NULL);
    p->frame->flags |= DP_MISS;
    dp_count(&x->count->totals.misses, 1);
    enum dp_reason r = dp_walk_flow(&w, &p->key);
    if (dp_unlikely(r)) {
        unbind(x->e, &w);
        refuse(x, p, &w, r);
        return;
    }
    r = make_room(x, &p->key, w.binding);
    if (dp_unlikely(r)) {
        unbind(x->e, &w);
        drop(x, p, r);
        return;
    }
    if (x->trace) {
        apply(x, p, &w.pair.half[0], &w.pair.half[1]);
        return;
    }
    const uint32_t ref = dp_flow_add(&x->e->flows, &w.pair);
    if (!ref) {
        unbind(x->e, &w);
        drop(x, p, DP_R_flow_table_full);
        return;
    }
    struct dp_pair *pair = dp_flow_pair(&x->e->flows, ref);
    if (dp_observed(&x->e->observer, DP_AT_NEW)) {
        dp_note_new(x, p, pair);
    }
    hold_binding(x->e, w.binding);
    if (dp_unlikely(is_indexed(&w.pair.half[1]) && !is_indexed(&pair->half[1]))) {
        claim_answers(x, pair);
    }
    apply_hit(x, p, pair, 0);
}

/* A packet of a flow that is idle, or over: it is forgotten, and begins anew. */
static dp_cold void miss_without(const struct pass *x, struct dp_packet *p, struct dp_pair *idle) {
    struct pass rest = *x;
    if (!x->trace) {
        dp_engine_forget(x->e, idle, x->w->now_ns);
        miss(x, p);
        return;
    }
    struct dp_bindings *bindings = &x->e->bindings;
    const uint32_t i = dp_pair_binding(idle);
    const struct dp_binding held = i == DP_NONE ? (struct dp_binding){0} : bindings->items[i];
    leave_binding(x->e, i, dp_pair_last(idle)); /* for as long as this looks */
    rest.leaving = idle;
    miss(&rest, p);
    if (i != DP_NONE) {
        bindings->items[i] = held;
    }
}

/* A packet of a flow of an older policy. */
static dp_cold void reconcile(const struct pass *x, struct dp_packet *p, struct dp_pair *pair,
                              uint32_t side) {
    struct dp_walk w = new_walk(x, NULL);
    const enum dp_reason r = resimulate(x, &w, &pair);
    if (r) {
        refuse(x, p, &w, r);
        return;
    }
    if (!x->trace && is_indexed(&w.pair.half[1]) && !is_indexed(&pair->half[1])) {
        claim_answers(x, pair);
    }
    const struct dp_half *half = x->trace ? &w.pair.half[side] : &pair->half[side];
    if (!dp_key_equal(&half->key, &p->key) || !is_indexed(half)) {
        miss(x, p); /* the answer's flow id is another one now, or must be allowed by itself */
    } else if (x->trace) {
        apply(x, p, half, &w.pair.half[!side]);
    } else {
        apply_hit(x, p, pair, side);
    }
}

/* ---- ICMP errors -------------------------------------------------------------------------- */

/* An ICMP error about a packet of a standing flow goes the way of that flow's answers, whatever the
 * rules say, and neither refreshes nor ends it (RFC 5508 REQ-6). False: related to no flow, so a
 * packet as any other. */
static dp_cold bool relate(const struct pass *x, struct dp_packet *p) {
    struct dp_flows *flows = &x->e->flows;
    const struct dp_endpoint *from = x->policy->slots[p->key.port].endpoint;
    struct dp_quote q;
    if ((from && !dp_endpoint_owns(x->policy, from, &p->key.src)) || dp_key_is_redirect(&p->key) ||
        !dp_parse_quote(p, &q)) {
        return false;
    }
    const uint32_t ref = dp_flow_find(flows, &q.answer, dp_flow_hash(flows, &q.answer));
    const struct dp_pair *pair = ref ? dp_flow_pair(flows, ref) : NULL;
    const struct dp_half *half = ref ? dp_flow_half(flows, ref) : NULL;
    if (!ref || dp_flow_is_idle(flows, pair, x->w->now_ns) || !fresh(x->policy, half) ||
        vtep_differs(x, p, &half->act)) {
        return false;
    }
    p->frame->rule = half->act.rule;
    p->path_mtu = x->narrow ? path_mtu(x, p, &half->act) : 0;
    dp_count(&x->count->totals.hits, 1);
    conclude(x, p, &half->act,
             dp_transpose_error(p, &q, half, &pair->half[half == &pair->half[0]], x->policy));
    return true;
}

/* ---- fragments ---------------------------------------------------------------------------- */

/* What was kept and will not be given out. */
static void lose(struct dp_engine *e, struct dp_worker *w, uint32_t kept, enum dp_reason reason) {
    struct dp_counters *c = &w->count;
    const uint16_t port = dp_store_item(&e->fragments.store, kept)->port;
    dp_count(&c->totals.dropped, 1);
    dp_count(&c->reasons[reason], 1);
    if (port < c->n_ports) {
        dp_count(&c->ports[port].dropped, 1);
    }
    if (dp_observed(&e->observer, DP_AT_DROP)) {
        dp_note_lost(e, kept, reason, w->now_ns);
    }
    dp_store_give(&e->fragments.store, kept);
}

void dp_engine_drop_kept(struct dp_engine *e, struct dp_worker *w, bool all) {
    struct dp_fragments *t = &e->fragments;
    uint32_t kept;
    uint32_t datagram;
    while ((datagram = all ? dp_fragments_oldest(t) : dp_fragments_overdue(t, w->now_ns)) !=
           DP_NONE) {
        while ((kept = dp_fragments_next_waiting(t, datagram))) {
            lose(e, w, kept, DP_R_fragment_timeout);
        }
        dp_fragments_forget(t, datagram);
    }
    while ((kept = dp_kept_next(&t->store, &t->doomed))) {
        lose(e, w, kept, DP_R_fragment_overlap);
    }
    while (all && (kept = dp_kept_next(&t->store, &t->store.queue))) {
        lose(e, w, kept, DP_R_fragment_timeout);
    }
}

/* A fragment goes the way of its datagram's first one. What no rule could let pass is dropped
 * before anything is kept for it. */
static dp_cold int track(const struct pass *x, struct dp_packet *p, const struct dp_frame *f) {
    const struct dp_endpoint *from = x->policy->slots[p->key.port].endpoint;
    if (dp_addr_is_multicast(&p->key.dst)) {
        return DP_R_multicast;
    }
    if (from && !dp_endpoint_owns(x->policy, from, &p->key.src)) {
        return DP_R_guard_ip;
    }
    if (x->known) {
        dp_key_complete(&p->key, &x->known[f - x->frames]);
        return DP_R_none;
    }
    const bool outer = p->kind == DP_PORT_UNDERLAY;
    const uint8_t *arrived = outer ? x->arena + f->off : p->data;
    if (!x->trace) {
        dp_engine_drop_kept(x->e, x->w, false);
    }
    const int r = dp_fragments_judge(&x->e->fragments, p, arrived, outer ? f->len : p->len,
                                     x->w->now_ns, x->trace);
    if (r == DP_R_fragment_overlap && !x->trace) {
        dp_engine_drop_kept(x->e, x->w, false);
    }
    return r;
}

static dp_cold void hold(struct dp_frame *f) {
    f->verdict = DP_HELD;
    f->reason = DP_R_none;
    f->port = DP_PORT_NONE;
}

/* ---- the stages --------------------------------------------------------------------------- */

/* All that any frame may be. False: it has left, or waits. */
static bool receive_any(const struct pass *x, struct dp_packet *p, struct dp_frame *f) {
    int r = receive(x, p, f);
    f->generation = x->policy->generation;
    f->rule = DP_NONE;
    r = r ? r : (int)parse(x, p);
    if (dp_unlikely(p->fragment) && !r && !p->discovery) {
        r = track(x, p, f);
    }
    if (dp_likely(!r && !p->discovery)) {
        p->lane = DP_GENERAL;
        p->hash = dp_flow_hash(&x->e->flows, &p->key);
        return true;
    }
    if (dp_unlikely(r == DP_WAITS)) {
        hold(f);
    } else if (r) {
        drop(x, p, (enum dp_reason)r);
    } else {
        answer_discovery(x, p);
    }
    return false;
}

/* Takes the lock for the rest of the burst. True: the policy is another one than before. */
static bool lock(struct pass *x) {
    if (x->w->holds) {
        return false;
    }
    const struct dp_snapshot *before = x->policy;
    x->policy = dp_hold(x->e, x->w);
    return x->policy != before;
}

static void receive_burst(struct pass *x, struct dp_frame *frames, uint32_t n) {
    const bool express = !x->trace && !x->known;
    if (express && dp_likely(dp_express_look(x, frames, n) == n)) {
        return;
    }
    if (lock(x) && express) {
        dp_express_look(x, frames, n);
    }
    for (uint32_t i = 0; i < n; i++) {
        struct dp_packet *p = &x->w->packets[i];
        if ((!express || p->lane == DP_GONE) && receive_any(x, p, &frames[i])) {
            dp_flow_prefetch(&x->e->flows, p->hash);
        }
    }
}

/* A connection from where the last one is over: one more flow, which may meet another server. */
static bool opens_again(const struct pass *x, const struct dp_packet *p, const struct dp_pair *pair,
                        uint32_t side) {
    if (dp_likely(side || !(pair->half[0].state & DP_FLOW_CLOSING))) {
        return false;
    }
    const uint16_t mask = DP_TCP_SYN | DP_TCP_ACK | DP_TCP_RST;
    return p->key.proto == DP_IP_TCP && p->fragment != DP_LATER &&
           (((const struct dp_tcp *)dp_packet_l4(p))->flags & mask) == DP_TCP_SYN &&
           !vtep_differs(x, p, &pair->half[0].act);
}

static void judge_packet(const struct pass *x, struct dp_packet *p) {
    struct dp_flows *flows = &x->e->flows;
    uint32_t ref = p->candidate;
    if (dp_unlikely(!ref || !dp_flow_is(flows, ref, &p->key))) {
        ref = dp_flow_find(flows, &p->key, p->hash);
    }
    if (dp_unlikely(!ref)) {
        if (!dp_key_is_icmp_error(&p->key) || p->fragment || !relate(x, p)) {
            miss(x, p);
        }
        return;
    }
    struct dp_pair *pair = dp_flow_pair(flows, ref);
    const uint32_t side = (ref - 1) & 1;
    const struct dp_half *half = &pair->half[side];
    /* the half at hand first: of a flow in use, the other one's lines need not be read */
    const bool late =
        (int64_t)(x->w->now_ns - dp_get(half->act.last_ns)) > (int64_t)dp_flow_idle_ns(flows, pair);
    if (dp_unlikely((late && dp_flow_is_idle(flows, pair, x->w->now_ns)) ||
                    opens_again(x, p, pair, side))) {
        miss_without(x, p, pair);
        return;
    }
    struct dp_step *s = dp_trace_step(x->trace, DP_STEP_FLOW, &p->key);
    if (s) {
        s->matched = 1;
        s->rule = half->act.rule;
        s->adjacency = half->act.adjacency;
        s->port = half->act.egress;
    }
    dp_count(&x->count->totals.hits, 1);
    if (dp_unlikely(!fresh(x->policy, half))) {
        reconcile(x, p, pair, side);
    } else if (dp_unlikely(x->trace != NULL)) {
        apply(x, p, half, &pair->half[!side]);
    } else {
        confirm(x, pair, side);
        apply_hit(x, p, pair, side);
    }
}

/* What was looked at under an older policy is looked at again in its turn. */
static dp_cold void close_express(struct dp_packet *packets, uint32_t n) {
    for (uint32_t i = 0; i < n; i++) {
        packets[i].lane = packets[i].lane == DP_EXPRESS ? DP_LEFT : packets[i].lane;
    }
}

/* In order; packets that leave the express lane begin anew. */
static void judge_burst(struct pass *x, uint32_t n) {
    dp_express_begin(x, n);
    for (uint32_t i = 0; (i = dp_express_take(x, i, n)) < n; i++) {
        struct dp_packet *p = &x->w->packets[i];
        if (lock(x)) {
            close_express(p, n - i);
        }
        if (p->lane >= DP_EXPRESS) {
            receive_any(x, p, p->frame);
        }
        if (p->lane != DP_GONE) {
            judge_packet(x, p);
        }
    }
}

static void process_burst(struct pass *x, struct dp_frame *frames, uint32_t n) {
    receive_burst(x, frames, n);
    judge_burst(x, n);
    dp_count(&x->count->totals.rx, x->known ? 0 : n);
}

/* The same, and what is seen of it. */
static dp_cold void process_observed(struct pass *x, struct dp_frame *frames, uint32_t n) {
    uint16_t came[DP_BURST];
    dp_note_arrivals(x, frames, n, came);
    process_burst(x, frames, n);
    dp_note_departures(x, frames, n, came);
}

static void process(struct pass *x, struct dp_frame *frames, uint32_t n) {
    if (dp_observed(&x->e->observer, DP_AT_PASSING)) {
        process_observed(x, frames, n);
    } else {
        process_burst(x, frames, n);
    }
}

/* ---- entry -------------------------------------------------------------------------------- */

static uint64_t nanoseconds(uint32_t policy, uint32_t engine, uint32_t otherwise) {
    return (uint64_t)(policy ? policy : engine ? engine : otherwise) * 1000000000u;
}

static void set_timers(struct dp_engine *e, const struct dp_snapshot *s) {
    const struct dp_timers *a = &s->timers;
    const struct dp_timers *b = &e->timers;
    e->timed = s->generation;
    e->flows.timers = (struct dp_flow_timers){
        .tcp_established = nanoseconds(a->tcp_established, b->tcp_established, 7440),
        .tcp_transitory = nanoseconds(a->tcp_transitory, b->tcp_transitory, 240),
        .tcp_half_open = nanoseconds(a->tcp_half_open, b->tcp_half_open, 30),
        .udp = nanoseconds(a->udp, b->udp, 300),
        .icmp = nanoseconds(a->icmp, b->icmp, 60),
        .other = nanoseconds(a->other, b->other, 300)};
    e->fragments.timeout_ns = nanoseconds(a->fragment, b->fragment, 30);
    e->paths.age_ns = nanoseconds(a->path_mtu, b->path_mtu, 600);
}

/* Named first, then looked at again, so that a commit that swapped it in between sees the name or
 * is seen. */
static const struct dp_snapshot *read_policy(struct dp_engine *e, struct dp_worker *w) {
    struct dp_snapshot *s = atomic_load(&e->policy);
    struct dp_snapshot *before;
    do {
        before = s;
        atomic_store(&w->reading, s);
        s = atomic_load(&e->policy);
    } while (s != before);
    return s;
}

static void advance(struct dp_worker *w, uint64_t now_ns) {
    w->now_ns = now_ns > w->now_ns ? now_ns : w->now_ns;
}

bool dp_enter(struct dp_worker *w) {
    return !atomic_flag_test_and_set_explicit(&w->busy, memory_order_acquire);
}

static void let_go(struct dp_engine *e, struct dp_worker *w) {
    if (w->holds) {
        w->holds = false;
        pthread_mutex_unlock(&e->lock);
    }
}

void dp_leave(struct dp_engine *e, struct dp_worker *w) {
    let_go(e, w);
    dp_grace_leave(&e->grace, w->number);
    atomic_store(&w->reading, NULL);
    atomic_flag_clear_explicit(&w->busy, memory_order_release);
}

/* Outside while it waits, so that the holder need not wait for it. */
const struct dp_snapshot *dp_hold(struct dp_engine *e, struct dp_worker *w) {
    dp_grace_leave(&e->grace, w->number);
    pthread_mutex_lock(&e->lock);
    w->holds = true;
    const struct dp_snapshot *s = read_policy(e, w);
    if (dp_unlikely(e->timed != s->generation)) {
        set_timers(e, s);
    }
    return s;
}

struct dp_worker *dp_enter_looker(struct dp_engine *e) {
    struct dp_worker *w = &e->workers[e->n_workers];
    if (!dp_enter(w)) {
        return NULL;
    }
    dp_hold(e, w);
    return w;
}

static struct pass pass_over(struct dp_engine *e, struct dp_worker *w, uint8_t *arena,
                             size_t arena_len) {
    if (!w->holds) {
        dp_grace_enter(&e->grace, w->number);
    }
    return (struct pass){.e = e,
                         .w = w,
                         .policy = read_policy(e, w),
                         .narrow = dp_get(e->paths.used) > 0,
                         .shared = e->n_workers > 1,
                         .count = &w->count,
                         .arena = arena,
                         .arena_len = arena_len};
}

int dp_process(struct dp_engine *e, uint32_t worker, uint8_t *arena, size_t arena_len,
               struct dp_frame *frames, uint32_t n, uint64_t now_ns) {
    if (!e || worker >= e->n_workers || (n && (!arena || !frames))) {
        return DP_EINVAL;
    }
    struct dp_worker *w = &e->workers[worker];
    if (!dp_enter(w)) {
        return DP_EBUSY;
    }
    advance(w, now_ns);
    for (uint32_t done = 0; done < n; done += STRIDE) {
        struct pass x = pass_over(e, w, arena, arena_len);
        process(&x, frames + done, n - done < STRIDE ? n - done : STRIDE);
        let_go(e, w);
    }
    dp_leave(e, w);
    return DP_OK;
}

/* Moves up to n of the queued frames into the caller's slots. */
static int fetch(struct dp_store *store, struct dp_transport *known, uint8_t *arena,
                 size_t arena_len, struct dp_frame *frames, uint32_t n) {
    uint32_t i = 0;
    for (; i < n && store->queue.first; i++) {
        const struct dp_kept *kept = dp_store_item(store, store->queue.first);
        const struct dp_frame slot = frames[i];
        if (slot.off < DP_HEADROOM || slot.off > arena_len || slot.len > arena_len - slot.off ||
            slot.len < kept->len) {
            return i ? (int)i : DP_EINVAL;
        }
        frames[i] = (struct dp_frame){
            .off = slot.off, .len = kept->len, .port = kept->port, .flags = kept->flags};
        known[i] = kept->transport;
        const uint32_t ref = dp_kept_next(store, &store->queue);
        memcpy(arena + slot.off, dp_store_bytes(store, ref), kept->len);
        dp_store_give(store, ref);
    }
    return (int)i;
}

int dp_more(struct dp_engine *e, uint32_t worker, uint8_t *arena, size_t arena_len,
            struct dp_frame *frames, uint32_t n, uint64_t now_ns) {
    if (!e || worker >= e->n_workers || (n && (!arena || !frames))) {
        return DP_EINVAL;
    }
    struct dp_worker *w = &e->workers[worker];
    if (!dp_enter(w)) {
        return DP_EBUSY;
    }
    advance(w, now_ns);
    dp_hold(e, w);
    const int got =
        fetch(&e->fragments.store, w->known, arena, arena_len, frames, n < DP_BURST ? n : DP_BURST);
    if (got > 0) {
        struct pass x = pass_over(e, w, arena, arena_len);
        x.known = w->known;
        x.frames = frames;
        process(&x, frames, (uint32_t)got);
    }
    dp_leave(e, w);
    return got;
}

int dp_trace(struct dp_engine *e, uint8_t *arena, size_t arena_len, struct dp_frame *frame,
             uint64_t now_ns, struct dp_step *steps, uint32_t n) {
    if (!e || !arena || !frame || (n && !steps)) {
        return DP_EINVAL;
    }
    struct dp_worker *w = dp_enter_looker(e);
    if (!w) {
        return DP_EBUSY;
    }
    const uint64_t before = w->now_ns;
    struct dp_trace trace = {steps, n, 0};
    struct pass x = pass_over(e, w, arena, arena_len);
    x.count = &e->scratch;
    x.trace = &trace;
    advance(w, now_ns);
    w->packets[0].candidate = 0;
    receive_burst(&x, frame, 1);
    if (w->packets[0].lane != DP_GONE) {
        trace_parse(&trace, &w->packets[0]);
        judge_packet(&x, &w->packets[0]);
    }
    struct dp_step *s = dp_trace_step(&trace, DP_STEP_VERDICT, &w->packets[0].key);
    if (s) {
        s->action = frame->verdict;
        s->reason = frame->reason;
        s->rule = frame->rule;
        s->port = frame->port;
    }
    w->now_ns = before;
    dp_leave(e, w);
    return (int)trace.n;
}
