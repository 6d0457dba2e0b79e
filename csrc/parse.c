/* parse.c: Ethernet, ARP, IPv4, IPv6 and transport headers of the inner frame, in the order they
 * are met. */
#include "parse.h"
#include "checksum.h"
#include "cursor.h"

enum { ICMP_QUERY_MIN = 8 };
enum { GSO_TCP4 = 1, GSO_TCP6 = 4, GSO_UDP = 5, GSO_ECN = 0x80 }; /* virtio 1.2 section 5.1.6 */

static enum dp_reason parse_arp(struct dp_cursor *c) {
    const struct dp_arp *arp = dp_peek(c, sizeof *arp);
    if (!arp || be16_get(arp->htype) != 1 || be16_get(arp->ptype) != DP_ETH_IP4 || arp->hlen != 6 ||
        arp->plen != 4) {
        return DP_R_bad_arp;
    }
    return DP_R_none;
}

/* Source and destination that no host may have (RFC 1122 section 3.2.1.3); multicast is judged
 * later. */
static bool bad_ip4_addresses(const struct dp_ip4 *ip) {
    const uint8_t s = ip->src[0];
    const uint8_t d = ip->dst[0];
    const bool broadcast = (ip->dst[0] & ip->dst[1] & ip->dst[2] & ip->dst[3]) == 0xff;
    return s == 0 || s == 127 || s >= 224 || d == 0 || d == 127 || (d >= 240 && !broadcast);
}

static dp_cold enum dp_reason check_ip4_options(const uint8_t *at, uint32_t left) {
    while (left > 0 && at[0] != 0) {
        if (at[0] == 1) {
            at++;
            left--;
            continue;
        }
        if (left < 2 || at[1] < 2 || at[1] > left) {
            return DP_R_bad_ip4;
        }
        if (at[0] == 131 || at[0] == 137) {
            return DP_R_source_route;
        }
        left -= at[1];
        at += at[1];
    }
    return DP_R_none;
}

/* With a reason of "cut" replaced where a fragment ought to hold the whole header chain (RFC 7112,
 * RFC 3128). */
static enum dp_reason cut(const struct dp_packet *p) {
    return p->fragment == DP_FIRST ? DP_R_bad_fragment : DP_R_bad_transport;
}

static enum dp_reason parse_icmp(struct dp_packet *p, struct dp_cursor *c) {
    const struct dp_icmp *icmp = dp_peek(c, ICMP_QUERY_MIN);
    if (!icmp) {
        return cut(p);
    }
    p->key.dport = (uint16_t)(icmp->type << 8 | icmp->code);
    p->discovery =
        p->family == 6 && icmp->type >= DP_ICMP6_ROUTER_SOLICIT && icmp->type <= DP_ICMP6_REDIRECT;
    if (dp_key_is_echo(&p->key)) {
        p->key.sport = be16_get(icmp->id);
    }
    return DP_R_none;
}

static enum dp_reason parse_transport(struct dp_packet *p, struct dp_cursor *c) {
    p->l4 = (uint16_t)(c->at - p->data);
    const uint8_t proto = p->key.proto;
    if (proto == DP_IP_TCP) {
        const struct dp_tcp *tcp = dp_peek(c, sizeof *tcp);
        if (!tcp || tcp->offset >> 4 < 5 || (uint32_t)(tcp->offset >> 4) * 4 > c->left) {
            return cut(p);
        }
        p->key.sport = be16_get(tcp->sport);
        p->key.dport = be16_get(tcp->dport);
    } else if (proto == DP_IP_UDP) {
        const struct dp_udp *udp = dp_peek(c, sizeof *udp);
        if (!udp || be16_get(udp->len) < sizeof *udp ||
            (p->fragment == DP_WHOLE && be16_get(udp->len) > c->left)) {
            return cut(p);
        }
        p->key.sport = be16_get(udp->sport);
        p->key.dport = be16_get(udp->dport);
    } else if (proto == (p->family == 4 ? DP_IP_ICMP : DP_IP_ICMP6)) {
        return parse_icmp(p, c);
    }
    return DP_R_none;
}

/* Notes which part of a datagram the rest is; all of one is none (RFC 6946). The last part alone
 * may have any length (RFC 791 section 3.2, RFC 8200 section 4.5). */
static enum dp_reason parse_fragment(struct dp_packet *p, const struct dp_cursor *c, uint32_t id,
                                     uint32_t at, bool more) {
    if (at == 0 && !more) {
        return DP_R_none;
    }
    if (p->fragment || at * 8 + c->left > 65535 || c->left == 0 || (more && c->left % 8) ||
        (p->key.proto == DP_IP_TCP && at == 1)) {
        return DP_R_bad_fragment;
    }
    p->fragment = at ? DP_LATER : DP_FIRST;
    p->datagram_id = id;
    p->part_at = (uint16_t)at;
    p->part_len = (uint16_t)c->left;
    p->part_is_last = !more;
    return DP_R_none;
}

static enum dp_reason parse_ip4(struct dp_packet *p, struct dp_cursor *c) {
    const struct dp_ip4 *ip = dp_peek(c, sizeof *ip);
    if (!ip) {
        return DP_R_bad_ip4;
    }
    const uint32_t header = (uint32_t)(ip->version_ihl & 15) * 4;
    const uint32_t total = be16_get(ip->total);
    if (ip->version_ihl >> 4 != 4 || header < sizeof *ip || total < header || !dp_trim(c, total)) {
        return DP_R_bad_ip4;
    }
    dp_pull(c, header);
    const uint64_t sum = dp_csum_add(0, ip, sizeof *ip);
    if (dp_csum_fold(dp_csum_add(sum, ip + 1, header - sizeof *ip)) != 0xffff) {
        return DP_R_bad_ip4_checksum;
    }
    if (dp_unlikely(header > sizeof *ip)) {
        const enum dp_reason r =
            check_ip4_options((const uint8_t *)(ip + 1), header - (uint32_t)sizeof *ip);
        if (r) {
            return r;
        }
    }
    if (bad_ip4_addresses(ip)) {
        return DP_R_bad_address;
    }
    p->len = (uint32_t)p->l3 + total;
    p->key.src = dp_addr_from4(ip->src);
    p->key.dst = dp_addr_from4(ip->dst);
    p->key.proto = ip->proto;
    const uint32_t frag = be16_get(ip->frag);
    if (dp_unlikely(frag & (DP_IP4_MF | DP_IP4_OFFSET))) {
        const enum dp_reason r =
            parse_fragment(p, c, be16_get(ip->id), frag & DP_IP4_OFFSET, frag & DP_IP4_MF);
        if (r || p->fragment == DP_LATER) {
            return r;
        }
    }
    return parse_transport(p, c);
}

/* An unspecified source is judged later: one kind of packet may have it. */
static bool bad_ip6_addresses(const struct dp_addr *src, const struct dp_addr *dst) {
    return dp_addr_bytes(src)[0] == 0xff || (dp_addr_is_no_ip6(src) && !dp_addr_is_zero(src)) ||
           dp_addr_is_no_ip6(dst);
}

/* Steps over one extension header of type next; sets *next to what follows. */
static enum dp_reason parse_extension(struct dp_packet *p, struct dp_cursor *c, uint8_t *next) {
    const uint8_t *head = dp_peek(c, 8);
    if (!head) {
        return DP_R_bad_extension;
    }
    if (*next == DP_IP_FRAGMENT) {
        const struct dp_ip6_fragment *f = dp_pull(c, sizeof *f);
        const uint32_t field = be16_get(f->offset_more);
        *next = f->next;
        p->key.proto = f->next;
        return parse_fragment(p, c, be32_get(f->id), field >> 3, field & 1);
    }
    if (*next == DP_IP_ROUTING && head[2] == 0) {
        return DP_R_source_route;
    }
    const uint32_t len = dp_ip6_extension_len(*next, head);
    *next = head[0];
    return dp_pull(c, len) ? DP_R_none : DP_R_bad_extension;
}

/* Who has no address yet looks for it, and tells of its groups (RFC 3590). */
static bool may_be_unspecified(const struct dp_packet *p) {
    return p->discovery || dp_addr_is_multicast(&p->key.dst);
}

static enum dp_reason parse_ip6(struct dp_packet *p, struct dp_cursor *c) {
    const struct dp_ip6 *ip = dp_pull(c, sizeof *ip);
    if (!ip || be32_get(ip->version_class_flow) >> 28 != 6 || !dp_trim(c, be16_get(ip->payload))) {
        return DP_R_bad_ip6;
    }
    p->len = (uint32_t)p->l3 + (uint32_t)sizeof *ip + c->left;
    p->key.src = dp_addr_load(ip->src);
    p->key.dst = dp_addr_load(ip->dst);
    if (bad_ip6_addresses(&p->key.src, &p->key.dst)) {
        return DP_R_bad_address;
    }
    uint8_t next = ip->next;
    for (int nth = 0; dp_ip6_is_extension(next, nth) && p->fragment != DP_LATER; nth++) {
        const enum dp_reason r =
            nth < DP_IP6_EXTENSIONS_MAX ? parse_extension(p, c, &next) : DP_R_bad_extension;
        if (r) {
            return r;
        }
    }
    if (next == DP_IP_HOPOPTS) {
        return DP_R_bad_extension;
    }
    p->key.proto = next;
    const enum dp_reason r = p->fragment == DP_LATER ? DP_R_none : parse_transport(p, c);
    return !r && dp_unlikely(dp_addr_is_zero(&p->key.src)) && !may_be_unspecified(p)
               ? DP_R_bad_address
               : r;
}

enum dp_reason dp_parse(struct dp_packet *p) {
    struct dp_cursor c = {p->data, p->len};
    const struct dp_eth *eth = dp_pull(&c, sizeof *eth);
    if (!eth) {
        return DP_R_short_ethernet;
    }
    p->l3 = sizeof *eth;
    switch (be16_get(eth->type)) {
    case DP_ETH_IP4:
        p->family = 4;
        return parse_ip4(p, &c);
    case DP_ETH_IP6:
        p->family = 6;
        return parse_ip6(p, &c);
    case DP_ETH_ARP:
        p->discovery = 1;
        return parse_arp(&c);
    case DP_ETH_VLAN:
    case DP_ETH_QINQ:
    case DP_ETH_QINQ_OLD:
        return DP_R_vlan_tagged;
    default:
        return DP_R_not_ip;
    }
}

void dp_parse_checksum_state(struct dp_packet *p) {
    struct dp_frame *f = p->frame;
    const uint8_t proto = p->key.proto;
    if (!dp_proto_has_ports(proto) || p->fragment) {
        f->flags &= (uint8_t)~DP_CSUM_PARTIAL;
        return;
    }
    const uint8_t *field = dp_packet_l4_checksum(p);
    uint16_t found;
    memcpy(&found, field, sizeof found);
    if ((f->flags & DP_CSUM_PARTIAL) ||
        found == dp_csum_fold(dp_csum_pseudo(&p->key.src, &p->key.dst, proto, p->len - p->l4))) {
        f->flags |= DP_CSUM_PARTIAL;
        f->csum_start = p->l4;
        f->csum_field = (uint16_t)(field - (const uint8_t *)dp_packet_l4(p));
    }
}

/* What a super-frame of the packet's kind is called; 0: there are none. */
static uint8_t gso_type_of(const struct dp_packet *p) {
    if (p->key.proto == DP_IP_TCP) {
        return p->family == 4 ? GSO_TCP4 : GSO_TCP6;
    }
    return p->key.proto == DP_IP_UDP ? GSO_UDP : 0;
}

static uint32_t transport_header(const struct dp_packet *p) {
    const struct dp_tcp *tcp = dp_packet_l4(p);
    return p->key.proto == DP_IP_TCP ? (uint32_t)(tcp->offset >> 4) * 4
                                     : (uint32_t)sizeof(struct dp_udp);
}

enum dp_reason dp_parse_super(struct dp_packet *p) {
    struct dp_frame *f = p->frame;
    const uint8_t type = gso_type_of(p);
    const bool ecn = f->gso_type == (type | GSO_ECN) && type != GSO_UDP;
    if (f->gso_type == 0) {
        f->gso_size = 0;
        return DP_R_none;
    }
    if (type == 0 || p->fragment || (f->gso_type != type && !ecn) || f->gso_size == 0 ||
        !(f->flags & DP_CSUM_PARTIAL) ||
        (p->kind == DP_PORT_UNDERLAY && !(f->flags & DP_OUTER_CHECKED))) {
        return DP_R_bad_gso;
    }
    if (type == GSO_UDP &&
        be16_get(((const struct dp_udp *)dp_packet_l4(p))->len) != p->len - p->l4) {
        return DP_R_bad_gso;
    }
    const uint32_t headers = p->l4 + transport_header(p);
    const uint32_t payload = p->len - headers;
    if (payload <= f->gso_size) {
        f->gso_type = 0;
        f->gso_size = 0;
        return DP_R_none;
    }
    if (headers > DP_SUPER_HEADERS) {
        return DP_R_bad_gso;
    }
    p->payload = (uint16_t)payload;
    p->more = (uint16_t)((payload - 1) / f->gso_size);
    return DP_R_none;
}

void dp_parse_unsized(struct dp_packet *p, uint16_t mtu) {
    struct dp_frame *f = p->frame;
    if (p->key.proto != DP_IP_TCP || p->fragment) {
        return;
    }
    const uint32_t headers = p->l4 - p->l3 + transport_header(p);
    if (headers >= mtu || p->l3 + headers > DP_SUPER_HEADERS) {
        return;
    }
    if (!(f->flags & DP_CSUM_PARTIAL)) {
        uint8_t *field = dp_packet_l4_checksum(p);
        const uint32_t len = p->len - p->l4;
        const uint64_t pseudo = dp_csum_pseudo(&p->key.src, &p->key.dst, p->key.proto, len);
        const uint16_t sum = dp_csum_fold(pseudo);
        if (dp_csum_fold(dp_csum_add(pseudo, dp_packet_l4(p), len)) != 0xffff) {
            return;
        }
        memcpy(field, &sum, sizeof sum);
        f->flags |= DP_CSUM_PARTIAL;
        f->csum_start = p->l4;
        f->csum_field = (uint16_t)(field - (const uint8_t *)dp_packet_l4(p));
    }
    f->gso_type = gso_type_of(p);
    f->gso_size = (uint16_t)(mtu - headers);
}
