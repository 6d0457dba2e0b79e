/* dp_bench.h: timed loops around the engine, for `dataplane bench`. */
#ifndef DP_BENCH_H
#define DP_BENCH_H
#include "dp.h"

/* cffi:begin */
/* Frames of equal length, played in the order they lie, round and round. */
struct dp_bench_traffic {
    const uint8_t *frames; /* n of len bytes each; never changed */
    const uint16_t *ports; /* ingress port ids, n */
    uint32_t n;
    uint32_t len; /* at most 128 */
    uint32_t at;  /* the next one; moves on */
};
enum dp_bench_stage {
    DP_BENCH_ENGINE = 0, /* dp_process, all of it */
    DP_BENCH_PARSE = 1,  /* frame -> flow id, inner headers only */
    DP_BENCH_LOOKUP = 2, /* flow id -> pair: hash, prefetch, compare */
    DP_BENCH_WALK = 3, /* flow id -> composed transposition, through all layers; nothing is kept */
    DP_BENCH_TRANSPOSE = 4, /* pair -> rewritten frame */
};

/* The time stamp counter (elsewhere than on x86: nanoseconds). */
uint64_t dp_bench_cycles(void);
/* The compiler and what it was told. */
const char *dp_bench_build(void);
/* Plays windows of `vectors` x DP_BURST frames through a stage and writes the cycles that each
 * window spent in it; laying the frames into the arena, and the stages before, are not counted.
 * Returns how many frames did not pass the stage, or a status. All but DP_BENCH_ENGINE want single
 * frames on endpoint ports. */
int dp_bench_run(struct dp_engine *engine, uint32_t worker, enum dp_bench_stage stage,
                 struct dp_bench_traffic *traffic, uint64_t now_ns, uint32_t vectors,
                 uint64_t *cycles, uint32_t windows);
/* cffi:end */

#endif
