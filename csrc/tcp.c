/* tcp.c: the segments that may change a flow's state. */
#include "tcp.h"

/* Bytes on their way at most: what a guess has to hit is so much of 2^32. */
enum { REACH = 1 << 22 };

/* The segment is all that is known of its side. */
static void begin(struct dp_act *own, const struct dp_segment *s) {
    const uint16_t flags = own->flags & (uint16_t)~DP_ACT_ACKED;
    dp_set(own->next, s->end);
    dp_set(own->ack, s->ack);
    dp_set(own->flags, s->flags & DP_TCP_ACK ? flags | DP_ACT_ACKED : flags);
}

static bool near(uint32_t a, uint32_t b) {
    return a - b + REACH < 2u * REACH;
}

/* Something that was sent, and lately. */
static bool acknowledges(const struct dp_segment *s, const struct dp_act *peer) {
    return (s->flags & DP_TCP_ACK) && dp_get(peer->next) - s->ack < REACH;
}

static bool expects(const struct dp_act *peer, uint32_t seq) {
    return (peer->flags & DP_ACT_ACKED) && dp_get(peer->ack) == seq;
}

/* Of a side that was seen: moves its numbers on, if the segment is the next one or near it. */
static void follow(struct dp_act *own, const struct dp_act *peer, const struct dp_segment *s) {
    const uint32_t next = dp_get(own->next);
    const bool likely = (s->flags & DP_TCP_ACK) && near(s->seq, next) &&
                        near(s->ack, dp_get(peer->next)) && dp_seq_after(s->end, next);
    if (s->seq != next && !likely) {
        return;
    }
    dp_set(own->next, s->end);
    if ((s->flags & DP_TCP_ACK) &&
        (!(own->flags & DP_ACT_ACKED) || dp_seq_after(s->ack, dp_get(own->ack)))) {
        dp_set(own->ack, s->ack);
        dp_set(own->flags, own->flags | DP_ACT_ACKED);
    }
}

/* Whether a reset says what its receiver waits for: of a side that never spoke, the number that was
 * acknowledged to it, or the acknowledgment of all that it was sent (RFC 9293 section 3.10.7.3). */
static bool resets(const struct dp_act *own, const struct dp_act *peer, const struct dp_segment *s,
                   uint8_t state, uint8_t bit) {
    if (state & bit) {
        return (state & DP_FLOW_SEEN) == DP_FLOW_SEEN &&
               (s->seq == dp_get(own->next) || expects(peer, s->seq));
    }
    return expects(peer, s->seq) || ((s->flags & DP_TCP_ACK) && s->ack == dp_get(peer->next));
}

/* The state after the segment, or 0: it is not believed. */
static uint8_t judge(uint8_t state, uint8_t bit, struct dp_act *own, const struct dp_act *peer,
                     const struct dp_segment *s, bool rested) {
    const bool seen = (state & DP_FLOW_SEEN) == DP_FLOW_SEEN;
    const bool syn = (s->flags & (DP_TCP_SYN | DP_TCP_ACK)) == DP_TCP_SYN;
    if (state && (s->flags & DP_TCP_RST)) {
        if (!resets(own, peer, s, state, bit)) {
            return 0;
        }
        if (!(state & bit)) {
            begin(own, s);
        }
        return state | bit | DP_FLOW_CLOSING;
    }
    if (!state || (syn && (rested || (state & DP_FLOW_CLOSING)))) {
        begin(own, s);
        return bit;
    }
    if (seen && syn) {
        return 0;
    }
    bool last = true; /* of what its side has sent: so that a FIN may be believed */
    if (seen) {
        last = s->seq == dp_get(own->next) || s->end == dp_get(own->next);
        if (last || !(s->flags & DP_TCP_FIN)) {
            follow(own, peer, s);
        }
    } else if ((state & bit) || acknowledges(s, peer)) {
        begin(own, s); /* and again with each one, until it is answered */
        state |= bit;
    } else {
        return 0;
    }
    if ((s->flags & DP_TCP_FIN) && (state & DP_FLOW_SEEN) == DP_FLOW_SEEN) {
        return last ? state | DP_FLOW_CLOSING : 0;
    }
    return state;
}

bool dp_tcp_judge(const struct dp_flows *t, struct dp_pair *pair, uint32_t side,
                  const struct dp_segment *s, uint64_t now_ns) {
    const uint8_t old = pair->half[0].state;
    const bool rested = now_ns - dp_pair_last(pair) > t->timers.tcp_transitory;
    const uint8_t state =
        judge(old, dp_flow_side(side), &pair->half[side].act, &pair->half[!side].act, s, rested);
    if (state && state != old) {
        dp_flow_set_state(t, pair, state);
    }
    return state != 0;
}
