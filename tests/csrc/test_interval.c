/* interval.c: sorted bounds and binary search against a linear walk. */
#include "../../csrc/interval.c"
#include "check.h"

enum { MOST = 64, PROBES = 200 };

static struct dp_point draw(uint64_t *seed) {
    /* few distinct high words, so that bounds collide and differ in either half */
    return (struct dp_point){check_random(seed) % 3, check_random(seed) % 50};
}

static uint32_t slow_find(const struct dp_intervals *v, struct dp_point p) {
    uint32_t at = 0;
    for (uint32_t i = 0; i < v->n; i++) {
        at = dp_point_less(p, v->bounds[i]) ? at : i;
    }
    return at;
}

static void test_find(uint64_t *seed) {
    const uint32_t n = (uint32_t)(check_random(seed) % MOST);
    struct dp_point *points = calloc(n + 1, sizeof *points);
    CHECK(points);
    for (uint32_t i = 0; i < n; i++) {
        points[i] = draw(seed);
    }
    struct dp_intervals v = {0};
    CHECK(dp_intervals_init(&v, points, n));
    free(points);
    CHECK(v.n >= 1 && v.bounds[0].hi == 0 && v.bounds[0].lo == 0);
    for (uint32_t i = 1; i < v.n; i++) {
        CHECK(dp_point_less(v.bounds[i - 1], v.bounds[i]));
    }
    for (int i = 0; i < PROBES; i++) {
        const struct dp_point p = draw(seed);
        CHECK(dp_intervals_find(&v, p) == slow_find(&v, p));
    }
    CHECK(dp_intervals_find(&v, (struct dp_point){UINT64_MAX, UINT64_MAX}) == v.n - 1);
    dp_intervals_fini(&v);
}

static void test_prefix_ends(uint64_t *seed) {
    const struct dp_point p = {check_random(seed), check_random(seed)};
    for (unsigned len = 0; len <= 128; len++) {
        const struct dp_point first = dp_point_first(p, len);
        const struct dp_point last = dp_point_last(p, len);
        const uint64_t high = len >= 64 ? UINT64_MAX : ~(UINT64_MAX >> len);
        const uint64_t low = len <= 64 ? 0 : len == 128 ? UINT64_MAX : ~(UINT64_MAX >> (len - 64));
        CHECK(first.hi == (p.hi & high) && first.lo == (p.lo & low));
        CHECK(last.hi == (p.hi | ~high) && last.lo == (p.lo | ~low));
    }
    const struct dp_point end = dp_point_next((struct dp_point){UINT64_MAX, UINT64_MAX});
    CHECK(end.hi == 0 && end.lo == 0);
    const struct dp_point carry = dp_point_next((struct dp_point){7, UINT64_MAX});
    CHECK(carry.hi == 8 && carry.lo == 0);
}

int main(void) {
    uint64_t seed = 3;
    for (int round = 0; round < 300; round++) {
        test_find(&seed);
        test_prefix_ends(&seed);
    }
    return 0;
}
