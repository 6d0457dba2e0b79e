/* vteps.h: the adjacencies of a snapshot, in arrays that it may share with others.
 *
 * An entry is written before any snapshot that has it can be seen, and stands for as long as one of
 * those lives; which entries a snapshot has is its own bitmap's matter. So a snapshot made from the
 * newest one writes what is new beside what both have. It takes arrays of its own where an entry
 * that stands would change, or where there is no room. The index finds entries by network and
 * provider address; what it names besides those of the snapshot at hand is passed over. */
#ifndef DP_VTEPS_H
#define DP_VTEPS_H
#include "encap.h"
#include <stdatomic.h>

struct dp_vtep_arrays {
    atomic_uint references;
    _Atomic(const struct dp_vteps *) newest; /* may write what nobody has */
    uint32_t room;                           /* entries */
    uint32_t written;                        /* one above the highest id ever written */
    struct dp_adjacency *adjacencies;
    struct dp_tunnel *tunnels;
    uint32_t mask;
    uint32_t indexed;
    _Atomic uint32_t *index; /* hash table: id + 1, 0 = free */
};

struct dp_vteps {
    uint32_t n;    /* one above the highest id */
    uint64_t *has; /* by id: one bit */
    struct dp_vtep_arrays *arrays;
    bool shared; /* with those it was made from: only what was changed is new */
};

static inline bool dp_vteps_have(const struct dp_vteps *v, uint32_t id) {
    return id < v->n && v->has[id / 64] >> id % 64 & 1;
}

/* Those of base (NULL: none) with n changes, each of an id (NULL: 0, 1, …); without a port it goes.
 * alike: tunnels of adjacencies that stand are as those of base. New entries have no tunnel yet.
 * False: no memory. v stays where it is. */
bool dp_vteps_init(struct dp_vteps *v, const struct dp_vteps *base, bool alike, const uint32_t *ids,
                   const struct dp_adjacency *changes, uint32_t n);
void dp_vteps_fini(struct dp_vteps *v);

/* Whether the network has an adjacency with the provider address. */
bool dp_vteps_find(const struct dp_vteps *v, uint32_t network, const struct dp_addr *remote);

#endif
