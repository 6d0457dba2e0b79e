/* flow.h: the unified flow table: flow id -> one composed header transposition, both directions in
 * one record.
 *
 * A pair is four cache lines: key and transposition of the initiator's direction, then of the
 * responder's. The header after transposition is the other half's key, mirrored, so it is stored
 * once. Buckets of eight tags and references form the index; a key lives in one of two buckets, so
 * a lookup reads at most two lines of it.
 *
 *   index bucket (64 B)                    pair (256 B)
 *   | tag x8 | ref x8 | pad |  ref ──►  | key 0 | act 0 | key 1 | act 1 |
 *
 * Bounded: all memory is taken at creation. Where room is short, the new flow takes the place of a
 * half-open one or is refused; no pair whose both sides were seen gives way.
 * Threads: one writer at a time, any number of readers meanwhile. A reference is published by a
 * release store after its pair is whole; from then on key and transposition stay as they are, and
 * only counters, times, TCP's numbers, flags and generation change, each a word of its own. A pair
 * that was taken out is used again when no reader can have it any more (grace.h). */
#ifndef DP_FLOW_H
#define DP_FLOW_H
#include "grace.h"
#include "hash.h"
#include "packet.h"
#include "share.h"

enum dp_act_flag {
    DP_ACT_ENCAP = 1,    /* push the adjacency's outer headers */
    DP_ACT_DECAP = 2,    /* came with outer headers: they are popped, the outer source is checked */
    DP_ACT_NAT = 4,      /* modify addresses, ports or id to the other key's, mirrored */
    DP_ACT_TTL = 8,      /* a router's hop where routed */
    DP_ACT_INDEXED = 16, /* this half can be found */
    DP_ACT_ANY_VTEP = 32, /* decap: any VTEP of the network may speak for the flow (DSR) */
    DP_ACT_ACKED = 64,    /* TCP: .ack is known */
    DP_ACT_HOST = 128,    /* leaves by the host port, which is no neighbour of any endpoint */
    DP_ACT_STEADY = 256   /* a next packet in order tells nothing new of the pair's state */
};
enum dp_flow_state {
    DP_FLOW_INITIATOR = 1,
    DP_FLOW_RESPONDER = 2,
    DP_FLOW_SEEN = 3, /* both sides: no longer half-open */
    DP_FLOW_CLOSING = 4
};

/* The composed header transposition of one direction, and what it has done. One cache line. */
struct dp_act {
    uint64_t packets;
    uint64_t bytes;
    uint64_t last_ns;
    uint32_t generation; /* of the policy that composed it, or last found that it stands */
    uint32_t adjacency;  /* encap: where to; decap: where from; else DP_NONE */
    uint32_t rule;       /* id of the rule that decided, or DP_NONE */
    uint32_t next;       /* TCP: the sequence number after the last that this side sent */
    uint32_t ack;        /* TCP: the highest that this side has acknowledged */
    uint16_t flags;      /* enum dp_act_flag */
    uint16_t egress;     /* port id */
    uint16_t mtu;        /* largest IP packet on the way; 0 = no limit */
    uint16_t outer_sport;
    uint8_t macs[12]; /* destination and source of the frame as it leaves, where routed */
};

struct dp_half {
    struct dp_key key;
    uint32_t brief;      /* idle for so long at most it is certainly alive: DP_BRIEF_SHIFT */
    uint32_t kept;       /* half 0: NAT binding or DP_NONE; half 1: idle time by rule, in s */
    uint16_t delta_addr; /* NAT: checksum delta of the addresses that change, folded */
    uint16_t delta_port; /* NAT: of the port or echo id that changes */
    uint16_t mss;        /* largest TCP MSS to let through */
    uint8_t state;       /* half 0: enum dp_flow_state of the pair */
    uint8_t used;        /* half 0: the pair is alive */
    struct dp_act act dp_line;
};
_Static_assert(sizeof(struct dp_act) == 64, "a transposition is one cache line");
_Static_assert(sizeof(struct dp_half) == 128, "a half is two cache lines");

struct dp_pair {
    struct dp_half half[2];
} dp_line;
_Static_assert(sizeof(struct dp_pair) == 256, "a flow, both ways, is 256 bytes");

/* A reference names a half: pair * 2 + half + 1; 0 = none. Below 2^30. */
enum { DP_BUCKET_SLOTS = 8, DP_SLOT_NAT = 1 << 30 /* its transposition reads the other half */ };
enum { DP_BRIEF_SHIFT = 20 /* about a millisecond */ };
struct dp_bucket {
    union {
        uint16_t tag[DP_BUCKET_SLOTS];
        uint64_t tags[DP_BUCKET_SLOTS / 4];
    };
    uint32_t ref[DP_BUCKET_SLOTS]; /* a reference, DP_SLOT_NAT beside it; 0 = free */
    uint8_t pad[16];
} dp_line;
_Static_assert(sizeof(struct dp_bucket) == 64, "a bucket is one cache line");

struct dp_flow_timers { /* nanoseconds */
    uint64_t tcp_established;
    uint64_t tcp_transitory;
    uint64_t tcp_half_open;
    uint64_t udp;
    uint64_t icmp;
    uint64_t other;
};

struct dp_flows {
    uint32_t max;
    uint32_t used;
    uint32_t size;          /* pairs, those that wait for readers to leave included */
    uint32_t free;          /* index + 1 of the first free pair; chained through half 0's .kept */
    uint32_t first_waiting; /* the same of those that readers may still have, oldest first */
    uint32_t last_waiting;
    struct dp_grace *grace;
    uint32_t sweep; /* where the next expiry goes on */
    uint32_t hand;  /* where the next eviction goes on */
    uint32_t mask;  /* buckets - 1 */
    struct dp_bucket *buckets;
    struct dp_pair *pairs;
    uint64_t *retired; /* by pair that waits: the mark of its grace period; NULL with one reader */
    struct dp_hash_key key;
    struct dp_flow_timers timers;
    struct dp_shares shares;
};

bool dp_flows_init(struct dp_flows *t, uint32_t max, uint32_t max_ports, const uint8_t seed[32],
                   struct dp_grace *grace);
void dp_flows_fini(struct dp_flows *t);
void dp_flows_clear(struct dp_flows *t);

static inline uint64_t dp_flow_hash(const struct dp_flows *t, const struct dp_key *key) {
    uint64_t m[DP_HASH_WORDS];
    for (int i = 0; i < DP_HASH_WORDS; i++) {
        m[i] = dp_key_word(key, i);
    }
    return dp_hash(&t->key, m);
}
static inline uint16_t dp_flow_tag(uint64_t hash) {
    return (uint16_t)(hash >> 48);
}
static inline uint32_t dp_flow_bucket(const struct dp_flows *t, uint64_t hash, int which) {
    return (uint32_t)(which ? hash >> 20 : hash) & t->mask;
}
static inline struct dp_half *dp_flow_half(const struct dp_flows *t, uint32_t ref) {
    return (struct dp_half *)(void *)t->pairs + (ref - 1);
}
static inline struct dp_half *dp_flow_other(const struct dp_flows *t, uint32_t ref) {
    return (struct dp_half *)(void *)t->pairs + ((ref - 1) ^ 1);
}
static inline struct dp_pair *dp_flow_pair(const struct dp_flows *t, uint32_t ref) {
    return &t->pairs[(ref - 1) / 2];
}
static inline uint32_t dp_pair_binding(const struct dp_pair *p) {
    return p->half[0].kept;
}
static inline uint32_t dp_pair_idle_s(const struct dp_pair *p) {
    return p->half[1].kept; /* 0 = by protocol */
}
static inline uint64_t dp_pair_last(const struct dp_pair *p) {
    const uint64_t a = dp_get(p->half[0].act.last_ns);
    const uint64_t b = dp_get(p->half[1].act.last_ns);
    return a > b ? a : b;
}

/* Asks for the line a lookup of the hash will read first; most go no further. */
static inline void dp_flow_prefetch(const struct dp_flows *t, uint64_t hash) {
    dp_prefetch(&t->buckets[dp_flow_bucket(t, hash, 0)]);
}
/* For a flow that is about to be added: asks for the lines of its pair and of the place in the
 * index that the key will be given. */
dp_hint void dp_flow_expect(const struct dp_flows *t, const struct dp_key *key);
/* Sets each packet's candidate: the first reference with its hash's tag, the flow's lines asked
 * for; 0 = none, so there is no such flow. */
void dp_flow_candidates(const struct dp_flows *t, struct dp_packet *packets, uint32_t n);
/* Whether the reference, a candidate a while ago, is that of the key's half now. */
static inline bool dp_flow_is(const struct dp_flows *t, uint32_t ref, const struct dp_key *key) {
    const struct dp_half *half = dp_flow_half(t, ref);
    return dp_key_equal(&half->key, key) && (dp_get(half->act.flags) & DP_ACT_INDEXED);
}
/* The reference of the key's half, or 0. */
uint32_t dp_flow_find(const struct dp_flows *t, const struct dp_key *key, uint64_t hash);

static inline uint8_t dp_flow_side(uint32_t half) {
    return half ? DP_FLOW_RESPONDER : DP_FLOW_INITIATOR;
}
/* Only one side was seen so far: nothing says that the other one is there. */
static inline bool dp_pair_half_open(const struct dp_pair *p) {
    return (p->half[0].state & DP_FLOW_SEEN) != DP_FLOW_SEEN;
}

/* How long the pair may be idle. */
uint64_t dp_flow_idle_ns(const struct dp_flows *t, const struct dp_pair *p);
/* Notes the pair's state, and what follows from it for the express lane. */
void dp_flow_set_state(const struct dp_flows *t, struct dp_pair *p, uint8_t state);
static inline bool dp_flow_is_idle(const struct dp_flows *t, const struct dp_pair *p,
                                   uint64_t now_ns) {
    return (int64_t)(now_ns - dp_pair_last(p)) > (int64_t)dp_flow_idle_ns(t, p);
}

/* Adds a pair as drafted; halves with DP_ACT_INDEXED can be found from then on, unless their key is
 * taken already. Returns the reference of half 0, or 0 when the table or both of its buckets are
 * full. */
uint32_t dp_flow_add(struct dp_flows *t, const struct dp_pair *draft);
/* Once more for a pair whose answers' key was taken: makes half 1 found if the key is free now. */
void dp_flow_index_answers(struct dp_flows *t, struct dp_pair *pair);
/* Puts the draft in the place of a pair, keeping counters, state and times. The initiator's key
 * must be the same. Returns the pair as it is now, which may be another one; NULL: it is gone. */
struct dp_pair *dp_flow_replace(struct dp_flows *t, struct dp_pair *pair,
                                const struct dp_pair *draft);
void dp_flow_remove(struct dp_flows *t, struct dp_pair *pair);
/* The next idle pair among the *budget ones the sweep looks at from here on, or NULL when the
 * budget is spent. */
struct dp_pair *dp_flows_next_idle(struct dp_flows *t, uint64_t now_ns, uint32_t *budget);

enum dp_scope { DP_SCOPE_TABLE, DP_SCOPE_NETWORK, DP_SCOPE_PORT };
/* Whether the pair of the one key is in scope for the other's. */
static inline bool dp_flow_in_scope(const struct dp_key *a, const struct dp_key *b,
                                    enum dp_scope scope) {
    return scope == DP_SCOPE_TABLE ||
           (a->vni == b->vni && (scope == DP_SCOPE_NETWORK || a->port == b->port));
}
/* The next half-open pair from *hand on that is in scope: of anyone, of the key's network, of the
 * key's network and ingress port; but not that one. NULL: none among the pairs looked at, 64 at
 * most. */
struct dp_pair *dp_flows_next_half_open(const struct dp_flows *t, enum dp_scope scope,
                                        const struct dp_key *key, const struct dp_pair *but,
                                        uint32_t *hand);

/* A pair as it is told. */
struct dp_flow_info dp_pair_info(const struct dp_pair *p);

#endif
