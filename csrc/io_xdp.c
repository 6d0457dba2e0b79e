/* io_xdp.c: whole outer frames in and out of AF_XDP sockets, one for each queue of an interface.
 * A frame is copied once, into the super-frame it joins or out of the one it is cut from. */
#include "checksum.h"
#include "coalesce.h"
#include "io.h"
#include "io_ways.h"
#include "io_xdp_program.h"
#include "io_xsk.h"
#include "segment.h"
#include <errno.h>
#include <stdlib.h>
#include <sys/socket.h>

enum { QUEUES = 64, TRIES = XSK_RING / 16, PORTS = 1 << 16 };

struct dp_xdp {
    struct dp_xdp_config config;
    struct io_xdp_program program;
    struct io_ways *ways;
    uint64_t sent_from[PORTS / 64]; /* bits by source port */
    uint32_t n;
    struct io_xsk queues[QUEUES];
};

struct io_xdp {
    struct dp_xdp *of;
    uint32_t first; /* queue, and every .step-th from there on */
    uint32_t step;
    struct dp_engine *engine;
    struct dp_coalescer joined;
};

/* ---- life --------------------------------------------------------------------------------- */

/* A queue that is not there ends the list of them. */
static const char *open_all(struct dp_xdp *x) {
    int sockets[QUEUES];
    for (uint32_t i = 0; i < QUEUES; i++) {
        const char *step = io_xsk_open(&x->queues[i], x->config.ifindex, i, i < x->config.senders);
        if (step && i > 0 && errno == EINVAL) {
            io_xsk_close(&x->queues[i]);
            break;
        }
        if (step) {
            return step;
        }
        sockets[x->n++] = x->queues[i].fd;
    }
    return io_xdp_attach(&x->program, &x->config, sockets, x->n);
}

struct dp_xdp *dp_xdp_create(const struct dp_xdp_config *config, struct dp_error *err) {
    struct dp_xdp *x = calloc(1, sizeof *x);
    *err = (struct dp_error){DP_ENOMEM, "memory", 0, "no memory"};
    if (!x || !config || !(x->ways = io_ways_create())) {
        free(x);
        return NULL;
    }
    x->config = *config;
    x->program = (struct io_xdp_program){-1, -1, -1};
    for (uint32_t i = 0; i < QUEUES; i++) {
        x->queues[i].fd = -1;
    }
    const char *step = open_all(x);
    if (step) {
        const int why = errno;
        dp_xdp_destroy(x);
        *err = (struct dp_error){DP_EIO, step, 0, "errno says why"};
        errno = why;
        return NULL;
    }
    *err = (struct dp_error){DP_OK, NULL, 0, NULL};
    return x;
}

void dp_xdp_destroy(struct dp_xdp *x) {
    if (!x) {
        return;
    }
    io_xdp_detach(&x->program); /* first: then no frame comes any more */
    for (uint32_t i = 0; i < QUEUES; i++) {
        io_xsk_close(&x->queues[i]);
    }
    io_ways_destroy(x->ways);
    free(x);
}

void dp_xdp_let_go(struct dp_xdp *x) {
    io_xdp_detach(&x->program);
}

uint32_t dp_xdp_queues(const struct dp_xdp *x) {
    return x->n;
}

bool dp_xdp_zero_copy(const struct dp_xdp *x) {
    return x->queues[0].zero_copy;
}

int dp_xdp_fd(const struct dp_xdp *x) {
    return io_ways_fd(x->ways);
}

uint32_t dp_xdp_ways(struct dp_xdp *x, struct dp_way *ways, uint32_t n) {
    return io_ways_list(x->ways, ways, n);
}

void dp_xdp_set_way(struct dp_xdp *x, const struct dp_way *way) {
    const struct dp_addr remote = dp_addr_load(way->remote);
    io_ways_set(x->ways, &remote, way);
}

void dp_xdp_forget(struct dp_xdp *x, const uint8_t remote[16]) {
    const struct dp_addr address = dp_addr_load(remote);
    io_ways_set(x->ways, &address, NULL);
}

struct io_xdp *io_xdp_create(struct dp_xdp *of, uint32_t queue, uint32_t queues) {
    struct io_xdp *x = calloc(1, sizeof *x);
    if (x) {
        x->of = of;
        x->first = queue;
        x->step = queues;
    }
    return x;
}

int io_xdp_fd(const struct io_xdp *x, uint32_t i) {
    const uint64_t queue = x->first + (uint64_t)i * x->step;
    return queue < x->of->n ? x->of->queues[queue].fd : -1;
}

/* ---- receive ------------------------------------------------------------------------------ */

/* A packet from the underlay whose outer headers and checksums are right. */
struct arrival {
    uint8_t *vxlan;
    uint32_t front; /* bytes in front of it */
    uint32_t len;   /* from there to the end of UDP */
    struct dp_origin origin;
};

/* A kernel peer on this machine leaves checksums to a device that never sees them: the outer one,
 * or the inner one, which then counts as it will be (see inner_sum in encap.c). */
static bool inner_was_left_partial(const struct arrival *a, const struct dp_udp *udp,
                                   uint64_t pseudo) {
    const uint32_t skip = (uint32_t)sizeof(struct dp_vxlan);
    uint8_t proto = 0;
    uint16_t field;
    const uint32_t l4 =
        a->len < skip ? 0 : io_find_transport(a->vxlan + skip, a->len - skip, &proto);
    const uint32_t at = l4 + (proto == DP_IP_TCP ? (uint32_t)offsetof(struct dp_tcp, csum)
                                                 : (uint32_t)offsetof(struct dp_udp, csum));
    if (l4 == 0 || !dp_proto_has_ports(proto) || a->len < skip + at + sizeof field) {
        return false;
    }
    memcpy(&field, a->vxlan + skip + at, sizeof field);
    const uint64_t sum = dp_csum_add(pseudo, udp, sizeof *udp + skip + l4);
    return dp_csum_fold(sum + (uint16_t)~field) == 0xffff;
}

static bool udp_is_right(struct arrival *a, const struct dp_addr *dst, uint32_t len, bool v4) {
    const struct dp_udp *udp = (const struct dp_udp *)(a->vxlan - sizeof *udp);
    if (be16_get(udp->len) != len) {
        return false;
    }
    a->len = len - (uint32_t)sizeof *udp;
    if (udp->csum == 0) {
        return v4; /* over IPv6 it is for the engine to say */
    }
    const uint64_t pseudo = dp_csum_pseudo(&a->origin.from, dst, DP_IP_UDP, len);
    const bool was_left_partial = udp->csum == dp_csum_fold(pseudo);
    return was_left_partial || dp_csum_fold(dp_csum_add(pseudo, udp, len)) == 0xffff ||
           inner_was_left_partial(a, udp, pseudo);
}

/* The program has looked at what is not looked at here. */
static bool is_right(struct arrival *a, uint8_t *frame, uint32_t len) {
    const bool v4 = be16_get(((const struct dp_eth *)frame)->type) == DP_ETH_IP4;
    const uint32_t front = v4 ? IO_FRONT4 : IO_FRONT6;
    *a = (struct arrival){.vxlan = frame + front, .front = front};
    if (v4) {
        const struct dp_ip4 *ip = (const struct dp_ip4 *)(frame + sizeof(struct dp_eth));
        const uint32_t total = be16_get(ip->total);
        const struct dp_addr dst = dp_addr_from4(ip->dst);
        a->origin.from = dp_addr_from4(ip->src);
        a->origin.tos = ip->tos;
        return total >= front - sizeof(struct dp_eth) && total <= len - sizeof(struct dp_eth) &&
               dp_csum_fold(dp_csum_add(0, ip, sizeof *ip)) == 0xffff &&
               udp_is_right(a, &dst, total - (uint32_t)sizeof *ip, true);
    }
    const struct dp_ip6 *ip = (const struct dp_ip6 *)(frame + sizeof(struct dp_eth));
    const uint32_t payload = be16_get(ip->payload);
    const struct dp_addr dst = dp_addr_load(ip->dst);
    a->origin.from = dp_addr_load(ip->src);
    a->origin.tos = dp_ip6_class(ip);
    return payload >= sizeof(struct dp_udp) && payload <= len - (front - sizeof(struct dp_udp)) &&
           udp_is_right(a, &dst, payload, false);
}

/* A frame of its own; what may be joined to it begins at part->data. */
static void begin(struct io_port *p, struct io_burst *b, const uint8_t *frame,
                  const struct dp_part *part, const struct dp_origin *origin, uint8_t flags) {
    uint8_t *data = io_slot(b, b->n) + IO_FRONT;
    const uint32_t front = (uint32_t)(part->data - frame);
    memcpy(data - front, frame, front + part->len);
    dp_coalesce_open(&p->xdp->joined, part, origin, data, IO_SLOT - IO_FRONT);
    b->frames[b->n++] = (struct dp_frame){
        .off = (uint32_t)(data - front - b->arena), .len = front, .port = p->id, .flags = flags};
}

/* What is not right stays as it is: the engine says why. */
static void take(struct io_port *p, struct io_burst *b, uint8_t *frame, uint32_t len) {
    struct arrival a;
    struct dp_part part;
    if (!is_right(&a, frame, len)) {
        part = (struct dp_part){.data = frame, .len = len, .slot = DP_NONE};
        begin(p, b, frame, &part, &(struct dp_origin){0}, 0);
        return;
    }
    dp_part_read(&part, a.vxlan, a.len, sizeof(struct dp_vxlan));
    if (!p->sockets.gro || !dp_coalesce_join(&p->xdp->joined, &part, &a.origin)) {
        begin(p, b, frame, &part, &a.origin, DP_OUTER_CHECKED | DP_CSUM_UNKNOWN);
    }
}

void io_xdp_receive(struct io_port *p, uint32_t i, struct io_burst *b) {
    struct io_xsk *s = &p->xdp->of->queues[p->xdp->first + i * p->xdp->step];
    const uint32_t from = *s->receive.consumer;
    const uint32_t ready = io_ring_load(s->receive.producer) - from;
    const uint32_t n = ready < IO_BURST ? ready : IO_BURST;
    const uint32_t fill = *s->fill.producer;
    b->n = 0;
    dp_coalesce_begin(&p->xdp->joined);
    for (uint32_t k = 0; k < n; k++) {
        const struct xdp_desc *desc = io_ring_desc(&s->receive, from + k);
        dp_prefetch(s->memory + io_ring_desc(&s->receive, from + k + 1)->addr % s->size);
        take(p, b, s->memory + desc->addr, desc->len);
        *io_ring_address(&s->fill, fill + k) = desc->addr - desc->addr % XSK_CHUNK;
    }
    io_ring_publish(s->receive.consumer, from + n);
    io_ring_publish(s->fill.producer, fill + n);
    if (n && io_ring_sleeps(&s->fill)) {
        (void)recvfrom(s->fd, NULL, 0, MSG_DONTWAIT, NULL, NULL);
    }
    io_finish_joined(p, &p->xdp->joined, b);
    dp_count(&p->count.rx_calls, 1);
    dp_count(&p->count.rx_frames, n);
    dp_count(&p->count.xdp_rx, n);
}

uint64_t io_xdp_lost(const struct io_xdp *x) {
    uint64_t lost = 0;
    for (uint32_t i = 0; io_xdp_fd(x, i) >= 0; i++) {
        struct xdp_statistics told = {0};
        socklen_t len = sizeof told;
        (void)getsockopt(io_xdp_fd(x, i), SOL_XDP, XDP_STATISTICS, &told, &len);
        lost += told.rx_dropped + told.rx_ring_full;
    }
    return lost;
}

/* ---- send --------------------------------------------------------------------------------- */

static void refuse(struct io_port *p, const struct io_sent *r, int error) {
    io_refused_part(p, p->xdp->engine, r->frame, 1, r->bytes, error);
}

static void reap(struct io_xsk *s) {
    const uint32_t from = *s->done.consumer;
    const uint32_t end = io_ring_load(s->done.producer);
    for (uint32_t i = from; i != end; i++) {
        s->free[s->n_free++] = (uint32_t)(*io_ring_address(&s->done, i) / XSK_CHUNK);
    }
    io_ring_publish(s->done.consumer, end);
}

/* Nothing of it was looked at, so all that was put in last is taken out again. */
static void take_back(struct io_port *p, struct io_xsk *s, int error) {
    while (s->made != s->told) {
        s->made--;
        s->free[s->n_free++] = (uint32_t)(io_ring_desc(&s->send, s->made)->addr / XSK_CHUNK);
        refuse(p, &s->records[s->made & (XSK_RING - 1)], error);
    }
    io_ring_publish(s->send.producer, s->made);
}

static bool goes_on(int error) {
    return error == 0 || error == EAGAIN || error == EBUSY || error == ENOBUFS || error == EINTR;
}

/* Where the kernel copies, a call sends some of the ring and says EAGAIN if there is more; EBUSY
 * tells of one that it took and lost. What it does not take for now stays in the ring. */
static void drive(struct io_port *p, struct io_xsk *s) {
    uint32_t lost = 0;
    io_ring_publish(s->send.producer, s->made);
    for (int i = 0; i < TRIES && io_ring_load(s->send.consumer) != s->made; i++) {
        if (s->zero_copy && !io_ring_sleeps(&s->send)) {
            break;
        }
        const uint32_t before = io_ring_load(s->send.consumer);
        const int error = sendto(s->fd, NULL, 0, MSG_DONTWAIT, NULL, 0) < 0 ? errno : 0;
        const uint32_t after = io_ring_load(s->send.consumer);
        dp_count(&p->count.tx_calls, 1);
        if (!goes_on(error)) {
            if (i == 0 && after == before && !s->zero_copy) {
                take_back(p, s, error);
            }
            break;
        }
        if (error == EBUSY && !s->zero_copy && s->told != s->made) {
            const uint32_t which = after - 1 - s->told < s->made - s->told ? after - 1 : s->told;
            refuse(p, &s->records[which & (XSK_RING - 1)], ENETDOWN);
            lost++;
        }
        if (s->zero_copy) {
            break;
        }
    }
    dp_count(&p->count.tx_frames, s->made - s->told - lost);
    dp_count(&p->count.xdp_tx, s->made - s->told - lost);
    s->told = s->made;
    reap(s);
}

/* A chunk to write the next packet to; NULL: the packet was refused. */
static uint8_t *chunk_for(struct io_port *p, struct io_xsk *s, const struct dp_frame *f,
                          uint32_t len, const struct dp_way *way) {
    const struct io_sent r = {f, len};
    if (len > way->mtu + sizeof(struct dp_eth)) {
        refuse(p, &r, EMSGSIZE);
        return NULL;
    }
    if (s->n_free == 0) {
        drive(p, s);
    }
    if (s->n_free == 0) {
        refuse(p, &r, EAGAIN);
        return NULL;
    }
    const uint64_t at = (uint64_t)s->free[--s->n_free] * XSK_CHUNK;
    *io_ring_desc(&s->send, s->made) = (struct xdp_desc){.addr = at, .len = len};
    s->records[s->made++ & (XSK_RING - 1)] = r;
    return s->memory + at;
}

/* Outer headers of the i-th packet of a super-frame. */
static void finish_outer(uint8_t *frame, uint32_t len, uint32_t i, bool v4, bool checksum4) {
    struct dp_addr src;
    struct dp_addr dst;
    const uint32_t l4 = (v4 ? IO_FRONT4 : IO_FRONT6) - (uint32_t)sizeof(struct dp_udp);
    struct dp_udp *udp = (struct dp_udp *)(frame + l4);
    if (v4) {
        struct dp_ip4 *ip = (struct dp_ip4 *)(frame + sizeof(struct dp_eth));
        ip->total = be16_put(len - (uint32_t)sizeof(struct dp_eth));
        ip->id = be16_put(be16_get(ip->frag) & DP_IP4_DF ? 0 : be16_get(ip->id) + i);
        ip->csum = 0;
        ip->csum = (uint16_t)~dp_csum_fold(dp_csum_add(0, ip, sizeof *ip));
        src = dp_addr_from4(ip->src);
        dst = dp_addr_from4(ip->dst);
    } else {
        struct dp_ip6 *ip = (struct dp_ip6 *)(frame + sizeof(struct dp_eth));
        ip->payload = be16_put(len - l4);
        src = dp_addr_load(ip->src);
        dst = dp_addr_load(ip->dst);
    }
    udp->len = be16_put(len - l4);
    udp->csum = 0;
    if (!v4 || checksum4) {
        const uint64_t pseudo = dp_csum_pseudo(&src, &dst, DP_IP_UDP, len - l4);
        const uint16_t csum = (uint16_t)~dp_csum_fold(dp_csum_add(pseudo, udp, len - l4));
        udp->csum = csum ? csum : 0xffff;
    }
}

static void put_cut(struct io_port *p, struct io_xsk *s, const struct dp_frame *f,
                    const struct dp_super *super, const struct dp_way *way, bool v4) {
    const uint32_t n = dp_super_count(super);
    for (uint32_t i = 0; i < n; i++) {
        const uint32_t left = super->payload - i * super->size;
        const uint32_t len = super->head + (left < super->size ? left : super->size);
        uint8_t *chunk = chunk_for(p, s, f, len, way);
        if (chunk) {
            const uint32_t payload = dp_segment(super, i, chunk);
            memcpy(chunk + super->head, super->data + dp_super_at(super, i), payload);
            finish_outer(chunk, len, i, v4, p->xdp->of->config.checksum4);
        }
    }
}

static void put(struct io_port *p, struct io_xsk *s, const struct dp_frame *f, uint8_t *frame,
                const struct dp_way *way, bool v4) {
    struct dp_super super;
    struct dp_eth *eth = (struct dp_eth *)frame;
    const uint32_t outer = (v4 ? IO_FRONT4 : IO_FRONT6) + (uint32_t)sizeof(struct dp_vxlan);
    memcpy(eth->dst, way->mac, sizeof eth->dst);
    memcpy(eth->src, way->own_mac, sizeof eth->src);
    if (dp_super_read(&super, f, frame, outer)) {
        put_cut(p, s, f, &super, way, v4);
        return;
    }
    uint8_t *chunk = chunk_for(p, s, f, f->len, way);
    if (chunk) {
        io_complete(f, frame, outer);
        memcpy(chunk, frame, f->len);
    }
}

static void note_source(struct dp_xdp *x, const uint8_t *frame, bool v4) {
    const uint32_t l4 = (v4 ? IO_FRONT4 : IO_FRONT6) - (uint32_t)sizeof(struct dp_udp);
    const uint16_t port = be16_get(((const struct dp_udp *)(frame + l4))->sport);
    const uint64_t bit = 1ull << (port & 63);
    if (!(dp_get(x->sent_from[port >> 6]) & bit)) {
        (void)__atomic_fetch_or(&x->sent_from[port >> 6], bit, __ATOMIC_RELAXED);
    }
}

bool io_xdp_sent_from(const struct io_xdp *x, uint16_t port) {
    return dp_get(x->of->sent_from[port >> 6]) >> (port & 63) & 1;
}

static bool fits(const struct dp_frame *f) {
    return (f->head ? (uint32_t)f->head + f->gso_size : f->len) <= XSK_CHUNK;
}

static bool is_known(const struct io_port *p, const uint8_t *frame, bool v4, struct dp_way *way) {
    const uint8_t *ip = frame + sizeof(struct dp_eth);
    const struct dp_addr remote = v4 ? dp_addr_from4(((const struct dp_ip4 *)ip)->dst)
                                     : dp_addr_load(((const struct dp_ip6 *)ip)->dst);
    return io_ways_ask(p->xdp->of->ways, &remote, way);
}

static struct io_xsk *sender_of(const struct io_xdp *x) {
    const bool sends = x->first < x->of->n && x->first < x->of->config.senders;
    return sends ? &x->of->queues[x->first] : NULL;
}

/* Whether AF_XDP is to take the frames: all, or none, so their order stays. */
static bool takes(const struct io_port *p, const struct io_xsk *s, struct dp_frame *const *frames,
                  uint32_t n) {
    if (!s || s->zero_copy || p->xdp->of->config.cut || !p->sockets.segment) {
        return s;
    }
    for (uint32_t i = 0; i < n; i++) {
        if (frames[i]->head) {
            return false;
        }
    }
    return true;
}

uint32_t io_xdp_send(struct io_port *p, struct dp_engine *e, uint8_t *arena,
                     struct dp_frame *const *frames, uint32_t n, struct dp_frame **rest) {
    struct io_xsk *s = sender_of(p->xdp);
    const bool takes_them = takes(p, s, frames, n);
    uint32_t n_rest = 0;
    p->xdp->engine = e;
    for (uint32_t i = 0; i < n; i++) {
        struct dp_way way;
        uint8_t *frame = arena + frames[i]->off;
        const bool v4 = be16_get(((const struct dp_eth *)frame)->type) == DP_ETH_IP4;
        if (takes_them && fits(frames[i]) && is_known(p, frame, v4, &way)) {
            note_source(p->xdp->of, frame, v4);
            put(p, s, frames[i], frame, &way, v4);
        } else {
            rest[n_rest++] = frames[i];
        }
    }
    if (s && s->made != s->told) {
        drive(p, s);
    }
    return n_rest;
}

bool io_xdp_flush(struct io_port *p) {
    struct io_xsk *s = sender_of(p->xdp);
    if (s && io_ring_load(s->send.consumer) != s->made) {
        drive(p, s);
        return io_ring_load(s->send.consumer) == s->made;
    }
    return true;
}
