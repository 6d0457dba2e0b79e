/* walk.h: the miss path: a flow id is led through the layers, and what they decide is composed into
 * one pair of header transpositions. Works on the flow id, not on bytes; changes no state but
 * counters and NAT bindings. */
#ifndef DP_WALK_H
#define DP_WALK_H
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
    struct dp_trace *trace; /* not NULL: change nothing, tell everything */
    const struct dp_hash_key *entropy;
    const struct dp_addr *outer_src; /* NULL when the initiator's packet is not at hand */
    uint64_t now_ns;
    /* under way */
    struct dp_key id;     /* as transposed so far */
    uint32_t network;     /* index, or DP_NONE */
    struct dp_place from; /* initiator */
    struct dp_place to;   /* responder */
    uint32_t rule;        /* id of the last rule that decided, or DP_NONE */
    uint32_t idle_s;
    bool stateless; /* the answers have to be allowed by rules of their own */
    bool reject;
    uint32_t binding; /* index, DP_NONE: no NAT */
    bool translated;
    bool quiet; /* a question, not a packet: rules are not counted */
    /* result */
    struct dp_pair pair;
};

/* Leads the initiator's key through the layers; 0: pair is ready to be installed and applied. Else
 * the reason, with rule and reject saying more. A binding that was made is held by no flow yet. */
enum dp_reason dp_walk_flow(struct dp_walk *w, const struct dp_key *key);

#endif
