/* state.h: the engine's state, for engine.c and express.c (the packet's way) and api.c (life,
 * commit, counters). */
#ifndef DP_STATE_H
#define DP_STATE_H
#include "fragment.h"
#include "grace.h"
#include "limit.h"
#include "observe.h"
#include "path.h"
#include "walk.h"
#include <pthread.h>

/* What belongs to one thread at a time: scratch, counters, and the policy it is reading just now.
 */
struct dp_worker {
    atomic_flag busy;
    uint32_t number;
    bool holds;                            /* the engine's lock */
    _Atomic(struct dp_snapshot *) reading; /* a snapshot named here is not released */
    uint64_t now_ns;
    struct dp_counters count;
    struct dp_packet packets[DP_BURST];
    struct dp_transport known[DP_BURST]; /* of frames out of the store */
} dp_line;

/* Workers share all that is not theirs. Who judges a packet in general, or changes anything, holds
 * the lock; the express lane reads policy and flows without it, and writes the words that belong to
 * the direction of the flow at hand. */
struct dp_engine {
    pthread_mutex_t lock;
    struct dp_grace grace; /* readers of flows: the workers */
    uint32_t n_workers;
    struct dp_worker *workers; /* and one more behind them: the looker's */
    struct dp_limits limits;
    struct dp_timers timers; /* where the policy says none */
    uint32_t timed;          /* generation whose timers the flows have */
    _Atomic(struct dp_snapshot *) policy;
    struct dp_flows flows;
    struct dp_bindings bindings;
    struct dp_fragments fragments;
    struct dp_paths paths;
    struct dp_limit limit; /* of ICMP errors */
    uint16_t outer_id;     /* of the last outer packet that others may fragment (RFC 6864) */
    struct dp_observer observer;
    struct dp_hash_key
        entropy;               /* of outer source ports; not the tables' key, which must not leak */
    struct dp_hash_key spread; /* of flows over backends */
    struct dp_counters scratch; /* what a trace counts, and nobody reads */
};

#endif
