#include "routes.h"
#include "array.h"

static struct dp_point route_point(const struct dp_route *r) {
    const struct dp_addr a = dp_addr_load(r->prefix);
    return dp_point_of(&a);
}

static int compare(const void *a, const void *b) {
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

/* Sweeps the sorted prefixes with a stack of those that are open: a prefix nested in another hides
 * it until its own last point, where the outer one shows again. */
static void paint(struct dp_routes *t) {
    uint32_t stack[130];
    uint32_t depth = 0;
    uint32_t at = 0;
    for (uint32_t i = 0; i < t->lines.n; i++) {
        const struct dp_point p = t->lines.bounds[i];
        while (depth > 0) {
            const struct dp_route *open = &t->routes[stack[depth - 1]];
            if (!dp_point_less(dp_point_last(route_point(open), open->len), p)) {
                break;
            }
            depth--;
        }
        while (at < t->n && dp_point_equal(route_point(&t->routes[at]), p)) {
            stack[depth++] = at++;
        }
        t->lines.value[i] = depth ? stack[depth - 1] + 1 : 0;
    }
}

static bool build(struct dp_routes *t) {
    struct dp_point *points = malloc(((size_t)t->n * 2 + 1) * sizeof *points);
    if (!points) {
        return false;
    }
    uint32_t n = 0;
    for (uint32_t i = 0; i < t->n; i++) {
        const struct dp_point first = route_point(&t->routes[i]);
        const struct dp_point next = dp_point_next(dp_point_last(first, t->routes[i].len));
        points[n++] = first;
        if (next.hi | next.lo) {
            points[n++] = next;
        }
    }
    const bool ok = dp_intervals_init(&t->lines, points, n);
    free(points);
    if (ok) {
        paint(t);
    }
    return ok;
}

static bool no_doubles(const struct dp_routes *t, struct dp_error *err) {
    for (uint32_t i = 1; i < t->n; i++) {
        if (compare(&t->routes[i - 1], &t->routes[i]) == 0) {
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
    qsort(copy, n, sizeof *copy, compare);
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
