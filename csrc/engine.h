/* engine.h: the engine's state, for engine.c (the packet's way) and api.c (life, commit, counters).
 */
#ifndef DP_ENGINE_H
#define DP_ENGINE_H
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

/* One thread at a time: false if another one is inside. */
bool dp_enter(struct dp_engine *e);
void dp_leave(struct dp_engine *e);

/* The committed policy, kept from release until dp_leave, and its timers set. */
const struct dp_snapshot *dp_read_policy(struct dp_engine *e);

/* Drops what waits in datagrams that are overdue or ended; all: in any, and what is queued. */
void dp_engine_drop_kept(struct dp_engine *e, bool all);

/* Ends a pair: out of the table, and its binding one flow less. */
void dp_engine_forget(struct dp_engine *e, struct dp_pair *pair);

#endif
