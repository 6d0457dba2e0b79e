/* balance.h: the backends of a service, and a Maglev table that spreads flows over them: each of n
 * backends gets about 1/n of the table, and one that comes or goes moves little more than its own
 * share (Eisenbud et al., NSDI 2016, section 3.4). Immutable, shared by reference. */
#ifndef DP_BALANCE_H
#define DP_BALANCE_H
#include "wire.h"
#include <stdatomic.h>

struct dp_balance {
    atomic_uint references;
    uint32_t n; /* backends, sorted by address and port */
    struct dp_backend *backends;
    uint32_t size; /* of the table, a prime; 0: no backend takes new flows */
    uint16_t *table;
};

struct dp_balance *dp_balance_retain(struct dp_balance *b);

/* The backend of a new flow with the hash, or NULL. */
static inline const struct dp_backend *dp_balance_choose(const struct dp_balance *b,
                                                         uint64_t hash) {
    return b->size ? &b->backends[b->table[hash % b->size]] : NULL;
}

/* The backend with that address and port, draining or not, or NULL. */
const struct dp_backend *dp_balance_find(const struct dp_balance *b, const struct dp_addr *addr,
                                         uint16_t port);

#endif
