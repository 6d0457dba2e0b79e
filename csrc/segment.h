/* segment.h: a super-frame cut into the packets it stands for, as Linux cuts it (tcp_gso_segment,
 * __udp_gso_segment, inet_gso_segment). Only headers are made: the payload is summed where it lies,
 * once, and never moved. Pure functions, safe on any thread. */
#ifndef DP_SEGMENT_H
#define DP_SEGMENT_H
#include "packet.h"

enum { DP_SEGMENT_HEADERS = DP_SUPER_HEADERS + 70 }; /* outer ones in front, over IPv6 */

/*   outer bytes      Ethernet  IP          TCP or UDP   payload
 *  |----------------|---------|-----------|------------|-- size --|-- size --|---|
 *                   at outer   at l3       at l4        at head                           */
struct dp_super {
    const uint8_t *data;
    uint16_t outer; /* bytes that stand in front of each packet as they are */
    uint16_t l3;
    uint16_t l4;
    uint16_t head;    /* bytes of all headers */
    uint16_t size;    /* payload of each packet but the last */
    uint16_t payload; /* of all of them */
    bool v4;
    bool tcp;
};

/* The super-frame of a descriptor as dp_process left it, outer bytes of outer headers in front.
 * False: it is none. */
bool dp_super_read(struct dp_super *s, const struct dp_frame *f, const uint8_t *data,
                   uint32_t outer);

static inline uint32_t dp_super_count(const struct dp_super *s) {
    return ((uint32_t)s->payload + s->size - 1) / s->size;
}
/* Where the payload of the i-th packet is, from .data. */
static inline uint32_t dp_super_at(const struct dp_super *s, uint32_t i) {
    return s->head + i * s->size;
}

/* Writes the s->head bytes of the i-th packet's headers, checksums complete; returns its payload's
 * length. */
uint32_t dp_segment(const struct dp_super *s, uint32_t i, uint8_t *head);

#endif
