/* io_icmp.c: path MTUs out of raw ICMP sockets. The kernel tells a socket of errors about what it
 * sent; of packets that went past all sockets (AF_XDP) the messages themselves have to be read. */
#include "cursor.h"
#include "io.h"
#include "wire.h"
#include <netinet/ip_icmp.h>
#include <sys/socket.h>

enum { MESSAGE = 1024 };

/* The packet quoted, from its UDP header on, if it may be one of ours; and where it went. */
static const struct dp_udp *quoted4(struct dp_cursor *c, const struct io_port *p,
                                    struct dp_addr *to) {
    const struct dp_ip4 *ip = dp_peek(c, sizeof *ip);
    if (!ip || ip->version_ihl != 0x45 || ip->proto != DP_IP_UDP ||
        (be16_get(ip->frag) & DP_IP4_OFFSET) || memcmp(ip->src, p->sockets.ip4 + 12, 4) != 0) {
        return NULL;
    }
    *to = dp_addr_from4(ip->dst);
    dp_pull(c, sizeof *ip);
    return dp_pull(c, sizeof(struct dp_udp));
}

static const struct dp_udp *quoted6(struct dp_cursor *c, const struct io_port *p,
                                    struct dp_addr *to) {
    const struct dp_ip6 *ip = dp_pull(c, sizeof *ip);
    if (!ip || ip->next != DP_IP_UDP || memcmp(ip->src, p->sockets.ip6, 16) != 0) {
        return NULL;
    }
    *to = dp_addr_load(ip->dst);
    return dp_pull(c, sizeof(struct dp_udp));
}

/* Behind the IP header, which the kernel has checked, as it has the checksum. */
static uint32_t mtu_of(const struct dp_icmp *icmp, bool v4) {
    const be32 whole = {(uint32_t)icmp->id.net | (uint32_t)icmp->seq.net << 16};
    if (v4) {
        return icmp->type == DP_ICMP_UNREACHABLE && icmp->code == ICMP_FRAG_NEEDED
                   ? be16_get(icmp->seq)
                   : 0;
    }
    return icmp->type == DP_ICMP6_TOO_BIG ? be32_get(whole) : 0;
}

static void read_message(struct dp_cursor *c, const struct io_port *p, bool v4,
                         struct io_path *path) {
    const struct dp_ip4 *ip = v4 ? dp_peek(c, sizeof *ip) : NULL;
    if (v4 && (!ip || !dp_pull(c, (uint32_t)(ip->version_ihl & 15) * 4))) {
        return;
    }
    const struct dp_icmp *icmp = dp_pull(c, sizeof *icmp);
    const uint32_t mtu = icmp ? mtu_of(icmp, v4) : 0;
    const struct dp_udp *udp =
        mtu ? (v4 ? quoted4(c, p, &path->remote) : quoted6(c, p, &path->remote)) : NULL;
    if (!udp || be16_get(udp->dport) != p->sockets.udp_port || !p->xdp ||
        !io_xdp_sent_from(p->xdp, be16_get(udp->sport))) {
        return;
    }
    const struct dp_vxlan *vxlan = dp_pull(c, sizeof *vxlan);
    path->vni = vxlan ? dp_vxlan_vni(vxlan) : DP_NONE;
    path->mtu = (uint16_t)(mtu < UINT16_MAX ? mtu : UINT16_MAX);
}

bool io_icmp_error(struct io_port *p, bool v4, struct io_path *path) {
    uint8_t message[MESSAGE];
    const int fd = v4 ? p->sockets.icmp4 : p->sockets.icmp6;
    const ssize_t got = recv(fd, message, sizeof message, MSG_DONTWAIT);
    *path = (struct io_path){.vni = DP_NONE};
    if (got < 0) {
        return false;
    }
    struct dp_cursor c = {message, (uint32_t)got};
    read_message(&c, p, v4, path);
    dp_count(&p->count.rx_errors, path->mtu != 0);
    return true;
}
