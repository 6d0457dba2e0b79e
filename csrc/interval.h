/* interval.h: the address line cut into disjoint intervals, each with a value: sorted lower bounds
 * and binary search (Lampson, Srinivasan, Varghese: "IP Lookups using Multiway and Multicolumn
 * Search", 1998). Longest-prefix tables and every dimension of the classifier stand on it.
 * Immutable after the build. */
#ifndef DP_INTERVAL_H
#define DP_INTERVAL_H
#include "base.h"

/* A point of the 128-bit line, in host order: compares as a number. Ports and protocols use .lo
 * alone. */
struct dp_point {
    uint64_t hi;
    uint64_t lo;
};

static inline struct dp_point dp_point_of(const struct dp_addr *a) {
    return (struct dp_point){__builtin_bswap64(a->word[0]), __builtin_bswap64(a->word[1])};
}
static inline bool dp_point_less(struct dp_point a, struct dp_point b) {
    return a.hi != b.hi ? a.hi < b.hi : a.lo < b.lo;
}
static inline bool dp_point_equal(struct dp_point a, struct dp_point b) {
    return a.hi == b.hi && a.lo == b.lo;
}
/* The point behind p; the last point of the line has none and gives 0. */
static inline struct dp_point dp_point_next(struct dp_point p) {
    p.lo++;
    p.hi += p.lo == 0;
    return p;
}
/* First and last point of a prefix of len bits (0-128). */
struct dp_point dp_point_first(struct dp_point p, unsigned len);
struct dp_point dp_point_last(struct dp_point p, unsigned len);

/* bounds[0] is 0; interval i runs from bounds[i] to before bounds[i + 1] and has value[i]. */
struct dp_intervals {
    uint32_t n;
    struct dp_point *bounds;
    uint32_t *value;
};

/* Sorts points and takes out doubles, always keeping 0; gives value[] as zeros. False: no memory.
 */
bool dp_intervals_init(struct dp_intervals *v, struct dp_point *points, uint32_t n);
void dp_intervals_fini(struct dp_intervals *v);

/* Index of the interval that holds p. */
static inline uint32_t dp_intervals_find(const struct dp_intervals *v, struct dp_point p) {
    const struct dp_point *base = v->bounds;
    uint32_t n = v->n;
    while (n > 1) {
        const uint32_t half = n / 2;
        base = dp_point_less(p, base[half]) ? base : base + half;
        n -= half;
    }
    return (uint32_t)(base - v->bounds);
}

#endif
