/* trace.h: what a walk tells about itself. A NULL trace is the live path: nothing is recorded. */
#ifndef DP_TRACE_H
#define DP_TRACE_H
#include "packet.h"

struct dp_trace {
    struct dp_step *steps;
    uint32_t max;
    uint32_t n;
};

/* Appends a step that shows the flow id, or returns NULL when there is no trace or no room. */
static inline struct dp_step *dp_trace_step(struct dp_trace *t, enum dp_step_kind kind,
                                            const struct dp_key *id) {
    if (dp_likely(!t) || t->n == t->max) {
        return NULL;
    }
    struct dp_step *s = &t->steps[t->n++];
    *s = (struct dp_step){.kind = (uint8_t)kind,
                          .group = DP_NONE,
                          .rule = DP_NONE,
                          .adjacency = DP_NONE,
                          .vni = id->vni,
                          .sport = id->sport,
                          .dport = id->dport,
                          .proto = id->proto,
                          .port = id->port};
    memcpy(s->src, &id->src, 16);
    memcpy(s->dst, &id->dst, 16);
    return s;
}

#endif
