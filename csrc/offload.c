/* offload.c: checks what callers give before it reaches segment.c and coalesce.c. */
#include "coalesce.h"
#include "dp_offload.h"
#include "segment.h"
#include <stdlib.h>

enum { OUTER_MAX = 70 };

static bool stands(const struct dp_frame *f, size_t arena_len, uint32_t room) {
    return f->off <= arena_len && room <= arena_len - f->off && f->len <= room;
}

/* Whether the headers that the descriptor tells of are there; data: of the frame. */
static bool is_super(const struct dp_frame *f, const uint8_t *data, uint32_t outer) {
    const uint32_t l4 = outer + f->csum_start;
    const bool udp = f->gso_type == 5;
    return outer <= OUTER_MAX && f->gso_size > 0 && f->head < f->len &&
           f->head <= DP_SEGMENT_HEADERS && f->len - f->head <= UINT16_MAX &&
           l4 >= outer + sizeof(struct dp_eth) + sizeof(struct dp_ip4) &&
           f->head >= l4 + (udp ? sizeof(struct dp_udp) : sizeof(struct dp_tcp)) &&
           (data[outer + sizeof(struct dp_eth)] >> 4 == 4 ||
            l4 >= outer + sizeof(struct dp_eth) + sizeof(struct dp_ip6));
}

int dp_offload_cut(const uint8_t *arena, size_t arena_len, const struct dp_frame *frame,
                   uint32_t outer, uint8_t *out, size_t room, uint32_t *lens, uint32_t n) {
    struct dp_super s;
    if (!arena || !frame || !out || !lens || !stands(frame, arena_len, frame->len) ||
        !is_super(frame, arena + frame->off, outer) ||
        !dp_super_read(&s, frame, arena + frame->off, outer)) {
        return DP_EINVAL;
    }
    const uint32_t count = dp_super_count(&s);
    if (count > n || (size_t)frame->len + (size_t)(count - 1) * s.head > room) {
        return DP_EINVAL;
    }
    for (uint32_t i = 0; i < count; i++) {
        const uint32_t payload = dp_segment(&s, i, out);
        memcpy(out + s.head, s.data + dp_super_at(&s, i), payload);
        lens[i] = s.head + payload;
        out += lens[i];
    }
    return (int)count;
}

static uint32_t join(struct dp_coalescer *c, uint8_t *arena, struct dp_frame *frames, uint32_t n,
                     uint32_t outer, uint32_t slot) {
    const struct dp_origin origin = {0};
    struct dp_part part;
    uint32_t left = 0;
    dp_coalesce_begin(c);
    for (uint32_t i = 0; i < n; i++) {
        uint8_t *data = arena + frames[i].off;
        dp_part_read(&part, data, frames[i].len, outer);
        if (!dp_coalesce_join(c, &part, &origin)) {
            dp_coalesce_open(c, &part, &origin, data, slot);
            frames[left++] = frames[i];
        }
    }
    for (uint32_t i = 0; i < left; i++) {
        frames[i].flags |= dp_coalesce_finish(c, i, &frames[i]) > 1 ? DP_CSUM_PARTIAL : 0;
    }
    return left;
}

int dp_offload_join(uint8_t *arena, size_t arena_len, struct dp_frame *frames, uint32_t n,
                    uint32_t outer, uint32_t slot) {
    if (!arena || !frames || n > DP_COALESCE_MAX || outer > OUTER_MAX) {
        return DP_EINVAL;
    }
    for (uint32_t i = 0; i < n; i++) {
        if (!stands(&frames[i], arena_len, slot)) {
            return DP_EINVAL;
        }
    }
    struct dp_coalescer *c = calloc(1, sizeof *c);
    const int left = c ? (int)join(c, arena, frames, n, outer, slot) : DP_ENOMEM;
    free(c);
    return left;
}
