/* packet.h: one frame under way, and the unified flow id. Above: parse, layers, transpose. Below:
 * wire.h. */
#ifndef DP_PACKET_H
#define DP_PACKET_H
#include "wire.h"
#ifdef __SSE2__
#include <emmintrin.h>
#endif

/* The unified flow id (UFID). No padding: compared as words, hashed as words. */
struct dp_key {
    struct dp_addr src;
    struct dp_addr dst;
    uint32_t vni;   /* 0 on the host port */
    uint16_t sport; /* ICMP echo: the id */
    uint16_t dport; /* ICMP: type << 8 | code */
    uint16_t port;  /* ingress port id */
    uint8_t proto;
    uint8_t zero[5];
};
_Static_assert(sizeof(struct dp_key) == 48 && offsetof(struct dp_key, vni) == 32 &&
                   offsetof(struct dp_key, port) == 40 && offsetof(struct dp_key, proto) == 42,
               "a key is six words: dp_key_word4, dp_key_word5");

static inline void dp_key_words(const struct dp_key *k, uint64_t m[6]) {
    memcpy(m, k, sizeof *k);
}
/* Word by word from memory: as a copy of the whole it would be stored and loaded again. */
static inline uint64_t dp_key_word(const struct dp_key *k, int i) {
    uint64_t word;
    memcpy(&word, (const uint8_t *)k + i * 8, 8);
    return word;
}
/* The words that hold what is beside the addresses. */
static inline uint64_t dp_key_word4(uint32_t vni, uint32_t ports) {
    return vni | (uint64_t)ports << 32; /* source in the lower half, destination in the upper one */
}
static inline uint64_t dp_key_word5(uint16_t port, uint8_t proto) {
    return port | (uint64_t)proto << 16;
}
static inline bool dp_key_equal(const struct dp_key *a, const struct dp_key *b) {
#ifdef __SSE2__
    __m128i same = _mm_set1_epi8(-1);
    for (int i = 0; i < 3; i++) {
        const __m128i x = _mm_loadu_si128((const __m128i *)a + i);
        same = _mm_and_si128(same, _mm_cmpeq_epi8(x, _mm_loadu_si128((const __m128i *)b + i)));
    }
    return _mm_movemask_epi8(same) == 0xffff;
#else
    uint64_t differ = 0;
    for (int i = 0; i < 6; i++) {
        differ |= dp_key_word(a, i) ^ dp_key_word(b, i);
    }
    return differ == 0;
#endif
}
static inline bool dp_proto_is_icmp(uint8_t proto) {
    return proto == DP_IP_ICMP || proto == DP_IP_ICMP6;
}
static inline bool dp_proto_has_ports(uint8_t proto) {
    return proto == DP_IP_TCP || proto == DP_IP_UDP;
}
/* ICMP of the packet's own family; the other family's number is a protocol as any other. */
static inline bool dp_key_is_icmp(const struct dp_key *k) {
    return k->proto == (dp_addr_is_v4(&k->src) ? DP_IP_ICMP : DP_IP_ICMP6);
}
static inline bool dp_key_is_echo_request(const struct dp_key *k) {
    return dp_key_is_icmp(k) && k->dport == (k->proto == DP_IP_ICMP ? DP_ICMP_ECHO : DP_ICMP6_ECHO)
                                                << 8;
}
/* An echo request or reply: its id is a port in all but name. */
static inline bool dp_key_is_echo(const struct dp_key *k) {
    return dp_key_is_echo_request(k) ||
           (dp_key_is_icmp(k) &&
            k->dport == (k->proto == DP_IP_ICMP ? DP_ICMP_ECHO_REPLY : DP_ICMP6_ECHO_REPLY) << 8);
}
/* Something that a NAT can tell flows of one address apart by. */
static inline bool dp_key_has_port(const struct dp_key *k) {
    return dp_proto_has_ports(k->proto) || dp_key_is_echo(k);
}
/* The flow id of the answer, as far as the packet says: the ingress port and VNI stay. */
static inline struct dp_key dp_key_mirrored(const struct dp_key *k) {
    struct dp_key m = *k;
    m.src = k->dst;
    m.dst = k->src;
    if (!dp_proto_is_icmp(k->proto)) {
        m.sport = k->dport;
        m.dport = k->sport;
    } else if (dp_key_is_echo(k)) {
        m.dport = k->proto == DP_IP_ICMP ? k->dport ^ DP_ICMP_ECHO << 8 : k->dport ^ 1 << 8;
    }
    return m;
}

/* ICMP that reports an error must never be answered with one (RFC 1122 section 3.2.2, RFC 4443
 * section 2.4). */
static inline bool dp_key_is_icmp_error(const struct dp_key *k) {
    const uint8_t type = (uint8_t)(k->dport >> 8);
    if (!dp_key_is_icmp(k)) {
        return false;
    }
    if (k->proto == DP_IP_ICMP6) {
        return type < 128 || type == 137;
    }
    return type == 3 || type == 4 || type == 5 || type == 11 || type == 12;
}

/* From a router to its neighbour, about its neighbour: of no flow's concern. */
static inline bool dp_key_is_redirect(const struct dp_key *k) {
    return dp_key_is_icmp(k) && k->dport >> 8 == (k->proto == DP_IP_ICMP ? 5 : 137);
}

/* What an outer packet may be where its network accepts it. */
enum dp_outer_odd { DP_OUTER_RESERVED = 1, DP_OUTER_ZERO6 = 2 };

/* What a datagram's first fragment tells of the others. */
struct dp_transport {
    uint16_t sport;
    uint16_t dport;
    uint8_t proto;
};
static inline void dp_key_complete(struct dp_key *k, const struct dp_transport *t) {
    k->sport = t->sport;
    k->dport = t->dport;
    k->proto = t->proto;
}
enum dp_fragment_kind { DP_WHOLE = 0, DP_FIRST = 1, DP_LATER = 2 };

/* Which check of a destination MAC the packet passed. */
enum dp_l2 { DP_L2_ROUTED = 0, DP_L2_SWITCHED = 1 };

/* How a frame of the burst goes on. */
enum dp_lane {
    DP_GONE = 0,    /* it has left, or waits */
    DP_GENERAL = 1, /* parsed and admitted by engine.c */
    DP_EXPRESS = 2, /* by express.c, so far */
    DP_LEFT = 3     /* no longer */
};

/* Bytes that the headers of a super-frame may have at most, outer ones not counted. */
enum { DP_SUPER_HEADERS = 192 };

struct dp_packet {
    struct dp_key key;
    struct dp_frame *frame;
    uint8_t *data;     /* first byte of the inner frame */
    uint32_t len;      /* bytes of it; trailing bytes beyond IP are cut */
    uint16_t l3;       /* offsets from .data */
    uint16_t l4;       /* 0: no transport header here (later fragment, ARP) */
    uint8_t family;    /* 4, 6, or 0 for ARP */
    uint8_t l2;        /* enum dp_l2 */
    uint8_t kind;      /* enum dp_port_kind of the ingress */
    uint8_t discovery; /* 1: ARP or neighbour discovery, which never goes further than here */
    uint8_t outer_tos;
    uint8_t outer_odd; /* enum dp_outer_odd: what only some networks accept */
    uint8_t fragment;  /* enum dp_fragment_kind */
    bool part_is_last; /* of a fragment: no more come behind it */
    uint8_t lane;      /* enum dp_lane */
    uint16_t path_mtu; /* learned of the underlay's way, for the inner packet; 0 = nothing */
    uint32_t network;  /* index, or DP_NONE on the host port */
    struct dp_addr outer_src;
    uint64_t hash;
    uint32_t candidate;   /* reference of the flow it may belong to, or 0 */
    uint32_t datagram_id; /* of a fragment */
    uint16_t part_at;     /* of a fragment, in units of 8 bytes */
    uint16_t part_len;    /* of a fragment, in bytes */
    uint16_t more;        /* of a super-frame: packets it stands for beyond the first */
    uint16_t payload;     /* of a super-frame: bytes behind its transport header */
} dp_line;

_Static_assert(sizeof(struct dp_packet) == 128, "a packet under way is two cache lines");

/* What a frame is on the wire: of a super-frame each packet repeats the headers. */
static inline uint32_t dp_packet_count(const struct dp_packet *p) {
    return 1u + p->more;
}
static inline uint64_t dp_packet_bytes(const struct dp_packet *p) {
    return p->len + (uint64_t)p->more * (p->len - p->payload);
}
/* Bytes of the first packet of a super-frame, or of the one that there is. */
static inline uint32_t dp_packet_first_len(const struct dp_packet *p) {
    return dp_likely(!p->more) ? p->len : p->len - p->payload + p->frame->gso_size;
}

static inline struct dp_eth *dp_packet_eth(const struct dp_packet *p) {
    return (struct dp_eth *)p->data;
}
static inline struct dp_ip4 *dp_packet_ip4(const struct dp_packet *p) {
    return (struct dp_ip4 *)(p->data + p->l3);
}
static inline struct dp_ip6 *dp_packet_ip6(const struct dp_packet *p) {
    return (struct dp_ip6 *)(p->data + p->l3);
}
/* TOS, or traffic class. */
static inline uint8_t dp_tos_of(const struct dp_packet *p) {
    return p->family == 4 ? dp_packet_ip4(p)->tos : dp_ip6_class(dp_packet_ip6(p));
}
static inline void *dp_packet_l4(const struct dp_packet *p) {
    return p->data + p->l4;
}
/* The checksum field of TCP, UDP, ICMP or ICMPv6. */
static inline void *dp_packet_l4_checksum(const struct dp_packet *p) {
    uint8_t *l4 = dp_packet_l4(p);
    switch (p->key.proto) {
    case DP_IP_TCP:
        return l4 + offsetof(struct dp_tcp, csum);
    case DP_IP_UDP:
        return l4 + offsetof(struct dp_udp, csum);
    default:
        return l4 + offsetof(struct dp_icmp, csum);
    }
}
static inline bool dp_mac_equal(const uint8_t a[6], const uint8_t b[6]) {
    return memcmp(a, b, 6) == 0;
}

#endif
