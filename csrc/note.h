/* note.h: what is noted of frames and flows at observed points; the caller asks dp_observed first,
 * so that it costs a comparison where nobody looks. By workers, in their own call. */
#ifndef DP_NOTE_H
#define DP_NOTE_H
#include "pass.h"

enum { DP_AT_PASSING = DP_AT_RX | DP_AT_TX | DP_AT_ENCAP | DP_AT_DECAP };

/* A frame where it lies, as its descriptor says. */
dp_cold void dp_note_frame(const struct pass *x, const struct dp_frame *f, uint32_t point,
                           uint16_t in_port, uint32_t packets);
/* The packet that began a flow, before anything of it is changed. */
dp_cold void dp_note_new(const struct pass *x, const struct dp_packet *p,
                         const struct dp_pair *pair);
/* A frame that was kept and is not given out. */
dp_cold void dp_note_lost(struct dp_engine *e, uint32_t kept, enum dp_reason reason,
                          uint64_t now_ns);
/* A pair that is about to be forgotten. */
dp_cold void dp_note_end(struct dp_engine *e, const struct dp_pair *pair, uint64_t now_ns);

/* A burst before it is judged, and after; came keeps its ingress ports in between. */
dp_cold void dp_note_arrivals(const struct pass *x, const struct dp_frame *frames, uint32_t n,
                              uint16_t *came);
dp_cold void dp_note_departures(const struct pass *x, const struct dp_frame *frames, uint32_t n,
                                const uint16_t *came);

#endif
