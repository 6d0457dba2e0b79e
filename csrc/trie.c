#include "trie.h"
#include <stdlib.h>

enum { DEPTHS = 128 / DP_TRIE_STEP + 1 };

/* Of no more bits, one, two, … five: 1 << k | the first k of six. */
#define HOLD(s)                                                                                    \
    (2ull | 1ull << (2 | (s) >> 5) | 1ull << (4 | (s) >> 4) | 1ull << (8 | (s) >> 3) |             \
     1ull << (16 | (s) >> 2) | 1ull << (32 | (s) >> 1))
#define HOLD4(s) HOLD(s), HOLD((s) + 1), HOLD((s) + 2), HOLD((s) + 3)
#define HOLD16(s) HOLD4(s), HOLD4((s) + 4), HOLD4((s) + 8), HOLD4((s) + 12)
const uint64_t dp_trie_holders[] = {HOLD16(0), HOLD16(16), HOLD16(32), HOLD16(48)};

/* ---- nodes -------------------------------------------------------------------------------- */

static unsigned depth_of(unsigned len) {
    return len / DP_TRIE_STEP * DP_TRIE_STEP;
}

/* Of a prefix in the node whose depth is its own. */
static unsigned inner_bit(struct dp_point p, unsigned len) {
    const unsigned more = len % DP_TRIE_STEP;
    return 1u << more | dp_trie_step(p, depth_of(len)) >> (DP_TRIE_STEP - more);
}

static size_t size_of(unsigned items) {
    return sizeof(struct dp_trie) + items * sizeof(union dp_trie_item);
}

/* Items of a node: places of children, if it has any, and hops. */
static unsigned count_of(const struct dp_trie *t) {
    return dp_trie_hop_place(t, 63) + (unsigned)(t->inner >> 63);
}

static struct dp_trie *child_of(const struct dp_trie *t, unsigned step) {
    return t && t->children ? t->items[step].child : NULL;
}

static struct dp_trie *make(struct dp_point p, unsigned depth) {
    struct dp_trie *t = malloc(size_of(0));
    if (t) {
        *t = (struct dp_trie){.prefix = dp_point_first(p, depth), .depth = (uint8_t)depth};
        atomic_init(&t->references, 1);
    }
    return t;
}

struct dp_trie *dp_trie_keep(struct dp_trie *t) {
    if (t) {
        atomic_fetch_add_explicit(&t->references, 1, memory_order_relaxed);
    }
    return t;
}

void dp_trie_drop(struct dp_trie *t) {
    if (t && atomic_fetch_sub_explicit(&t->references, 1, memory_order_acq_rel) == 1) {
        for (unsigned i = 0; t->children && i < DP_TRIE_FAN; i++) {
            dp_trie_drop(t->items[i].child);
        }
        free(t);
    }
}

/* The node at a place, nobody else's: so it may change. Whoever has a node above it alone shares
 * it exactly where it has more than one reference. */
static struct dp_trie *own(struct dp_trie **at) {
    struct dp_trie *t = *at;
    if (atomic_load_explicit(&t->references, memory_order_acquire) == 1) {
        return t;
    }
    const unsigned n = count_of(t);
    struct dp_trie *copy = malloc(size_of(n));
    if (copy) {
        memcpy(copy, t, size_of(n));
        atomic_init(&copy->references, 1);
        for (unsigned i = 0; t->children && i < DP_TRIE_FAN; i++) {
            dp_trie_keep(copy->items[i].child);
        }
        dp_trie_drop(t);
        *at = copy;
    }
    return copy;
}

/* Room for n more items of an own node, in front of the one at a place. */
static struct dp_trie *widen(struct dp_trie **at, unsigned place, unsigned n) {
    const unsigned all = count_of(*at);
    struct dp_trie *t = realloc(*at, size_of(all + n));
    if (t) {
        memmove(&t->items[place + n], &t->items[place], (all - place) * sizeof t->items[0]);
        *at = t;
    }
    return t;
}

static void narrow(struct dp_trie *t, unsigned place, unsigned n) {
    const unsigned after = count_of(t) - place - n;
    memmove(&t->items[place], &t->items[place + n], after * sizeof t->items[0]);
}

/* ---- changes ------------------------------------------------------------------------------ */

static bool put_hop(struct dp_trie **at, struct dp_point p, struct dp_hop hop) {
    const unsigned bit = inner_bit(p, hop.len);
    const unsigned place = dp_trie_hop_place(*at, bit);
    if (!((*at)->inner >> bit & 1) && !widen(at, place, 1)) {
        return false;
    }
    (*at)->inner |= (uint64_t)1 << bit;
    (*at)->items[place].hop = hop;
    return true;
}

static bool put_child(struct dp_trie **at, struct dp_trie *child) {
    if (!(*at)->children) {
        if (!widen(at, 0, DP_TRIE_FAN)) {
            return false;
        }
        memset((*at)->items, 0, DP_TRIE_FAN * sizeof(union dp_trie_item));
    }
    (*at)->items[dp_trie_step(child->prefix, (*at)->depth)].child = child;
    (*at)->children++;
    return true;
}

static void take_child(struct dp_trie *t, unsigned step) {
    t->items[step].child = NULL;
    if (t->children == 1) {
        narrow(t, 0, DP_TRIE_FAN);
    }
    t->children--;
}

/* Where the prefix goes on below an own node, made if need be. */
static struct dp_trie **descend(struct dp_trie **at, struct dp_point p, unsigned depth) {
    const unsigned step = dp_trie_step(p, (*at)->depth);
    if (!child_of(*at, step)) {
        struct dp_trie *leaf = make(p, depth);
        if (!leaf || !put_child(at, leaf)) {
            free(leaf);
            return NULL;
        }
    }
    return &(*at)->items[step].child;
}

/* A node above the one at a place, which the prefix shares with it. */
static bool part(struct dp_trie **at, struct dp_point p, unsigned depth) {
    struct dp_trie *top = make(p, depth);
    if (!top || !put_child(&top, *at)) {
        free(top);
        return false;
    }
    *at = top;
    return true;
}

bool dp_trie_put(struct dp_trie **at, struct dp_point p, struct dp_hop hop) {
    const unsigned depth = depth_of(hop.len);
    if (!*at) {
        *at = make(p, depth);
    }
    while (at && *at) {
        const unsigned common = depth_of(dp_point_common(p, (*at)->prefix));
        const unsigned shared = common < depth ? common : depth;
        if (shared < (*at)->depth) {
            if (!part(at, p, shared)) {
                return false;
            }
        } else if (!own(at)) {
            return false;
        }
        if ((*at)->depth == depth) {
            return put_hop(at, p, hop);
        }
        at = descend(at, p, depth);
    }
    return false;
}

static struct dp_trie *first_child(const struct dp_trie *t) {
    for (unsigned i = 0; i < DP_TRIE_FAN; i++) {
        if (child_of(t, i)) {
            return child_of(t, i);
        }
    }
    return NULL;
}

/* From the last node up: one that holds nothing goes, one that only leads on is left out. */
static void prune(struct dp_trie **path[], unsigned n) {
    while (n-- > 0) {
        struct dp_trie *t = *path[n];
        if (t->inner || t->children > 1) {
            return;
        }
        const struct dp_point p = t->prefix;
        *path[n] = first_child(t);
        free(t);
        if (*path[n] || n == 0) {
            return;
        }
        take_child(*path[n - 1], dp_trie_step(p, (*path[n - 1])->depth));
    }
}

bool dp_trie_take(struct dp_trie **at, struct dp_point p, unsigned len) {
    struct dp_trie **path[DEPTHS];
    unsigned n = 0;
    struct dp_trie *t = NULL;
    while ((t = own(at))) {
        path[n++] = at;
        if (t->depth == depth_of(len)) {
            break;
        }
        at = &t->items[dp_trie_step(p, t->depth)].child;
    }
    if (!t) {
        return false;
    }
    const unsigned bit = inner_bit(p, len);
    narrow(t, dp_trie_hop_place(t, bit), 1);
    t->inner &= ~((uint64_t)1 << bit);
    prune(path, n);
    return true;
}

/* ---- looking ------------------------------------------------------------------------------ */

const struct dp_hop *dp_trie_at(const struct dp_trie *t, struct dp_point p, unsigned len) {
    while (t && t->depth < depth_of(len)) {
        t = child_of(t, dp_trie_step(p, t->depth));
    }
    if (!t || t->depth > depth_of(len) || dp_point_common(p, t->prefix) < t->depth) {
        return NULL;
    }
    const unsigned bit = inner_bit(p, len);
    return t->inner >> bit & 1 ? &t->items[dp_trie_hop_place(t, bit)].hop : NULL;
}

bool dp_trie_each(const struct dp_trie *t, dp_hop_visit visit, void *context) {
    if (!t) {
        return true;
    }
    for (unsigned i = dp_trie_hop_place(t, 0), n = count_of(t); i < n; i++) {
        if (!visit(context, &t->items[i].hop)) {
            return false;
        }
    }
    for (unsigned i = 0; t->children && i < DP_TRIE_FAN; i++) {
        if (!dp_trie_each(t->items[i].child, visit, context)) {
            return false;
        }
    }
    return true;
}
