#include "coalesce.h"
#include "checksum.h"

enum { TCP_PSH = 8, TCP_URG = 0x20, TCP_CWR = 0x80, IP4_PLAIN = 0x45 };
enum { UDP_PACKETS_MAX = 64, LONGEST = 65535 };
enum { GSO_TCP4 = 1, GSO_TCP6 = 4, GSO_UDP = 5, GSO_ECN = 0x80 };

void dp_coalesce_begin(struct dp_coalescer *c) {
    c->n = 0;
    memset(c->table, 0, sizeof c->table);
}

/* ---- what a packet is --------------------------------------------------------------------- */

static const uint8_t *l3_of(const struct dp_part *p) {
    return p->data + p->outer + sizeof(struct dp_eth);
}

static void addresses(const struct dp_part *p, struct dp_addr *src, struct dp_addr *dst) {
    const uint8_t *ip = l3_of(p);
    *src = p->v4 ? dp_addr_from4(ip + 12) : dp_addr_load(ip + 8);
    *dst = p->v4 ? dp_addr_from4(ip + 16) : dp_addr_load(ip + 24);
}

static uint64_t pseudo_sum(const struct dp_part *p, uint32_t len) {
    struct dp_addr src;
    struct dp_addr dst;
    addresses(p, &src, &dst);
    return dp_csum_pseudo(&src, &dst, p->tcp ? DP_IP_TCP : DP_IP_UDP, len);
}

static uint8_t *field_of(const struct dp_part *p) {
    return p->data + p->l4 +
           (p->tcp ? offsetof(struct dp_tcp, csum) : offsetof(struct dp_udp, csum));
}

static bool is_partial(const struct dp_part *p) {
    uint16_t found;
    memcpy(&found, field_of(p), sizeof found);
    return found == dp_csum_fold(pseudo_sum(p, p->len - p->l4));
}

static bool sum_is_right(const struct dp_part *p) {
    const uint32_t len = p->len - p->l4;
    return p->partial ||
           dp_csum_fold(dp_csum_add(pseudo_sum(p, len), p->data + p->l4, len)) == 0xffff;
}

/* A product's upper half depends on all bits. */
static uint64_t stir(uint64_t word) {
    word *= 0x9e3779b97f4a7c15u;
    return word ^ word >> 32;
}

/* Any function will do: flows that meet here are only not joined. */
static uint32_t slot_of(const struct dp_part *p) {
    uint64_t sum = p->tcp;
    const uint8_t *at = p->v4 ? l3_of(p) + 12 : l3_of(p) + 8;
    const uint8_t *end = p->v4 ? at + 8 : at + 32;
    for (; at < end; at += 8) {
        uint64_t word;
        memcpy(&word, at, sizeof word);
        sum = stir(sum ^ word);
    }
    uint32_t ports;
    memcpy(&ports, p->data + p->l4, sizeof ports);
    return (uint32_t)(stir(sum ^ ports) % DP_COALESCE_TABLE);
}

static void read_tcp(struct dp_part *p, const struct dp_tcp *tcp, uint32_t len) {
    const uint32_t header = (uint32_t)(tcp->offset >> 4) * 4;
    if (header < sizeof *tcp || header >= len) {
        return; /* without payload: of a flow, but not to be joined */
    }
    p->head = (uint8_t)(p->l4 + header);
    p->payload = (uint16_t)(len - header);
    p->seq = be32_get(tcp->seq);
    p->tcp_flags = tcp->flags;
    p->joins = !(tcp->flags & (DP_TCP_SYN | DP_TCP_RST | TCP_URG | TCP_CWR));
    p->begins = !(tcp->flags & (DP_TCP_SYN | DP_TCP_RST | TCP_URG | DP_TCP_FIN | TCP_PSH));
}

static void read_udp(struct dp_part *p, const struct dp_udp *udp, uint32_t len) {
    if (udp->csum == 0 || len == sizeof *udp || be16_get(udp->len) != len) {
        return;
    }
    p->head = (uint8_t)(p->l4 + sizeof *udp);
    p->payload = (uint16_t)(len - sizeof *udp);
    p->joins = p->begins = true;
}

/* IP: the bytes of header, or 0: nothing that could be joined. */
static uint32_t read_ip4(struct dp_part *p, const struct dp_ip4 *ip, uint32_t left,
                         uint8_t *proto) {
    if (left < sizeof *ip) {
        return 0;
    }
    const uint32_t frag = be16_get(ip->frag);
    p->is_fragment = frag & (DP_IP4_MF | DP_IP4_OFFSET);
    p->id = be16_get(ip->id);
    *proto = ip->proto;
    return ip->version_ihl == IP4_PLAIN && !(frag & ~(uint32_t)DP_IP4_DF) &&
                   be16_get(ip->total) == left &&
                   dp_csum_fold(dp_csum_add(0, ip, sizeof *ip)) == 0xffff
               ? (uint32_t)sizeof *ip
               : 0;
}

static uint32_t read_ip6(struct dp_part *p, const struct dp_ip6 *ip, uint32_t left,
                         uint8_t *proto) {
    if (left < sizeof *ip) {
        return 0;
    }
    p->is_fragment = ip->next == DP_IP_FRAGMENT;
    *proto = ip->next;
    return be32_get(ip->version_class_flow) >> 28 == 6 && be16_get(ip->payload) + sizeof *ip == left
               ? (uint32_t)sizeof *ip
               : 0;
}

void dp_part_read(struct dp_part *p, uint8_t *data, uint32_t len, uint32_t outer) {
    const uint32_t l3 = outer + (uint32_t)sizeof(struct dp_eth);
    *p = (struct dp_part){.data = data, .len = len, .outer = outer, .slot = DP_NONE};
    if (len < l3) {
        return;
    }
    const uint16_t type = be16_get(((const struct dp_eth *)(data + outer))->type);
    uint8_t proto = 0;
    p->v4 = type == DP_ETH_IP4;
    const void *ip = data + l3;
    const uint32_t header = p->v4                ? read_ip4(p, ip, len - l3, &proto)
                            : type == DP_ETH_IP6 ? read_ip6(p, ip, len - l3, &proto)
                                                 : 0;
    p->tcp = proto == DP_IP_TCP;
    const uint32_t least =
        p->tcp ? (uint32_t)sizeof(struct dp_tcp) : (uint32_t)sizeof(struct dp_udp);
    if (header == 0 || !dp_proto_has_ports(proto) || len - l3 - header < least || len > LONGEST) {
        return;
    }
    p->l4 = (uint8_t)(l3 + header);
    p->slot = slot_of(p);
    if (p->tcp) {
        read_tcp(p, (const struct dp_tcp *)(data + p->l4), len - p->l4);
    } else {
        read_udp(p, (const struct dp_udp *)(data + p->l4), len - p->l4);
    }
    p->partial = (p->joins || p->begins) && is_partial(p);
}

/* ---- what continues what ------------------------------------------------------------------ */

static bool same_bytes(const struct dp_part *a, const struct dp_part *b, uint32_t from,
                       uint32_t to) {
    return memcmp(a->data + from, b->data + from, to - from) == 0;
}

/* All but lengths, ids and checksums. */
static bool same_ip(const struct dp_part *a, const struct dp_part *b) {
    const uint32_t ip = a->outer + (uint32_t)sizeof(struct dp_eth);
    if (a->v4) {
        return same_bytes(a, b, ip, ip + 2) && same_bytes(a, b, ip + 6, ip + 10) &&
               same_bytes(a, b, ip + 12, ip + 20);
    }
    return same_bytes(a, b, ip, ip + 4) && same_bytes(a, b, ip + 6, ip + 40);
}

/* Of the second packet the id says whether they count up or stand still. */
static bool id_follows(struct dp_open *o, const struct dp_part *p) {
    const uint16_t step = (uint16_t)(p->id - o->first.id);
    if (!p->v4) {
        return true;
    }
    const struct dp_ip4 *ip = (const struct dp_ip4 *)l3_of(p);
    if (o->count == 1) {
        o->fixed_id = step == 0 && (be16_get(ip->frag) & DP_IP4_DF);
    }
    return step == (o->fixed_id ? 0 : (uint16_t)o->count);
}

static bool same_tcp(const struct dp_open *o, const struct dp_part *p) {
    const struct dp_part *first = &o->first;
    const uint8_t free = TCP_CWR | DP_TCP_FIN | TCP_PSH;
    const uint32_t l4 = p->l4;
    return p->seq == o->next && same_bytes(first, p, l4 + 8, l4 + 13) &&
           ((p->tcp_flags ^ first->tcp_flags) & (uint8_t)~free) == 0 &&
           same_bytes(first, p, l4 + 14, l4 + 16) && same_bytes(first, p, l4 + 18, p->head);
}

static bool continues(struct dp_open *o, const struct dp_part *p, const struct dp_origin *origin) {
    const struct dp_part *first = &o->first;
    const uint32_t ethernet = p->outer + (uint32_t)sizeof(struct dp_eth);
    return !o->closed && p->joins && p->payload <= first->payload && p->head == first->head &&
           p->tcp == first->tcp && p->v4 == first->v4 && p->outer == first->outer &&
           same_bytes(first, p, 0, ethernet) && same_ip(first, p) &&
           same_bytes(first, p, p->l4, p->l4 + 4u) && (!p->tcp || same_tcp(o, p)) &&
           memcmp(&o->origin, origin, sizeof *origin) == 0 &&
           (p->tcp || o->count < UDP_PACKETS_MAX) && o->len + p->payload <= o->room &&
           o->len + p->payload - ethernet <= LONGEST && id_follows(o, p);
}

static bool sums_are_right(struct dp_open *o, const struct dp_part *p) {
    if (!o->summed && !sum_is_right(&o->first)) {
        o->closed = true;
    }
    o->summed = true;
    return !o->closed && sum_is_right(p);
}

bool dp_coalesce_join(struct dp_coalescer *c, const struct dp_part *p,
                      const struct dp_origin *origin) {
    if (p->is_fragment) {
        memset(c->table, 0, sizeof c->table); /* of which flow is not always known */
    }
    if (p->slot == DP_NONE || !c->table[p->slot]) {
        return false;
    }
    struct dp_open *o = &c->open[c->table[p->slot] - 1];
    if (!continues(o, p, origin) || !sums_are_right(o, p)) {
        c->table[p->slot] = 0;
        return false;
    }
    memmove(o->first.data + o->len, p->data + p->head, p->payload);
    o->len += p->payload;
    o->next += p->payload;
    o->count++;
    if (p->tcp) {
        ((struct dp_tcp *)(o->first.data + o->first.l4))->flags |=
            p->tcp_flags & (DP_TCP_FIN | TCP_PSH);
    }
    o->closed = p->payload < o->first.payload || (p->tcp && !p->begins);
    return true;
}

void dp_coalesce_open(struct dp_coalescer *c, const struct dp_part *p,
                      const struct dp_origin *origin, uint8_t *data, uint32_t room) {
    struct dp_open *o = &c->open[c->n++];
    *o = (struct dp_open){.first = *p,
                          .origin = *origin,
                          .len = p->len,
                          .room = room,
                          .count = 1,
                          .next = p->seq + p->payload,
                          .closed = !p->begins};
    o->first.data = data;
    if (p->slot != DP_NONE) {
        c->table[p->slot] = p->begins ? (uint8_t)c->n : 0;
    }
}

/* ---- the super-frame ---------------------------------------------------------------------- */

uint32_t dp_coalesce_finish(struct dp_coalescer *c, uint32_t i, struct dp_frame *f) {
    const struct dp_open *o = &c->open[i];
    const struct dp_part *p = &o->first;
    f->len = o->len;
    if (o->count == 1) {
        return 1;
    }
    const uint32_t l4_len = o->len - p->l4;
    const uint8_t ecn = (uint8_t)(p->tcp_flags & TCP_CWR ? GSO_ECN : 0);
    if (p->v4) {
        struct dp_ip4 *ip = (struct dp_ip4 *)l3_of(p);
        ip->total = be16_put(l4_len + (uint32_t)sizeof *ip);
        ip->csum = 0;
        ip->csum = (uint16_t)~dp_csum_fold(dp_csum_add(0, ip, sizeof *ip));
    } else {
        ((struct dp_ip6 *)l3_of(p))->payload = be16_put(l4_len);
    }
    if (!p->tcp) {
        ((struct dp_udp *)(p->data + p->l4))->len = be16_put(l4_len);
    }
    const uint16_t sum = dp_csum_fold(pseudo_sum(p, l4_len));
    memcpy(field_of(p), &sum, sizeof sum);
    f->gso_type = p->tcp ? (uint8_t)((p->v4 ? GSO_TCP4 : GSO_TCP6) | ecn) : GSO_UDP;
    f->gso_size = p->payload;
    f->csum_start = (uint16_t)(p->l4 - p->outer);
    f->csum_field = (uint16_t)(field_of(p) - (p->data + p->l4));
    return o->count;
}
