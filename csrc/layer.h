/* layer.h: a walk under way, and what every layer does with it: it is entered, asks the rules of
 * its groups, and is left with a verdict. */
#ifndef DP_LAYER_H
#define DP_LAYER_H
#include "binding.h"
#include "counters.h"
#include "flow.h"
#include "snapshot.h"
#include "trace.h"

/* Where one end of a flow lives. */
struct dp_place {
    uint8_t kind;   /* enum dp_port_kind: endpoint, underlay or host */
    uint16_t port;  /* port id */
    uint32_t index; /* endpoint or adjacency */
};

struct dp_walk {
    /* given */
    const struct dp_snapshot *policy;
    const struct dp_flows *flows; /* for its timers and keys */
    struct dp_bindings *bindings;
    struct dp_counters *count;
    struct dp_trace *trace;            /* not NULL: change nothing, tell everything */
    const struct dp_hash_key *entropy; /* of outer source ports */
    const struct dp_hash_key *spread;  /* of flows over backends */
    const struct dp_pair *held; /* under re-simulation: keeps its backend; NULL for a new flow */
    const struct dp_addr *outer_src; /* NULL when the initiator's packet is not at hand */
    uint64_t now_ns;
    /* under way */
    struct dp_key id;                 /* as transposed so far */
    uint32_t network;                 /* index, or DP_NONE */
    struct dp_place from;             /* initiator */
    struct dp_place to;               /* responder */
    struct dp_place back;             /* where its answers go: from, but for DSR */
    const struct dp_service *service; /* that was met, or NULL */
    struct dp_addr backend; /* whom the route is asked for: the destination, but for DSR */
    uint32_t rule;          /* id of the last rule that decided, or DP_NONE */
    uint32_t idle_s;
    bool stateless; /* the answers have to be allowed by rules of their own */
    bool reject;
    uint32_t binding; /* index, DP_NONE: no NAT */
    uint32_t chain;   /* of bindings that was asked for ahead, or DP_NONE */
    bool bound_now;   /* this walk made the binding */
    bool translated;
    bool outside;  /* NAT: leaves the overlay */
    bool any_vtep; /* the far side may speak through any VTEP of the network */
    bool quiet;    /* a question, not a packet: rules are not counted */
    /* result */
    struct dp_pair pair;
};

void dp_layer_enter(struct dp_walk *w, enum dp_layer layer);
/* Tells the trace of the layer's verdict, and returns it. */
enum dp_reason dp_layer_leave(struct dp_walk *w, enum dp_layer layer, enum dp_direction direction,
                              enum dp_reason r);

/* The rule of a layer's groups that has the last word: of each group the first match; a terminating
 * one ends the walk, a pass leaves the group, else the last match stands. NULL: none. */
const struct dp_rule *dp_decide(struct dp_walk *w, const struct dp_endpoint *e, enum dp_layer layer,
                                enum dp_direction direction);

#endif
