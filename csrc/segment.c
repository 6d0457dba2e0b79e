#include "segment.h"
#include "checksum.h"

enum { TCP_PSH = 8, TCP_CWR = 0x80, GSO_UDP = 5 };

bool dp_super_read(struct dp_super *s, const struct dp_frame *f, const uint8_t *data,
                   uint32_t outer) {
    const uint32_t l3 = outer + (uint32_t)sizeof(struct dp_eth);
    const uint32_t l4 = outer + f->csum_start;
    const uint32_t head = f->head;
    if (head == 0) {
        return false;
    }
    *s = (struct dp_super){.data = data,
                           .outer = (uint16_t)outer,
                           .l3 = (uint16_t)l3,
                           .l4 = (uint16_t)l4,
                           .head = (uint16_t)head,
                           .size = f->gso_size,
                           .payload = (uint16_t)(f->len - head),
                           .v4 = data[l3] >> 4 == 4,
                           .tcp = f->gso_type != GSO_UDP};
    return true;
}

/* Lengths and id; returns the pseudo-header's sum for a transport packet of so many bytes. */
static uint64_t segment_ip(const struct dp_super *s, uint32_t i, uint32_t len, uint8_t *at) {
    const uint8_t proto = s->tcp ? DP_IP_TCP : DP_IP_UDP;
    const uint32_t header = (uint32_t)(s->l4 - s->l3);
    if (s->v4) {
        struct dp_ip4 *ip = (struct dp_ip4 *)at;
        const struct dp_addr src = dp_addr_from4(ip->src);
        const struct dp_addr dst = dp_addr_from4(ip->dst);
        ip->total = be16_put(header + len);
        ip->id = be16_put(be16_get(ip->id) + i);
        ip->csum = 0;
        ip->csum = (uint16_t)~dp_csum_fold(dp_csum_add(0, ip, header));
        return dp_csum_pseudo(&src, &dst, proto, len);
    }
    struct dp_ip6 *ip = (struct dp_ip6 *)at;
    const struct dp_addr src = dp_addr_load(ip->src);
    const struct dp_addr dst = dp_addr_load(ip->dst);
    ip->payload = be16_put(header - (uint32_t)sizeof *ip + len);
    return dp_csum_pseudo(&src, &dst, proto, len);
}

/* What ends a stream's part stands on its last packet, what answers congestion on its first. */
static void segment_tcp(const struct dp_super *s, uint32_t i, bool is_last, uint64_t sum,
                        struct dp_tcp *tcp) {
    tcp->seq = be32_put(be32_get(tcp->seq) + i * s->size);
    tcp->flags &= is_last ? 0xff : (uint8_t) ~(DP_TCP_FIN | TCP_PSH);
    tcp->flags &= i == 0 ? 0xff : (uint8_t)~TCP_CWR;
    tcp->csum = 0;
    tcp->csum = (uint16_t)~dp_csum_fold(dp_csum_add(sum, tcp, (size_t)(s->head - s->l4)));
}

static void segment_udp(uint32_t len, uint64_t sum, struct dp_udp *udp) {
    udp->len = be16_put(len);
    udp->csum = 0;
    const uint16_t csum = (uint16_t)~dp_csum_fold(dp_csum_add(sum, udp, sizeof *udp));
    udp->csum = csum ? csum : 0xffff; /* 0 would mean that there is none: RFC 768 */
}

uint32_t dp_segment(const struct dp_super *s, uint32_t i, uint8_t *head) {
    const uint32_t at = i * s->size;
    const bool is_last = s->payload - at <= s->size;
    const uint32_t payload = is_last ? s->payload - at : s->size;
    const uint32_t len = (uint32_t)(s->head - s->l4) + payload;
    memcpy(head, s->data, s->head);
    const uint64_t pseudo = segment_ip(s, i, len, head + s->l3);
    const uint64_t sum = dp_csum_add(pseudo, s->data + s->head + at, payload);
    if (s->tcp) {
        segment_tcp(s, i, is_last, sum, (struct dp_tcp *)(head + s->l4));
    } else {
        segment_udp(len, sum, (struct dp_udp *)(head + s->l4));
    }
    return payload;
}
