/* note.c: records of frames and flows. Only called while somebody observes. */
#include "note.h"
#include "checksum.h"

/* Outer headers made up of what a socket told (io_udp.c) lack the checksums that the kernel has
 * looked at. Whoever looks at the frame gets them: the same bytes can be traced again. */
static void sum_outer(uint8_t *frame, uint32_t len) {
    struct dp_outer4 *v4 = (struct dp_outer4 *)frame;
    struct dp_outer6 *v6 = (struct dp_outer6 *)frame;
    if (len >= offsetof(struct dp_outer4, vxlan) && be16_get(v4->eth.type) == DP_ETH_IP4 &&
        v4->ip.csum == 0) {
        v4->ip.csum = (uint16_t)~dp_csum_fold(dp_csum_add(0, &v4->ip, sizeof v4->ip));
    } else if (len >= offsetof(struct dp_outer6, vxlan) && be16_get(v6->eth.type) == DP_ETH_IP6 &&
               v6->udp.csum == 0 &&
               be16_get(v6->udp.len) <= len - offsetof(struct dp_outer6, udp)) {
        const uint32_t size = be16_get(v6->udp.len);
        const struct dp_addr src = dp_addr_load(v6->ip.src);
        const struct dp_addr dst = dp_addr_load(v6->ip.dst);
        v6->udp.csum = dp_csum_fold(dp_csum_pseudo(&src, &dst, DP_IP_UDP, size));
        dp_csum_complete((uint8_t *)&v6->udp, size, offsetof(struct dp_udp, csum));
    }
}

static bool is_underlay(const struct pass *x, uint16_t port) {
    const struct dp_port_slot *slot = dp_snapshot_ingress(x->policy, port);
    return slot && slot->port->kind == DP_PORT_UNDERLAY;
}

void dp_note_frame(const struct pass *x, const struct dp_frame *f, uint32_t point, uint16_t in_port,
                   uint32_t packets) {
    struct dp_seen seen = {.now_ns = x->w->now_ns,
                           .point = (uint8_t)point,
                           .reason = point == DP_AT_DROP ? f->reason : 0,
                           .len = f->len,
                           .packets = packets,
                           .rule = point == DP_AT_RX ? DP_NONE : f->rule,
                           .generation = x->policy->generation,
                           .in_port = in_port,
                           .egress = point == DP_AT_RX ? DP_PORT_NONE : f->port};
    const bool sound = f->off <= x->arena_len && f->len <= x->arena_len - f->off;
    const bool came = point & (DP_AT_RX | DP_AT_DROP | DP_AT_NEW);
    if (sound && came && (f->flags & DP_OUTER_CHECKED) && is_underlay(x, in_port)) {
        sum_outer(x->arena + f->off, f->len);
    }
    dp_observe_note(&x->e->observer, &seen, x->arena + (sound ? f->off : 0), sound ? f->len : 0);
}

void dp_note_arrivals(const struct pass *x, const struct dp_frame *frames, uint32_t n,
                      uint16_t *came) {
    for (uint32_t i = 0; i < n; i++) {
        came[i] = frames[i].port;
        if (dp_observed(&x->e->observer, DP_AT_RX) && !x->known) {
            dp_note_frame(x, &frames[i], DP_AT_RX, came[i], 1);
        }
    }
}

void dp_note_new(const struct pass *x, const struct dp_packet *p, const struct dp_pair *pair) {
    struct dp_frame began = *p->frame;
    began.rule = pair->half[0].act.rule;
    began.port = pair->half[0].act.egress;
    dp_note_frame(x, &began, DP_AT_NEW, p->key.port, dp_packet_count(p));
}

void dp_note_departures(const struct pass *x, const struct dp_frame *frames, uint32_t n,
                        const uint16_t *came) {
    for (uint32_t i = 0; i < n; i++) {
        const struct dp_frame *f = &frames[i];
        const bool leaves = f->verdict != DP_HELD && f->port != DP_PORT_NONE;
        const bool passes = f->verdict == DP_FORWARD;
        const uint32_t points = DP_AT_TX | (passes && is_underlay(x, f->port) ? DP_AT_ENCAP : 0) |
                                (passes && is_underlay(x, came[i]) ? DP_AT_DECAP : 0);
        for (uint32_t point = DP_AT_TX; leaves && point <= DP_AT_DECAP; point <<= 1) {
            if (points & point && dp_observed(&x->e->observer, point)) {
                dp_note_frame(x, f, point, came[i], 1);
            }
        }
    }
}

void dp_note_end(struct dp_engine *e, const struct dp_pair *pair, uint64_t now_ns) {
    const struct dp_flow_info info = dp_pair_info(pair);
    struct dp_seen seen = {.now_ns = now_ns,
                           .point = DP_AT_END,
                           .len = sizeof info,
                           .rule = info.rule,
                           .generation = info.generation,
                           .in_port = info.in_port,
                           .egress = info.out_port};
    dp_observe_note(&e->observer, &seen, (const uint8_t *)&info, sizeof info);
}

void dp_note_lost(struct dp_engine *e, uint32_t kept, enum dp_reason reason, uint64_t now_ns) {
    const struct dp_kept *k = dp_store_item(&e->fragments.store, kept);
    if (k->flags & DP_OUTER_CHECKED) {
        sum_outer(dp_store_bytes(&e->fragments.store, kept), k->len);
    }
    struct dp_seen seen = {.now_ns = now_ns,
                           .point = DP_AT_DROP,
                           .reason = (uint8_t)reason,
                           .len = k->len,
                           .packets = 1,
                           .rule = DP_NONE,
                           .generation = atomic_load(&e->policy)->generation,
                           .in_port = k->port,
                           .egress = DP_PORT_NONE};
    dp_observe_note(&e->observer, &seen, dp_store_bytes(&e->fragments.store, kept), k->len);
}
