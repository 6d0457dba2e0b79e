/* lb.h: the walk's layer lb: services, their backends, and where their answers must pass. */
#ifndef DP_LB_H
#define DP_LB_H
#include "layer.h"

/* Where a service is met, the destination becomes a backend of it, unless that one's own node does
 * the rest (DSR). w->service says which, NULL: none was met. w->network is that of the backends. */
enum dp_reason dp_lb(struct dp_walk *w, enum dp_direction direction);

/* The source VIP, where the answers would else not come back this way: to a client that is its own
 * backend, or from another node to a client behind the host port. After the destination's place is
 * known. */
enum dp_reason dp_lb_source(struct dp_walk *w);

#endif
