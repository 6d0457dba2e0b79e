/* nd.h: neighbour discovery (RFC 4861) as the distributed router takes part in it: solicitations
 * are answered in place, for itself and as a proxy; nothing is learned and nothing is passed on. */
#ifndef DP_ND_H
#define DP_ND_H
#include "packet.h"
#include "snapshot.h"

/* Judges a message of an endpoint, whose MAC the frame is known to come from. 0: p is the
 * advertisement that answers it, else the drop's reason. Needs 8 bytes free before p->data. */
enum dp_reason dp_nd_from_endpoint(struct dp_packet *p, const struct dp_snapshot *s,
                                   const struct dp_endpoint *e);
/* The same for the host port, which answers for its own address only. */
enum dp_reason dp_nd_from_host(struct dp_packet *p, const struct dp_port *port);

#endif
