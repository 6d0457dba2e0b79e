/* express.h: the express lane, for what nearly all packets are: TCP or UDP over IP without options
 * or fragments, of a standing flow, with nothing to say of them but where they go.
 *
 * What makes a packet an exception is not judged here: it leaves the lane untouched, to be looked
 * at from its first byte by those who know them all. So the lane may be left at any doubt, and
 * never decides anything that engine.c would decide otherwise; that both agree byte for byte and
 * count for count is what the equivalence tests prove. Checks that a flow's key and policy vouch
 * for (address ranges, allow-list of VTEPs, rules) were made when it began. */
#ifndef DP_EXPRESS_H
#define DP_EXPRESS_H
#include "pass.h"

/* Looks which of the frames may take the lane, and reads only: the worker's packets are as many,
 * their .lane DP_EXPRESS or DP_GONE. Returns how many may. */
uint32_t dp_express_look(const struct pass *x, struct dp_frame *frames, uint32_t n);

/* Asks for the flows of the first of the n packets. */
void dp_express_begin(const struct pass *x, uint32_t n);

/* Forwards the worker's packets from the first one on, by their candidates, up to one that leaves
 * the lane, with nothing changed; returns its number, or n. */
uint32_t dp_express_take(const struct pass *x, uint32_t first, uint32_t n);

#endif
