/* engine.h: what engine.c does for api.c. */
#ifndef DP_ENGINE_H
#define DP_ENGINE_H
#include "state.h"

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
