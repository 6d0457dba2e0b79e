/* store.h: frames that the engine keeps for a while: fragments that wait for the first one of their
 * datagram, then, in a queue, what dp_more gives out.
 *
 * Bounded: all memory is taken at creation, and touched where it is used. One thread. */
#ifndef DP_STORE_H
#define DP_STORE_H
#include "packet.h"

enum { DP_STORE_FRAME = 9728 }; /* bytes a slot: a jumbo frame and its outer headers */

struct dp_kept {
    uint32_t next; /* reference of the one behind, in its list; 0 = last */
    uint32_t len;
    uint16_t port; /* ingress port id */
    uint8_t flags; /* enum dp_frame_flag, of the frame as it came */
    struct dp_transport transport;
};

/* A list of kept frames, the oldest first. References are index + 1; 0 is none. */
struct dp_kept_list {
    uint32_t first;
    uint32_t last;
};

struct dp_store {
    uint32_t max;
    uint32_t used;
    uint32_t free;
    struct dp_kept_list queue; /* what is given out next */
    struct dp_kept *items;
    uint8_t *bytes;
};

bool dp_store_init(struct dp_store *s, uint32_t max);
void dp_store_fini(struct dp_store *s);

static inline struct dp_kept *dp_store_item(const struct dp_store *s, uint32_t ref) {
    return &s->items[ref - 1];
}
static inline uint8_t *dp_store_bytes(const struct dp_store *s, uint32_t ref) {
    return s->bytes + (size_t)(ref - 1) * DP_STORE_FRAME;
}
/* A slot for a frame of so many bytes, its fields zero but for the length; 0 = there is none. */
uint32_t dp_store_take(struct dp_store *s, uint32_t len);
void dp_store_give(struct dp_store *s, uint32_t ref);

void dp_kept_append(struct dp_store *s, struct dp_kept_list *list, uint32_t ref);
/* Takes the oldest out of the list; 0 = it is empty. */
uint32_t dp_kept_next(struct dp_store *s, struct dp_kept_list *list);
uint32_t dp_kept_count(const struct dp_store *s, const struct dp_kept_list *list);

#endif
