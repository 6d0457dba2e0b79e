/* dp_offload.h: super-frames made and taken apart for callers with ports of their own, as the ports
 * of dp_io.h do it. Pure functions of what they are given. */
#ifndef DP_OFFLOAD_H
#define DP_OFFLOAD_H
#include "dp.h"

/* cffi:begin */
/* Cuts a super-frame, as dp_process left it with .head set, into its packets, their checksums
 * complete, and writes them one behind another to out. outer: bytes of VXLAN and what is in front
 * of it, which each packet gets as they are. lens[i] becomes the i-th one's length. Returns how
 * many they are, or DP_EINVAL: no super-frame, or more than n packets or room bytes. */
int dp_offload_cut(const uint8_t *arena, size_t arena_len, const struct dp_frame *frame,
                   uint32_t outer, uint8_t *out, size_t room, uint32_t *lens, uint32_t n);

/* Joins frames of one burst and one source, in order, by the rules of coalesce.h: frames[0..m) are
 * then the ones that are left, those joined with .gso_type, .gso_size and a partial checksum. Each
 * may grow to slot bytes from its .off on. outer: as above. Returns m, or DP_EINVAL: more than 128
 * frames, or one outside of the arena. */
int dp_offload_join(uint8_t *arena, size_t arena_len, struct dp_frame *frames, uint32_t n,
                    uint32_t outer, uint32_t slot);
/* cffi:end */

#endif
