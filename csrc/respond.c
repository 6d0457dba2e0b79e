#include "respond.h"
#include "checksum.h"

enum { ANSWER_TTL = 64, QUOTE4_MAX = 576 - 28, QUOTE6_MAX = 1280 - 48 };

/* A packet of our own is one packet, its checksums complete. */
static void made_here(struct dp_packet *p) {
    p->frame->flags &= (uint8_t)~DP_CSUM_PARTIAL;
    p->frame->gso_size = 0;
    p->frame->gso_type = 0;
    p->more = 0;
}

bool dp_is_echo_request(const struct dp_packet *p) {
    const uint16_t wanted = p->family == 4 ? DP_ICMP_ECHO << 8 : DP_ICMP6_ECHO << 8;
    const uint8_t proto = p->family == 4 ? DP_IP_ICMP : DP_IP_ICMP6;
    return p->family && p->key.proto == proto && p->key.dport == wanted && !p->fragment;
}

static void swap(void *a, void *b, size_t n) {
    uint8_t t[16];
    memcpy(t, a, n);
    memcpy(a, b, n);
    memcpy(b, t, n);
}

void dp_respond_echo(struct dp_packet *p) {
    struct dp_icmp *icmp = dp_packet_l4(p);
    struct dp_eth *eth = dp_packet_eth(p);
    const uint8_t type = icmp->type;
    swap(eth->dst, eth->src, 6);
    icmp->type = p->family == 4 ? DP_ICMP_ECHO_REPLY : DP_ICMP6_ECHO_REPLY;
    dp_csum_fix_at((uint8_t *)icmp + offsetof(struct dp_icmp, csum),
                   dp_csum_term(type, icmp->type));
    icmp->csum =
        icmp->csum ? icmp->csum : 0xffff; /* of a message that is all zeros 0 would be wrong */
    if (p->family == 6) {
        swap(dp_packet_ip6(p)->src, dp_packet_ip6(p)->dst, 16);
        dp_packet_ip6(p)->hops = ANSWER_TTL;
        return;
    }
    struct dp_ip4 *ip = dp_packet_ip4(p);
    swap(ip->src, ip->dst, 4);
    const uint8_t ttl = ip->ttl;
    ip->ttl = ANSWER_TTL;
    dp_csum_fix_at((uint8_t *)ip + offsetof(struct dp_ip4, csum), dp_csum_term(ttl, ip->ttl));
}

/* An IP header of ours in front of a payload of n bytes; returns where that begins. */
static uint8_t *put_ip(uint8_t *at, const struct dp_addr *src, const struct dp_addr *dst,
                       uint8_t proto, uint32_t n, uint16_t df) {
    if (!dp_addr_is_v4(src)) {
        struct dp_ip6 *ip = (struct dp_ip6 *)at;
        *ip = (struct dp_ip6){.version_class_flow = be32_put(6u << 28),
                              .payload = be16_put(n),
                              .next = proto,
                              .hops = ANSWER_TTL};
        memcpy(ip->src, src, 16);
        memcpy(ip->dst, dst, 16);
        return at + sizeof *ip;
    }
    struct dp_ip4 *ip = (struct dp_ip4 *)at;
    *ip = (struct dp_ip4){.version_ihl = 0x45,
                          .total = be16_put(n + (uint32_t)sizeof *ip),
                          .frag = be16_put(df),
                          .ttl = ANSWER_TTL,
                          .proto = proto};
    memcpy(ip->src, dp_addr_v4(src), 4);
    memcpy(ip->dst, dp_addr_v4(dst), 4);
    ip->csum = (uint16_t)~dp_csum_fold(dp_csum_add(0, ip, sizeof *ip));
    return at + sizeof *ip;
}

/* ---- resets ------------------------------------------------------------------------------- */

bool dp_is_segment(const struct dp_packet *p) {
    return p->key.proto == DP_IP_TCP && !p->fragment;
}

static bool sum_is_right(const struct dp_packet *p) {
    const uint32_t len = p->len - p->l4;
    const uint64_t pseudo = dp_csum_pseudo(&p->key.src, &p->key.dst, DP_IP_TCP, len);
    return (p->frame->flags & DP_CSUM_PARTIAL) ||
           dp_csum_fold(dp_csum_add(pseudo, dp_packet_l4(p), len)) == 0xffff;
}

static struct dp_tcp reset_of(const struct dp_packet *p, const struct dp_tcp *in) {
    struct dp_tcp out = {
        .sport = in->dport, .dport = in->sport, .offset = 5 << 4, .flags = DP_TCP_RST};
    if (in->flags & DP_TCP_ACK) {
        out.seq = in->ack;
        return out;
    }
    const uint32_t data = p->len - p->l4 - (uint32_t)(in->offset >> 4) * 4;
    const uint32_t len = data + !!(in->flags & DP_TCP_SYN) + !!(in->flags & DP_TCP_FIN);
    out.ack = be32_put(be32_get(in->seq) + len);
    out.flags |= DP_TCP_ACK;
    return out;
}

bool dp_respond_reset(struct dp_packet *p) {
    const struct dp_tcp *in = dp_packet_l4(p);
    if (p->kind == DP_PORT_UNDERLAY || (in->flags & DP_TCP_RST) || !sum_is_right(p)) {
        return false;
    }
    struct dp_tcp out = reset_of(p, in);
    const uint64_t pseudo = dp_csum_pseudo(&p->key.dst, &p->key.src, DP_IP_TCP, sizeof out);
    out.csum = (uint16_t)~dp_csum_fold(dp_csum_add(pseudo, &out, sizeof out));
    struct dp_eth *eth = dp_packet_eth(p);
    swap(eth->dst, eth->src, 6);
    const struct dp_key *k = &p->key;
    uint8_t *l4 = put_ip((uint8_t *)(eth + 1), &k->dst, &k->src, DP_IP_TCP, sizeof out, DP_IP4_DF);
    memcpy(l4, &out, sizeof out);
    p->len = (uint32_t)(l4 + sizeof out - p->data);
    made_here(p);
    return true;
}

/* ---- ICMP errors -------------------------------------------------------------------------- */

struct error_kind {
    uint8_t type;
    uint8_t code;
};

static bool kind_of(enum dp_reason reason, bool v4, struct error_kind *kind) {
    switch (reason) {
    case DP_R_ttl_expired:
        *kind = (struct error_kind){v4 ? DP_ICMP_TIME_EXCEEDED : DP_ICMP6_TIME_EXCEEDED, 0};
        return true;
    case DP_R_too_big:
        *kind = (struct error_kind){v4 ? DP_ICMP_UNREACHABLE : DP_ICMP6_TOO_BIG, v4 ? 4 : 0};
        return true;
    case DP_R_lb_no_backend:
        *kind = (struct error_kind){v4 ? DP_ICMP_UNREACHABLE : DP_ICMP6_UNREACHABLE, v4 ? 3 : 4};
        return true;
    case DP_R_acl_reject:
    case DP_R_nat_exhausted: /* RFC 5508 REQ-8 */
    case DP_R_nat_table_full:
        *kind = (struct error_kind){v4 ? DP_ICMP_UNREACHABLE : DP_ICMP6_UNREACHABLE, v4 ? 13 : 1};
        return true;
    default:
        return false;
    }
}

/* Opens room of n bytes in front of the quoted IP packet for new headers; returns the new frame. */
static uint8_t *open_front(struct dp_packet *p, uint32_t headers, uint32_t quote_max) {
    const uint32_t ip = p->len - p->l3;
    const uint32_t quote = ip < quote_max ? ip : quote_max;
    struct dp_eth old;
    memcpy(&old, p->data, sizeof old);
    uint8_t *quoted = p->data + p->l3;
    p->data = quoted - headers;
    p->len = headers + quote;
    struct dp_eth *eth = (struct dp_eth *)p->data;
    memcpy(eth->dst, old.src, 6);
    eth->type = old.type;
    return p->data + sizeof *eth;
}

static void put_error(struct dp_packet *p, struct error_kind kind, uint16_t mtu,
                      const struct dp_addr *src) {
    const bool v4 = p->family == 4;
    const uint32_t head = v4 ? (uint32_t)sizeof(struct dp_ip4) : (uint32_t)sizeof(struct dp_ip6);
    const uint8_t proto = v4 ? DP_IP_ICMP : DP_IP_ICMP6;
    const uint32_t front = (uint32_t)(sizeof(struct dp_eth) + head);
    uint8_t *ip =
        open_front(p, front + (uint32_t)sizeof(struct dp_icmp), v4 ? QUOTE4_MAX : QUOTE6_MAX);
    const uint32_t len = p->len - front;
    struct dp_icmp *icmp = (struct dp_icmp *)put_ip(ip, src, &p->key.src, proto, len, 0);
    *icmp = (struct dp_icmp){.type = kind.type, .code = kind.code, .seq = be16_put(mtu)};
    const uint64_t pseudo = v4 ? 0 : dp_csum_pseudo(src, &p->key.src, proto, len);
    icmp->csum = (uint16_t)~dp_csum_fold(dp_csum_add(pseudo, icmp, len));
}

bool dp_error_is_due(const struct dp_packet *p, enum dp_reason reason,
                     const struct dp_speaker *speaker) {
    const bool v4 = p->family == 4;
    const struct dp_addr *src = v4 ? &speaker->ip4 : &speaker->ip6;
    struct error_kind kind;
    return kind_of(reason, v4, &kind) && p->kind != DP_PORT_UNDERLAY && !dp_addr_is_zero(src) &&
           p->fragment != DP_LATER && !dp_key_is_icmp_error(&p->key);
}

void dp_respond_error(struct dp_packet *p, enum dp_reason reason, uint16_t mtu,
                      const struct dp_speaker *speaker) {
    const bool v4 = p->family == 4;
    const struct dp_addr *src = v4 ? &speaker->ip4 : &speaker->ip6;
    struct error_kind kind;
    if (!kind_of(reason, v4, &kind)) {
        return;
    }
    put_error(p, kind, reason == DP_R_too_big ? mtu : 0, src);
    memcpy(dp_packet_eth(p)->src, speaker->mac, 6);
    made_here(p);
}
