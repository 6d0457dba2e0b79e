/* grace.h: when what was taken out of a table that others read without a lock may be used for
 * something else: once each of them has been outside since (epoch-based reclamation, Fraser, 2004).
 *
 * A reader is inside from dp_grace_enter to dp_grace_leave. Marks are made, and asked about, by
 * whoever holds the writers' lock, while itself outside; so readers that wait for the lock must be
 * outside too. */
#ifndef DP_GRACE_H
#define DP_GRACE_H
#include "base.h"
#include <stdatomic.h>

struct dp_reader {
    _Atomic uint64_t since; /* 0: outside */
} dp_line;

struct dp_grace {
    _Atomic uint64_t now;
    uint32_t n;
    struct dp_reader *readers;
};

/* Number `readers` is nobody's: of who only reads with the writers' lock, and so is never inside.
 */
bool dp_grace_init(struct dp_grace *g, uint32_t readers);
void dp_grace_fini(struct dp_grace *g);

/* What the caller reads from here on is not used otherwise before it leaves, or enters again. */
static inline void dp_grace_enter(struct dp_grace *g, uint32_t reader) {
    atomic_store(&g->readers[reader].since, atomic_load(&g->now));
}
static inline void dp_grace_leave(struct dp_grace *g, uint32_t reader) {
    atomic_store_explicit(&g->readers[reader].since, 0, memory_order_release);
}

/* After something was taken out: the mark that its place has to wait for. */
static inline uint64_t dp_grace_mark(struct dp_grace *g) {
    return atomic_fetch_add(&g->now, 1) + 1;
}
bool dp_grace_over(struct dp_grace *g, uint64_t mark);

#endif
