/* nat.h: the walk's layer nat: source addresses and ports by bindings. */
#ifndef DP_NAT_H
#define DP_NAT_H
#include "layer.h"

/* What outbound NAT will most probably make of the endpoint's flow id; the lines that it will read
 * are asked for ahead. False: the endpoint has none. */
bool dp_nat_expect(struct dp_walk *w, struct dp_key *id);

/* Finds or makes the binding of the walk's source in the pool; the source becomes the outside. A
 * trace makes none. */
enum dp_reason dp_nat_bind(struct dp_walk *w, const struct dp_pool *pool);

/* Outbound NAT of an endpoint's flow, which then leaves by the host port. */
enum dp_reason dp_nat_out(struct dp_walk *w);

/* A flow to a bound outside that is open to anyone: its destination becomes the inside, w->to that
 * endpoint, w->network its network. DP_R_nat_no_binding: none; DP_R_none with w->to unset: the
 * destination is no outside address at all. */
enum dp_reason dp_nat_in(struct dp_walk *w);

#endif
