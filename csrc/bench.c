/* bench.c: stages of the packet's way under a clock. The clock is read once before and once after a
 * vector. */
#include "dp_bench.h"
#include "engine.h"
#include "parse.h"
#include "transpose.h"
#include <stdlib.h>
#include <time.h>

enum { SLOT = 256 }; /* bytes of the arena a frame has: headroom and itself */

#ifdef __x86_64__
uint64_t dp_bench_cycles(void) {
    __builtin_ia32_lfence();
    const uint64_t cycles = __builtin_ia32_rdtsc();
    __builtin_ia32_lfence();
    return cycles;
}
#else
uint64_t dp_bench_cycles(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}
#endif

#ifndef DP_CFLAGS
#define DP_CFLAGS "flags not recorded"
#endif
#ifdef __clang__
#define COMPILER __VERSION__
#else
#define COMPILER "gcc " __VERSION__
#endif
const char *dp_bench_build(void) {
    return COMPILER ", " DP_CFLAGS;
}

struct vector {
    struct dp_engine *engine;
    uint32_t worker;
    const struct dp_snapshot *policy;
    uint8_t *arena;
    uint64_t now_ns;
    struct dp_frame frames[DP_BURST];
    struct dp_packet packets[DP_BURST];
    uint32_t refs[DP_BURST];
};

static void load(struct vector *v, struct dp_bench_traffic *t) {
    for (uint32_t i = 0; i < DP_BURST; i++) {
        memcpy(v->arena + i * SLOT + DP_HEADROOM, t->frames + (size_t)t->at * t->len, t->len);
        v->frames[i] = (struct dp_frame){
            .off = i * SLOT + DP_HEADROOM, .len = t->len, .port = t->ports[t->at]};
        t->at = t->at + 1 < t->n ? t->at + 1 : 0;
    }
}

/* ---- stages: each returns how many frames failed it ----------------------------------------- */

static uint32_t process(struct vector *v) {
    uint32_t failed = 0;
    if (dp_process(v->engine, v->worker, v->arena, (size_t)DP_BURST * SLOT, v->frames, DP_BURST,
                   v->now_ns) != DP_OK) {
        return DP_BURST;
    }
    for (uint32_t i = 0; i < DP_BURST; i++) {
        failed += v->frames[i].verdict != DP_FORWARD;
    }
    return failed;
}

static uint32_t parse(struct vector *v) {
    uint32_t failed = 0;
    for (uint32_t i = 0; i < DP_BURST; i++) {
        failed += dp_parse(&v->packets[i]) != DP_R_none;
    }
    return failed;
}

static uint32_t lookup(struct vector *v) {
    const struct dp_flows *flows = &v->engine->flows;
    uint32_t failed = 0;
    for (uint32_t i = 0; i < DP_BURST; i++) {
        v->packets[i].hash = dp_flow_hash(flows, &v->packets[i].key);
        dp_flow_prefetch(flows, v->packets[i].hash);
    }
    dp_flow_candidates(flows, v->packets, DP_BURST);
    for (uint32_t i = 0; i < DP_BURST; i++) {
        v->refs[i] = dp_flow_find(flows, &v->packets[i].key, v->packets[i].hash);
        failed += v->refs[i] == 0;
    }
    return failed;
}

static uint32_t walk(struct vector *v) {
    struct dp_engine *e = v->engine;
    uint32_t failed = 0;
    for (uint32_t i = 0; i < DP_BURST; i++) {
        struct dp_walk w = {.policy = v->policy,
                            .flows = &e->flows,
                            .bindings = &e->bindings,
                            .count = &e->scratch,
                            .entropy = &e->entropy,
                            .now_ns = v->now_ns};
        failed += dp_walk_flow(&w, &v->packets[i].key) != DP_R_none;
    }
    return failed;
}

static uint32_t transpose(struct vector *v) {
    uint32_t failed = 0;
    for (uint32_t i = 0; i < DP_BURST; i++) {
        const struct dp_half *half = dp_flow_half(&v->engine->flows, v->refs[i]);
        const struct dp_pair *pair = dp_flow_pair(&v->engine->flows, v->refs[i]);
        const struct dp_half *other = &pair->half[half == &pair->half[0]];
        failed += dp_transpose(&v->packets[i], half, other, v->policy) != DP_R_none;
    }
    return failed;
}

/* What a stage needs from those before it. */
static uint32_t prepare(struct vector *v, enum dp_bench_stage stage) {
    if (stage == DP_BENCH_ENGINE) {
        return 0;
    }
    for (uint32_t i = 0; i < DP_BURST; i++) {
        struct dp_frame *f = &v->frames[i];
        const uint32_t network = v->policy->slots[f->port].endpoint->network;
        v->packets[i] =
            (struct dp_packet){.key = {.port = f->port, .vni = v->policy->networks[network].vni},
                               .frame = f,
                               .data = v->arena + f->off,
                               .len = f->len,
                               .kind = DP_PORT_ENDPOINT,
                               .network = network};
    }
    uint32_t failed = stage > DP_BENCH_PARSE ? parse(v) : 0;
    if (!failed && stage == DP_BENCH_TRANSPOSE) {
        failed = lookup(v);
    }
    return failed;
}

static uint32_t (*const STAGES[])(struct vector *) = {
    [DP_BENCH_ENGINE] = process, [DP_BENCH_PARSE] = parse,         [DP_BENCH_LOOKUP] = lookup,
    [DP_BENCH_WALK] = walk,      [DP_BENCH_TRANSPOSE] = transpose,
};

/* ---- windows ------------------------------------------------------------------------------ */

static bool endpoint_ports_only(const struct dp_snapshot *s, const struct dp_bench_traffic *t) {
    for (uint32_t i = 0; i < t->n; i++) {
        if (t->ports[i] >= s->n_slots || !s->slots[t->ports[i]].endpoint) {
            return false;
        }
    }
    return true;
}

static uint32_t run(struct vector *v, enum dp_bench_stage stage, struct dp_bench_traffic *t,
                    uint32_t vectors, uint64_t *cycles) {
    uint32_t failed = 0;
    *cycles = 0;
    while (vectors-- > 0) {
        load(v, t);
        const uint32_t unready = prepare(v, stage);
        if (unready) {
            return failed + unready;
        }
        const uint64_t start = dp_bench_cycles();
        failed += STAGES[stage](v);
        *cycles += dp_bench_cycles() - start;
    }
    return failed;
}

int dp_bench_run(struct dp_engine *engine, uint32_t worker, enum dp_bench_stage stage,
                 struct dp_bench_traffic *t, uint64_t now_ns, uint32_t vectors, uint64_t *cycles,
                 uint32_t windows) {
    if (!engine || !t || !t->frames || !t->ports || !cycles || t->n == 0 || t->at >= t->n ||
        t->len > SLOT - DP_HEADROOM || (unsigned)stage > DP_BENCH_TRANSPOSE) {
        return DP_EINVAL;
    }
    const struct dp_snapshot *policy = atomic_load(&engine->policy);
    if (stage != DP_BENCH_ENGINE && !endpoint_ports_only(policy, t)) {
        return DP_EINVAL;
    }
    struct vector *v = aligned_alloc(_Alignof(struct vector), sizeof *v);
    uint8_t *arena = aligned_alloc(SLOT, (size_t)DP_BURST * SLOT);
    uint64_t failed = 0;
    if (v && arena) {
        *v = (struct vector){
            .engine = engine, .worker = worker, .policy = policy, .arena = arena, .now_ns = now_ns};
        for (uint32_t i = 0; i < windows; i++) {
            failed += run(v, stage, t, vectors, &cycles[i]);
        }
    }
    const int status = v && arena ? (int)(failed < INT32_MAX ? failed : INT32_MAX) : DP_ENOMEM;
    free(arena);
    free(v);
    return status;
}
