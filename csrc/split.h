/* split.h: a router's fragmentation of IPv4 packets (RFC 791 section 3.2, RFC 1812 section 5.2.6).
 */
#ifndef DP_SPLIT_H
#define DP_SPLIT_H
#include "store.h"

/* Cuts the packet to a first piece of at most mtu bytes of IP; the other pieces are queued, each as
 * a frame that came in by the same port. Returns how many those are, or 0 if it cannot be: a
 * super-frame, a way too narrow, no room for all of them; then nothing is changed. look: cuts the
 * first piece only. */
uint32_t dp_split(struct dp_store *store, struct dp_packet *p, uint16_t mtu, bool look);

#endif
