/* group.h: the rules of one layer and direction, of which at most one matches a flow (VFP).
 *
 * The classifier is the bit-vector scheme (Lakshman, Stiliadis, SIGCOMM '98) in blocks: each
 * dimension is cut into intervals, each interval names the set of rules that accept it, and the
 * sets of the five dimensions are AND-ed; the lowest bit left is the rule. A lookup costs five
 * binary searches per block of DP_BLOCK_RULES, whatever the rules or the packets are; a group has
 * DP_GROUP_RULES at most, which bounds it. Immutable, shared by reference. */
#ifndef DP_GROUP_H
#define DP_GROUP_H
#include "interval.h"
#include "packet.h"
#include <stdatomic.h>

enum { DP_BLOCK_RULES = 512, DP_SET_WORDS = DP_BLOCK_RULES / 64, DP_GROUP_RULES = 8192 };
enum dp_dimension_name {
    DP_DIM_SRC,
    DP_DIM_DST,
    DP_DIM_SPORT,
    DP_DIM_DPORT,
    DP_DIM_PROTO,
    DP_DIMS
};

struct dp_rule_set {
    uint64_t word[DP_SET_WORDS];
};

struct dp_dimension {
    struct dp_intervals lines; /* value: index into sets */
    struct dp_rule_set *sets;  /* no two equal */
    uint32_t n_sets;
};

struct dp_block {
    struct dp_dimension dim[DP_DIMS];
};

struct dp_group {
    atomic_uint references;
    uint8_t layer;
    uint32_t name;
    uint32_t n_rules;
    struct dp_rule *rules; /* by priority, then as given */
    struct dp_prefix *prefixes;
    struct dp_range *ranges;
    uint32_t n_blocks;
    struct dp_block *blocks;
};

struct dp_group *dp_group_retain(struct dp_group *g);

/* The first rule by priority that accepts the flow id, or NULL. */
const struct dp_rule *dp_group_match(const struct dp_group *g, const struct dp_key *key);

/* How many blocks a match that found the rule, or NULL, has searched. */
static inline uint32_t dp_group_searched(const struct dp_group *g, const struct dp_rule *found) {
    return found ? (uint32_t)(found - g->rules) / DP_BLOCK_RULES + 1 : g->n_blocks;
}

#endif
