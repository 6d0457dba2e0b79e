#include "routes.h"
#include "array.h"

enum { ROUTES_MAX = 1 << 24 };

static bool fault(struct dp_error *err, int status, uint32_t index, const char *why) {
    *err = (struct dp_error){status, "route", index, why};
    return false;
}

static struct dp_point point_of(const struct dp_route *r) {
    const struct dp_addr a = dp_addr_load(r->prefix);
    return dp_point_of(&a);
}

static struct dp_hop hop_of(const struct dp_route *r) {
    return (struct dp_hop){r->target, r->flags, r->kind, r->len};
}

static const char *fault_of(const struct dp_route *r) {
    if (r->len > 128 || r->kind > DP_TO_DIRECT || r->flags & ~DP_ROUTE_ANY_VTEP) {
        return "prefix length, kind or flag out of range";
    }
    return dp_point_equal(point_of(r), dp_point_first(point_of(r), r->len))
               ? NULL
               : "host bits set in the prefix";
}

static bool check(const struct dp_route *routes, uint32_t n, struct dp_error *err) {
    if (!dp_array_given(routes, n)) {
        return fault(err, DP_EINVAL, 0, "the array is NULL, its count is not 0");
    }
    if (n > ROUTES_MAX) {
        return fault(err, DP_ELIMIT, n, "more than 16,777,216 routes");
    }
    for (uint32_t i = 0; i < n; i++) {
        const char *why = fault_of(&routes[i]);
        if (why) {
            return fault(err, DP_EINVAL, i, why);
        }
    }
    return true;
}

/* ---- changes ------------------------------------------------------------------------------ */

static struct dp_point adjacency_point(uint32_t adjacency) {
    return (struct dp_point){0, adjacency};
}

uint32_t dp_routes_uses(const struct dp_routes *r, uint32_t adjacency) {
    const struct dp_hop *uses = dp_trie_at(r->uses, adjacency_point(adjacency), 128);
    return uses ? uses->target : 0;
}

/* One use of the hop's target more or less, where that is an adjacency. */
static bool use(struct dp_routes *t, const struct dp_hop *hop, int more) {
    if (hop->kind != DP_TO_REMOTE) {
        return true;
    }
    const uint32_t uses = dp_routes_uses(t, hop->target) + (uint32_t)more;
    const struct dp_point p = adjacency_point(hop->target);
    return uses ? dp_trie_put(&t->uses, p, (struct dp_hop){.target = uses, .len = 128})
                : dp_trie_take(&t->uses, p, 128);
}

static int add(struct dp_routes *t, const struct dp_route *r) {
    const struct dp_hop hop = hop_of(r);
    if (dp_trie_at(t->root, point_of(r), r->len)) {
        return DP_EDUP;
    }
    return use(t, &hop, 1) && dp_trie_put(&t->root, point_of(r), hop) ? DP_OK : DP_ENOMEM;
}

static int take(struct dp_routes *t, const struct dp_route *r) {
    const struct dp_hop *hop = dp_trie_at(t->root, point_of(r), r->len);
    if (!hop) {
        return DP_EREF;
    }
    return use(t, hop, -1) && dp_trie_take(&t->root, point_of(r), r->len) ? DP_OK : DP_ENOMEM;
}

static bool change(struct dp_routes *t, const struct dp_route *gone, uint32_t n_gone,
                   const struct dp_route *come, uint32_t n_come, struct dp_error *err) {
    for (uint32_t i = 0; i < n_gone; i++, t->n--) {
        const int status = take(t, &gone[i]);
        if (status != DP_OK) {
            return fault(err, status, i, status == DP_EREF ? "no such prefix" : "no memory");
        }
    }
    if (n_come > ROUTES_MAX - t->n) {
        return fault(err, DP_ELIMIT, n_come, "more than 16,777,216 routes");
    }
    for (uint32_t i = 0; i < n_come; i++, t->n++) {
        const int status = add(t, &come[i]);
        if (status != DP_OK) {
            return fault(err, status, i, status == DP_EDUP ? "the same prefix twice" : "no memory");
        }
        if (t->base) {
            t->fresh[t->n_fresh++] = hop_of(&come[i]);
        }
    }
    *err = (struct dp_error){DP_OK, NULL, 0, NULL};
    return true;
}

/* ---- tables ------------------------------------------------------------------------------- */

static struct dp_routes *table_on(const struct dp_routes *base, uint32_t n_fresh) {
    static _Atomic uint64_t serials = 1;
    struct dp_routes *t = malloc(sizeof *t);
    if (!t) {
        return NULL;
    }
    *t = (struct dp_routes){.references = 1, .serial = atomic_fetch_add(&serials, 1)};
    if (base) {
        t->n = base->n;
        t->root = dp_trie_keep(base->root);
        t->uses = dp_trie_keep(base->uses);
        t->base = base->serial;
    }
    t->fresh = malloc(((size_t)n_fresh + 1) * sizeof *t->fresh);
    return t;
}

static struct dp_routes *edited(const struct dp_routes *base, const struct dp_route *gone,
                                uint32_t n_gone, const struct dp_route *come, uint32_t n_come,
                                struct dp_error *err) {
    if (!check(gone, n_gone, err) || !check(come, n_come, err)) {
        return NULL;
    }
    struct dp_routes *t = table_on(base, base ? n_come : 0);
    fault(err, DP_ENOMEM, 0, "no memory");
    if (t && t->fresh && change(t, gone, n_gone, come, n_come, err)) {
        return t;
    }
    dp_routes_release(t);
    return NULL;
}

struct dp_routes *dp_routes_create(const struct dp_route *routes, uint32_t n,
                                   struct dp_error *err) {
    return edited(NULL, NULL, 0, routes, n, err);
}

struct dp_routes *dp_routes_edit(const struct dp_routes *base, const struct dp_route *gone,
                                 uint32_t n_gone, const struct dp_route *come, uint32_t n_come,
                                 struct dp_error *err) {
    if (!base) {
        fault(err, DP_EINVAL, 0, "no table to edit");
        return NULL;
    }
    return edited(base, gone, n_gone, come, n_come, err);
}

struct dp_routes *dp_routes_retain(struct dp_routes *r) {
    atomic_fetch_add(&r->references, 1);
    return r;
}

void dp_routes_release(struct dp_routes *r) {
    if (r && atomic_fetch_sub(&r->references, 1) == 1) {
        dp_trie_drop(r->root);
        dp_trie_drop(r->uses);
        free(r->fresh);
        free(r);
    }
}
