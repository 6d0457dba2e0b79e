/* coalesce.h: packets of one flow, as they follow each other in a burst, joined into the
 * super-frame that they are cut from again. The rules are those of Linux (inet_gro_receive,
 * tcp_gro_receive, udp_gro_receive_segment): what is cut off again has the bytes it came with, but
 * for IP ids that do not count under DF. A packet that is not joined stays as it is, and nothing of
 * its flow is joined across it: the order within a flow is kept. Nothing waits for a later burst.
 *
 * A packet is joined if it and the super-frame have the same origin, outer bytes, MAC addresses, IP
 * header (ids following each other, or equal under DF) and ports, a right checksum or a partial
 * one, and a payload not above the first one's; the last one may be shorter. TCP: the next sequence
 * number, the same acknowledgment, window, options and flags; PSH or FIN end it; CWR is the first
 * one's alone; SYN, RST and URG are never joined, nor a segment without payload. UDP: a checksum;
 * at most 64. IP options, extension headers and fragments: never.
 *
 * Pure but for the frames it is given; one thread for each coalescer. */
#ifndef DP_COALESCE_H
#define DP_COALESCE_H
#include "packet.h"

enum { DP_COALESCE_MAX = 128, DP_COALESCE_TABLE = 1024 };

/* Where packets come from, as far as it is not among their bytes; compared as bytes. */
struct dp_origin {
    struct dp_addr from;
    uint8_t tos;
    uint8_t zero[7];
};

/* A packet and what of it matters here. */
struct dp_part {
    uint8_t *data; /* outer bytes, then Ethernet */
    uint32_t len;
    uint32_t outer; /* bytes in front of Ethernet */
    uint32_t slot;  /* of the table; DP_NONE: of no flow */
    uint32_t seq;
    uint16_t id;
    uint16_t payload;
    uint8_t l4; /* offsets from .data */
    uint8_t head;
    uint8_t tcp_flags;
    bool v4;
    bool tcp;
    bool joins;   /* may continue a super-frame */
    bool begins;  /* may be continued */
    bool partial; /* its checksum is the pseudo-header's sum */
    bool is_fragment;
};

/* A frame that others may be joined to. */
struct dp_open {
    struct dp_part first;
    struct dp_origin origin;
    uint32_t len;  /* bytes now */
    uint32_t room; /* bytes that it may grow to */
    uint32_t count;
    uint32_t next; /* sequence number */
    bool fixed_id;
    bool summed; /* the first one's checksum is known to be right */
    bool closed;
};

struct dp_coalescer {
    uint32_t n;
    struct dp_open open[DP_COALESCE_MAX];
    uint8_t table[DP_COALESCE_TABLE]; /* place + 1 of the flow's latest frame */
};

void dp_coalesce_begin(struct dp_coalescer *c);

/* Looks at a packet of len bytes behind so many outer ones. Never fails; most of it is not filled
 * for a packet of no flow. */
void dp_part_read(struct dp_part *part, uint8_t *data, uint32_t len, uint32_t outer);

/* Joins the part to the frame of its flow: true, and its bytes are no longer needed. */
bool dp_coalesce_join(struct dp_coalescer *c, const struct dp_part *part,
                      const struct dp_origin *origin);

/* The part becomes a frame of its own that stands at data, where it may grow to room bytes. At most
 * DP_COALESCE_MAX times. */
void dp_coalesce_open(struct dp_coalescer *c, const struct dp_part *part,
                      const struct dp_origin *origin, uint8_t *data, uint32_t room);

/* Finishes the i-th frame that was opened: its bytes and, if it was joined, what its descriptor
 * says of super-frames; f->len becomes the length with outer bytes. Returns of how many packets it
 * is. */
uint32_t dp_coalesce_finish(struct dp_coalescer *c, uint32_t i, struct dp_frame *f);

#endif
