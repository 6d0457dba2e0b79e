/* routes.h: longest-prefix match of one network: who lives where. Immutable, shared by reference,
 * and a table edited from another shares with it all that did not change. */
#ifndef DP_ROUTES_H
#define DP_ROUTES_H
#include "trie.h"

struct dp_routes {
    atomic_uint references;
    uint32_t n;
    struct dp_trie
        *root; /* hops of kind enum dp_route_kind, with flags and target of their route */
    struct dp_trie
        *uses;        /* by adjacency, as a whole prefix: .target is how many routes lead there */
    uint64_t serial;  /* no two tables have the same */
    uint64_t base;    /* serial of the table it was edited from, or 0 */
    uint32_t n_fresh; /* what the base has not; none without a base */
    struct dp_hop *fresh;
};

struct dp_routes *dp_routes_retain(struct dp_routes *r);

/* The hop of the longest prefix that holds the address, or NULL. */
static inline const struct dp_hop *dp_routes_lookup(const struct dp_routes *r,
                                                    const struct dp_addr *a) {
    const struct dp_hop *found = dp_trie_find(r->root, dp_point_of(a));
    return found && found->len < DP_V4_BITS && dp_addr_is_v4(a) ? NULL : found;
}

#endif
