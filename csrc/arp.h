/* arp.h: ARP (RFC 826) as the distributed router takes part in it: requests are answered in place,
 * for itself and as a proxy; nothing is learned and nothing is passed on. */
#ifndef DP_ARP_H
#define DP_ARP_H
#include "packet.h"
#include "snapshot.h"

/* Judges a message of an endpoint, whose MAC the frame is known to come from. 0: p is the reply
 * that answers it, else the drop's reason. */
enum dp_reason dp_arp_from_endpoint(struct dp_packet *p, const struct dp_snapshot *s,
                                    const struct dp_endpoint *e);
/* The same for the host port, which answers for its own address only. */
enum dp_reason dp_arp_from_host(struct dp_packet *p, const struct dp_port *port);

#endif
