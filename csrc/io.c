/* io.c: what ports have in common about frames that they receive or send. */
#include "io.h"
#include "checksum.h"
#include "coalesce.h"
#include "cursor.h"
#include <errno.h>

uint32_t io_find_transport(uint8_t *frame, uint32_t len, uint8_t *proto) {
    struct dp_cursor c = {frame, len};
    const struct dp_eth *eth = dp_pull(&c, sizeof *eth);
    if (!eth) {
        return 0;
    }
    be16 type = eth->type;
    const uint8_t *tag = be16_get(type) == DP_ETH_VLAN ? dp_pull(&c, DP_VLAN_TAG) : NULL;
    if (tag) {
        memcpy(&type, tag + 2, sizeof type);
    }
    if (be16_get(type) == DP_ETH_IP4) {
        const struct dp_ip4 *ip = dp_peek(&c, sizeof *ip);
        *proto = ip ? ip->proto : 0;
        return ip && dp_pull(&c, (uint32_t)(ip->version_ihl & 15) * 4) ? (uint32_t)(c.at - frame)
                                                                       : 0;
    }
    const struct dp_ip6 *ip = dp_pull(&c, sizeof *ip);
    *proto = ip ? ip->next : 0;
    return ip && be16_get(type) == DP_ETH_IP6 ? (uint32_t)(c.at - frame) : 0;
}

void io_finish_joined(struct io_port *p, struct dp_coalescer *c, struct io_burst *b) {
    for (uint32_t i = 0; i < b->n; i++) {
        struct dp_frame *f = &b->frames[i];
        const uint32_t front = f->len;
        const uint32_t packets = dp_coalesce_finish(c, i, f);
        f->len += front;
        if (packets > 1) {
            f->flags = DP_OUTER_CHECKED | DP_CSUM_PARTIAL;
            dp_count(&p->count.gro_frames, 1);
            dp_count(&p->count.gro_packets, packets);
        }
    }
}

void io_complete(const struct dp_frame *f, uint8_t *frame, uint32_t outer) {
    if (f->flags & DP_CSUM_PARTIAL) {
        dp_csum_complete(frame + outer + f->csum_start, f->len - outer - f->csum_start,
                         f->csum_field);
    }
}

/* What the engine made itself never counted as forwarded, so it cannot be taken back from there. */
static void lose(struct dp_engine *e, uint32_t worker, const struct dp_frame *f,
                 enum dp_reason reason, uint32_t packets, uint64_t bytes) {
    if (f->verdict == DP_FORWARD) {
        dp_egress_drop(e, worker, f->port, (uint8_t)reason, packets, bytes);
    }
}

/* A frame as it counts on the wire. */
static uint32_t packets_of(const struct dp_frame *f) {
    return f->head ? (f->len - f->head + f->gso_size - 1) / f->gso_size : 1;
}
static uint64_t bytes_of(const struct dp_frame *f) {
    return f->len + (uint64_t)(packets_of(f) - 1) * f->head;
}

void io_lost(struct dp_engine *e, uint32_t worker, const struct dp_frame *f,
             enum dp_reason reason) {
    lose(e, worker, f, reason, packets_of(f), bytes_of(f));
}

enum dp_reason io_reason_of(int error) {
    if (error == EAGAIN || error == ENOBUFS || error == ENOMEM) {
        return DP_R_egress_busy;
    }
    return error == EMSGSIZE || error == EINVAL ? DP_R_egress_too_big : DP_R_egress_down;
}

void io_refused(struct io_port *p, struct dp_engine *e, const struct dp_frame *f, int error) {
    dp_count(&p->count.tx_errors, packets_of(f));
    io_lost(e, p->worker, f, io_reason_of(error));
}

void io_refused_part(struct io_port *p, struct dp_engine *e, const struct dp_frame *f,
                     uint32_t packets, uint64_t bytes, int error) {
    dp_count(&p->count.tx_errors, packets);
    lose(e, p->worker, f, io_reason_of(error), packets, bytes);
}
