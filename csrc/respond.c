#include "respond.h"
#include "checksum.h"

enum { ANSWER_TTL = 64, QUOTE4_MAX = 576 - 28, QUOTE6_MAX = 1280 - 48 };

void dp_respond_arp(struct dp_packet *p, const uint8_t mac[6]) {
    struct dp_eth *eth = dp_packet_eth(p);
    struct dp_arp *arp = (struct dp_arp *)(eth + 1);
    uint8_t target[4];
    memcpy(target, arp->tpa, 4);
    memcpy(arp->tha, arp->sha, 6);
    memcpy(arp->tpa, arp->spa, 4);
    memcpy(arp->sha, mac, 6);
    memcpy(arp->spa, target, 4);
    arp->op = be16_put(2);
    memcpy(eth->dst, eth->src, 6);
    memcpy(eth->src, mac, 6);
}

bool dp_is_echo_request(const struct dp_packet *p) {
    const uint16_t wanted = p->family == 4 ? DP_ICMP_ECHO << 8 : DP_ICMP6_ECHO << 8;
    const uint8_t proto = p->family == 4 ? DP_IP_ICMP : DP_IP_ICMP6;
    return p->family && p->key.proto == proto && p->key.dport == wanted && !p->key.fragment &&
           !p->more_fragments;
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

static void error4(struct dp_packet *p, struct error_kind kind, uint16_t mtu,
                   const struct dp_addr *src) {
    struct dp_ip4 *ip = (struct dp_ip4 *)open_front(p, 14 + 20 + 8, QUOTE4_MAX);
    struct dp_icmp *icmp = (struct dp_icmp *)(ip + 1);
    *ip = (struct dp_ip4){.version_ihl = 0x45,
                          .total = be16_put(p->len - 14),
                          .ttl = ANSWER_TTL,
                          .proto = DP_IP_ICMP};
    memcpy(ip->src, dp_addr_v4(src), 4);
    memcpy(ip->dst, dp_addr_v4(&p->key.src), 4);
    ip->csum = (uint16_t)~dp_csum_fold(dp_csum_add(0, ip, sizeof *ip));
    *icmp = (struct dp_icmp){.type = kind.type, .code = kind.code, .seq = be16_put(mtu)};
    icmp->csum = (uint16_t)~dp_csum_fold(dp_csum_add(0, icmp, p->len - 34));
}

static void error6(struct dp_packet *p, struct error_kind kind, uint16_t mtu,
                   const struct dp_addr *src) {
    struct dp_ip6 *ip = (struct dp_ip6 *)open_front(p, 14 + 40 + 8, QUOTE6_MAX);
    struct dp_icmp *icmp = (struct dp_icmp *)(ip + 1);
    const uint32_t len = p->len - 54;
    *ip = (struct dp_ip6){.version_class_flow = be32_put(6u << 28),
                          .payload = be16_put(len),
                          .next = DP_IP_ICMP6,
                          .hops = ANSWER_TTL};
    memcpy(ip->src, src, 16);
    memcpy(ip->dst, &p->key.src, 16);
    *icmp = (struct dp_icmp){.type = kind.type, .code = kind.code, .seq = be16_put(mtu)};
    const uint64_t pseudo = dp_csum_pseudo(src, &p->key.src, DP_IP_ICMP6, len);
    icmp->csum = (uint16_t)~dp_csum_fold(dp_csum_add(pseudo, icmp, len));
}

bool dp_error_is_due(const struct dp_packet *p, enum dp_reason reason,
                     const struct dp_speaker *speaker) {
    const bool v4 = p->family == 4;
    const struct dp_addr *src = v4 ? &speaker->ip4 : &speaker->ip6;
    struct error_kind kind;
    return kind_of(reason, v4, &kind) && p->kind != DP_PORT_UNDERLAY && !dp_addr_is_zero(src) &&
           !p->key.fragment && !dp_key_is_icmp_error(&p->key);
}

void dp_respond_error(struct dp_packet *p, enum dp_reason reason, uint16_t mtu,
                      const struct dp_speaker *speaker) {
    const bool v4 = p->family == 4;
    const struct dp_addr *src = v4 ? &speaker->ip4 : &speaker->ip6;
    struct error_kind kind;
    if (!kind_of(reason, v4, &kind)) {
        return;
    }
    if (v4) {
        error4(p, kind, reason == DP_R_too_big ? mtu : 0, src);
    } else {
        error6(p, kind, reason == DP_R_too_big ? mtu : 0, src);
    }
    memcpy(dp_packet_eth(p)->src, speaker->mac, 6);
    p->frame->flags &= (uint8_t)~DP_CSUM_PARTIAL;
    p->frame->gso_size = 0;
    p->frame->gso_type = 0;
}
