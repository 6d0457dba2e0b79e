/* tcp.h: what TCP segments say of their flow (RFC 9293), and which of them are believed.
 *
 * A side is seen when it acknowledges what the other one sent. From then on it is believed where a
 * segment begins exactly where its last one ended; where it does not (loss and reordering before
 * us), it and what it acknowledges must lie near. So whoever does not see the packets has to guess
 * two numbers at once, and gets one of 2^18 right. A reset must hit the number that its receiver
 * waits for (RFC 5961 section 3.2), a FIN must follow, or repeat, the last that its side sent. Who
 * is not believed is forwarded all the same: the receiver knows better.
 *
 * A flow may begin with any segment, as after our own restart; until the other side is seen it is
 * half-open. */
#ifndef DP_TCP_H
#define DP_TCP_H
#include "flow.h"

struct dp_segment {
    uint32_t seq;
    uint32_t end; /* the sequence number after it: SYN, payload and FIN counted */
    uint32_t ack;
    uint8_t flags;
};

static inline struct dp_segment dp_tcp_segment(const struct dp_packet *p) {
    const struct dp_tcp *tcp = (const struct dp_tcp *)dp_packet_l4(p);
    struct dp_segment s = {.seq = be32_get(tcp->seq), .ack = be32_get(tcp->ack)};
    s.flags = tcp->flags;
    s.end = s.seq + (p->len - p->l4 - (uint32_t)(tcp->offset >> 4) * 4) +
            ((s.flags & DP_TCP_SYN) != 0) + ((s.flags & DP_TCP_FIN) != 0);
    return s;
}

/* Whether a is after b, by the arithmetic of sequence numbers (RFC 9293 section 3.4). */
static inline bool dp_seq_after(uint32_t a, uint32_t b) {
    return (int32_t)(a - b) > 0;
}

/* Notes the next segment in order: its numbers are those that its side goes on from. */
static inline void dp_tcp_advance(struct dp_act *own, const struct dp_segment *s) {
    dp_set(own->next, s->end);
    if (dp_seq_after(s->ack, dp_get(own->ack))) {
        dp_set(own->ack, s->ack);
    }
}

/* Any segment but the next in order of a flow whose sides are both seen. */
bool dp_tcp_judge(const struct dp_flows *t, struct dp_pair *pair, uint32_t side,
                  const struct dp_segment *s, uint64_t now_ns);

/* Notes what the segment of the side-th half says. False: it is not believed, so it must not keep
 * the flow alive. In order, no line is touched but the half's own. */
static inline bool dp_tcp_note(const struct dp_flows *t, struct dp_pair *pair, uint32_t side,
                               const struct dp_packet *p, uint64_t now_ns) {
    struct dp_act *own = &pair->half[side].act;
    const struct dp_segment s = dp_tcp_segment(p);
    const uint8_t odd =
        (s.flags & (DP_TCP_SYN | DP_TCP_FIN | DP_TCP_RST | DP_TCP_ACK)) ^ DP_TCP_ACK;
    if (dp_unlikely(odd || s.seq != dp_get(own->next) || dp_pair_half_open(pair) ||
                    !(own->flags & DP_ACT_ACKED))) {
        return dp_tcp_judge(t, pair, side, &s, now_ns);
    }
    dp_tcp_advance(own, &s);
    return true;
}

#endif
