/* trie.h: prefixes of the 128-bit line, each with a hop: longest match, in steps of six bits. A
 * node holds the prefixes that end within its step as a bitmap with a packed array (Eatherton,
 * Varghese, Dittia: "Tree Bitmap", 2004), and its children, if any, by their bits; steps without a
 * branch are left out.
 *
 * Nodes are counted references and shared: what is changed is copied from the root down, unless
 * nobody else has it. So a copy of a root is a copy of all, and costs nothing. */
#ifndef DP_TRIE_H
#define DP_TRIE_H
#include "interval.h"
#include <stdatomic.h>

enum { DP_TRIE_STEP = 6, DP_TRIE_FAN = 1 << DP_TRIE_STEP };

struct dp_hop {
    uint32_t target;
    uint16_t flags;
    uint8_t kind;
    uint8_t len; /* of its prefix */
};

union dp_trie_item {
    struct dp_hop hop;
    struct dp_trie *child;
};

struct dp_trie {
    struct dp_point prefix; /* its first bits, the others are 0 */
    uint64_t inner;         /* bit 1 << k | v: the prefix of k more bits (0-5), v, has a hop */
    atomic_uint references;
    uint8_t depth;              /* bits of the prefix, a multiple of six */
    uint8_t children;           /* how many */
    union dp_trie_item items[]; /* by the next six bits: the child or NULL, unless there are none at
                                   all; then hops, by bit of inner */
};

struct dp_trie *dp_trie_keep(struct dp_trie *t);
void dp_trie_drop(struct dp_trie *t);

/* Puts a hop at a prefix, the first hop.len bits of p (the others are 0), or replaces its own.
 * False: no memory, and the trie is of no use any more. */
bool dp_trie_put(struct dp_trie **t, struct dp_point p, struct dp_hop hop);
/* Takes out a prefix that is there. */
bool dp_trie_take(struct dp_trie **t, struct dp_point p, unsigned len);
/* The hop of just this prefix, or NULL. */
const struct dp_hop *dp_trie_at(const struct dp_trie *t, struct dp_point p, unsigned len);
/* Visits all hops, in no order, until one is refused; whether none was. */
typedef bool (*dp_hop_visit)(void *context, const struct dp_hop *hop);
bool dp_trie_each(const struct dp_trie *t, dp_hop_visit visit, void *context);

/* How many bits two points have in common, from the first on. */
static inline unsigned dp_point_common(struct dp_point a, struct dp_point b) {
    const uint64_t hi = a.hi ^ b.hi;
    const uint64_t lo = a.lo ^ b.lo;
    return hi ? (unsigned)__builtin_clzll(hi) : lo ? 64 + (unsigned)__builtin_clzll(lo) : 128;
}

/* The six bits behind the first depth ones; behind the last bit stand zeros. */
static inline unsigned dp_trie_step(struct dp_point p, unsigned depth) {
    const uint64_t word = depth == 0   ? p.hi
                          : depth < 64 ? p.hi << depth | p.lo >> (64 - depth)
                                       : p.lo << (depth - 64);
    return (unsigned)(word >> (64 - DP_TRIE_STEP));
}

/* How many of the bits below one are set. */
static inline unsigned dp_rank(uint64_t bits, unsigned bit) {
    return (unsigned)__builtin_popcountll(bits & (((uint64_t)1 << bit) - 1));
}

static inline unsigned dp_trie_hop_place(const struct dp_trie *t, unsigned bit) {
    return (t->children ? DP_TRIE_FAN : 0) + dp_rank(t->inner, bit);
}

/* By the next six bits: those of .inner whose prefixes hold them. */
extern const uint64_t dp_trie_holders[DP_TRIE_FAN];

/* The longest prefix that holds the point, or NULL. */
static inline const struct dp_hop *dp_trie_find(const struct dp_trie *t, struct dp_point p) {
    const struct dp_trie *best = NULL;
    uint64_t holders = 0;
    while (t && dp_point_common(p, t->prefix) >= t->depth) {
        const unsigned step = dp_trie_step(p, t->depth);
        const uint64_t found = t->inner & dp_trie_holders[step];
        best = found ? t : best;
        holders = found ? found : holders;
        t = t->children ? t->items[step].child : NULL;
    }
    if (!best) {
        return NULL;
    }
    return &best->items[dp_trie_hop_place(best, 63 - (unsigned)__builtin_clzll(holders))].hop;
}

#endif
