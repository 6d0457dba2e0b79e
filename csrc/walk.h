/* walk.h: the miss path: a flow id is led through the layers, and what they decide is composed into
 * one pair of header transpositions. Works on the flow id, not on bytes; changes no state but
 * counters and NAT bindings. */
#ifndef DP_WALK_H
#define DP_WALK_H
#include "layer.h"

/* Leads the initiator's key through the layers; 0: pair is ready to be installed and applied. Else
 * the reason, with rule and reject saying more. A binding that was made is held by no flow yet. */
enum dp_reason dp_walk_flow(struct dp_walk *w, const struct dp_key *key);

#endif
