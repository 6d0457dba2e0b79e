/* io_xsk.h: one AF_XDP socket: its rings, and the memory that it shares with the kernel, which
 * holds XSK_RING received frames and, if it sends, as many to be sent. One thread. */
#ifndef DP_IO_XSK_H
#define DP_IO_XSK_H
#include "base.h"
#include <linux/if_xdp.h>

enum { XSK_CHUNK = 4096, XSK_RING = 2048 };

/* A ring in memory: one side adds at .producer, the other takes at .consumer. */
struct io_ring {
    uint32_t *producer;
    uint32_t *consumer;
    uint32_t *flags;
    void *slots;
    void *map;
    size_t size;
};

/* A frame in the sending ring: what it is for the engine. */
struct io_sent {
    const struct dp_frame *frame;
    uint32_t bytes;
};

struct io_xsk {
    int fd;
    bool zero_copy;
    uint8_t *memory; /* chunks [0, XSK_RING) receive, from there on they send */
    size_t size;
    struct io_ring fill, receive, send, done;
    uint32_t made;   /* sending ring: put in */
    uint32_t told;   /* accounted for */
    uint32_t n_free; /* chunks to send from */
    uint32_t *free;
    struct io_sent *records;
};

static inline uint32_t io_ring_load(const uint32_t *index) {
    return __atomic_load_n(index, __ATOMIC_ACQUIRE);
}

static inline void io_ring_publish(uint32_t *index, uint32_t value) {
    __atomic_store_n(index, value, __ATOMIC_RELEASE);
}

static inline bool io_ring_sleeps(const struct io_ring *r) {
    return dp_get(*r->flags) & XDP_RING_NEED_WAKEUP;
}

static inline uint64_t *io_ring_address(const struct io_ring *r, uint32_t i) {
    return (uint64_t *)r->slots + (i & (XSK_RING - 1));
}

static inline struct xdp_desc *io_ring_desc(const struct io_ring *r, uint32_t i) {
    return (struct xdp_desc *)r->slots + (i & (XSK_RING - 1));
}

/* Opens the socket of a queue. NULL, or the step that failed; errno says why, and io_xsk_close
 * closes what was opened. A queue that the interface has not is EINVAL of "bind". */
const char *io_xsk_open(struct io_xsk *s, uint32_t ifindex, uint32_t queue, bool sends);
void io_xsk_close(struct io_xsk *s);

#endif
