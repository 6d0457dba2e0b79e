/* flow.c: lookup, insertion, expiry of the unified flow table. */
#include "flow.h"
#include "counters.h"
#include <sched.h>
#include <stdlib.h>
#include <sys/mman.h>

enum { EVICTION_LOOKS = 64, WAITING_PAIRS = 4096 };

static bool matches(const struct dp_flows *t, uint32_t ref, const struct dp_key *key) {
    return dp_key_equal(&dp_flow_half(t, ref)->key, key);
}

#if defined(__SSE2__) && !defined(__SANITIZE_THREAD__)
/* The slots with the tag as a set, without a branch: which slot it is cannot be foretold. Bit 2 i
 * stands for slot i. */
static uint64_t tagged(const struct dp_bucket *b, uint16_t tag) {
    const __m128i tags = _mm_load_si128((const __m128i *)b->tag);
    const __m128i same = _mm_cmpeq_epi16(tags, _mm_set1_epi16((short)tag));
    return (uint32_t)_mm_movemask_epi8(same) & 0x5555;
}
static uint32_t first_of(uint64_t slots) {
    return (uint32_t)__builtin_ctzll(slots) / 2;
}
#else
/* Where four 16-bit lanes equal the tag, each lane's top bit; else 0. */
static uint64_t equal_lanes(uint64_t lanes, uint16_t tag) {
    const uint64_t low = 0x7fff7fff7fff7fffu;
    const uint64_t x = lanes ^ tag * (uint64_t)0x0001000100010001u;
    return ~(((x & low) + low) | x | low);
}

/* The slots with the tag as a set, without a branch: which slot it is cannot be foretold. Bit 16 i
 * stands for slot i, bit 16 i + 1 for slot i + 4. */
static uint64_t tagged(const struct dp_bucket *b, uint16_t tag) {
    return equal_lanes(dp_get(b->tags[0]), tag) >> 15 | equal_lanes(dp_get(b->tags[1]), tag) >> 14;
}
static uint32_t first_of(uint64_t slots) {
    const uint32_t bit = (uint32_t)__builtin_ctzll(slots);
    return bit / 16 + bit % 2 * 4;
}
#endif

/* The reference in a slot. */
static inline uint32_t named(uint32_t slot) {
    return slot & (DP_SLOT_NAT - 1);
}

static inline uint32_t candidate(const struct dp_bucket *b, uint16_t tag) {
    const uint64_t slots = tagged(b, tag);
    return slots ? __atomic_load_n(&b->ref[first_of(slots)], __ATOMIC_ACQUIRE) : 0;
}

void dp_flow_candidates(const struct dp_flows *t, struct dp_packet *packets, uint32_t n) {
    const struct dp_flows own = *t; /* what is written below is not in it */
    for (struct dp_packet *p = packets; p < packets + n; p++) {
        const uint16_t tag = dp_flow_tag(p->hash);
        uint32_t ref = candidate(&own.buckets[dp_flow_bucket(&own, p->hash, 0)], tag);
        if (dp_unlikely(!ref)) {
            ref = candidate(&own.buckets[dp_flow_bucket(&own, p->hash, 1)], tag);
        }
        p->candidate = named(ref);
        if (dp_likely(ref)) {
            const struct dp_half *half = dp_flow_half(&own, named(ref));
            dp_prefetch(&half->key);
            dp_prefetch(&half->act);
            /* without a branch: what is asked for twice costs nothing */
            dp_prefetch(ref & DP_SLOT_NAT ? dp_flow_other(&own, named(ref)) : half);
        }
    }
}

dp_hint void dp_flow_expect(const struct dp_flows *t, const struct dp_key *key) {
    const uint64_t hash = dp_flow_hash(t, key);
    dp_prefetch(&t->buckets[dp_flow_bucket(t, hash, 0)]);
    dp_prefetch(&t->buckets[dp_flow_bucket(t, hash, 1)]);
    const struct dp_pair *p = &t->pairs[t->free ? t->free - 1 : 0];
    for (int h = 0; h < 2; h++) {
        dp_prefetch(&p->half[h].key);
        dp_prefetch(&p->half[h].act);
    }
}

uint32_t dp_flow_find(const struct dp_flows *t, const struct dp_key *key, uint64_t hash) {
    for (int which = 0; which < 2; which++) {
        const struct dp_bucket *b = &t->buckets[dp_flow_bucket(t, hash, which)];
        for (uint64_t slots = tagged(b, dp_flow_tag(hash)); slots; slots &= slots - 1) {
            const uint32_t ref = named(b->ref[first_of(slots)]);
            if (ref && matches(t, ref, key)) {
                return ref;
            }
        }
    }
    return 0;
}

uint64_t dp_flow_idle_ns(const struct dp_flows *t, const struct dp_pair *p) {
    const struct dp_half *h = &p->half[0];
    if (dp_pair_idle_s(p)) {
        return (uint64_t)dp_pair_idle_s(p) * 1000000000u;
    }
    switch (h->key.proto) {
    case DP_IP_TCP:
        if (h->state == DP_FLOW_SEEN) {
            return t->timers.tcp_established;
        }
        return dp_pair_half_open(p) ? t->timers.tcp_half_open : t->timers.tcp_transitory;
    case DP_IP_UDP:
        return t->timers.udp;
    case DP_IP_ICMP:
    case DP_IP_ICMP6:
        return t->timers.icmp;
    default:
        return t->timers.other;
    }
}

void dp_flow_set_state(const struct dp_flows *t, struct dp_pair *p, uint8_t state) {
    p->half[0].state = state;
    const uint64_t brief = dp_flow_idle_ns(t, p) >> DP_BRIEF_SHIFT;
    for (uint32_t side = 0; side < 2; side++) {
        struct dp_half *h = &p->half[side];
        const uint8_t steady = h->key.proto == DP_IP_TCP ? DP_FLOW_SEEN : dp_flow_side(side);
        const uint16_t flags = h->act.flags & (uint16_t)~DP_ACT_STEADY;
        dp_set(h->brief, brief < UINT32_MAX ? (uint32_t)brief : UINT32_MAX);
        dp_set(h->act.flags, (state & steady) == steady ? flags | DP_ACT_STEADY : flags);
    }
}

/* ---- index -------------------------------------------------------------------------------- */

/* A free slot for the hash, or NULL: in its first bucket if that has one, so that most lookups read
 * no other. */
static uint32_t *free_slot(struct dp_flows *t, uint64_t hash, uint16_t **tag) {
    for (int which = 0; which < 2; which++) {
        struct dp_bucket *b = &t->buckets[dp_flow_bucket(t, hash, which)];
        for (int i = 0; i < DP_BUCKET_SLOTS; i++) {
            if (!b->ref[i]) {
                *tag = &b->tag[i];
                return &b->ref[i];
            }
        }
    }
    return NULL;
}

/* Where no slot is free: one whose entry could move to the other one of its two buckets (Pagh and
 * Rodler, Cuckoo Hashing, ESA 2001; one step of it), or NULL. A reader that misses an entry on the
 * move takes the lock and finds it. */
static dp_cold uint32_t *displaced_slot(struct dp_flows *t, uint64_t hash, uint16_t **tag) {
    for (int i = 0; i < 2 * DP_BUCKET_SLOTS; i++) {
        struct dp_bucket *b = &t->buckets[dp_flow_bucket(t, hash, i / DP_BUCKET_SLOTS)];
        uint32_t *slot = &b->ref[i % DP_BUCKET_SLOTS];
        const uint64_t moving = dp_flow_hash(t, &dp_flow_half(t, named(*slot))->key);
        uint16_t *new_tag = NULL;
        uint32_t *to = free_slot(t, moving, &new_tag);
        if (to) {
            dp_set(*new_tag, dp_flow_tag(moving));
            __atomic_store_n(to, *slot, __ATOMIC_RELEASE);
            __atomic_store_n(slot, 0u, __ATOMIC_RELEASE);
            *tag = &b->tag[i % DP_BUCKET_SLOTS];
            return slot;
        }
    }
    return NULL;
}

/* What stands in the half's slot. */
static uint32_t slot_of(const struct dp_half *half, uint32_t ref) {
    return ref | (half->act.flags & DP_ACT_NAT ? DP_SLOT_NAT : 0);
}

static bool index_half(struct dp_flows *t, struct dp_half *half, uint32_t ref) {
    const uint64_t hash = dp_flow_hash(t, &half->key);
    if (dp_flow_find(t, &half->key, hash)) {
        dp_set(half->act.flags, half->act.flags & (uint16_t)~DP_ACT_INDEXED);
        return true;
    }
    uint16_t *tag = NULL;
    uint32_t *slot = free_slot(t, hash, &tag);
    slot = slot ? slot : displaced_slot(t, hash, &tag);
    if (!slot) {
        dp_set(half->act.flags, half->act.flags & (uint16_t)~DP_ACT_INDEXED);
        return false;
    }
    dp_set(*tag, dp_flow_tag(hash));
    __atomic_store_n(slot, slot_of(half, ref), __ATOMIC_RELEASE);
    return true;
}

static void unindex_half(struct dp_flows *t, const struct dp_half *half, uint32_t ref) {
    if (!(half->act.flags & DP_ACT_INDEXED)) {
        return;
    }
    const uint64_t hash = dp_flow_hash(t, &half->key);
    for (int which = 0; which < 2; which++) {
        struct dp_bucket *b = &t->buckets[dp_flow_bucket(t, hash, which)];
        for (int i = 0; i < DP_BUCKET_SLOTS; i++) {
            if (b->ref[i] == slot_of(half, ref)) {
                __atomic_store_n(&b->ref[i], 0u, __ATOMIC_RELEASE);
                return;
            }
        }
    }
}

static uint32_t ref_of(const struct dp_flows *t, const struct dp_pair *p, uint32_t half) {
    return (uint32_t)(p - t->pairs) * 2 + half + 1;
}

static bool index_pair(struct dp_flows *t, struct dp_pair *p) {
    for (uint32_t h = 0; h < 2; h++) {
        if ((p->half[h].act.flags & DP_ACT_INDEXED) &&
            !index_half(t, &p->half[h], ref_of(t, p, h))) {
            return false;
        }
    }
    return true;
}

static void unindex_pair(struct dp_flows *t, struct dp_pair *p) {
    unindex_half(t, &p->half[0], ref_of(t, p, 0));
    unindex_half(t, &p->half[1], ref_of(t, p, 1));
}

/* ---- pairs -------------------------------------------------------------------------------- */

static struct dp_pair *pair_at(const struct dp_flows *t, uint32_t place) {
    return &t->pairs[place - 1];
}

static void wait_for_readers(struct dp_flows *t, struct dp_pair *p) {
    const uint32_t place = (uint32_t)(p - t->pairs) + 1;
    p->half[0].kept = 0;
    t->retired[place - 1] = dp_grace_mark(t->grace);
    if (t->last_waiting) {
        pair_at(t, t->last_waiting)->half[0].kept = place;
    } else {
        t->first_waiting = place;
    }
    t->last_waiting = place;
}

/* A free pair, out of its chain; there is one. Readers that still have the oldest one are done
 * with their burst soon. */
static struct dp_pair *take(struct dp_flows *t) {
    uint32_t *from = &t->free;
    if (!t->free) {
        from = &t->first_waiting;
        while (!dp_grace_over(t->grace, t->retired[t->first_waiting - 1])) {
            sched_yield();
        }
    }
    struct dp_pair *p = pair_at(t, *from);
    *from = p->half[0].kept;
    t->last_waiting = t->first_waiting ? t->last_waiting : 0;
    t->used++;
    return p;
}

static void release(struct dp_flows *t, struct dp_pair *p) {
    dp_shares_give(&t->shares, &p->half[0].key);
    p->half[0].used = 0;
    dp_set(p->half[0].act.flags, 0);
    dp_set(p->half[1].act.flags, 0);
    t->used--;
    if (t->grace->n > 1) {
        wait_for_readers(t, p);
        return;
    }
    p->half[0].kept = t->free;
    t->free = (uint32_t)(p - t->pairs) + 1;
}

uint32_t dp_flow_add(struct dp_flows *t, const struct dp_pair *draft) {
    if (t->used >= t->max) {
        return 0;
    }
    struct dp_pair *p = take(t);
    *p = *draft;
    p->half[0].used = 1;
    dp_shares_take(&t->shares, &p->half[0].key);
    if (!index_pair(t, p)) {
        unindex_pair(t, p);
        release(t, p);
        return 0;
    }
    return ref_of(t, p, 0);
}

void dp_flow_index_answers(struct dp_flows *t, struct dp_pair *pair) {
    dp_set(pair->half[1].act.flags, pair->half[1].act.flags | DP_ACT_INDEXED);
    index_half(t, &pair->half[1], ref_of(t, pair, 1));
}

static void keep_history(struct dp_half *new, const struct dp_half *old) {
    new->act.packets = dp_count_read(&old->act.packets);
    new->act.bytes = dp_count_read(&old->act.bytes);
    new->act.last_ns = dp_get(old->act.last_ns);
    new->act.next = dp_get(old->act.next);
    new->act.ack = dp_get(old->act.ack);
    new->act.flags |= old->act.flags &DP_ACT_ACKED;
    new->state = old->state;
}

struct dp_pair *dp_flow_replace(struct dp_flows *t, struct dp_pair *pair,
                                const struct dp_pair *draft) {
    struct dp_pair new = *draft;
    keep_history(&new.half[0], &pair->half[0]);
    keep_history(&new.half[1], &pair->half[1]);
    dp_flow_remove(t, pair);
    const uint32_t ref = dp_flow_add(t, &new);
    struct dp_pair *now = ref ? dp_flow_pair(t, ref) : NULL;
    if (now) {
        dp_flow_set_state(t, now, now->half[0].state);
    }
    return now;
}

void dp_flow_remove(struct dp_flows *t, struct dp_pair *pair) {
    unindex_pair(t, pair);
    release(t, pair);
}

struct dp_pair *dp_flows_next_idle(struct dp_flows *t, uint64_t now_ns, uint32_t *budget) {
    while (*budget > 0 && t->max > 0) {
        (*budget)--;
        t->sweep = t->sweep < t->size ? t->sweep : 0;
        struct dp_pair *p = &t->pairs[t->sweep++];
        if (p->half[0].used && dp_flow_is_idle(t, p, now_ns)) {
            return p;
        }
    }
    return NULL;
}

struct dp_pair *dp_flows_next_half_open(const struct dp_flows *t, enum dp_scope scope,
                                        const struct dp_key *key, const struct dp_pair *but,
                                        uint32_t *hand) {
    /* Then few are not in use, those that wait for readers: they are no looks. */
    const bool full = t->used - (but != NULL) >= t->max;
    uint32_t looks = 0;
    for (uint32_t passed = 0; looks < EVICTION_LOOKS && passed < t->size; passed++) {
        *hand = *hand < t->size ? *hand : 0;
        struct dp_pair *p = &t->pairs[(*hand)++];
        looks += p->half[0].used || !full;
        if (p->half[0].used && p != but && dp_pair_half_open(p) &&
            dp_flow_in_scope(&p->half[0].key, key, scope)) {
            return p;
        }
    }
    return NULL;
}

/* ---- life --------------------------------------------------------------------------------- */

static void *huge_alloc(size_t bytes) {
    const size_t huge = (size_t)2 << 20;
    const size_t size = (bytes + huge - 1) / huge * huge;
    void *p = aligned_alloc(size >= huge ? huge : 64, size);
    if (p) {
        (void)madvise(p, size, MADV_HUGEPAGE);
        memset(p, 0, size);
    }
    return p;
}

void dp_flows_clear(struct dp_flows *t) {
    for (uint32_t i = 0; i < t->size; i++) {
        if (t->pairs[i].half[0].used) {
            dp_flow_remove(t, &t->pairs[i]);
        }
    }
}

bool dp_flows_init(struct dp_flows *t, uint32_t max, uint32_t max_ports, const uint8_t seed[32],
                   struct dp_grace *grace) {
    uint32_t buckets = 16;
    while ((uint64_t)buckets * DP_BUCKET_SLOTS < (uint64_t)max * 4) {
        buckets *= 2;
    }
    *t = (struct dp_flows){.max = max,
                           .size = max + (grace->n > 1 ? WAITING_PAIRS : 0),
                           .mask = buckets - 1,
                           .grace = grace};
    dp_hash_key_init(&t->key, seed, 1);
    t->buckets = huge_alloc((size_t)buckets * sizeof *t->buckets);
    t->pairs = huge_alloc(((size_t)t->size + 1) * sizeof *t->pairs);
    t->retired = grace->n > 1 ? calloc((size_t)t->size + 1, sizeof *t->retired) : NULL;
    if (!dp_shares_init(&t->shares, max_ports, max) || !t->buckets || !t->pairs ||
        (grace->n > 1 && !t->retired)) {
        dp_flows_fini(t);
        return false;
    }
    for (uint32_t i = 0; i < t->size; i++) {
        t->pairs[i].half[0].kept = i + 1 < t->size ? i + 2 : 0;
    }
    t->free = t->size ? 1 : 0;
    return true;
}

void dp_flows_fini(struct dp_flows *t) {
    free(t->buckets);
    free(t->pairs);
    free(t->retired);
    dp_shares_fini(&t->shares);
    *t = (struct dp_flows){0};
}

/* ---- looking ------------------------------------------------------------------------------ */

struct dp_flow_info dp_pair_info(const struct dp_pair *p) {
    const struct dp_half *a = &p->half[0];
    const struct dp_half *b = &p->half[1];
    struct dp_flow_info f = {
        .sport = a->key.sport,
        .dport = a->key.dport,
        .new_sport = b->key.dport,
        .new_dport = b->key.sport,
        .proto = a->key.proto,
        .state = a->state,
        .in_port = a->key.port,
        .out_port = a->act.egress,
        .vni = a->key.vni,
        .adjacency = a->act.flags & DP_ACT_ENCAP ? a->act.adjacency : b->act.adjacency,
        .rule = a->act.rule,
        .generation = a->act.generation,
        .packets = {dp_count_read(&a->act.packets), dp_count_read(&b->act.packets)},
        .bytes = {dp_count_read(&a->act.bytes), dp_count_read(&b->act.bytes)},
        .last_ns = {dp_get(a->act.last_ns), dp_get(b->act.last_ns)}};
    if (dp_proto_is_icmp(f.proto)) {
        f.new_sport = b->key.sport;
        f.new_dport = a->key.dport;
    }
    memcpy(f.src, &a->key.src, 16);
    memcpy(f.dst, &a->key.dst, 16);
    memcpy(f.new_src, &b->key.dst, 16);
    memcpy(f.new_dst, &b->key.src, 16);
    return f;
}
