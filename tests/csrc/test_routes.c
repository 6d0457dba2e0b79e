/* routes.c: nested prefixes against a look at each of them. */
#include "../../csrc/interval.c"
#include "../../csrc/routes.c"
#include "check.h"

enum { MOST = 40, PROBES = 200 };

/* Few different bits at either end, so that prefixes nest, touch and end where the line does. */
static struct dp_addr draw(uint64_t *seed) {
    const uint64_t ends[4] = {0, UINT64_MAX, check_random(seed) & 7, check_random(seed) << 60};
    const struct dp_point p = {ends[check_random(seed) % 4], ends[check_random(seed) % 4]};
    return (struct dp_addr){{__builtin_bswap64(p.hi), __builtin_bswap64(p.lo)}};
}

static struct dp_route draw_route(uint64_t *seed, uint32_t target) {
    static const uint8_t lengths[] = {0, 1, 3, 4, 61, 63, 64, 65, 68, 96, 124, 125, 127, 128};
    const struct dp_addr a = draw(seed);
    struct dp_route r = {.kind = DP_TO_SUBNET, .target = target};
    r.len = lengths[check_random(seed) % sizeof lengths];
    const struct dp_point first = dp_point_first(dp_point_of(&a), r.len);
    const struct dp_addr prefix = {{__builtin_bswap64(first.hi), __builtin_bswap64(first.lo)}};
    memcpy(r.prefix, &prefix, sizeof r.prefix);
    return r;
}

static const struct dp_route *slow_lookup(const struct dp_route *routes, uint32_t n,
                                          const struct dp_addr *a) {
    const struct dp_route *best = NULL;
    for (uint32_t i = 0; i < n; i++) {
        const struct dp_route *r = &routes[i];
        if (dp_point_equal(dp_point_first(dp_point_of(a), r->len), route_point(r)) &&
            (!best || r->len > best->len)) {
            best = r;
        }
    }
    return best && best->len < DP_V4_BITS && dp_addr_is_v4(a) ? NULL : best;
}

static void test_lookup(uint64_t *seed) {
    struct dp_route routes[MOST];
    uint32_t n = 0;
    for (uint32_t tries = (uint32_t)(check_random(seed) % MOST); tries > 0; tries--) {
        const struct dp_route r = draw_route(seed, tries);
        uint32_t twin = 0;
        while (twin < n && by_prefix(&routes[twin], &r) != 0) {
            twin++;
        }
        routes[twin] = r;
        n += twin == n;
    }
    struct dp_error err;
    struct dp_routes *t = dp_routes_create(routes, n, &err);
    CHECK(t);
    CHECK(t->lines.n <= 2 * n + 1);
    for (uint32_t i = 1; i < t->lines.n; i++) {
        CHECK(dp_point_less(t->lines.bounds[i - 1], t->lines.bounds[i]));
    }
    for (int i = 0; i < PROBES; i++) {
        const struct dp_addr a = draw(seed);
        const struct dp_route *found = dp_routes_lookup(t, &a);
        const struct dp_route *wanted = slow_lookup(routes, n, &a);
        CHECK(!found == !wanted && (!found || found->target == wanted->target));
    }
    dp_routes_release(t);
}

static void test_doubles(void) {
    uint64_t seed = 7;
    const struct dp_route r = draw_route(&seed, 1);
    const struct dp_route twice[2] = {r, r};
    struct dp_error err;
    CHECK(!dp_routes_create(twice, 2, &err) && err.status == DP_EDUP);
}

int main(void) {
    uint64_t seed = 5;
    for (int round = 0; round < 2000; round++) {
        test_lookup(&seed);
    }
    test_doubles();
    return 0;
}
