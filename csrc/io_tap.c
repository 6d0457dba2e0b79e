/* io_tap.c: TAP devices: one frame a system call, with a virtio-net header that says what is left
 * to do. */
#include "checksum.h"
#include "cursor.h"
#include "io.h"
#include <errno.h>
#include <linux/virtio_net.h>
#include <unistd.h>

_Static_assert(sizeof(struct virtio_net_hdr) == IO_VNET_HDR,
               "IFF_VNET_HDR without TUNSETVNETHDRSZ");

bool io_tap_receive(struct io_port *p, struct io_burst *b) {
    b->n = 0;
    while (b->n < IO_BURST) {
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
        b->frames[b->n] = (struct dp_frame){
            .off = (uint32_t)(at - b->arena), .len = (uint32_t)got - p->front, .port = p->id};
        b->n++;
    }
    return true;
}

/* Offsets of a TCP packet that is to be cut into segments. */
struct headers {
    bool v4;
    uint16_t l4;
    uint16_t payload;
};

/* False: not whole TCP. A stream may be cut anywhere, but a datagram is one or none. */
static bool find_headers(uint8_t *frame, uint32_t len, struct headers *h) {
    struct dp_cursor c = {frame, len};
    const struct dp_eth *eth = dp_pull(&c, sizeof *eth);
    if (!eth) {
        return false;
    }
    h->v4 = be16_get(eth->type) == DP_ETH_IP4;
    uint8_t proto;
    if (h->v4) {
        const struct dp_ip4 *ip = dp_peek(&c, sizeof *ip);
        if (!ip || (be16_get(ip->frag) & (DP_IP4_MF | DP_IP4_OFFSET)) ||
            !dp_pull(&c, (uint32_t)(ip->version_ihl & 15) * 4)) {
            return false;
        }
        proto = ip->proto;
    } else {
        const struct dp_ip6 *ip = dp_pull(&c, sizeof *ip);
        if (!ip || be16_get(eth->type) != DP_ETH_IP6) {
            return false;
        }
        proto = ip->next;
    }
    h->l4 = (uint16_t)(c.at - frame);
    const struct dp_tcp *tcp = dp_peek(&c, sizeof *tcp);
    if (!tcp || proto != DP_IP_TCP) {
        return false;
    }
    h->payload = (uint16_t)(h->l4 + (uint32_t)(tcp->offset >> 4) * 4);
    return true;
}

/* The field of a frame that the device is to finish holds the sum of the pseudo-header. */
static void put_pseudo_sum(uint8_t *frame, uint32_t len, const struct headers *h) {
    const uint8_t *ip = frame + sizeof(struct dp_eth);
    const struct dp_addr src = h->v4 ? dp_addr_from4(ip + 12) : dp_addr_load(ip + 8);
    const struct dp_addr dst = h->v4 ? dp_addr_from4(ip + 16) : dp_addr_load(ip + 24);
    const uint16_t sum = dp_csum_fold(dp_csum_pseudo(&src, &dst, DP_IP_TCP, len - h->l4));
    memcpy(frame + h->l4 + offsetof(struct dp_tcp, csum), &sum, 2);
}

/* What the device has to know; false: a frame it could not carry. */
static bool describe(const struct io_port *p, const struct dp_frame *f, uint8_t *frame,
                     struct virtio_net_hdr *v) {
    struct headers h;
    *v = (struct virtio_net_hdr){0};
    if (p->front == 0) {
        io_complete(f, frame, 0);
        return f->len <= p->mtu + sizeof(struct dp_eth);
    }
    if (f->flags & DP_CSUM_PARTIAL) {
        v->flags = VIRTIO_NET_HDR_F_NEEDS_CSUM;
        v->csum_start = f->csum_start;
        v->csum_offset = f->csum_field;
    }
    if (f->len <= p->mtu + sizeof(struct dp_eth)) {
        return true;
    }
    if (!find_headers(frame, f->len, &h) || p->mtu + (int)sizeof(struct dp_eth) <= h.payload) {
        return false;
    }
    if (!(f->flags & DP_CSUM_PARTIAL)) {
        put_pseudo_sum(frame, f->len, &h);
    }
    v->flags = VIRTIO_NET_HDR_F_NEEDS_CSUM;
    v->csum_start = h.l4;
    v->csum_offset = offsetof(struct dp_tcp, csum);
    v->hdr_len = h.payload;
    v->gso_size = (uint16_t)(p->mtu + sizeof(struct dp_eth) - h.payload);
    v->gso_type = h.v4 ? VIRTIO_NET_HDR_GSO_TCPV4 : VIRTIO_NET_HDR_GSO_TCPV6;
    return true;
}

void io_tap_send(struct io_port *p, struct dp_engine *e, uint8_t *arena,
                 struct dp_frame *const *frames, uint32_t n) {
    for (uint32_t i = 0; i < n; i++) {
        struct virtio_net_hdr v;
        uint8_t *frame = arena + frames[i]->off;
        if (!describe(p, frames[i], frame, &v)) {
            io_refused(p, e, frames[i], EMSGSIZE);
            continue;
        }
        memcpy(frame - p->front, &v, p->front);
        const ssize_t sent = write(p->fd, frame - p->front, (size_t)frames[i]->len + p->front);
        dp_count(&p->count.tx_calls, 1);
        if (sent < 0) {
            io_refused(p, e, frames[i], errno);
        } else {
            dp_count(&p->count.tx_frames, 1);
            dp_count(&p->count.gso_frames, v.gso_type ? 1 : 0);
        }
    }
}
