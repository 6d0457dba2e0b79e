/* io_tap.c: TAP devices: one frame a system call, with a virtio-net header that says what is left
 * to do: a checksum, or the cut of a super-frame. */
#include "checksum.h"
#include "io.h"
#include "segment.h"
#include <errno.h>
#include <linux/virtio_net.h>
#include <sys/uio.h>
#include <unistd.h>

_Static_assert(sizeof(struct virtio_net_hdr) == IO_VNET_HDR,
               "IFF_VNET_HDR without TUNSETVNETHDRSZ");
enum { GSO_UDP = 5 }; /* VIRTIO_NET_HDR_GSO_UDP_L4, which older headers lack */

/* ---- receive ------------------------------------------------------------------------------ */

/* The engine knows the checksums of TCP and UDP; any other that was left is made here. Offsets are
 * those of whoever sent the frame: they may be anything. */
static void take_checksum(const struct virtio_net_hdr *v, struct dp_frame *f, uint8_t *frame) {
    uint8_t proto = 0;
    if (!(v->flags & VIRTIO_NET_HDR_F_NEEDS_CSUM) ||
        (uint32_t)v->csum_start + v->csum_offset + 2 > f->len) {
        return;
    }
    const bool known = io_find_transport(frame, f->len, &proto) == v->csum_start &&
                       ((proto == DP_IP_TCP && v->csum_offset == offsetof(struct dp_tcp, csum)) ||
                        (proto == DP_IP_UDP && v->csum_offset == offsetof(struct dp_udp, csum)));
    if (known || v->gso_type != VIRTIO_NET_HDR_GSO_NONE) {
        f->flags = DP_CSUM_PARTIAL;
        f->csum_start = v->csum_start;
        f->csum_field = v->csum_offset;
    } else {
        dp_csum_complete(frame + v->csum_start, f->len - v->csum_start, v->csum_offset);
    }
}

static void take_header(const struct io_port *p, struct dp_frame *f, uint8_t *frame) {
    struct virtio_net_hdr v;
    if (p->front == 0) {
        return;
    }
    memcpy(&v, frame - IO_VNET_HDR, sizeof v);
    take_checksum(&v, f, frame);
    f->gso_type = v.gso_type;
    f->gso_size = v.gso_type ? v.gso_size : 0;
}

bool io_tap_receive(struct io_port *p, struct io_burst *b) {
    uint32_t bytes = 0;
    b->n = 0;
    while (b->n < IO_BURST && bytes < IO_BYTES) {
        uint8_t *at = io_slot(b, b->n) + IO_FRONT;
        const ssize_t got = read(p->fd, at - p->front, IO_SLOT - IO_FRONT + p->front);
        dp_count(&p->count.rx_calls, 1);
        if (got < 0) {
            const bool again = errno == EAGAIN || errno == EINTR;
            dp_count(&p->count.rx_errors, again ? 0 : 1);
            return errno != EBADFD && errno != EBADF;
        }
        if (got < p->front) {
            dp_count(&p->count.truncated, 1);
            continue;
        }
        struct dp_frame *f = &b->frames[b->n++];
        *f = (struct dp_frame){
            .off = (uint32_t)(at - b->arena), .len = (uint32_t)got - p->front, .port = p->id};
        take_header(p, f, at);
        bytes += f->len;
    }
    return true;
}

/* ---- send --------------------------------------------------------------------------------- */

/* One system call; false: the device refused. */
static bool put(struct io_port *p, const struct iovec *parts, int n) {
    const ssize_t sent = writev(p->fd, parts, n);
    dp_count(&p->count.tx_calls, 1);
    return sent >= 0;
}

static uint32_t longest(const struct io_port *p) {
    return p->mtu + (uint32_t)sizeof(struct dp_eth);
}

/* Bytes of payload for each packet. A stream may be cut anywhere, so for a device whose MTU is
 * below its network's it is cut smaller. */
static uint16_t size_for(const struct io_port *p, const struct dp_frame *f) {
    const bool fits = (uint32_t)f->head + f->gso_size <= longest(p);
    return fits || f->gso_type == GSO_UDP || f->head >= longest(p)
               ? f->gso_size
               : (uint16_t)(longest(p) - f->head);
}

/* The packets of a super-frame, one by one. Of a stream cut smaller than it was counted there may
 * be more of them: those are not counted where they are lost. */
static void put_cut(struct io_port *p, struct dp_engine *e, const struct dp_frame *f,
                    struct dp_super *s) {
    uint8_t head[IO_VNET_HDR + DP_SEGMENT_HEADERS] = {0};
    const uint32_t counted = dp_super_count(s);
    s->size = size_for(p, f);
    for (uint32_t i = 0; i < dp_super_count(s); i++) {
        const uint32_t payload = dp_segment(s, i, head + p->front);
        const uint32_t len = s->head + payload;
        const struct iovec parts[] = {{head, (size_t)p->front + s->head},
                                      {(void *)(s->data + dp_super_at(s, i)), payload}};
        if (len <= longest(p) && put(p, parts, 2)) {
            dp_count(&p->count.tx_frames, 1);
        } else {
            io_refused_part(p, e, f, i < counted, len, len <= longest(p) ? errno : EMSGSIZE);
        }
    }
}

/* What the device has to know of the frame. */
static struct virtio_net_hdr describe(const struct io_port *p, const struct dp_frame *f) {
    struct virtio_net_hdr v = {0};
    if (f->flags & DP_CSUM_PARTIAL) {
        v.flags = VIRTIO_NET_HDR_F_NEEDS_CSUM;
        v.csum_start = f->csum_start;
        v.csum_offset = f->csum_field;
    }
    if (f->head) {
        v.hdr_len = f->head;
        v.gso_type = f->gso_type;
        v.gso_size = size_for(p, f);
    }
    return v;
}

static void put_whole(struct io_port *p, struct dp_engine *e, const struct dp_frame *f,
                      uint8_t *frame) {
    const struct virtio_net_hdr v = describe(p, f);
    if (f->head == 0 && f->len > longest(p)) {
        io_refused(p, e, f, EMSGSIZE);
        return;
    }
    if (p->front == 0) {
        io_complete(f, frame, 0);
    }
    memcpy(frame - p->front, &v, p->front);
    if (put(p, &(struct iovec){frame - p->front, (size_t)f->len + p->front}, 1)) {
        dp_count(&p->count.tx_frames, 1);
        dp_count(&p->count.gso_frames, f->head != 0);
    } else {
        io_refused(p, e, f, errno);
    }
}

/* Whether the device cuts it. Datagrams that do not fit are looked at one by one: the last may. */
static bool takes(const struct io_port *p, const struct dp_frame *f) {
    const bool fits = (uint32_t)f->head + size_for(p, f) <= longest(p);
    return p->front && fits && (p->uso || f->gso_type != GSO_UDP);
}

void io_tap_send(struct io_port *p, struct dp_engine *e, uint8_t *arena,
                 struct dp_frame *const *frames, uint32_t n) {
    for (uint32_t i = 0; i < n; i++) {
        struct dp_super s;
        uint8_t *frame = arena + frames[i]->off;
        if (!takes(p, frames[i]) && dp_super_read(&s, frames[i], frame, 0)) {
            put_cut(p, e, frames[i], &s);
        } else {
            put_whole(p, e, frames[i], frame);
        }
    }
}
