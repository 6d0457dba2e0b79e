/* io_udp_send.c: packets out of the underlay's sockets. The outer headers that the engine wrote are
 * read back: they say which socket sends and what it is told. What has one size and goes one way
 * becomes one message that the kernel cuts (UDP_SEGMENT): the packets of a super-frame, whose
 * headers are made here while its payload stays where it is, and equal frames of a burst. */
#include "io.h"
#include "segment.h"
#include "wire.h"
#include <errno.h>
#include <netinet/in.h>
#include <netinet/udp.h>
#include <stdlib.h>
#include <sys/socket.h>

#ifndef UDP_SEGMENT
#define UDP_SEGMENT 103
#endif

enum { CONTROL = 128, SOCKET_TTL = 64 };
enum { MESSAGES = 64, SLICES = 1024, HEADS = 512 };
enum { PACKETS_MAX = 64, MESSAGE_MAX = 65507 }; /* UDP_MAX_SEGMENTS of Linux 4.18, IPv4 */

/* Where a packet goes: all that packets of one message have in common. */
struct way {
    uint32_t place; /* of the socket in io_port.sending */
    socklen_t address_len;
    union {
        struct sockaddr_in v4;
        struct sockaddr_in6 v6;
    } address;
    uint8_t tos;
    uint8_t ttl;
    bool v4;
    uint8_t zero; /* compared as bytes */
};

/* Packets of .size bytes, the last one perhaps of less; then no more can follow. */
struct message {
    struct way way;
    uint32_t first; /* of its slices */
    uint32_t slices;
    uint32_t count;
    uint32_t size;
    uint32_t bytes;
    uint32_t forwarded; /* packets that the engine counted as such, and their bytes there */
    uint64_t forwarded_bytes;
    bool closed;
};

struct io_outbox {
    struct io_port *port;
    struct dp_engine *engine;
    uint32_t n;
    uint32_t n_slices;
    uint32_t n_heads;
    struct message messages[MESSAGES];
    struct iovec slices[SLICES];
    uint8_t heads[HEADS][DP_SEGMENT_HEADERS];
    struct mmsghdr calls[MESSAGES];
    _Alignas(struct cmsghdr) uint8_t control[MESSAGES][CONTROL];
    struct way ways[IO_FRAMES]; /* of the frames at hand */
};

struct io_outbox *io_outbox_create(void) {
    return calloc(1, sizeof(struct io_outbox));
}

/* ---- control messages --------------------------------------------------------------------- */

static void append_control(struct msghdr *h, uint8_t *control, int level, int type,
                           const void *value, size_t len) {
    struct cmsghdr *c = (struct cmsghdr *)(control + h->msg_controllen);
    h->msg_control = control;
    h->msg_controllen += CMSG_SPACE(len);
    *c = (struct cmsghdr){.cmsg_len = CMSG_LEN(len), .cmsg_level = level, .cmsg_type = type};
    memcpy(CMSG_DATA(c), value, len);
}

/* What the sockets are not set to already. */
static void set_control(struct msghdr *h, uint8_t *control, const struct way *w, uint32_t segment) {
    const int level = w->v4 ? IPPROTO_IP : IPPROTO_IPV6;
    const int tos = w->tos;
    const int ttl = w->ttl;
    const uint16_t size = (uint16_t)segment;
    if (tos != 0) {
        append_control(h, control, level, w->v4 ? IP_TOS : IPV6_TCLASS, &tos, sizeof tos);
    }
    if (ttl != SOCKET_TTL) {
        append_control(h, control, level, w->v4 ? IP_TTL : IPV6_HOPLIMIT, &ttl, sizeof ttl);
    }
    if (segment) {
        append_control(h, control, IPPROTO_UDP, UDP_SEGMENT, &size, sizeof size);
    }
}

/* ---- sending ------------------------------------------------------------------------------ */

static void refuse(struct io_outbox *o, const struct message *m, int error) {
    if (error == EINVAL) {
        error =
            EADDRNOTAVAIL; /* of a single packet: its source address is no interface's any more */
    }
    dp_count(&o->port->count.tx_errors, m->count);
    if (m->forwarded) {
        dp_egress_drop(o->engine, 0, o->port->id, (uint8_t)io_reason_of(error), m->forwarded,
                       m->forwarded_bytes);
    }
}

static bool is_echo_of_icmp(int error) {
    return error == ECONNREFUSED || error == EMSGSIZE || error == EHOSTUNREACH ||
           error == ENETUNREACH || error == EHOSTDOWN;
}

static struct mmsghdr call_of(const struct io_outbox *o, struct message *m, uint8_t *control) {
    struct mmsghdr c = {.msg_hdr = {.msg_name = &m->way.address,
                                    .msg_namelen = m->way.address_len,
                                    .msg_iov = (struct iovec *)&o->slices[m->first],
                                    .msg_iovlen = m->slices}};
    set_control(&c.msg_hdr, control, &m->way, m->count > 1 ? m->size : 0);
    return c;
}

/* One message as single packets. Where the device takes those, but not the message (is_uncut), none
 * is made for that socket any more; where they are too large, the last may be less so. Slices are
 * split where packets are. */
static void send_singly(struct io_outbox *o, struct message *m, bool is_uncut) {
    const int fd = o->port->sending[m->way.place];
    struct message one = *m;
    uint32_t slice = m->first;
    for (uint32_t i = 0; i < m->count; i++) {
        one.first = slice;
        one.bytes = 0;
        while (slice < m->first + m->slices && one.bytes < m->size) {
            one.bytes += (uint32_t)o->slices[slice++].iov_len;
        }
        one.slices = slice - one.first;
        one.count = 1;
        const struct mmsghdr c = call_of(o, &one, o->control[0]);
        const ssize_t sent = sendmsg(fd, &c.msg_hdr, MSG_DONTWAIT);
        dp_count(&o->port->count.tx_calls, 1);
        dp_count(&o->port->count.tx_frames, sent >= 0);
        o->port->uncut[m->way.place] |= is_uncut && sent >= 0;
        if (sent < 0) {
            one.forwarded = m->forwarded > 0;
            one.forwarded_bytes = m->forwarded ? m->forwarded_bytes / m->forwarded : 0;
            refuse(o, &one, errno);
        }
    }
}

static void count_sent(struct io_port *p, const struct message *m) {
    dp_count(&p->count.tx_frames, m->count);
    dp_count(&p->count.gso_packets, m->count > 1 ? m->count : 0);
    dp_count(&p->count.gso_frames, m->count > 1);
}

/* Sends messages [first, last) through their socket. An error belongs to the first that was not
 * sent; one that tells of an earlier packet's ICMP is taken off by the failed call, so that message
 * is tried once more. */
static void send_run(struct io_outbox *o, uint32_t first, uint32_t last) {
    const int fd = o->port->sending[o->messages[first].way.place];
    bool tried = false;
    while (first < last) {
        const int sent = sendmmsg(fd, &o->calls[first], last - first, MSG_DONTWAIT);
        dp_count(&o->port->count.tx_calls, 1);
        for (int i = 0; i < sent; i++) {
            count_sent(o->port, &o->messages[first++]);
        }
        if (sent > 0) {
            tried = false;
        } else if (errno == EINTR || (is_echo_of_icmp(errno) && !tried)) {
            tried = true;
            o->port->told = true;
            dp_count(&o->port->count.rx_errors, 1);
        } else {
            struct message *m = &o->messages[first++];
            tried = false;
            if (m->count > 1 && (errno == EIO || errno == EINVAL || errno == EMSGSIZE)) {
                send_singly(o, m, errno != EMSGSIZE);
            } else {
                refuse(o, m, errno);
            }
        }
    }
}

/* All that is gathered: those of one socket stand together. */
static void flush(struct io_outbox *o) {
    for (uint32_t i = 0; i < o->n; i++) {
        o->calls[i] = call_of(o, &o->messages[i], o->control[i]);
    }
    for (uint32_t first = 0; first < o->n;) {
        uint32_t last = first + 1;
        while (last < o->n && o->messages[last].way.place == o->messages[first].way.place) {
            last++;
        }
        send_run(o, first, last);
        first = last;
    }
    o->n = o->n_slices = o->n_heads = 0;
}

/* ---- gathering ---------------------------------------------------------------------------- */

static void read_way(const struct io_port *p, const uint8_t *frame, struct way *w) {
    const bool v4 = be16_get(((const struct dp_eth *)frame)->type) == DP_ETH_IP4;
    memset(w, 0, sizeof *w);
    w->v4 = v4;
    uint16_t sport;
    if (v4) {
        const struct dp_outer4 *o = (const struct dp_outer4 *)frame;
        w->address.v4 = (struct sockaddr_in){.sin_family = AF_INET, .sin_port = o->udp.dport.net};
        memcpy(&w->address.v4.sin_addr, o->ip.dst, 4);
        w->address_len = sizeof w->address.v4;
        w->tos = o->ip.tos;
        w->ttl = o->ip.ttl;
        sport = be16_get(o->udp.sport);
    } else {
        const struct dp_outer6 *o = (const struct dp_outer6 *)frame;
        w->address.v6 =
            (struct sockaddr_in6){.sin6_family = AF_INET6, .sin6_port = o->udp.dport.net};
        memcpy(&w->address.v6.sin6_addr, o->ip.dst, 16);
        w->address_len = sizeof w->address.v6;
        w->tos = (uint8_t)(be32_get(o->ip.version_class_flow) >> 20);
        w->ttl = o->ip.hops;
        sport = be16_get(o->udp.sport);
    }
    w->place = (v4 ? 0 : p->sockets.n_send) + sport % p->sockets.n_send;
}

static bool continues(const struct message *m, const struct way *w, uint32_t len) {
    return !m->closed && len <= m->size && m->count < PACKETS_MAX &&
           m->bytes + len <= MESSAGE_MAX && memcmp(&m->way, w, sizeof *w) == 0;
}

/* A packet of up to two slices: behind those of its kind, or the beginning of a message. */
static void add(struct io_outbox *o, const struct way *w, const struct iovec *parts, uint32_t n,
                uint32_t front, bool forwarded) {
    const uint32_t len = (uint32_t)(parts[0].iov_len + (n > 1 ? parts[1].iov_len : 0));
    struct message *m = o->n ? &o->messages[o->n - 1] : NULL;
    if (!m || !continues(m, w, len)) {
        m = &o->messages[o->n++];
        *m = (struct message){.way = *w,
                              .first = o->n_slices,
                              .size = len,
                              .closed = !o->port->sockets.segment || o->port->uncut[w->place]};
    }
    memcpy(&o->slices[o->n_slices], parts, n * sizeof *parts);
    o->n_slices += n;
    m->slices += n;
    m->count++;
    m->bytes += len;
    m->closed = m->closed || len < m->size;
    m->forwarded += forwarded;
    m->forwarded_bytes += forwarded ? len + front : 0;
}

static void make_room(struct io_outbox *o) {
    if (o->n == MESSAGES || o->n_slices + 2 > SLICES || o->n_heads == HEADS) {
        flush(o);
    }
}

static void add_cut(struct io_outbox *o, const struct way *w, const struct dp_super *s,
                    uint32_t front, bool forwarded) {
    for (uint32_t i = 0; i < dp_super_count(s); i++) {
        make_room(o);
        uint8_t *head = o->heads[o->n_heads++];
        const uint32_t payload = dp_segment(s, i, head);
        const struct iovec parts[] = {{head, s->head},
                                      {(void *)(s->data + dp_super_at(s, i)), payload}};
        add(o, w, parts, 2, front, forwarded);
    }
}

static void add_frame(struct io_outbox *o, const struct way *w, struct dp_frame f, uint8_t *frame) {
    struct dp_super s;
    const uint32_t front = w->v4 ? IO_FRONT4 : IO_FRONT6;
    const bool forwarded = f.verdict == DP_FORWARD;
    f.head = (uint16_t)(f.head ? f.head - front : 0);
    f.len -= front;
    if (dp_super_read(&s, &f, frame + front, sizeof(struct dp_vxlan))) {
        add_cut(o, w, &s, front, forwarded);
        return;
    }
    make_room(o);
    io_complete(&f, frame + front, sizeof(struct dp_vxlan));
    add(o, w, &(struct iovec){frame + front, f.len}, 1, front, forwarded);
}

void io_underlay_send(struct io_port *p, struct dp_engine *e, uint8_t *arena,
                      struct dp_frame *const *frames, uint32_t n) {
    struct io_outbox *o = p->outbox;
    bool done[IO_FRAMES] = {false};
    o->port = p;
    o->engine = e;
    for (uint32_t i = 0; i < n; i++) {
        read_way(p, arena + frames[i]->off, &o->ways[i]);
    }
    for (uint32_t i = 0; i < n; i++) { /* socket by socket; the frames of one in order */
        for (uint32_t j = done[i] ? n : i; j < n; j++) {
            if (o->ways[j].place == o->ways[i].place) {
                add_frame(o, &o->ways[j], *frames[j], arena + frames[j]->off);
                done[j] = true;
            }
        }
    }
    flush(o);
}
