/* routes.h: longest-prefix match of one network: who lives where. Immutable, shared by reference.
 */
#ifndef DP_ROUTES_H
#define DP_ROUTES_H
#include "interval.h"
#include <stdatomic.h>

struct dp_routes {
    atomic_uint references;
    uint32_t n;
    struct dp_route *routes;   /* sorted by prefix, then length */
    struct dp_intervals lines; /* value: index into routes + 1, or 0 = no route */
};

struct dp_routes *dp_routes_retain(struct dp_routes *r);

/* The longest prefix that holds the address, or NULL. */
static inline const struct dp_route *dp_routes_lookup(const struct dp_routes *r,
                                                      const struct dp_addr *a) {
    const uint32_t value = r->lines.value[dp_intervals_find(&r->lines, dp_point_of(a))];
    const struct dp_route *found = value ? &r->routes[value - 1] : NULL;
    return found && found->len < DP_V4_BITS && dp_addr_is_v4(a) ? NULL : found;
}

#endif
