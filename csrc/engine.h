/* engine.h: what engine.c does for api.c. */
#ifndef DP_ENGINE_H
#define DP_ENGINE_H
#include "state.h"

/* One thread at a time is a worker: false if another one is. */
bool dp_enter(struct dp_worker *w);
void dp_leave(struct dp_engine *e, struct dp_worker *w);

/* Until dp_leave no other worker judges in general or changes anything. Returns the committed
 * policy, which is not released until then, and its timers are set. */
const struct dp_snapshot *dp_hold(struct dp_engine *e, struct dp_worker *w);

/* The worker that looks and judges nothing, entered, with the lock held, or NULL: another looks. */
struct dp_worker *dp_enter_looker(struct dp_engine *e);

/* For whoever holds the lock: drops what waits in datagrams that are overdue or ended; all: in any,
 * and what is queued. */
void dp_engine_drop_kept(struct dp_engine *e, struct dp_worker *w, bool all);

/* For whoever holds the lock: ends a pair, out of the table, and its binding one flow less. */
void dp_engine_forget(struct dp_engine *e, struct dp_pair *pair, uint64_t now_ns);

#endif
