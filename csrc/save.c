/* save.c: flows and bindings as records, and back: what a restart does not end. */
#include "engine.h"
#include <stdlib.h>

enum { FOUND = 1, ACKED = 2 };
_Static_assert(sizeof(struct dp_saved_binding) == 80 && sizeof(struct dp_saved_flow) == 176,
               "no byte of a record is unnamed; DP_SAVED changes with them");

/* ---- out ---------------------------------------------------------------------------------- */

static struct dp_saved_half save_half(const struct dp_half *h) {
    const struct dp_act *act = &h->act;
    const uint16_t flags = dp_get(act->flags);
    struct dp_saved_half s = {.vni = h->key.vni,
                              .sport = h->key.sport,
                              .dport = h->key.dport,
                              .port = h->key.port,
                              .flags = (uint16_t)((flags & DP_ACT_INDEXED ? FOUND : 0) |
                                                  (flags & DP_ACT_ACKED ? ACKED : 0)),
                              .next = dp_get(act->next),
                              .ack = dp_get(act->ack),
                              .packets = dp_count_read(&act->packets),
                              .bytes = dp_count_read(&act->bytes),
                              .last_ns = dp_get(act->last_ns)};
    memcpy(s.src, &h->key.src, sizeof s.src);
    memcpy(s.dst, &h->key.dst, sizeof s.dst);
    return s;
}

int dp_save_flows(struct dp_engine *e, uint32_t *cursor, struct dp_saved_flow *out, uint32_t n) {
    if (!e || !cursor || (n && !out) || n > INT32_MAX) {
        return DP_EINVAL;
    }
    struct dp_worker *w = dp_enter_looker(e);
    if (!w) {
        return DP_EBUSY;
    }
    uint32_t count = 0;
    for (; *cursor < e->flows.size && count < n; ++*cursor) {
        const struct dp_pair *p = &e->flows.pairs[*cursor];
        if (p->half[0].used) {
            out[count++] =
                (struct dp_saved_flow){.half = {save_half(&p->half[0]), save_half(&p->half[1])},
                                       .binding = dp_pair_binding(p),
                                       .idle_s = dp_pair_idle_s(p),
                                       .proto = p->half[0].key.proto,
                                       .state = p->half[0].state};
        }
    }
    dp_leave(e, w);
    return (int)count;
}

int dp_save_bindings(struct dp_engine *e, uint32_t *cursor, struct dp_saved_binding *out,
                     uint32_t *places, uint32_t n) {
    if (!e || !cursor || (n && (!out || !places)) || n > INT32_MAX) {
        return DP_EINVAL;
    }
    struct dp_worker *w = dp_enter_looker(e);
    if (!w) {
        return DP_EBUSY;
    }
    uint32_t count = 0;
    for (; *cursor < e->bindings.max && count < n; ++*cursor) {
        const struct dp_binding *b = &e->bindings.items[*cursor];
        if (b->used) {
            struct dp_saved_binding s = {.vni = b->in.vni,
                                         .place = b->in.place,
                                         .port = b->in.port,
                                         .remote_port = b->in.remote_port,
                                         .out_port = b->out.port,
                                         .proto = b->in.proto,
                                         .portless = b->in.portless,
                                         .last_ns = b->last_ns,
                                         .idle_ns = b->idle_ns};
            memcpy(s.addr, &b->in.addr, sizeof s.addr);
            memcpy(s.remote, &b->in.remote, sizeof s.remote);
            memcpy(s.out, &b->out.addr, sizeof s.out);
            places[count] = *cursor;
            out[count++] = s;
        }
    }
    dp_leave(e, w);
    return (int)count;
}

/* ---- in ----------------------------------------------------------------------------------- */

/* The binding's place now, or DP_NONE. */
static uint32_t restore_binding(struct dp_engine *e, const struct dp_saved_binding *s,
                                uint64_t now_ns) {
    const struct dp_binding_inside in = {.addr = dp_addr_load(s->addr),
                                         .remote = dp_addr_load(s->remote),
                                         .vni = s->vni,
                                         .place = s->place,
                                         .port = s->port,
                                         .remote_port = s->remote_port,
                                         .proto = s->proto,
                                         .portless = s->portless != 0};
    struct dp_pool pool = {.lo = s->out_port, .hi = s->out_port};
    memcpy(pool.addr, s->out, sizeof pool.addr);
    const struct dp_binding_outside out = {dp_addr_load(s->out), s->out_port, s->proto};
    if (s->place >= e->limits.max_ports || s->last_ns > now_ns ||
        dp_bindings_of(&e->bindings, &out, now_ns) != DP_NONE ||
        dp_bindings_find(&e->bindings, &in, &pool, now_ns) != DP_NONE) {
        return DP_NONE;
    }
    return dp_bindings_add(&e->bindings, &in, &pool, s->out_port, s->last_ns, s->idle_ns);
}

static struct dp_half restore_half(const struct dp_saved_half *s, uint8_t proto) {
    return (struct dp_half){.key = {.src = dp_addr_load(s->src),
                                    .dst = dp_addr_load(s->dst),
                                    .vni = s->vni,
                                    .sport = s->sport,
                                    .dport = s->dport,
                                    .port = s->port,
                                    .proto = proto},
                            .act = {.packets = s->packets,
                                    .bytes = s->bytes,
                                    .last_ns = s->last_ns,
                                    .adjacency = DP_NONE,
                                    .rule = DP_NONE,
                                    .next = s->next,
                                    .ack = s->ack,
                                    .flags = (uint16_t)((s->flags & FOUND ? DP_ACT_INDEXED : 0) |
                                                        (s->flags & ACKED ? DP_ACT_ACKED : 0)),
                                    .egress = DP_PORT_NONE}};
}

static bool is_sound(const struct dp_engine *e, const struct dp_saved_flow *s, uint64_t now_ns) {
    const struct dp_saved_half *a = &s->half[0];
    const struct dp_saved_half *b = &s->half[1];
    return (a->flags & FOUND) && a->port < e->limits.max_ports && b->port < e->limits.max_ports &&
           a->last_ns <= now_ns && b->last_ns <= now_ns &&
           !(s->state & ~(DP_FLOW_SEEN | DP_FLOW_CLOSING));
}

/* Composed by no policy: generation 0 is older than every stamp. */
static bool restore_flow(struct dp_engine *e, const struct dp_saved_flow *s, uint32_t binding,
                         uint64_t now_ns) {
    struct dp_pair draft = {
        {restore_half(&s->half[0], s->proto), restore_half(&s->half[1], s->proto)}};
    draft.half[0].kept = binding;
    draft.half[1].kept = s->idle_s;
    const struct dp_key *key = &draft.half[0].key;
    if (!is_sound(e, s, now_ns) || dp_flow_find(&e->flows, key, dp_flow_hash(&e->flows, key))) {
        return false;
    }
    const uint32_t ref = dp_flow_add(&e->flows, &draft);
    if (!ref) {
        return false;
    }
    if (binding != DP_NONE) {
        dp_bindings_hold(&e->bindings, binding);
    }
    dp_flow_set_state(&e->flows, dp_flow_pair(&e->flows, ref), s->state);
    return true;
}

/* Where a saved place is now: places ascend. */
static uint32_t place_now(const uint32_t *places, const uint32_t *now, uint32_t n, uint32_t saved) {
    uint32_t lo = 0;
    while (lo < n) {
        const uint32_t middle = lo + (n - lo) / 2;
        if (places[middle] == saved) {
            return now[middle];
        }
        if (places[middle] < saved) {
            lo = middle + 1;
        } else {
            n = middle;
        }
    }
    return DP_NONE;
}

int dp_restore(struct dp_engine *e, const struct dp_saved_binding *bindings, const uint32_t *places,
               uint32_t n_bindings, const struct dp_saved_flow *flows, uint32_t n_flows,
               uint64_t now_ns) {
    if (!e || (n_bindings && (!bindings || !places)) || (n_flows && !flows) ||
        n_flows > INT32_MAX) {
        return DP_EINVAL;
    }
    uint32_t *now = malloc(((size_t)n_bindings + 1) * sizeof *now);
    if (!now) {
        return DP_ENOMEM;
    }
    struct dp_worker *w = dp_enter_looker(e);
    if (!w) {
        free(now);
        return DP_EBUSY;
    }
    for (uint32_t i = 0; i < n_bindings; i++) {
        now[i] = restore_binding(e, &bindings[i], now_ns);
    }
    int count = 0;
    for (uint32_t i = 0; i < n_flows; i++) {
        const uint32_t binding = place_now(places, now, n_bindings, flows[i].binding);
        count += restore_flow(e, &flows[i], binding, now_ns);
    }
    dp_leave(e, w);
    free(now);
    return count;
}
