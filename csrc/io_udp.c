/* io_udp.c: packets and errors out of the underlay's sockets. The engine speaks whole outer frames;
 * here the kernel reads the outer headers, so they are made up from what it tells in control
 * messages. */
#include "coalesce.h"
#include "io.h"
#include "wire.h"
#include <arpa/inet.h>
#include <errno.h>
#include <linux/errqueue.h>
#include <linux/sock_diag.h>
#include <netinet/in.h>
#include <netinet/ip_icmp.h>
#include <netinet/udp.h>
#include <stdlib.h>
#include <sys/socket.h>

#ifndef UDP_GRO
#define UDP_GRO 104
#endif

enum { CONTROL = 128, SOCKET_TTL = 64 };
enum { GSO_UDP = 5 }; /* VIRTIO_NET_HDR_GSO_UDP_L4, which older headers lack */

union io_address {
    struct sockaddr any;
    struct sockaddr_in v4;
    struct sockaddr_in6 v6;
};

/* What one call of recvmmsg gave, and how far it was taken in. */
struct io_inbox {
    struct mmsghdr head[IO_BURST];
    struct iovec data[IO_BURST];
    union io_address address[IO_BURST];
    _Alignas(struct cmsghdr) uint8_t control[IO_BURST][CONTROL];
    uint32_t most; /* of the next call: what IO_BYTES are in messages such as the last ones */
    uint32_t got;
    uint32_t at;      /* the message at hand */
    uint32_t done;    /* bytes of it */
    uint32_t spilled; /* frames of the burst that stand in slots of their own */
    struct dp_coalescer joined;
};

struct io_inbox *io_inbox_create(void) {
    struct io_inbox *m = calloc(1, sizeof *m);
    if (m) {
        m->most = IO_BURST;
    }
    return m;
}

/* ---- receive ------------------------------------------------------------------------------ */

static void prepare(struct io_inbox *m, const struct io_burst *b) {
    for (uint32_t i = 0; i < m->most; i++) {
        m->data[i] = (struct iovec){io_slot(b, i) + IO_FRONT, IO_SLOT - IO_FRONT};
        m->head[i].msg_hdr = (struct msghdr){.msg_name = &m->address[i],
                                             .msg_namelen = sizeof m->address[i],
                                             .msg_iov = &m->data[i],
                                             .msg_iovlen = 1,
                                             .msg_control = m->control[i],
                                             .msg_controllen = CONTROL};
    }
}

static void choose_most(struct io_inbox *m) {
    uint32_t bytes = 1;
    for (uint32_t i = 0; i < m->got; i++) {
        bytes += m->head[i].msg_len;
    }
    const uint32_t fit = (uint32_t)((uint64_t)IO_BYTES * m->got / bytes);
    m->most = fit < 1 ? 1 : fit > IO_BURST ? IO_BURST : fit;
}

void io_underlay_receive(struct io_port *p, int fd, const struct io_burst *b) {
    struct io_inbox *m = p->inbox;
    prepare(m, b);
    m->at = m->got = m->done = 0;
    const int got = recvmmsg(fd, m->head, m->most, MSG_DONTWAIT, NULL);
    dp_count(&p->count.rx_calls, 1);
    if (got < 0) {
        /* an ICMP error of an earlier packet, perhaps: the next call reads on */
        dp_count(&p->count.rx_errors, errno == EAGAIN || errno == EINTR ? 0 : 1);
        return;
    }
    m->got = (uint32_t)got;
    choose_most(m);
}

static uint64_t lost_at(int fd) {
    uint32_t told[SK_MEMINFO_VARS];
    socklen_t len = sizeof told;
    return fd >= 0 && !getsockopt(fd, SOL_SOCKET, SO_MEMINFO, told, &len) && len == sizeof told
               ? told[SK_MEMINFO_DROPS]
               : 0;
}

uint64_t io_underlay_lost(const struct io_port *p) {
    return lost_at(p->sockets.receive4) + lost_at(p->sockets.receive6);
}

/* ---- what the kernel told of a message ---------------------------------------------------- */

/* A message: one packet, or many of .size bytes (UDP_GRO). */
struct message {
    uint8_t *data;
    uint32_t len;
    uint32_t size; /* 0: the kernel joined nothing */
    const union io_address *from;
    struct dp_origin origin;
};

/* The outer TTL is not asked for: it says nothing of the inner packet, and each thing asked for
 * costs each packet. */
static void read_control(struct msghdr *h, struct message *m) {
    for (struct cmsghdr *c = CMSG_FIRSTHDR(h); c; c = CMSG_NXTHDR(h, c)) {
        int value = 0;
        if (c->cmsg_level == IPPROTO_IP && c->cmsg_type == IP_TOS) {
            m->origin.tos = *(uint8_t *)CMSG_DATA(c);
            continue;
        }
        if (c->cmsg_len < CMSG_LEN(sizeof value)) {
            continue;
        }
        memcpy(&value, CMSG_DATA(c), sizeof value);
        if (c->cmsg_level == IPPROTO_IPV6 && c->cmsg_type == IPV6_TCLASS) {
            m->origin.tos = (uint8_t)value;
        } else if (c->cmsg_level == IPPROTO_UDP && c->cmsg_type == UDP_GRO) {
            m->size = (uint32_t)value;
        }
    }
}

static bool is_v4(const struct message *m) {
    return m->from->any.sa_family == AF_INET;
}

static struct message message_of(struct io_inbox *in, uint32_t i) {
    struct message m = {
        .data = in->data[i].iov_base, .len = in->head[i].msg_len, .from = &in->address[i]};
    read_control(&in->head[i].msg_hdr, &m);
    m.origin.from = is_v4(&m) ? dp_addr_from4((const uint8_t *)&m.from->v4.sin_addr)
                              : dp_addr_load((const uint8_t *)&m.from->v6.sin6_addr);
    return m;
}

/* ---- outer headers ------------------------------------------------------------------------ */

static uint8_t *front4(const struct io_port *p, const struct message *m, uint8_t *payload,
                       uint32_t len) {
    struct dp_outer4 *o = (struct dp_outer4 *)(payload - IO_FRONT4);
    memset(o, 0, IO_FRONT4);
    o->eth.type = be16_put(DP_ETH_IP4);
    o->ip = (struct dp_ip4){.version_ihl = 0x45,
                            .tos = m->origin.tos,
                            .total = be16_put(len + 28),
                            .ttl = SOCKET_TTL,
                            .proto = DP_IP_UDP};
    memcpy(o->ip.src, &m->from->v4.sin_addr, 4);
    memcpy(o->ip.dst, p->sockets.ip4 + 12, 4);
    o->udp = (struct dp_udp){.sport = {m->from->v4.sin_port},
                             .dport = be16_put(p->sockets.udp_port),
                             .len = be16_put(len + 8)};
    return payload - IO_FRONT4;
}

static uint8_t *front6(const struct io_port *p, const struct message *m, uint8_t *payload,
                       uint32_t len) {
    struct dp_outer6 *o = (struct dp_outer6 *)(payload - IO_FRONT6);
    memset(o, 0, IO_FRONT6);
    o->eth.type = be16_put(DP_ETH_IP6);
    o->ip =
        (struct dp_ip6){.version_class_flow = be32_put(6u << 28 | (uint32_t)m->origin.tos << 20),
                        .payload = be16_put(len + 8),
                        .next = DP_IP_UDP,
                        .hops = SOCKET_TTL};
    memcpy(o->ip.src, &m->from->v6.sin6_addr, 16);
    memcpy(o->ip.dst, p->sockets.ip6, 16);
    o->udp = (struct dp_udp){.sport = {m->from->v6.sin6_port},
                             .dport = be16_put(p->sockets.udp_port),
                             .len = be16_put(len + 8)};
    return payload - IO_FRONT6;
}

/* ---- frames ------------------------------------------------------------------------------- */

/* A packet that begins a frame: in place if it is its message's first one, since what is joined to
 * it comes from further behind; else in a slot of its own. */
static void begin_frame(struct io_port *p, struct io_burst *b, const struct message *m,
                        const struct dp_part *part) {
    struct io_inbox *in = p->inbox;
    const uint32_t slot = in->done == 0 ? in->at : IO_BURST + in->spilled++;
    uint8_t *data = io_slot(b, slot) + IO_FRONT;
    if (data != part->data) {
        memcpy(data, part->data, part->len);
    }
    dp_coalesce_open(&in->joined, part, &m->origin, data, IO_SLOT - IO_FRONT);
    const uint8_t *frame = is_v4(m) ? front4(p, m, data, part->len) : front6(p, m, data, part->len);
    b->frames[b->n++] = (struct dp_frame){.off = (uint32_t)(frame - b->arena),
                                          .len = (uint32_t)(data - frame),
                                          .port = p->id,
                                          .flags = DP_OUTER_CHECKED | DP_CSUM_UNKNOWN};
}

/* A kernel peer on this machine may hand over UDP that is not cut yet, inside one tunnel packet:
 * then the size is that of its payloads. */
static bool is_uncut(const struct message *m, struct dp_part *part) {
    dp_part_read(part, m->data, m->len, sizeof(struct dp_vxlan));
    return part->joins && !part->tcp && part->partial && part->payload > m->size;
}

/* Takes in what is left of a message, as far as there is room; false: there was not enough. */
static bool take_message(struct io_port *p, struct io_burst *b, struct message *m) {
    struct io_inbox *in = p->inbox;
    struct dp_part part;
    if (m->size && in->done == 0 && is_uncut(m, &part)) {
        begin_frame(p, b, m, &part);
        struct dp_frame *f = &b->frames[b->n - 1];
        f->flags = DP_OUTER_CHECKED | DP_CSUM_PARTIAL;
        f->gso_type = GSO_UDP;
        f->gso_size = (uint16_t)m->size;
        dp_count(&p->count.rx_frames, 1);
        in->joined.open[b->n - 1].closed = true;
        return true;
    }
    const uint32_t size = m->size ? m->size : m->len;
    for (; in->done < m->len || (m->len == 0 && in->done == 0); in->done += size ? size : 1) {
        const uint32_t left = m->len - in->done;
        dp_prefetch(m->data + in->done + size);
        if (b->n == IO_FRAMES || in->spilled == IO_FRAMES - IO_BURST) {
            return false;
        }
        dp_part_read(&part, m->data + in->done, left < size ? left : size, sizeof(struct dp_vxlan));
        dp_count(&p->count.rx_frames, 1);
        if (!p->sockets.gro || !dp_coalesce_join(&in->joined, &part, &m->origin)) {
            begin_frame(p, b, m, &part);
        }
    }
    return true;
}

bool io_underlay_gather(struct io_port *p, struct io_burst *b) {
    struct io_inbox *in = p->inbox;
    bool room = true;
    b->n = 0;
    in->spilled = 0;
    dp_coalesce_begin(&in->joined);
    while (in->at < in->got && room) {
        struct message m = message_of(in, in->at);
        if ((in->head[in->at].msg_hdr.msg_flags & MSG_TRUNC) || m.len > 65535 - 48) {
            dp_count(&p->count.truncated, 1);
        } else if (!take_message(p, b, &m)) {
            room = false;
            continue;
        }
        in->at++;
        in->done = 0;
    }
    io_finish_joined(p, &in->joined, b);
    return b->n > 0;
}

/* ---- errors ------------------------------------------------------------------------------- */

static bool is_path_mtu(const struct sock_extended_err *e) {
    const bool v4 = e->ee_origin == SO_EE_ORIGIN_ICMP && e->ee_type == DP_ICMP_UNREACHABLE &&
                    e->ee_code == ICMP_FRAG_NEEDED;
    const bool v6 = e->ee_origin == SO_EE_ORIGIN_ICMP6 && e->ee_type == DP_ICMP6_TOO_BIG;
    return e->ee_errno == EMSGSIZE && (v4 || v6);
}

/* Where the packet that was quoted had gone to. */
static struct dp_addr destination(const union io_address *to, uint16_t *port) {
    if (to->any.sa_family == AF_INET) {
        *port = be16_get((be16){to->v4.sin_port});
        return dp_addr_from4((const uint8_t *)&to->v4.sin_addr);
    }
    *port = be16_get((be16){to->v6.sin6_port});
    return dp_addr_load((const uint8_t *)&to->v6.sin6_addr);
}

bool io_underlay_error(struct io_port *p, int fd, struct io_path *path) {
    union io_address to;
    struct dp_vxlan quoted;
    _Alignas(struct cmsghdr) uint8_t control[2 * CONTROL];
    struct iovec data = {&quoted, sizeof quoted};
    struct msghdr h = {.msg_name = &to,
                       .msg_namelen = sizeof to,
                       .msg_iov = &data,
                       .msg_iovlen = 1,
                       .msg_control = control,
                       .msg_controllen = sizeof control};
    const ssize_t got = recvmsg(fd, &h, MSG_ERRQUEUE | MSG_DONTWAIT);
    if (got < 0) {
        return false;
    }
    dp_count(&p->count.rx_errors, 1);
    *path = (struct io_path){.vni = DP_NONE};
    for (struct cmsghdr *c = CMSG_FIRSTHDR(&h); c; c = CMSG_NXTHDR(&h, c)) {
        struct sock_extended_err e;
        uint16_t port;
        if (!(c->cmsg_level == IPPROTO_IP && c->cmsg_type == IP_RECVERR) &&
            !(c->cmsg_level == IPPROTO_IPV6 && c->cmsg_type == IPV6_RECVERR)) {
            continue;
        }
        memcpy(&e, CMSG_DATA(c), sizeof e);
        path->remote = destination(&to, &port);
        if (is_path_mtu(&e) && port == p->sockets.udp_port) {
            path->mtu = (uint16_t)(e.ee_info < UINT16_MAX ? e.ee_info : UINT16_MAX);
        }
    }
    if (got == sizeof quoted) {
        path->vni = dp_vxlan_vni(&quoted);
    }
    return true;
}
