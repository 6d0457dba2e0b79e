#include "interval.h"
#include <stdlib.h>

/* The bits of a 64-bit half below the first len ones, len counted from the half's top. */
static uint64_t host_bits(unsigned len) {
    return len == 0 ? UINT64_MAX : len >= 64 ? 0 : UINT64_MAX >> len;
}

struct dp_point dp_point_first(struct dp_point p, unsigned len) {
    p.hi &= ~host_bits(len);
    p.lo &= ~host_bits(len > 64 ? len - 64 : 0);
    return p;
}

struct dp_point dp_point_last(struct dp_point p, unsigned len) {
    p.hi |= host_bits(len);
    p.lo |= host_bits(len > 64 ? len - 64 : 0);
    return p;
}

static int compare(const void *a, const void *b) {
    const struct dp_point *x = a;
    const struct dp_point *y = b;
    return dp_point_less(*x, *y) ? -1 : dp_point_less(*y, *x);
}

bool dp_intervals_init(struct dp_intervals *v, struct dp_point *points, uint32_t n) {
    qsort(points, n, sizeof *points, compare);
    v->bounds = malloc(((size_t)n + 1) * sizeof *v->bounds);
    v->value = calloc((size_t)n + 1, sizeof *v->value);
    if (!v->bounds || !v->value) {
        dp_intervals_fini(v);
        return false;
    }
    v->bounds[0] = (struct dp_point){0, 0};
    v->n = 1;
    for (uint32_t i = 0; i < n; i++) {
        if (!dp_point_equal(points[i], v->bounds[v->n - 1])) {
            v->bounds[v->n++] = points[i];
        }
    }
    return true;
}

void dp_intervals_fini(struct dp_intervals *v) {
    free(v->bounds);
    free(v->value);
    *v = (struct dp_intervals){0, NULL, NULL};
}
