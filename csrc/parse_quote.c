/* parse_quote.c: the packet inside an ICMP error (RFC 792, RFC 4443, RFC 5508 section 7). */
#include "checksum.h"
#include "cursor.h"
#include "parse.h"

static bool quoted_ip4(struct dp_cursor *c, struct dp_key *k) {
    const struct dp_ip4 *ip = dp_peek(c, sizeof *ip);
    const uint32_t header = ip ? (uint32_t)(ip->version_ihl & 15) * 4 : 0;
    if (header < sizeof *ip || ip->version_ihl >> 4 != 4 || !dp_pull(c, header) ||
        dp_csum_fold(dp_csum_add(0, ip, header)) != 0xffff ||
        (be16_get(ip->frag) & DP_IP4_OFFSET)) {
        return false;
    }
    k->src = dp_addr_from4(ip->src);
    k->dst = dp_addr_from4(ip->dst);
    k->proto = ip->proto;
    return true;
}

/* To the transport header; not in a later fragment, nor where it went on to another destination. */
static bool skip_extensions(struct dp_cursor *c, uint8_t *next) {
    for (int nth = 0; dp_ip6_is_extension(*next, nth); nth++) {
        const uint8_t *head = dp_peek(c, 8);
        if (!head || nth == DP_IP6_EXTENSIONS_MAX || (*next == DP_IP_ROUTING && head[2] == 0) ||
            (*next == DP_IP_FRAGMENT && (head[2] || head[3] >> 3)) ||
            !dp_pull(c, dp_ip6_extension_len(*next, head))) {
            return false;
        }
        *next = head[0];
    }
    return true;
}

static bool quoted_ip6(struct dp_cursor *c, struct dp_key *k) {
    const struct dp_ip6 *ip = dp_pull(c, sizeof *ip);
    if (!ip || be32_get(ip->version_class_flow) >> 28 != 6) {
        return false;
    }
    k->src = dp_addr_load(ip->src);
    k->dst = dp_addr_load(ip->dst);
    k->proto = ip->next;
    return skip_extensions(c, &k->proto);
}

static bool checksum_right(const struct dp_packet *p) {
    const uint32_t len = p->len - p->l4;
    const uint64_t pseudo =
        p->family == 6 ? dp_csum_pseudo(&p->key.src, &p->key.dst, DP_IP_ICMP6, len) : 0;
    return dp_csum_fold(dp_csum_add(pseudo, p->data + p->l4, len)) == 0xffff;
}

bool dp_parse_quote(const struct dp_packet *p, struct dp_quote *q) {
    struct dp_cursor c = {p->data + p->l4, p->len - p->l4};
    struct dp_key k = {.vni = p->key.vni, .port = p->key.port};
    if (!dp_pull(&c, sizeof(struct dp_icmp)) || !checksum_right(p)) {
        return false;
    }
    q->l3 = (uint16_t)(c.at - p->data);
    if (!(p->family == 4 ? quoted_ip4(&c, &k) : quoted_ip6(&c, &k))) {
        return false;
    }
    q->l4 = (uint16_t)(c.at - p->data);
    const struct dp_icmp *l4 =
        dp_peek(&c, 8); /* the least that RFC 792 quotes; ports lead TCP and UDP */
    if (!l4) {
        return false;
    }
    if (dp_proto_has_ports(k.proto)) {
        k.sport = be16_get(((const struct dp_udp *)l4)->sport);
        k.dport = be16_get(((const struct dp_udp *)l4)->dport);
    } else {
        k.dport = (uint16_t)(l4->type << 8 | l4->code);
        if (k.proto != (p->family == 4 ? DP_IP_ICMP : DP_IP_ICMP6) || !dp_key_is_echo(&k)) {
            return false;
        }
        k.sport = be16_get(l4->id);
    }
    q->answer = dp_key_mirrored(&k);
    return dp_addr_equal(&q->answer.dst, &p->key.dst);
}
