#include "routes.h"
#include "array.h"

static struct dp_point route_point(const struct dp_route *r) {
    const struct dp_addr a = dp_addr_load(r->prefix);
    return dp_point_of(&a);
}

static int by_prefix(const void *a, const void *b) {
    const struct dp_route *x = a;
    const struct dp_route *y = b;
    const int order = memcmp(x->prefix, y->prefix, sizeof x->prefix);
    return order ? order : (int)x->len - (int)y->len;
}

static bool check(const struct dp_route *routes, uint32_t n, struct dp_error *err) {
    for (uint32_t i = 0; i < n; i++) {
        const struct dp_route *r = &routes[i];
        const char *why = NULL;
        if (r->len > 128 || r->kind > DP_TO_HOST || r->flags & ~DP_ROUTE_ANY_VTEP) {
            why = "prefix length, kind or flag out of range";
        } else if (!dp_point_equal(route_point(r), dp_point_first(route_point(r), r->len))) {
            why = "host bits set in the prefix";
        }
        if (why) {
            *err = (struct dp_error){DP_EINVAL, "route", i, why};
            return false;
        }
    }
    return true;
}

/* From this point on the route holds; 0: none. The last one told of a point stands. */
static void edge(struct dp_intervals *v, struct dp_point p, uint32_t route) {
    v->n += !dp_point_equal(v->bounds[v->n - 1], p);
    v->bounds[v->n - 1] = p;
    v->value[v->n - 1] = route;
}

/* Ends the innermost open route: behind its last point the one around it shows again. */
static void leave(struct dp_routes *t, const uint32_t *stack, uint32_t *depth) {
    const struct dp_route *r = &t->routes[stack[--*depth] - 1];
    const struct dp_point next = dp_point_next(dp_point_last(route_point(r), r->len));
    if (next.hi | next.lo) {
        edge(&t->lines, next, *depth ? stack[*depth - 1] : 0);
    }
}

/* Sweeps the sorted prefixes with a stack of those that are open: a prefix nested in another hides
 * it until its own last point. */
static bool build(struct dp_routes *t) {
    uint32_t stack[130];
    uint32_t depth = 0;
    struct dp_intervals *v = &t->lines;
    v->bounds = malloc(((size_t)t->n * 2 + 1) * sizeof *v->bounds);
    v->value = malloc(((size_t)t->n * 2 + 1) * sizeof *v->value);
    if (!v->bounds || !v->value) {
        return false;
    }
    v->n = 1;
    v->bounds[0] = (struct dp_point){0, 0};
    v->value[0] = 0;
    for (uint32_t i = 0; i < t->n; i++) {
        const struct dp_point first = route_point(&t->routes[i]);
        while (depth > 0) {
            const struct dp_route *open = &t->routes[stack[depth - 1] - 1];
            if (!dp_point_less(dp_point_last(route_point(open), open->len), first)) {
                break;
            }
            leave(t, stack, &depth);
        }
        stack[depth++] = i + 1;
        edge(v, first, i + 1);
    }
    while (depth > 0) {
        leave(t, stack, &depth);
    }
    return true;
}

static bool no_doubles(const struct dp_routes *t, struct dp_error *err) {
    for (uint32_t i = 1; i < t->n; i++) {
        if (by_prefix(&t->routes[i - 1], &t->routes[i]) == 0) {
            *err = (struct dp_error){DP_EDUP, "route", i, "the same prefix twice"};
            return false;
        }
    }
    return true;
}

struct dp_routes *dp_routes_create(const struct dp_route *routes, uint32_t n,
                                   struct dp_error *err) {
    if (n > 1u << 24) {
        *err = (struct dp_error){DP_ELIMIT, "route", n, "more than 16,777,216 routes"};
        return NULL;
    }
    if (!dp_array_given(routes, n)) {
        *err = (struct dp_error){DP_EINVAL, "route", 0, "the array is NULL, its count is not 0"};
        return NULL;
    }
    if (!check(routes, n, err)) {
        return NULL;
    }
    struct dp_routes *t = calloc(1, sizeof *t);
    struct dp_route *copy = malloc(((size_t)n + 1) * sizeof *copy);
    if (!t || !copy) {
        free(t);
        free(copy);
        *err = (struct dp_error){DP_ENOMEM, "route", 0, "no memory"};
        return NULL;
    }
    if (n) {
        memcpy(copy, routes, n * sizeof *copy);
    }
    qsort(copy, n, sizeof *copy, by_prefix);
    t->references = 1;
    t->routes = copy;
    t->n = n;
    *err = (struct dp_error){DP_ENOMEM, "route", 0, "no memory"};
    if (!no_doubles(t, err) || !build(t)) {
        dp_routes_release(t);
        return NULL;
    }
    *err = (struct dp_error){DP_OK, NULL, 0, NULL};
    return t;
}

struct dp_routes *dp_routes_retain(struct dp_routes *r) {
    atomic_fetch_add(&r->references, 1);
    return r;
}

void dp_routes_release(struct dp_routes *r) {
    if (r && atomic_fetch_sub(&r->references, 1) == 1) {
        dp_intervals_fini(&r->lines);
        free(r->routes);
        free(r);
    }
}
