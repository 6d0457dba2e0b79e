/* api.c: an engine's life, its policy, and what can be looked at. The packet's way is in engine.c.
 */
#include "engine.h"
#include <sched.h>
#include <stdlib.h>

enum { IP_MTU_MIN = 68 /* RFC 791 */, WORKERS_MAX = 256, SNAP_MAX = 1 << 18 };

/* ---- life --------------------------------------------------------------------------------- */

static bool counters_init(struct dp_counters *c, const struct dp_limits *limits) {
    c->n_ports = limits->max_ports;
    c->n_rules = limits->max_rules;
    c->ports = calloc((size_t)c->n_ports + 1, sizeof *c->ports);
    c->rules = calloc((size_t)c->n_rules + 1, sizeof *c->rules);
    return c->ports && c->rules;
}

static void counters_fini(struct dp_counters *c) {
    free(c->ports);
    free(c->rules);
}

static struct dp_icmp_rate icmp_rate_of(const struct dp_icmp_rate *given) {
    return (struct dp_icmp_rate){.port = given->port ? given->port : 100,
                                 .port_burst = given->port_burst ? given->port_burst : 50,
                                 .all = given->all ? given->all : 1000,
                                 .all_burst = given->all_burst ? given->all_burst : 200};
}

static const char *limit_fault(const struct dp_limits *l) {
    if (l->max_flows == 0 || l->max_flows > 1u << 28) {
        return "max_flows is not in 1-268435456";
    }
    if (l->max_bindings > 1u << 28) {
        return "max_bindings is above 268435456";
    }
    if (l->max_ports == 0 || l->max_ports > DP_PORT_NONE) {
        return "max_ports is not in 1-65535";
    }
    if (!dp_limit_allows(&l->icmp)) {
        return "icmp: a rate or burst is above 1000000";
    }
    if (l->max_datagrams > 1u << 20 || l->max_kept > 1u << 20) {
        return "max_datagrams or max_kept is above 1048576";
    }
    if (l->max_observed > 1u << 30 || l->max_observed % 8) {
        return "max_observed is above 1073741824 or no multiple of 8";
    }
    if (l->max_workers > WORKERS_MAX) {
        return "max_workers is above 256";
    }
    return l->max_rules > 1u << 28 ? "max_rules is above 268435456" : NULL;
}

static bool workers_init(struct dp_engine *e) {
    const size_t size = (e->n_workers + 1) * sizeof *e->workers;
    e->workers = aligned_alloc(_Alignof(struct dp_worker), size);
    if (!e->workers) {
        return false;
    }
    memset(e->workers, 0, size);
    bool all = true;
    for (uint32_t i = 0; i <= e->n_workers; i++) {
        e->workers[i].number = i;
        atomic_flag_clear(&e->workers[i].busy);
        all = (i == e->n_workers || counters_init(&e->workers[i].count, &e->limits)) && all;
    }
    return all;
}

static bool init(struct dp_engine *e, const struct dp_timers *timers, const uint8_t key[32],
                 struct dp_error *err) {
    const struct dp_timers defaults = {0};
    const struct dp_policy empty = {0};
    e->timers = timers ? *timers : defaults;
    e->timed = UINT32_MAX;
    dp_hash_key_init(&e->entropy, key, 2);
    dp_hash_key_init(&e->spread, key, 4);
    dp_paths_init(&e->paths, key);
    struct dp_snapshot *none = dp_snapshot_create(&empty, err);
    atomic_store(&e->policy, none);
    return none && dp_grace_init(&e->grace, e->n_workers) && workers_init(e) &&
           counters_init(&e->scratch, &e->limits) &&
           dp_flows_init(&e->flows, e->limits.max_flows, e->limits.max_ports, key, &e->grace) &&
           dp_bindings_init(&e->bindings, e->limits.max_bindings, e->limits.max_ports, key) &&
           dp_fragments_init(&e->fragments, e->limits.max_datagrams, e->limits.max_kept,
                             e->limits.max_ports, key) &&
           dp_limit_init(&e->limit, e->limits.max_ports, key) &&
           dp_observer_init(&e->observer, e->limits.max_observed);
}

struct dp_engine *dp_engine_create(const struct dp_limits *limits, const struct dp_timers *timers,
                                   const uint8_t key[32], struct dp_error *err) {
    const char *why = limits && key ? limit_fault(limits) : "limits and key are required";
    if (why) {
        *err = (struct dp_error){DP_EINVAL, "limits", 0, why};
        return NULL;
    }
    struct dp_engine *e = aligned_alloc(_Alignof(struct dp_engine), sizeof *e);
    *err = (struct dp_error){DP_ENOMEM, "engine", 0, "no memory"};
    if (!e) {
        return NULL;
    }
    memset(e, 0, sizeof *e);
    e->limits = *limits;
    e->limits.icmp = icmp_rate_of(&limits->icmp);
    e->limits.max_datagrams = limits->max_datagrams ? limits->max_datagrams : 4096;
    e->limits.max_kept = limits->max_kept ? limits->max_kept : 1024;
    e->limits.max_observed = limits->max_observed ? limits->max_observed : 8 << 20;
    e->n_workers = limits->max_workers ? limits->max_workers : 1;
    if (pthread_mutex_init(&e->lock, NULL) || !init(e, timers, key, err)) {
        *err = (struct dp_error){DP_ENOMEM, "engine", 0, "no memory"};
        dp_engine_destroy(e);
        return NULL;
    }
    *err = (struct dp_error){DP_OK, NULL, 0, NULL};
    return e;
}

void dp_engine_destroy(struct dp_engine *e) {
    if (!e) {
        return;
    }
    dp_snapshot_release(atomic_load(&e->policy));
    for (uint32_t i = 0; e->workers && i < e->n_workers; i++) {
        counters_fini(&e->workers[i].count);
    }
    free(e->workers);
    counters_fini(&e->scratch);
    dp_flows_fini(&e->flows);
    dp_bindings_fini(&e->bindings);
    dp_fragments_fini(&e->fragments);
    dp_limit_fini(&e->limit);
    dp_observer_fini(&e->observer);
    dp_grace_fini(&e->grace);
    pthread_mutex_destroy(&e->lock);
    free(e);
}

uint32_t dp_worker_count(const struct dp_engine *e) {
    return e ? e->n_workers : 0;
}

/* ---- policy ------------------------------------------------------------------------------- */

static bool fits(const struct dp_engine *e, const struct dp_snapshot *s, struct dp_error *err) {
    const struct dp_snapshot *old = atomic_load(&e->policy);
    if (s->generation <= old->generation) {
        *err = (struct dp_error){DP_EINVAL, "generation", s->generation,
                                 "not above the committed one"};
    } else if (s->n_slots > e->limits.max_ports) {
        *err = (struct dp_error){DP_ELIMIT, "port", s->n_slots - 1, "port id beyond max_ports"};
    } else if ((s->n_groups || s->services.n) && s->max_rule >= e->limits.max_rules) {
        *err = (struct dp_error){DP_ELIMIT, "rule", s->max_rule, "rule id beyond max_rules"};
    } else {
        return true;
    }
    return false;
}

int dp_commit(struct dp_engine *e, struct dp_snapshot *snapshot, struct dp_error *err) {
    if (!e || !snapshot) {
        *err = (struct dp_error){DP_EINVAL, "snapshot", 0, "no engine or no snapshot"};
        return DP_EINVAL;
    }
    if (!fits(e, snapshot, err)) {
        return err->status;
    }
    pthread_mutex_lock(&e->lock); /* who holds it may look at the policy without being a worker */
    struct dp_snapshot *old = atomic_exchange(&e->policy, dp_snapshot_retain(snapshot));
    pthread_mutex_unlock(&e->lock);
    for (uint32_t i = 0; i <= e->n_workers; i++) {
        while (atomic_load(&e->workers[i].reading) == old) {
            sched_yield(); /* a burst is under way on it: some microseconds */
        }
    }
    dp_snapshot_release(old);
    *err = (struct dp_error){DP_OK, NULL, 0, NULL};
    return DP_OK;
}

/* ---- flows -------------------------------------------------------------------------------- */

int dp_expire(struct dp_engine *e, uint64_t now_ns, uint32_t budget) {
    if (!e) {
        return DP_EINVAL;
    }
    struct dp_worker *w = &e->workers[0];
    if (!dp_enter(w)) {
        return DP_EBUSY;
    }
    dp_hold(e, w);
    w->now_ns = now_ns > w->now_ns ? now_ns : w->now_ns;
    dp_engine_drop_kept(e, w, false);
    dp_paths_expire(&e->paths, w->now_ns);
    uint32_t left = budget < e->flows.size ? budget : e->flows.size;
    uint32_t gone = 0;
    struct dp_pair *idle;
    while ((idle = dp_flows_next_idle(&e->flows, w->now_ns, &left))) {
        dp_engine_forget(e, idle, w->now_ns);
        gone++;
    }
    dp_count(&w->count.totals.expired, gone);
    gone += dp_bindings_expire(&e->bindings, w->now_ns, budget);
    dp_leave(e, w);
    return gone > INT32_MAX ? INT32_MAX : (int)gone;
}

/* The largest outer packet that may be sent at all. */
static uint16_t underlay_mtu(const struct dp_snapshot *s) {
    uint16_t mtu = 0;
    for (uint32_t i = 0; i < s->n_ports; i++) {
        mtu = s->ports[i].kind == DP_PORT_UNDERLAY ? s->ports[i].mtu : mtu;
    }
    return mtu;
}

static bool is_vtep(const struct dp_snapshot *s, const struct dp_addr *remote, uint32_t vni) {
    const uint32_t n = vni == DP_NONE ? DP_NONE : dp_snapshot_network(s, vni);
    if (vni != DP_NONE) {
        return n != DP_NONE && dp_snapshot_has_vtep(s, n, remote);
    }
    for (uint32_t i = 0; i < s->n_networks; i++) {
        if (dp_snapshot_has_vtep(s, i, remote)) {
            return true;
        }
    }
    return false;
}

int dp_learn_path(struct dp_engine *e, const uint8_t remote[16], uint32_t vni, uint16_t mtu,
                  uint64_t now_ns) {
    if (!e || !remote) {
        return DP_EINVAL;
    }
    struct dp_worker *w = &e->workers[0];
    if (!dp_enter(w)) {
        return DP_EBUSY;
    }
    const struct dp_snapshot *s = dp_hold(e, w);
    const struct dp_addr to = dp_addr_load(remote);
    w->now_ns = now_ns > w->now_ns ? now_ns : w->now_ns;
    const bool learned = mtu >= IP_MTU_MIN && mtu < underlay_mtu(s) && is_vtep(s, &to, vni) &&
                         dp_paths_learn(&e->paths, &to, mtu, w->now_ns);
    dp_leave(e, w);
    return learned;
}

int dp_path_mtu(struct dp_engine *e, const uint8_t remote[16], uint64_t now_ns,
                uint64_t *until_ns) {
    if (!e || !remote || !until_ns) {
        return DP_EINVAL;
    }
    struct dp_worker *w = dp_enter_looker(e);
    if (!w) {
        return DP_EBUSY;
    }
    const struct dp_addr to = dp_addr_load(remote);
    const struct dp_learned_path *path = dp_paths_find(&e->paths, &to, now_ns);
    const int mtu = path ? path->mtu : 0;
    *until_ns = path ? path->until_ns : 0;
    dp_leave(e, w);
    return mtu;
}

int dp_flush(struct dp_engine *e) {
    if (!e) {
        return DP_EINVAL;
    }
    struct dp_worker *w = &e->workers[0];
    if (!dp_enter(w)) {
        return DP_EBUSY;
    }
    dp_hold(e, w);
    dp_engine_drop_kept(e, w, true);
    dp_flows_clear(&e->flows);
    dp_bindings_clear(&e->bindings);
    dp_leave(e, w);
    return DP_OK;
}

int dp_flows(struct dp_engine *e, uint32_t *cursor, struct dp_flow_info *out, uint32_t n) {
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
            out[count++] = dp_pair_info(p);
        }
    }
    dp_leave(e, w);
    return (int)count;
}

/* ---- observation -------------------------------------------------------------------------- */

int dp_observe(struct dp_engine *e, uint32_t points, uint32_t snap) {
    if (!e || points & ~(uint32_t)DP_AT_ALL || snap > SNAP_MAX) {
        return DP_EINVAL;
    }
    return dp_observer_set(&e->observer, points, snap) ? DP_OK : DP_ENOMEM;
}

int dp_seen(struct dp_engine *e, uint8_t *out, uint32_t size, uint64_t *lost) {
    if (!e || (size && !out) || !lost || size > INT32_MAX) {
        return DP_EINVAL;
    }
    return dp_observer_take(&e->observer, out, size, lost);
}

/* ---- counters ----------------------------------------------------------------------------- */

static dp_cold void note_egress_drop(struct dp_engine *e, uint32_t worker, uint16_t port,
                                     uint8_t reason, uint32_t packets) {
    pthread_mutex_lock(&e->lock);
    struct dp_seen seen = {.now_ns = e->workers[worker].now_ns,
                           .point = DP_AT_DROP,
                           .reason = reason,
                           .packets = packets,
                           .rule = DP_NONE,
                           .generation = atomic_load(&e->policy)->generation,
                           .in_port = DP_PORT_NONE,
                           .egress = port};
    pthread_mutex_unlock(&e->lock);
    dp_observe_note(&e->observer, &seen, NULL, 0);
}

void dp_egress_drop(struct dp_engine *e, uint32_t worker, uint16_t port, uint8_t reason,
                    uint32_t packets, uint64_t bytes) {
    if (worker >= e->n_workers || reason >= DP_REASONS || port >= e->limits.max_ports) {
        return;
    }
    struct dp_counters *c = &e->workers[worker].count;
    dp_count(&c->totals.forwarded, (uint64_t)0 - packets);
    dp_count(&c->totals.dropped, packets);
    dp_count(&c->reasons[reason], packets);
    dp_count(&c->ports[port].tx_frames, (uint64_t)0 - packets);
    dp_count(&c->ports[port].tx_bytes, (uint64_t)0 - bytes);
    if (dp_observed(&e->observer, DP_AT_DROP)) {
        note_egress_drop(e, worker, port, reason, packets);
    }
}

static void add_words(void *out, const void *in, size_t bytes) {
    uint64_t *to = out;
    const uint64_t *from = in;
    for (size_t i = 0; i < bytes / sizeof *to; i++) {
        to[i] += dp_count_read(&from[i]);
    }
}

static uint32_t least(uint32_t a, uint32_t b) {
    return a < b ? a : b;
}

/* Where to, and how many bytes; NULL: not asked for. */
struct sums {
    struct dp_totals *totals;
    uint64_t *reasons;
    struct dp_port_counters *ports;
    uint64_t *rules;
    uint64_t *layers;
    size_t reason_bytes, port_bytes, rule_bytes, layer_bytes;
};

static void add_worker(const struct sums *s, const struct dp_counters *c) {
    add_words(s->totals, &c->totals, s->totals ? sizeof *s->totals : 0);
    add_words(s->reasons, c->reasons, s->reasons ? s->reason_bytes : 0);
    add_words(s->ports, c->ports, s->ports ? s->port_bytes : 0);
    add_words(s->rules, c->rules, s->rules ? s->rule_bytes : 0);
    add_words(s->layers, c->layers, s->layers ? s->layer_bytes : 0);
}

static void clear(void *out, size_t bytes) {
    if (out) {
        memset(out, 0, bytes);
    }
}

int dp_counters(struct dp_engine *e, struct dp_totals *totals, uint64_t *reasons,
                uint32_t n_reasons, struct dp_port_counters *ports, uint32_t n_ports,
                uint64_t *rules, uint32_t n_rules, uint64_t *layers, uint32_t n_layers) {
    if (!e) {
        return DP_EINVAL;
    }
    const struct sums s = {totals,
                           reasons,
                           ports,
                           rules,
                           layers,
                           least(n_reasons, DP_REASONS) * sizeof *reasons,
                           least(n_ports, e->limits.max_ports) * sizeof *ports,
                           least(n_rules, e->limits.max_rules) * sizeof *rules,
                           least(n_layers, DP_LAYERS) * sizeof *layers};
    clear(totals, sizeof *totals);
    clear(reasons, s.reason_bytes);
    clear(ports, s.port_bytes);
    clear(rules, s.rule_bytes);
    clear(layers, s.layer_bytes);
    for (uint32_t i = 0; i < e->n_workers; i++) {
        add_worker(&s, &e->workers[i].count);
    }
    if (totals) {
        pthread_mutex_lock(&e->lock);
        totals->held = e->fragments.store.used;
        totals->flows = e->flows.used;
        totals->paths = e->paths.used;
        totals->bindings = e->bindings.used;
        totals->generation = atomic_load(&e->policy)->generation;
        pthread_mutex_unlock(&e->lock);
    }
    return DP_OK;
}
