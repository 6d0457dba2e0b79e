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
void io_lost(struct dp_engine *e, const struct dp_frame *f, enum dp_reason reason) {
    if (f->verdict == DP_FORWARD) {
        dp_egress_drop(e, 0, f->port, (uint8_t)reason, 1, f->len);
    }
}

void io_refused(struct io_port *p, struct dp_engine *e, const struct dp_frame *f, int error) {
    enum dp_reason reason = DP_R_egress_down;
    if (error == EAGAIN || error == ENOBUFS || error == ENOMEM) {
        reason = DP_R_egress_busy;
    } else if (error == EMSGSIZE || error == EINVAL) {
        reason = DP_R_egress_too_big;
    }
    dp_count(&p->count.tx_errors, 1);
    io_lost(e, f, reason);
}
