#include "io_xsk.h"
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

enum { SEND_BUFFER = 8 << 20 };
enum { MAX_TX_BUDGET = 9 }; /* XDP_MAX_TX_SKB_BUDGET of Linux 6.17: packets a call sends, else 32 */

static bool map_ring(struct io_ring *r, int fd, const struct xdp_ring_offset *at, size_t slot,
                     uint64_t where) {
    r->size = at->desc + XSK_RING * slot;
    r->map =
        mmap(NULL, r->size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, (off_t)where);
    if (r->map == MAP_FAILED) {
        return false;
    }
    uint8_t *base = r->map;
    r->producer = (uint32_t *)(base + at->producer);
    r->consumer = (uint32_t *)(base + at->consumer);
    r->flags = (uint32_t *)(base + at->flags);
    r->slots = base + at->desc;
    return true;
}

static bool register_memory(struct io_xsk *s, bool sends) {
    s->size = (size_t)XSK_RING * XSK_CHUNK * (sends ? 2 : 1);
    s->memory = mmap(NULL, s->size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (s->memory == MAP_FAILED) {
        return false;
    }
    (void)madvise(s->memory, s->size, MADV_HUGEPAGE);
    const struct xdp_umem_reg memory = {
        .addr = (uintptr_t)s->memory, .len = s->size, .chunk_size = XSK_CHUNK};
    return setsockopt(s->fd, SOL_XDP, XDP_UMEM_REG, &memory, sizeof memory) == 0;
}

static bool make_rings(struct io_xsk *s, bool sends) {
    static const int kinds[] = {XDP_UMEM_FILL_RING, XDP_UMEM_COMPLETION_RING, XDP_RX_RING,
                                XDP_TX_RING};
    const int size = XSK_RING;
    struct xdp_mmap_offsets at;
    socklen_t len = sizeof at;
    for (int i = 0; i < 3 + sends; i++) {
        if (setsockopt(s->fd, SOL_XDP, kinds[i], &size, sizeof size)) {
            return false;
        }
    }
    return getsockopt(s->fd, SOL_XDP, XDP_MMAP_OFFSETS, &at, &len) == 0 && len == sizeof at &&
           map_ring(&s->fill, s->fd, &at.fr, 8, XDP_UMEM_PGOFF_FILL_RING) &&
           map_ring(&s->done, s->fd, &at.cr, 8, XDP_UMEM_PGOFF_COMPLETION_RING) &&
           map_ring(&s->receive, s->fd, &at.rx, sizeof(struct xdp_desc), XDP_PGOFF_RX_RING) &&
           (!sends ||
            map_ring(&s->send, s->fd, &at.tx, sizeof(struct xdp_desc), XDP_PGOFF_TX_RING));
}

static bool stock(struct io_xsk *s, bool sends) {
    for (uint32_t i = 0; i < XSK_RING; i++) {
        *io_ring_address(&s->fill, i) = (uint64_t)i * XSK_CHUNK;
    }
    io_ring_publish(s->fill.producer, XSK_RING);
    if (!sends) {
        return true;
    }
    s->free = calloc(XSK_RING, sizeof *s->free);
    s->records = calloc(XSK_RING, sizeof *s->records);
    for (uint32_t i = 0; s->free && i < XSK_RING; i++) {
        s->free[s->n_free++] = 2 * XSK_RING - 1 - i;
    }
    return s->free && s->records;
}

/* Without a word about copies the kernel does none where the driver can do so. */
static bool bind_to(struct io_xsk *s, uint32_t ifindex, uint32_t queue) {
    const struct sockaddr_xdp to = {.sxdp_family = AF_XDP,
                                    .sxdp_flags = XDP_USE_NEED_WAKEUP,
                                    .sxdp_ifindex = ifindex,
                                    .sxdp_queue_id = queue};
    const int size = SEND_BUFFER;
    struct xdp_options options = {0};
    socklen_t len = sizeof options;
    const int budget = XSK_RING;
    (void)setsockopt(s->fd, SOL_SOCKET, SO_SNDBUFFORCE, &size, sizeof size);
    (void)setsockopt(s->fd, SOL_XDP, MAX_TX_BUDGET, &budget, sizeof budget);
    if (bind(s->fd, (const struct sockaddr *)&to, sizeof to)) {
        return false;
    }
    s->zero_copy = getsockopt(s->fd, SOL_XDP, XDP_OPTIONS, &options, &len) == 0 &&
                   (options.flags & XDP_OPTIONS_ZEROCOPY);
    return true;
}

const char *io_xsk_open(struct io_xsk *s, uint32_t ifindex, uint32_t queue, bool sends) {
    s->fd = socket(AF_XDP, SOCK_RAW | SOCK_CLOEXEC, 0);
    if (s->fd < 0) {
        return "socket";
    }
    if (!register_memory(s, sends)) {
        return "memory";
    }
    if (!make_rings(s, sends) || !stock(s, sends)) {
        return "rings";
    }
    return bind_to(s, ifindex, queue) ? NULL : "bind";
}

void io_xsk_close(struct io_xsk *s) {
    const struct io_ring *rings[] = {&s->fill, &s->done, &s->receive, &s->send};
    for (size_t i = 0; i < 4; i++) {
        if (rings[i]->map && rings[i]->map != MAP_FAILED) {
            munmap(rings[i]->map, rings[i]->size);
        }
    }
    if (s->fd >= 0) {
        close(s->fd);
    }
    if (s->memory && s->memory != MAP_FAILED) {
        munmap(s->memory, s->size);
    }
    free(s->free);
    free(s->records);
    *s = (struct io_xsk){.fd = -1};
}
