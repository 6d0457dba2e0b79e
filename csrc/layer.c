#include "layer.h"

void dp_layer_enter(struct dp_walk *w, enum dp_layer layer) {
    dp_count(&w->count->layers[layer], 1);
}

enum dp_reason dp_layer_leave(struct dp_walk *w, enum dp_layer layer, enum dp_direction direction,
                              enum dp_reason r) {
    struct dp_step *s = dp_trace_step(w->trace, DP_STEP_LAYER, &w->id);
    if (s) {
        s->layer = (uint8_t)layer;
        s->direction = (uint8_t)direction;
        s->reason = (uint8_t)r;
        s->rule = w->rule;
        s->action = r ? DP_BLOCK : DP_ALLOW;
        s->adjacency = w->to.kind == DP_PORT_UNDERLAY ? w->to.index : DP_NONE;
        s->port = w->to.port;
    }
    return r;
}

/* ---- rules -------------------------------------------------------------------------------- */

static bool in_prefixes(const struct dp_group *g, struct dp_span span, const struct dp_addr *a) {
    const struct dp_point p = dp_point_of(a);
    bool in = span.count == 0;
    for (uint32_t i = 0; i < span.count && !in; i++) {
        const struct dp_prefix *x = &g->prefixes[span.first + i];
        const struct dp_addr base = dp_addr_load(x->addr);
        in = !(x->len < DP_V4_BITS && dp_addr_is_v4(a)) &&
             dp_point_equal(dp_point_first(p, x->len), dp_point_first(dp_point_of(&base), x->len));
    }
    return in;
}

static bool in_ranges(const struct dp_group *g, struct dp_span span, uint16_t n) {
    bool in = span.count == 0;
    for (uint32_t i = 0; i < span.count && !in; i++) {
        in = n >= g->ranges[span.first + i].lo && n <= g->ranges[span.first + i].hi;
    }
    return in;
}

static bool rule_accepts(const struct dp_group *g, const struct dp_rule *r,
                         const struct dp_key *id) {
    return in_prefixes(g, r->src, &id->src) && in_prefixes(g, r->dst, &id->dst) &&
           in_ranges(g, r->proto, id->proto) && in_ranges(g, r->sport, id->sport) &&
           in_ranges(g, r->dport, id->dport);
}

/* Tells of every rule up to the one that matched, each judged by itself. */
static dp_cold void trace_rules(struct dp_walk *w, const struct dp_group *g,
                                enum dp_direction direction, const struct dp_rule *found) {
    for (uint32_t i = 0; i <= g->n_rules; i++) {
        const bool summary = i == g->n_rules || &g->rules[i] == found;
        if (!summary) {
            struct dp_step *s = dp_trace_step(w->trace, DP_STEP_RULE, &w->id);
            if (s) {
                s->layer = g->layer;
                s->direction = (uint8_t)direction;
                s->group = g->name;
                s->rule = g->rules[i].id;
                s->action = g->rules[i].action;
                s->matched = rule_accepts(g, &g->rules[i], &w->id);
            }
            continue;
        }
        struct dp_step *s = dp_trace_step(w->trace, DP_STEP_GROUP, &w->id);
        if (s) {
            s->layer = g->layer;
            s->direction = (uint8_t)direction;
            s->group = g->name;
            s->matched = found != NULL;
            s->rule = found ? found->id : DP_NONE;
            s->action = found ? found->action : 0;
        }
        return;
    }
}

const struct dp_rule *dp_decide(struct dp_walk *w, const struct dp_endpoint *e, enum dp_layer layer,
                                enum dp_direction direction) {
    const struct dp_rule *decision = NULL;
    const struct dp_span span = e->groups[direction];
    for (uint32_t i = 0; i < span.count; i++) {
        const struct dp_group *g = w->policy->groups[span.first + i];
        if (g->layer != layer) {
            continue;
        }
        const struct dp_rule *r = dp_group_match(g, &w->id);
        dp_count(&w->count->totals.rule_blocks, dp_group_searched(g, r));
        if (dp_unlikely(w->trace != NULL)) {
            trace_rules(w, g, direction, r);
        }
        if (!r) {
            continue;
        }
        if (!w->quiet) {
            dp_count(&w->count->rules[r->id], 1);
        }
        if (r->action == DP_PASS) {
            continue;
        }
        decision = r;
        if (r->flags & DP_TERMINATING) {
            break;
        }
    }
    return decision;
}
