/* state.h: the engine's state, for engine.c and express.c (the packet's way) and api.c (life,
 * commit, counters). */
#ifndef DP_STATE_H
#define DP_STATE_H
#include "fragment.h"
#include "limit.h"
#include "path.h"
#include "walk.h"

/* What belongs to one thread at a time: scratch, counters, and the policy it is reading just now.
 */
struct dp_worker {
    atomic_flag busy;
    _Atomic(struct dp_snapshot *) reading; /* a snapshot named here is not released */
    uint64_t now_ns;
    uint16_t outer_id; /* of the last outer packet that others may fragment */
    struct dp_counters count;
    struct dp_packet packets[DP_BURST];
    struct dp_transport known[DP_BURST]; /* of frames out of the store */
};

struct dp_engine {
    struct dp_limits limits;
    struct dp_timers timers; /* where the policy says none */
    uint32_t timed;          /* generation whose timers the flows have */
    _Atomic(struct dp_snapshot *) policy;
    struct dp_flows flows;
    struct dp_bindings bindings;
    struct dp_fragments fragments;
    struct dp_paths paths;
    struct dp_limit limit; /* of ICMP errors */
    struct dp_hash_key
        entropy;               /* of outer source ports; not the tables' key, which must not leak */
    struct dp_hash_key spread; /* of flows over backends */
    struct dp_worker worker;
    struct dp_counters scratch; /* what a trace counts, and nobody reads */
};

#endif
