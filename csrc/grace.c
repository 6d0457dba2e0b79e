/* grace.c: readers, each on a cache line of its own. */
#include "grace.h"
#include <stdlib.h>

bool dp_grace_init(struct dp_grace *g, uint32_t readers) {
    g->now = 1;
    g->n = readers;
    g->readers = aligned_alloc(_Alignof(struct dp_reader), (readers + 1) * sizeof *g->readers);
    for (uint32_t i = 0; g->readers && i <= readers; i++) {
        g->readers[i].since = 0;
    }
    return g->readers;
}

void dp_grace_fini(struct dp_grace *g) {
    free(g->readers);
    g->readers = NULL;
}

bool dp_grace_over(struct dp_grace *g, uint64_t mark) {
    for (uint32_t i = 0; i < g->n; i++) {
        const uint64_t since = atomic_load(&g->readers[i].since);
        if (since && since < mark) {
            return false;
        }
    }
    return true;
}
