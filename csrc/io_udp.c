/* io_udp.c: packets and errors out of the underlay's sockets. The engine speaks whole outer frames;
 * here the kernel reads the outer headers, so they are made up from what it tells in control
 * messages. */
#include "io.h"
#include "wire.h"
#include <arpa/inet.h>
#include <errno.h>
#include <linux/errqueue.h>
#include <netinet/in.h>
#include <netinet/ip_icmp.h>
#include <sys/socket.h>

enum { CONTROL = 128 };

union io_address {
    struct sockaddr any;
    struct sockaddr_in v4;
    struct sockaddr_in6 v6;
};

/* Buffers of one call of recvmmsg. */
struct io_messages {
    struct mmsghdr head[IO_BURST];
    struct iovec data[IO_BURST];
    union io_address address[IO_BURST];
    _Alignas(struct cmsghdr) uint8_t control[IO_BURST][CONTROL];
};

/* ---- receive ------------------------------------------------------------------------------ */

static void prepare(struct io_messages *m, const struct io_burst *b) {
    for (uint32_t i = 0; i < IO_BURST; i++) {
        m->data[i] = (struct iovec){io_slot(b, i) + IO_FRONT, IO_SLOT - IO_FRONT};
        m->head[i].msg_hdr = (struct msghdr){.msg_name = &m->address[i],
                                             .msg_namelen = sizeof m->address[i],
                                             .msg_iov = &m->data[i],
                                             .msg_iovlen = 1,
                                             .msg_control = m->control[i],
                                             .msg_controllen = CONTROL};
    }
}

static void read_control(struct msghdr *h, uint8_t *tos, uint8_t *ttl) {
    *tos = 0;
    *ttl = 64;
    for (struct cmsghdr *c = CMSG_FIRSTHDR(h); c; c = CMSG_NXTHDR(h, c)) {
        int value = 0;
        if (c->cmsg_level == IPPROTO_IP && c->cmsg_type == IP_TOS) {
            *tos = *(uint8_t *)CMSG_DATA(c);
        } else if (c->cmsg_level == IPPROTO_IP && c->cmsg_type == IP_TTL) {
            memcpy(&value, CMSG_DATA(c), sizeof value);
            *ttl = (uint8_t)value;
        } else if (c->cmsg_level == IPPROTO_IPV6 && c->cmsg_type == IPV6_TCLASS) {
            memcpy(&value, CMSG_DATA(c), sizeof value);
            *tos = (uint8_t)value;
        } else if (c->cmsg_level == IPPROTO_IPV6 && c->cmsg_type == IPV6_HOPLIMIT) {
            memcpy(&value, CMSG_DATA(c), sizeof value);
            *ttl = (uint8_t)value;
        }
    }
}

static uint8_t *front4(const struct io_port *p, uint8_t *payload, uint32_t len,
                       const union io_address *from, uint8_t tos, uint8_t ttl) {
    struct dp_outer4 *o = (struct dp_outer4 *)(payload - IO_FRONT4);
    memset(o, 0, IO_FRONT4);
    o->eth.type = be16_put(DP_ETH_IP4);
    o->ip = (struct dp_ip4){.version_ihl = 0x45,
                            .tos = tos,
                            .total = be16_put(len + 28),
                            .ttl = ttl,
                            .proto = DP_IP_UDP};
    memcpy(o->ip.src, &from->v4.sin_addr, 4);
    memcpy(o->ip.dst, p->sockets.ip4 + 12, 4);
    o->udp = (struct dp_udp){.sport = {from->v4.sin_port},
                             .dport = be16_put(p->sockets.udp_port),
                             .len = be16_put(len + 8)};
    return payload - IO_FRONT4;
}

static uint8_t *front6(const struct io_port *p, uint8_t *payload, uint32_t len,
                       const union io_address *from, uint8_t tos, uint8_t ttl) {
    struct dp_outer6 *o = (struct dp_outer6 *)(payload - IO_FRONT6);
    memset(o, 0, IO_FRONT6);
    o->eth.type = be16_put(DP_ETH_IP6);
    o->ip = (struct dp_ip6){.version_class_flow = be32_put(6u << 28 | (uint32_t)tos << 20),
                            .payload = be16_put(len + 8),
                            .next = DP_IP_UDP,
                            .hops = ttl};
    memcpy(o->ip.src, &from->v6.sin6_addr, 16);
    memcpy(o->ip.dst, p->sockets.ip6, 16);
    o->udp = (struct dp_udp){.sport = {from->v6.sin6_port},
                             .dport = be16_put(p->sockets.udp_port),
                             .len = be16_put(len + 8)};
    return payload - IO_FRONT6;
}

void io_underlay_receive(struct io_port *p, int fd, struct io_burst *b) {
    struct io_messages m;
    prepare(&m, b);
    b->n = 0;
    const int got = recvmmsg(fd, m.head, IO_BURST, MSG_DONTWAIT, NULL);
    dp_count(&p->count.rx_calls, 1);
    if (got < 0) {
        /* an ICMP error of an earlier packet, perhaps: the next call reads on */
        dp_count(&p->count.rx_errors, errno == EAGAIN || errno == EINTR ? 0 : 1);
        return;
    }
    for (int i = 0; i < got; i++) {
        uint8_t tos;
        uint8_t ttl;
        uint8_t *payload = m.data[i].iov_base;
        const uint32_t len = m.head[i].msg_len;
        const union io_address *from = &m.address[i];
        const bool v4 = from->any.sa_family == AF_INET;
        const uint32_t front = v4 ? IO_FRONT4 : IO_FRONT6;
        read_control(&m.head[i].msg_hdr, &tos, &ttl);
        if ((m.head[i].msg_hdr.msg_flags & MSG_TRUNC) || len > 65535 - 48) {
            dp_count(&p->count.truncated, 1);
            continue;
        }
        uint8_t *frame =
            v4 ? front4(p, payload, len, from, tos, ttl) : front6(p, payload, len, from, tos, ttl);
        b->frames[b->n++] = (struct dp_frame){.off = (uint32_t)(frame - b->arena),
                                              .len = len + front,
                                              .port = p->id,
                                              .flags = DP_OUTER_CHECKED | DP_CSUM_UNKNOWN};
    }
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
