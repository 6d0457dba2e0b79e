/* group.c: dp_group_match first, then how its tables are built. */
#include "group.h"
#include "array.h"

static struct dp_point number(uint32_t n) {
    return (struct dp_point){0, n};
}

static const struct dp_rule_set *find_set(const struct dp_dimension *d, struct dp_point p) {
    return &d->sets[d->lines.value[dp_intervals_find(&d->lines, p)]];
}

const struct dp_rule *dp_group_match(const struct dp_group *g, const struct dp_key *key) {
    for (uint32_t b = 0; b < g->n_blocks; b++) {
        const struct dp_dimension *dim = g->blocks[b].dim;
        const struct dp_rule_set *src = find_set(&dim[DP_DIM_SRC], dp_point_of(&key->src));
        const struct dp_rule_set *dst = find_set(&dim[DP_DIM_DST], dp_point_of(&key->dst));
        const struct dp_rule_set *proto = find_set(&dim[DP_DIM_PROTO], number(key->proto));
        const struct dp_rule_set *sport = find_set(&dim[DP_DIM_SPORT], number(key->sport));
        const struct dp_rule_set *dport = find_set(&dim[DP_DIM_DPORT], number(key->dport));
        for (uint32_t w = 0; w < DP_SET_WORDS; w++) {
            const uint64_t left =
                src->word[w] & dst->word[w] & proto->word[w] & sport->word[w] & dport->word[w];
            if (left) {
                return &g->rules[b * DP_BLOCK_RULES + w * 64 + (uint32_t)__builtin_ctzll(left)];
            }
        }
    }
    return NULL;
}

/* ---- build -------------------------------------------------------------------------------- */

static struct dp_span span_of(const struct dp_rule *r, enum dp_dimension_name d) {
    const struct dp_span spans[DP_DIMS] = {r->src, r->dst, r->sport, r->dport, r->proto};
    return spans[d];
}

struct piece {
    struct dp_point lo;
    struct dp_point hi;
};

/* The i-th value of a rule's condition as one or two pieces of the line: an IPv6 prefix around the
 * place where IPv4 addresses stand leaves that place out. */
static uint32_t value_pieces(const struct dp_group *g, enum dp_dimension_name d, uint32_t i,
                             struct piece out[2]) {
    if (d != DP_DIM_SRC && d != DP_DIM_DST) {
        out[0] = (struct piece){number(g->ranges[i].lo), number(g->ranges[i].hi)};
        return 1;
    }
    const struct dp_point v4_first = {0, 0xffff00000000u};
    const struct dp_point v4_last = {0, 0xffffffffffffu};
    const unsigned len = g->prefixes[i].len;
    const struct dp_addr a = dp_addr_load(g->prefixes[i].addr);
    const struct dp_point lo = dp_point_first(dp_point_of(&a), len);
    const struct dp_point hi = dp_point_last(lo, len);
    if (len >= DP_V4_BITS || !dp_point_equal(dp_point_first(v4_first, len), lo)) {
        out[0] = (struct piece){lo, hi};
        return 1;
    }
    out[0] = (struct piece){lo, {0, v4_first.lo - 1}};
    out[1] = (struct piece){dp_point_next(v4_last), hi};
    return 2;
}

static bool cut_lines(const struct dp_group *g, struct dp_dimension *dim, enum dp_dimension_name d,
                      uint32_t first, uint32_t n) {
    size_t values = 0;
    for (uint32_t i = 0; i < n; i++) {
        values += span_of(&g->rules[first + i], d).count;
    }
    struct dp_point *points = malloc((values * 4 + 1) * sizeof *points);
    if (!points) {
        return false;
    }
    uint32_t at = 0;
    for (uint32_t i = 0; i < n; i++) {
        const struct dp_span s = span_of(&g->rules[first + i], d);
        for (uint32_t v = 0; v < s.count; v++) {
            struct piece pieces[2];
            const uint32_t n_pieces = value_pieces(g, d, s.first + v, pieces);
            for (uint32_t k = 0; k < n_pieces; k++) {
                points[at++] = pieces[k].lo;
                points[at++] = dp_point_next(pieces[k].hi);
            }
        }
    }
    const bool ok = dp_intervals_init(&dim->lines, points, at);
    free(points);
    return ok;
}

static void mark(struct dp_rule_set *sets, const struct dp_intervals *lines, struct dp_point lo,
                 struct dp_point hi, uint32_t rule) {
    const uint32_t last = dp_intervals_find(lines, hi);
    for (uint32_t i = dp_intervals_find(lines, lo); i <= last; i++) {
        sets[i].word[rule / 64] |= (uint64_t)1 << rule % 64;
    }
}

static uint32_t set_hash(const struct dp_rule_set *s) {
    uint64_t h = 0;
    for (uint32_t w = 0; w < DP_SET_WORDS; w++) {
        h = (h ^ s->word[w]) * 0x9e3779b97f4a7c15u;
        h ^= h >> 29;
    }
    return (uint32_t)(h >> 32);
}

/* Keeps one of each different set and points the intervals at it. */
static bool share_sets(struct dp_dimension *dim, struct dp_rule_set *sets) {
    const uint32_t n = dim->lines.n;
    uint32_t slots = 16;
    while (slots < n * 2) {
        slots *= 2;
    }
    uint32_t *seen = calloc(slots, sizeof *seen);
    if (!seen) {
        return false;
    }
    uint32_t kept = 0;
    for (uint32_t i = 0; i < n; i++) {
        uint32_t at = set_hash(&sets[i]) & (slots - 1);
        while (seen[at] && memcmp(&sets[seen[at] - 1], &sets[i], sizeof *sets) != 0) {
            at = (at + 1) & (slots - 1);
        }
        if (!seen[at]) {
            sets[kept] = sets[i];
            seen[at] = ++kept;
        }
        dim->lines.value[i] = seen[at] - 1;
    }
    free(seen);
    struct dp_rule_set *less = realloc(sets, kept * sizeof *sets);
    dim->sets = less ? less : sets;
    dim->n_sets = kept;
    return true;
}

static bool build_dimension(const struct dp_group *g, struct dp_dimension *dim,
                            enum dp_dimension_name d, uint32_t first, uint32_t n) {
    if (!cut_lines(g, dim, d, first, n)) {
        return false;
    }
    struct dp_rule_set *sets = calloc(dim->lines.n, sizeof *sets);
    if (!sets) {
        return false;
    }
    for (uint32_t i = 0; i < n; i++) {
        const struct dp_span s = span_of(&g->rules[first + i], d);
        if (s.count == 0) {
            mark(sets, &dim->lines, number(0), (struct dp_point){UINT64_MAX, UINT64_MAX}, i);
        }
        for (uint32_t v = 0; v < s.count; v++) {
            struct piece pieces[2];
            const uint32_t n_pieces = value_pieces(g, d, s.first + v, pieces);
            for (uint32_t k = 0; k < n_pieces; k++) {
                mark(sets, &dim->lines, pieces[k].lo, pieces[k].hi, i);
            }
        }
    }
    if (!share_sets(dim, sets)) {
        free(sets);
        return false;
    }
    return true;
}

static bool build_blocks(struct dp_group *g) {
    g->n_blocks = (g->n_rules + DP_BLOCK_RULES - 1) / DP_BLOCK_RULES;
    g->blocks = calloc((size_t)g->n_blocks + 1, sizeof *g->blocks);
    if (!g->blocks) {
        return false;
    }
    for (uint32_t b = 0; b < g->n_blocks; b++) {
        const uint32_t first = b * DP_BLOCK_RULES;
        const uint32_t left = g->n_rules - first;
        for (int d = 0; d < DP_DIMS; d++) {
            if (!build_dimension(g, &g->blocks[b].dim[d], (enum dp_dimension_name)d, first,
                                 left < DP_BLOCK_RULES ? left : DP_BLOCK_RULES)) {
                return false;
            }
        }
    }
    return true;
}

static const char *rule_fault(const struct dp_rule *r, uint32_t n_prefixes, uint32_t n_ranges) {
    if (r->action > DP_SNAT || (r->flags & ~(DP_TERMINATING | DP_STATEFUL))) {
        return "unknown action or flag";
    }
    if (!dp_span_fits(r->src, n_prefixes) || !dp_span_fits(r->dst, n_prefixes)) {
        return "a prefix span leaves the array";
    }
    if (!dp_span_fits(r->sport, n_ranges) || !dp_span_fits(r->dport, n_ranges) ||
        !dp_span_fits(r->proto, n_ranges)) {
        return "a range span leaves the array";
    }
    return NULL;
}

static bool check(uint8_t layer, const struct dp_rule *rules, uint32_t n_rules,
                  const struct dp_prefix *prefixes, uint32_t n_prefixes,
                  const struct dp_range *ranges, uint32_t n_ranges, struct dp_error *err) {
    if (layer >= DP_LAYERS || n_rules > DP_GROUP_RULES || n_prefixes > 1u << 24 ||
        n_ranges > 1u << 24) {
        *err = (struct dp_error){DP_ELIMIT, "group", 0, "unknown layer, or more than 8,192 rules"};
        return false;
    }
    if (!dp_array_given(rules, n_rules) || !dp_array_given(prefixes, n_prefixes) ||
        !dp_array_given(ranges, n_ranges)) {
        *err = (struct dp_error){DP_EINVAL, "group", 0, "an array is NULL, its count is not 0"};
        return false;
    }
    for (uint32_t i = 0; i < n_prefixes; i++) {
        if (prefixes[i].len > 128) {
            *err = (struct dp_error){DP_EINVAL, "prefix", i, "prefix length beyond 128"};
            return false;
        }
    }
    for (uint32_t i = 0; i < n_ranges; i++) {
        if (ranges[i].lo > ranges[i].hi) {
            *err = (struct dp_error){DP_EINVAL, "range", i, "first is above last"};
            return false;
        }
    }
    for (uint32_t i = 0; i < n_rules; i++) {
        const char *why = rule_fault(&rules[i], n_prefixes, n_ranges);
        if (why) {
            *err = (struct dp_error){DP_EINVAL, "rule", i, why};
            return false;
        }
    }
    return true;
}

/* A counting sort: rules of equal priority keep the order they were given in. */
static bool sort_rules(struct dp_rule *out, const struct dp_rule *in, uint32_t n) {
    uint32_t *count = calloc(65537, sizeof *count);
    if (!count) {
        return false;
    }
    for (uint32_t i = 0; i < n; i++) {
        count[in[i].priority + 1]++;
    }
    for (uint32_t p = 0; p < 65536; p++) {
        count[p + 1] += count[p];
    }
    for (uint32_t i = 0; i < n; i++) {
        out[count[in[i].priority]++] = in[i];
    }
    free(count);
    return true;
}

struct dp_group *dp_group_create(uint8_t layer, uint32_t name, const struct dp_rule *rules,
                                 uint32_t n_rules, const struct dp_prefix *prefixes,
                                 uint32_t n_prefixes, const struct dp_range *ranges,
                                 uint32_t n_ranges, struct dp_error *err) {
    if (!check(layer, rules, n_rules, prefixes, n_prefixes, ranges, n_ranges, err)) {
        return NULL;
    }
    *err = (struct dp_error){DP_ENOMEM, "group", 0, "no memory"};
    struct dp_group *g = calloc(1, sizeof *g);
    if (!g) {
        return NULL;
    }
    g->references = 1;
    g->layer = layer;
    g->name = name;
    g->n_rules = n_rules;
    g->rules = malloc(((size_t)n_rules + 1) * sizeof *g->rules);
    g->prefixes = dp_array_copy(prefixes, n_prefixes, sizeof *prefixes);
    g->ranges = dp_array_copy(ranges, n_ranges, sizeof *ranges);
    if (!g->rules || !g->prefixes || !g->ranges || !sort_rules(g->rules, rules, n_rules) ||
        !build_blocks(g)) {
        dp_group_release(g);
        return NULL;
    }
    *err = (struct dp_error){DP_OK, NULL, 0, NULL};
    return g;
}

struct dp_group *dp_group_retain(struct dp_group *g) {
    atomic_fetch_add(&g->references, 1);
    return g;
}

void dp_group_release(struct dp_group *g) {
    if (!g || atomic_fetch_sub(&g->references, 1) != 1) {
        return;
    }
    for (uint32_t b = 0; g->blocks && b < g->n_blocks; b++) {
        for (int d = 0; d < DP_DIMS; d++) {
            dp_intervals_fini(&g->blocks[b].dim[d].lines);
            free(g->blocks[b].dim[d].sets);
        }
    }
    free(g->blocks);
    free(g->rules);
    free(g->prefixes);
    free(g->ranges);
    free(g);
}
