/* routes.c: nested prefixes against a look at each of them. */
#include "../../csrc/interval.c"
#include "../../csrc/routes.c"
#include "../../csrc/trie.c"
#include "check.h"

enum { MOST = 40, PROBES = 200, TARGETS = 200 };

/* Few different bits at either end, so that prefixes nest, touch and end where the line does. */
static struct dp_addr draw(uint64_t *seed) {
    const uint64_t ends[4] = {0, UINT64_MAX, check_random(seed) & 7, check_random(seed) << 60};
    const struct dp_point p = {ends[check_random(seed) % 4], ends[check_random(seed) % 4]};
    return (struct dp_addr){{__builtin_bswap64(p.hi), __builtin_bswap64(p.lo)}};
}

static struct dp_route draw_route(uint64_t *seed, uint32_t target) {
    static const uint8_t lengths[] = {0, 1, 3, 4, 61, 63, 64, 65, 68, 96, 124, 125, 127, 128};
    const struct dp_addr a = draw(seed);
    struct dp_route r = {.kind = check_random(seed) % 2 ? DP_TO_REMOTE : DP_TO_SUBNET};
    r.target = check_random(seed) % 4 ? target : 7;
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
        if (dp_point_equal(dp_point_first(dp_point_of(a), r->len), point_of(r)) &&
            (!best || r->len > best->len)) {
            best = r;
        }
    }
    return best && best->len < DP_V4_BITS && dp_addr_is_v4(a) ? NULL : best;
}

struct set {
    struct dp_route routes[MOST];
    uint32_t n;
};

static bool same_prefix(const struct dp_route *a, const struct dp_route *b) {
    return a->len == b->len && memcmp(a->prefix, b->prefix, sizeof a->prefix) == 0;
}

static uint32_t index_of(const struct set *s, const struct dp_route *r) {
    uint32_t at = 0;
    while (at < s->n && !same_prefix(&s->routes[at], r)) {
        at++;
    }
    return at;
}

static struct set draw_set(uint64_t *seed) {
    struct set s = {.n = 0};
    for (uint32_t tries = (uint32_t)(check_random(seed) % MOST); tries > 0; tries--) {
        const struct dp_route r = draw_route(seed, tries);
        const uint32_t at = index_of(&s, &r);
        s.routes[at] = r;
        s.n += at == s.n;
    }
    return s;
}

static bool count(void *context, const struct dp_hop *h) {
    struct set *s = context;
    CHECK(s->n < MOST);
    s->routes[s->n++].target = h->target;
    return true;
}

/* A node holds something or parts, and its bits are those of its place. */
static void check_nodes(const struct dp_trie *t) {
    CHECK(!t || t->inner || t->children > 1);
    unsigned children = 0;
    for (unsigned i = 0; i < DP_TRIE_FAN; i++) {
        const struct dp_trie *child = child_of(t, i);
        if (child) {
            children++;
            CHECK(child->depth > t->depth && dp_point_common(child->prefix, t->prefix) >= t->depth);
            CHECK(dp_point_equal(child->prefix, dp_point_first(child->prefix, child->depth)));
            CHECK(dp_trie_step(child->prefix, t->depth) == i);
            check_nodes(child);
        }
    }
    CHECK(!t || t->children == children);
}

static void check_same(const struct dp_routes *t, const struct set *s, uint64_t *seed) {
    struct set found = {.n = 0};
    CHECK(dp_trie_each(t->root, count, &found) && found.n == s->n && t->n == s->n);
    check_nodes(t->root);
    check_nodes(t->uses);
    for (uint32_t target = 0; target < TARGETS; target++) {
        uint32_t uses = 0;
        for (uint32_t i = 0; i < s->n; i++) {
            uses += s->routes[i].kind == DP_TO_REMOTE && s->routes[i].target == target;
        }
        CHECK(dp_routes_uses(t, target) == uses);
    }
    for (int i = 0; i < PROBES; i++) {
        const struct dp_addr a = draw(seed);
        const struct dp_hop *h = dp_routes_lookup(t, &a);
        const struct dp_route *wanted = slow_lookup(s->routes, s->n, &a);
        CHECK(!h == !wanted);
        CHECK(!h || (h->target == wanted->target && h->len == wanted->len));
    }
    for (uint32_t i = 0; i < s->n; i++) {
        const struct dp_hop *h = dp_trie_at(t->root, point_of(&s->routes[i]), s->routes[i].len);
        CHECK(h && h->target == s->routes[i].target && h->kind == s->routes[i].kind);
    }
}

static void test_lookup(uint64_t *seed) {
    const struct set s = draw_set(seed);
    struct dp_error err;
    struct dp_routes *t = dp_routes_create(s.routes, s.n, &err);
    CHECK(t);
    check_same(t, &s, seed);
    dp_routes_release(t);
}

/* What a table says never changes, whatever is made of it. */
static void test_edits(uint64_t *seed) {
    enum { EDITS = 8 };
    struct set sets[EDITS];
    struct dp_routes *tables[EDITS];
    struct dp_error err;
    sets[0] = draw_set(seed);
    tables[0] = dp_routes_create(sets[0].routes, sets[0].n, &err);
    CHECK(tables[0]);
    for (int i = 1; i < EDITS; i++) {
        const int from = (int)(check_random(seed) % (uint64_t)i);
        struct set s = sets[from];
        struct set gone = {.n = 0};
        while (s.n > 0 && check_random(seed) % 4) {
            const uint32_t at = (uint32_t)(check_random(seed) % s.n);
            gone.routes[gone.n++] = s.routes[at];
            s.routes[at] = s.routes[--s.n];
        }
        struct set come = {.n = 0};
        while (s.n < MOST && check_random(seed) % 4) {
            const struct dp_route r = draw_route(seed, 100 + s.n);
            if (index_of(&s, &r) == s.n) {
                s.routes[s.n++] = come.routes[come.n++] = r;
            }
        }
        sets[i] = s;
        tables[i] = dp_routes_edit(tables[from], gone.routes, gone.n, come.routes, come.n, &err);
        CHECK(tables[i] && tables[i]->base == tables[from]->serial);
    }
    for (int i = 0; i < EDITS; i++) {
        check_same(tables[i], &sets[i], seed);
        dp_routes_release(tables[i]);
    }
}

static void test_wrong_edits(void) {
    uint64_t seed = 9;
    const struct dp_route r = draw_route(&seed, 1);
    struct dp_error err;
    struct dp_routes *t = dp_routes_create(&r, 1, &err);
    CHECK(t && !dp_routes_edit(t, NULL, 0, &r, 1, &err) && err.status == DP_EDUP);
    struct dp_routes *none = dp_routes_edit(t, &r, 1, NULL, 0, &err);
    CHECK(none && !none->root && none->n == 0);
    CHECK(!dp_routes_edit(none, &r, 1, NULL, 0, &err) && err.status == DP_EREF);
    CHECK(!dp_routes_edit(NULL, NULL, 0, &r, 1, &err) && err.status == DP_EINVAL);
    CHECK(!dp_routes_edit(t, NULL, 1, NULL, 0, &err) && err.status == DP_EINVAL);
    dp_routes_release(none);
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
        test_edits(&seed);
    }
    test_doubles();
    test_wrong_edits();
    return 0;
}
