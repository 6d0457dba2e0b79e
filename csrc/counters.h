/* counters.h: what one worker counts. Written by the worker alone, read by anyone (each word whole,
 * the set not quite of one instant). */
#ifndef DP_COUNTERS_H
#define DP_COUNTERS_H
#include "base.h"

struct dp_counters {
    struct dp_totals totals;
    uint64_t reasons[DP_REASONS];
    uint64_t layers[DP_LAYERS]; /* walks that entered the layer */
    uint32_t n_ports;
    uint32_t n_rules;
    struct dp_port_counters *ports;
    uint64_t *rules; /* decisions by rule id */
};

/* One instruction where there is one that writes a whole word. */
static inline void dp_count(uint64_t *counter, uint64_t n) {
#if defined(__x86_64__) && !defined(__SANITIZE_THREAD__)
    __asm__("addq %1, %0" : "+m"(*counter) : "er"(n) : "cc");
#else
    __atomic_store_n(counter, __atomic_load_n(counter, __ATOMIC_RELAXED) + n, __ATOMIC_RELAXED);
#endif
}
static inline uint64_t dp_count_read(const uint64_t *counter) {
    return __atomic_load_n(counter, __ATOMIC_RELAXED);
}

#endif
