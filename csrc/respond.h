/* respond.h: packets the engine originates, each made in place of the one that caused it: echo
 * answers (which consume it), ICMP errors and TCP resets (which go with its drop). */
#ifndef DP_RESPOND_H
#define DP_RESPOND_H
#include "packet.h"

/* Who speaks: the router's or host link's MAC, and its addresses (zero: none, so no ICMP error). */
struct dp_speaker {
    const uint8_t *mac;
    struct dp_addr ip4;
    struct dp_addr ip6;
};

/* Whether the packet is a whole ICMP echo request, which dp_respond_echo turns into its reply. */
bool dp_is_echo_request(const struct dp_packet *p);
void dp_respond_echo(struct dp_packet *p);
/* Whether the packet is a whole TCP segment: rejected, it is answered in TCP's own way. */
bool dp_is_segment(const struct dp_packet *p);
/* Turns it into the reset that its destination would send if nothing listened there (RFC 9293
 * section 3.10.7.1). False, with the packet untouched, where none is due: never to a reset, nor
 * where the checksum is wrong, nor into the underlay. */
bool dp_respond_reset(struct dp_packet *p);

/* Whether the sender of a packet dropped for the reason is told with an ICMP error (RFC 1812
 * section 4.3.2.7, RFC 4443 section 2.4 e). */
bool dp_error_is_due(const struct dp_packet *p, enum dp_reason reason,
                     const struct dp_speaker *speaker);
/* Turns the dropped packet into that error, quoting it as it came. */
void dp_respond_error(struct dp_packet *p, enum dp_reason reason, uint16_t mtu,
                      const struct dp_speaker *speaker);

#endif
