/* array.h: arrays that a caller hands over: slices that stay inside, and copies of our own. */
#ifndef DP_ARRAY_H
#define DP_ARRAY_H
#include "base.h"
#include <stdlib.h>

static inline bool dp_span_fits(struct dp_span s, uint32_t n) {
    return s.first <= n && s.count <= n - s.first;
}

/* An array of n items is there: only an empty one may be NULL. */
static inline bool dp_array_given(const void *data, size_t n) {
    return data || n == 0;
}

/* A copy of n items, to be freed; NULL without memory, and never for n = 0. */
static inline void *dp_array_copy(const void *data, size_t n, size_t size) {
    void *copy = malloc(n * size + 1);
    if (copy && n) {
        memcpy(copy, data, n * size);
    }
    return copy;
}

#endif
