/* observe.h: records of what was seen of frames and flows, in a ring that nobody waits for.
 *
 * Any worker writes under the ring's own lock, which is held for a copy of a frame; one reader at a
 * time takes, and holds it for two numbers only: what is between them stays as it is. A record that
 * finds no room is counted as lost. Nothing is written, and no lock taken, while no point is
 * observed. */
#ifndef DP_OBSERVE_H
#define DP_OBSERVE_H
#include "base.h"
#include <pthread.h>
#include <stdatomic.h>

struct dp_observer {
    _Atomic uint32_t points; /* of enum dp_at */
    pthread_mutex_t lock;
    pthread_mutex_t reading; /* held first */
    uint32_t snap;
    uint32_t size; /* of the ring */
    uint8_t *ring; /* NULL: nothing was ever observed */
    uint64_t head; /* bytes ever written; its place is modulo the size */
    uint64_t tail; /* bytes ever taken */
    uint64_t lost;
};

/* size: of the ring, a multiple of 8. */
bool dp_observer_init(struct dp_observer *o, uint32_t size);
void dp_observer_fini(struct dp_observer *o);
/* False: no memory. */
bool dp_observer_set(struct dp_observer *o, uint32_t points, uint32_t snap);

static inline bool dp_observed(struct dp_observer *o, uint32_t points) {
    return dp_unlikely(atomic_load_explicit(&o->points, memory_order_relaxed) & points);
}

/* Keeps a record and up to `snap` bytes behind it; sets its size and snap. */
void dp_observe_note(struct dp_observer *o, struct dp_seen *seen, const uint8_t *bytes, uint32_t n);
/* Moves whole records into out; returns their bytes, or DP_EINVAL where the next one needs more. */
int dp_observer_take(struct dp_observer *o, uint8_t *out, uint32_t size, uint64_t *lost);

#endif
