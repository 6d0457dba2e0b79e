/* parse.h: what a frame is. Reads only, except that it notes in the descriptor what is left to do.
 */
#ifndef DP_PARSE_H
#define DP_PARSE_H
#include "packet.h"

/* Parses the inner Ethernet frame at p->data, p->len: fills family, l3, l4, discovery and the key
 * but for .port and .vni; cuts p->len to what IP says. Returns 0 or the drop's reason. */
enum dp_reason dp_parse(struct dp_packet *p);

/* The packet that an ICMP error quotes: the flow id of its answer, as it would come in where the
 * error came in, and where its headers stand. */
struct dp_quote {
    struct dp_key answer;
    uint16_t l3; /* offsets from p->data */
    uint16_t l4;
};
/* Reads the quote of the ICMP error p. False: cut, a fragment, of a protocol without ports or ids,
 * or one of the two checksums that RFC 5508 REQ-3 asks for is wrong. */
bool dp_parse_quote(const struct dp_packet *p, struct dp_quote *q);

/* The checksum of a frame that says it is partial, or whose kernel peer may have left it so: where
 * it stands, or that it is not. */
void dp_parse_checksum_state(struct dp_packet *p);

/* Whether the packet is the super-frame that its descriptor says: fills more and payload; where it
 * is one packet after all the descriptor says so. Returns 0 or the drop's reason. */
enum dp_reason dp_parse_super(struct dp_packet *p);

/* A packet above its network's MTU that a kernel peer handed over before it was cut, without saying
 * how: TCP becomes a super-frame of packets that fit. The only function here that writes into the
 * frame: a checksum that is complete, and right, is given up, since each packet gets its own. */
void dp_parse_unsized(struct dp_packet *p, uint16_t mtu);

/* The VXLAN packet at p->data, p->len, received on an underlay port: checks and steps over the
 * outer headers, leaving data and len at the inner frame; fills outer_src, outer_tos, outer_odd and
 * key.vni. Returns 0 or the reason. */
enum dp_reason dp_parse_outer(struct dp_packet *p, const struct dp_port *port);

#endif
