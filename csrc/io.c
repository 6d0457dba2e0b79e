/* io.c: what becomes of a frame at every port that sends. */
#include "io.h"
#include "checksum.h"
#include <errno.h>

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
