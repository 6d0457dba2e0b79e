/* pass.h: one call of the engine: what its stages share, and the exit by which packets go on. */
#ifndef DP_PASS_H
#define DP_PASS_H
#include "state.h"

/* What one call works with: the policy it has seen, and whether it may change anything. */
struct pass {
    struct dp_engine *e;
    struct dp_worker *w;
    const struct dp_snapshot *policy;
    bool narrow; /* some path MTU was learned */
    bool shared; /* there are other workers */
    struct dp_counters *count;
    struct dp_trace *trace;           /* not NULL: look, but touch nothing */
    const struct dp_pair *leaving;    /* of a trace: would be gone by now, but is not */
    const struct dp_transport *known; /* not NULL: frames out of the store, by place */
    const struct dp_frame *frames;    /* of the burst */
    uint8_t *arena;
    size_t arena_len;
};

/* What the tunnel's path carries, of inner packet. IPv6 needs 1280 bytes (RFC 8200 section 5); a
 * message that says less is no reason to stop it. */
static inline uint16_t path_mtu(const struct pass *x, const struct dp_packet *p,
                                const struct dp_act *act) {
    if (act->adjacency == DP_NONE) {
        return 0;
    }
    const struct dp_tunnel *t = &x->policy->tunnels[act->adjacency];
    const uint16_t outer = dp_paths_mtu(&x->e->paths, &t->remote, x->w->now_ns);
    const uint16_t inner = outer ? (uint16_t)(outer - t->head_len) : 0;
    return inner && p->family == 6 && inner < DP_IP6_MTU_MIN ? DP_IP6_MTU_MIN : inner;
}

static inline void settle(const struct pass *x, struct dp_packet *p, uint16_t egress) {
    struct dp_frame *f = p->frame;
    f->off = (uint32_t)(p->data - x->arena);
    f->len = p->len;
    f->port = egress;
    f->flags &= DP_CSUM_PARTIAL | DP_MISS;
    f->head = (uint16_t)(p->more ? p->len - p->payload : 0);
    if (egress < x->count->n_ports) {
        dp_count(&x->count->ports[egress].tx_frames, dp_packet_count(p));
        dp_count(&x->count->ports[egress].tx_bytes, dp_packet_bytes(p));
    }
}

static inline void forward(const struct pass *x, struct dp_packet *p, uint16_t egress) {
    p->frame->verdict = DP_FORWARD;
    p->frame->reason = DP_R_none;
    dp_count(&x->count->totals.forwarded, dp_packet_count(p));
    settle(x, p, egress);
}

#endif
