/* wire.h: headers as they stand on the wire, and nothing else. */
#ifndef DP_WIRE_H
#define DP_WIRE_H
#include "base.h"

enum {
    DP_ETH_IP4 = 0x0800,
    DP_ETH_ARP = 0x0806,
    DP_ETH_VLAN = 0x8100,
    DP_ETH_QINQ = 0x88a8,
    DP_ETH_QINQ_OLD = 0x9100,
    DP_ETH_IP6 = 0x86dd,
};
enum {
    DP_IP_HOPOPTS = 0,
    DP_IP_ICMP = 1,
    DP_IP_TCP = 6,
    DP_IP_UDP = 17,
    DP_IP_ROUTING = 43,
    DP_IP_FRAGMENT = 44,
    DP_IP_AUTH = 51,
    DP_IP_ICMP6 = 58,
    DP_IP_DSTOPTS = 60,
};
enum {
    DP_ICMP_ECHO_REPLY = 0,
    DP_ICMP_UNREACHABLE = 3,
    DP_ICMP_ECHO = 8,
    DP_ICMP_TIME_EXCEEDED = 11
};
enum {
    DP_ICMP6_UNREACHABLE = 1,
    DP_ICMP6_TOO_BIG = 2,
    DP_ICMP6_TIME_EXCEEDED = 3,
    DP_ICMP6_ECHO = 128,
    DP_ICMP6_ECHO_REPLY = 129,
    DP_ICMP6_ROUTER_SOLICIT = 133, /* neighbour discovery: from here */
    DP_ICMP6_ROUTER_ADVERT = 134,
    DP_ICMP6_SOLICIT = 135,
    DP_ICMP6_ADVERT = 136,
    DP_ICMP6_REDIRECT = 137, /* to here */
};
enum { DP_ND_ROUTER = 0x80, DP_ND_SOLICITED = 0x40, DP_ND_OVERRIDE = 0x20 };
enum { DP_ND_SOURCE_MAC = 1, DP_ND_TARGET_MAC = 2 };
enum { DP_TCP_FIN = 1, DP_TCP_SYN = 2, DP_TCP_RST = 4, DP_TCP_ACK = 16 };
enum { DP_IP4_DF = 0x4000, DP_IP4_MF = 0x2000, DP_IP4_OFFSET = 0x1fff };

struct dp_eth {
    uint8_t dst[6];
    uint8_t src[6];
    be16 type;
} dp_packed;
_Static_assert(sizeof(struct dp_eth) == 14, "IEEE 802.3");

enum { DP_VLAN_TAG = 4 }; /* bytes of an 802.1Q tag */

struct dp_arp { /* Ethernet over IPv4, RFC 826 */
    be16 htype;
    be16 ptype;
    uint8_t hlen;
    uint8_t plen;
    be16 op;
    uint8_t sha[6];
    uint8_t spa[4];
    uint8_t tha[6];
    uint8_t tpa[4];
} dp_packed;
_Static_assert(sizeof(struct dp_arp) == 28, "RFC 826");

struct dp_ip4 { /* RFC 791 section 3.1 */
    uint8_t version_ihl;
    uint8_t tos;
    be16 total;
    be16 id;
    be16 frag;
    uint8_t ttl;
    uint8_t proto;
    uint16_t csum;
    uint8_t src[4];
    uint8_t dst[4];
} dp_packed;
_Static_assert(sizeof(struct dp_ip4) == 20, "RFC 791");

/* A router's: one off the TTL. */
static inline void dp_ip4_hop(struct dp_ip4 *ip) {
    ip->ttl--;
    const uint32_t csum = ip->csum + 1u; /* the TTL is the lower byte of its word */
    ip->csum = (uint16_t)(csum + (csum >= 0xffff));
}

struct dp_ip6 { /* RFC 8200 section 3 */
    be32 version_class_flow;
    be16 payload;
    uint8_t next;
    uint8_t hops;
    uint8_t src[16];
    uint8_t dst[16];
} dp_packed;
_Static_assert(sizeof(struct dp_ip6) == 40, "RFC 8200");
static inline uint8_t dp_ip6_class(const struct dp_ip6 *ip) {
    return (uint8_t)(be32_get(ip->version_class_flow) >> 20);
}

/* Extension headers (RFC 8200 section 4, RFC 4302); hop-by-hop options are the first one or none.
 */
static inline bool dp_ip6_is_extension(uint8_t next, int nth) {
    return (next == DP_IP_HOPOPTS && nth == 0) || next == DP_IP_ROUTING || next == DP_IP_FRAGMENT ||
           next == DP_IP_AUTH || next == DP_IP_DSTOPTS;
}
/* Bytes of the one of that type, of which at least 8 are there. */
static inline uint32_t dp_ip6_extension_len(uint8_t type, const uint8_t *head) {
    if (type == DP_IP_FRAGMENT) {
        return 8;
    }
    return type == DP_IP_AUTH ? ((uint32_t)head[1] + 2) * 4 : ((uint32_t)head[1] + 1) * 8;
}
enum { DP_IP6_EXTENSIONS_MAX = 8 }; /* that are stepped over */

enum { DP_IP6_MTU_MIN = 1280 }; /* RFC 8200 section 5 */

struct dp_ip6_fragment { /* RFC 8200 section 4.5 */
    uint8_t next;
    uint8_t zero;
    be16 offset_more;
    be32 id;
} dp_packed;
_Static_assert(sizeof(struct dp_ip6_fragment) == 8, "RFC 8200");

struct dp_tcp { /* RFC 9293 section 3.1 */
    be16 sport;
    be16 dport;
    be32 seq;
    be32 ack;
    uint8_t offset;
    uint8_t flags;
    be16 window;
    uint16_t csum;
    be16 urgent;
} dp_packed;
_Static_assert(sizeof(struct dp_tcp) == 20, "RFC 9293");

struct dp_udp { /* RFC 768 */
    be16 sport;
    be16 dport;
    be16 len;
    uint16_t csum;
} dp_packed;
_Static_assert(sizeof(struct dp_udp) == 8, "RFC 768");

struct dp_icmp { /* RFC 792, RFC 4443; .rest is id and sequence, or the next hop's MTU */
    uint8_t type;
    uint8_t code;
    uint16_t csum;
    be16 id;
    be16 seq;
} dp_packed;
_Static_assert(sizeof(struct dp_icmp) == 8, "RFC 792");

struct dp_nd { /* neighbour solicitation and advertisement, RFC 4861 sections 4.3 and 4.4 */
    uint8_t type;
    uint8_t code;
    uint16_t csum;
    uint8_t flags;
    uint8_t zero[3];
    uint8_t target[16];
} dp_packed;
_Static_assert(sizeof(struct dp_nd) == 24, "RFC 4861");

struct dp_nd_mac { /* source or target link-layer address option, RFC 4861 section 4.6.1 */
    uint8_t type;
    uint8_t len; /* of any option: in units of 8 bytes */
    uint8_t mac[6];
} dp_packed;
_Static_assert(sizeof(struct dp_nd_mac) == 8, "RFC 4861");

/* VXLAN, RFC 7348 section 5: the I flag says that the VNI is valid; the rest is zero on send and
 * ignored on receipt, unless the network is strict. 0 1 2 3 4 5 6 7 |R|R|R|R|I|R|R|R| Reserved (24)
 * | | VNI (24) | Reserved (8) | */
struct dp_vxlan {
    uint8_t flags;
    uint8_t zero[3];
    uint8_t vni[3];
    uint8_t zero2;
} dp_packed;
_Static_assert(sizeof(struct dp_vxlan) == 8, "RFC 7348");
enum { DP_VXLAN_I = 0x08 };

/* Whether the I flag is set and nothing else beside the VNI. */
static inline bool dp_vxlan_is_plain(const struct dp_vxlan *v) {
    static const uint8_t vni[8] = {0, 0, 0, 0, 0xff, 0xff, 0xff, 0};
    uint64_t word;
    uint64_t mask;
    memcpy(&word, v, 8);
    memcpy(&mask, vni, 8);
    return (word & ~mask) == DP_VXLAN_I; /* the first byte is the lowest */
}

static inline uint32_t dp_vxlan_vni(const struct dp_vxlan *v) {
    be32 word;
    memcpy(&word, (const uint8_t *)v + offsetof(struct dp_vxlan, vni), sizeof word);
    return be32_get(word) >> 8;
}

/* All that is pushed in front of an inner frame. */
struct dp_outer4 {
    struct dp_eth eth;
    struct dp_ip4 ip;
    struct dp_udp udp;
    struct dp_vxlan vxlan;
} dp_packed;
struct dp_outer6 {
    struct dp_eth eth;
    struct dp_ip6 ip;
    struct dp_udp udp;
    struct dp_vxlan vxlan;
} dp_packed;
_Static_assert(sizeof(struct dp_outer4) == 50 && sizeof(struct dp_outer6) == 70,
               "RFC 7348 section 5");

#endif
