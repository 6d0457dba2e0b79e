/* express.c: in the order packets meet it: outer headers, inner headers, flow, rewrite. Offsets are
 * those of headers without options. */
#include "express.h"
#include "checksum.h"
#include "parse.h"
#include "tcp.h"
#include "transpose.h"

/* While so many packets are judged, the flows of as many come from memory: of all at once there
 * would be more lines than a core waits for. A power of two. */
enum { AHEAD = 8 };

enum { L3 = sizeof(struct dp_eth), L4_OF_IP4 = L3 + 20, L4_OF_IP6 = L3 + 40 };
enum { FRAME_MAX = 65535 + 84, OUTER4 = sizeof(struct dp_outer4) };
enum { IP4_MIN = 20 + 8, INNER_MIN = L3 + IP4_MIN }; /* with a UDP header */
enum { UDP_MIN = OUTER4 - L4_OF_IP4 + INNER_MIN };   /* outer UDP length */

/* Ethernet type and the first byte of IP, as a little-endian word. */
enum { IP4_HEAD = 0x450008, IP4_MASK = 0xffffff, IP6_HEAD = 0x60dd86, IP6_MASK = 0xf0ffff };

static inline uint32_t load32(const uint8_t *at) {
    uint32_t word;
    memcpy(&word, at, sizeof word);
    return word;
}
static inline uint64_t load64(const uint8_t *at) {
    uint64_t word;
    memcpy(&word, at, sizeof word);
    return word;
}
static inline uint32_t load_be16(const uint8_t *at) {
    uint16_t word;
    memcpy(&word, at, sizeof word);
    return __builtin_bswap16(word);
}

/* ---- look --------------------------------------------------------------------------------- */

/* Whether 20 bytes of IPv4 header sum to all ones. */
static inline bool ip4_sums_up(const uint8_t *ip) {
    const uint64_t head = load64(ip);
    uint64_t sum = head + load64(ip + 8);
    sum += sum < head;
    sum += load32(ip + 16);
    sum += sum < load32(ip + 16);
    const uint32_t folded = (uint32_t)((sum + (sum << 32 | sum >> 32)) >> 32);
    return folded + (folded << 16 | folded >> 16) >= 0xffff0000u;
}

static inline bool ip4_is_whole(const uint8_t *ip) {
    return (load32(ip + 4) & 0xff3f0000u) == 0; /* neither MF nor an offset */
}

/* A transport header that is all there; left: at least 8. */
static inline bool has_transport(uint8_t proto, const uint8_t *l4, uint32_t left) {
    if (proto == DP_IP_UDP) {
        const uint32_t more = left - (uint32_t)sizeof(struct dp_udp);
        return load_be16(l4 + offsetof(struct dp_udp, len)) - sizeof(struct dp_udp) <= more;
    }
    if (proto != DP_IP_TCP || left < sizeof(struct dp_tcp)) {
        return false;
    }
    const uint32_t head = (uint32_t)(l4[offsetof(struct dp_tcp, offset)] & 0xf0) >> 2;
    return head - sizeof(struct dp_tcp) <= left - sizeof(struct dp_tcp);
}

static inline void store64(uint8_t *at, uint64_t word) {
    memcpy(at, &word, sizeof word);
}

/* Key and hash, from registers: what was just stored in parts would be slow to load as words. */
static inline void identify(const struct dp_hash_key *key, struct dp_packet *p, const uint64_t m[4],
                            uint32_t vni, const uint8_t *l4, uint8_t proto) {
    const uint32_t swapped = __builtin_bswap32(load32(l4));
    const uint64_t ports = dp_key_word4(vni, swapped << 16 | swapped >> 16);
    const uint64_t rest = dp_key_word5(p->frame->port, proto);
    uint8_t *at = (uint8_t *)&p->key;
    store64(at, m[0]);
    store64(at + 8, m[1]);
    store64(at + 16, m[2]);
    store64(at + 24, m[3]);
    store64(at + 32, ports);
    store64(at + 40, rest);
    p->hash = dp_hash(key, (const uint64_t[]){m[0], m[1], m[2], m[3], ports, rest});
}

static inline void shape(struct dp_packet *p, uint8_t family, uint16_t l4, uint32_t len) {
    p->len = len;
    p->l3 = L3;
    p->l4 = l4;
    p->family = family;
    p->l2 = DP_L2_ROUTED;
    p->kind = p->discovery = 0;
    p->outer_odd = p->fragment = 0;
    p->part_is_last = false;
    p->path_mtu = 0;
    p->more = 0;
}

static inline bool inner4(const struct dp_hash_key *key, struct dp_packet *p, uint32_t vni,
                          const uint8_t *frame, uint32_t len) {
    const uint8_t *ip = frame + L3;
    const uint8_t *l4 = frame + L4_OF_IP4;
    const uint32_t total = load_be16(ip + offsetof(struct dp_ip4, total));
    const uint8_t proto = ip[offsetof(struct dp_ip4, proto)];
    if (total - IP4_MIN > len - INNER_MIN || !ip4_is_whole(ip) || !ip4_sums_up(ip) ||
        !has_transport(proto, l4, total - (uint32_t)sizeof(struct dp_ip4))) {
        return false;
    }
    const struct dp_addr src = dp_addr_from4(ip + offsetof(struct dp_ip4, src));
    const struct dp_addr dst = dp_addr_from4(ip + offsetof(struct dp_ip4, dst));
    const uint64_t addrs[4] = {0, src.word[1], 0, dst.word[1]};
    identify(key, p, addrs, vni, l4, proto);
    shape(p, 4, L4_OF_IP4, L3 + total);
    return true;
}

/* No address with 64 leading zero bits: those that IPv4 addresses are written as are among them. */
static bool inner6(const struct dp_hash_key *key, struct dp_packet *p, uint32_t vni,
                   const uint8_t *frame, uint32_t len) {
    const uint8_t *ip = frame + L3;
    const uint8_t *l4 = frame + L4_OF_IP6;
    if (len < L4_OF_IP6 + sizeof(struct dp_udp)) {
        return false;
    }
    const uint32_t payload = load_be16(ip + offsetof(struct dp_ip6, payload));
    const uint8_t proto = ip[offsetof(struct dp_ip6, next)];
    uint64_t addrs[4];
    memcpy(addrs, ip + offsetof(struct dp_ip6, src), sizeof addrs);
    if (payload > len - L4_OF_IP6 || payload < sizeof(struct dp_udp) || !addrs[0] || !addrs[2] ||
        !has_transport(proto, l4, payload)) {
        return false;
    }
    identify(key, p, addrs, vni, l4, proto);
    shape(p, 6, L4_OF_IP6, L4_OF_IP6 + payload);
    return true;
}

/* len: at least INNER_MIN. */
static inline bool inner(const struct dp_hash_key *key, struct dp_packet *p, uint32_t vni,
                         uint8_t *frame, uint32_t len) {
    const uint32_t head = load32(frame + offsetof(struct dp_eth, type));
    p->data = frame;
    if (dp_likely((head & IP4_MASK) == IP4_HEAD)) {
        return inner4(key, p, vni, frame, len);
    }
    return (head & IP6_MASK) == IP6_HEAD && inner6(key, p, vni, frame, len);
}

/* VXLAN over IPv4 for this VTEP, as RFC 7348 has it sent: no options, no UDP checksum unless
 * somebody has verified it. */
static inline bool outer(struct dp_packet *p, const uint8_t *frame, uint32_t len,
                         const struct dp_port *port, uint8_t flags) {
    const struct dp_outer4 *o = (const struct dp_outer4 *)frame;
    const uint32_t total = be16_get(o->ip.total);
    const uint32_t udp = be16_get(o->udp.len);
    const uint32_t own = load32(port->ip4 + 12);
    if ((load32(frame + offsetof(struct dp_eth, type)) & IP4_MASK) != IP4_HEAD ||
        total > len - L3 || udp + sizeof o->ip > total || udp < UDP_MIN ||
        !ip4_is_whole(frame + L3) || o->ip.proto != DP_IP_UDP || !own || load32(o->ip.dst) != own ||
        be16_get(o->udp.dport) != port->udp_port || !dp_vxlan_is_plain(&o->vxlan)) {
        return false;
    }
    if (!(flags & DP_OUTER_CHECKED) && (o->udp.csum || !ip4_sums_up(frame + L3))) {
        return false;
    }
    p->outer_src = dp_addr_from4(o->ip.src);
    p->outer_tos = o->ip.tos;
    return true;
}

static bool from_underlay(const struct dp_hash_key *key, struct dp_packet *p,
                          const struct dp_port *port, uint8_t *frame, uint32_t len) {
    const struct dp_outer4 *o = (const struct dp_outer4 *)frame;
    return len >= OUTER4 + INNER_MIN && outer(p, frame, len, port, p->frame->flags) &&
           inner(key, p, dp_vxlan_vni(&o->vxlan), frame + OUTER4,
                 be16_get(o->udp.len) - UDP_MIN + INNER_MIN);
}

/* What looking goes by, apart from what it writes. */
struct ground {
    const struct dp_port_slot *slots;
    uint32_t n_slots;
    uint8_t *arena;
    size_t arena_len;
    const struct dp_hash_key *key;
    const struct dp_bucket *buckets;
    uint32_t mask;
};

/* gso_type and gso_size, one behind the other. */
static inline bool is_super(const struct dp_frame *f) {
    return load32((const uint8_t *)f + offsetof(struct dp_frame, flags)) >> 8;
}

static inline bool look(const struct ground *g, struct dp_packet *p, struct dp_frame *f) {
    const uint32_t len = f->len;
    const uint32_t port = f->port;
    if (len - INNER_MIN > FRAME_MAX - INNER_MIN || f->off < DP_HEADROOM ||
        (uint64_t)f->off + len > g->arena_len || port >= g->n_slots || is_super(f)) {
        return false;
    }
    const struct dp_port_slot *slot = &g->slots[port];
    uint8_t *frame = g->arena + f->off;
    p->frame = f;
    if (slot->express == DP_PORT_UNDERLAY) {
        return from_underlay(g->key, p, slot->port, frame, len);
    }
    return !dp_macs_differ(&slot->macs, frame) && slot->express &&
           inner(g->key, p, slot->vni, frame, len);
}

uint32_t dp_express_look(const struct pass *x, struct dp_frame *frames, uint32_t n) {
    const struct dp_flows *flows = &x->e->flows;
    const struct ground g = {x->policy->slots, x->policy->n_slots, x->arena,   x->arena_len,
                             &flows->key,      flows->buckets,     flows->mask};
    struct dp_packet *p = x->w->packets;
    uint32_t in = 0;
    for (struct dp_frame *f = frames; f < frames + n; f++, p++) {
        if (dp_unlikely(!look(&g, p, f))) {
            p->lane = DP_GONE;
            continue;
        }
        dp_prefetch(&g.buckets[p->hash & g.mask]);
        p->lane = DP_EXPRESS;
        in++;
    }
    return in;
}

/* ---- take --------------------------------------------------------------------------------- */

/* What taking goes by, apart from what it writes. */
struct way {
    struct dp_flows *flows;
    const struct dp_tunnel *tunnels;
    struct dp_port_counters *ports;
    uint8_t *arena;
    uint64_t now_ns;
    uint32_t generation;
};

/* The flow stands, and this packet changes nothing of its state. */
static inline bool stands(const struct way *w, const struct dp_packet *p,
                          const struct dp_half *half) {
    const struct dp_act *act = &half->act;
    const uint16_t wanted = DP_ACT_INDEXED | DP_ACT_STEADY;
    return (dp_get(act->flags) & (wanted | DP_ACT_ANY_VTEP)) == wanted &&
           dp_get(act->generation) == w->generation &&
           (w->now_ns - dp_get(act->last_ns)) >> DP_BRIEF_SHIFT < dp_get(half->brief) &&
           dp_key_equal(&half->key, &p->key);
}

/* From the VTEP that the flow belongs to, to our router, no larger than packets are; ECN as it is
 * (RFC 6040). */
static inline bool came_right(const struct dp_packet *p, const struct dp_tunnel *t,
                              const uint8_t *frame, uint8_t tos) {
    return t->trusted && t->vni == p->key.vni && p->len - L3 <= t->mtu &&
           dp_addr_equal(&t->remote, &p->outer_src) && dp_mac_equal(frame, t->own_mac) &&
           (dp_likely(!(p->outer_tos & 3)) || dp_ecn_decap(tos, p->outer_tos) == (tos & 3));
}

/* May be sent on as it is, by a router. */
static inline bool may_go(const struct pass *x, struct dp_packet *p, const struct dp_act *act,
                          uint16_t flags, uint8_t hops) {
    if (dp_unlikely(x->narrow) && (flags & DP_ACT_ENCAP)) {
        if (x->shared) {
            return false; /* what was learned is read under the lock */
        }
        p->path_mtu = path_mtu(x, p, act);
    }
    return hops > 1 && p->len - L3 <= dp_way_mtu(p, act);
}

/* Notes the next segment in order, with nothing but data and acknowledgment; false: another one. */
static inline bool follow(struct dp_act *act, const struct dp_packet *p) {
    const uint8_t odd = DP_TCP_SYN | DP_TCP_FIN | DP_TCP_RST | DP_TCP_ACK;
    const struct dp_segment s = dp_tcp_segment(p);
    if (!(dp_get(act->flags) & DP_ACT_ACKED) || (s.flags & odd) != DP_TCP_ACK ||
        s.seq != dp_get(act->next)) {
        return false;
    }
    dp_tcp_advance(act, &s);
    return true;
}

/* Ports of a flow that stands are there: of the policy, which has no more than are counted. */
static inline void enter(const struct way *w, struct dp_packet *p, struct dp_act *act) {
    struct dp_frame *f = p->frame;
    struct dp_port_counters *in = &w->ports[f->port];
    dp_count(&in->rx_frames, 1);
    dp_count(&in->rx_bytes, f->len);
    dp_count(&act->packets, 1);
    dp_count(&act->bytes, p->len);
    dp_set(act->last_ns, w->now_ns);
    f->flags &= DP_CSUM_PARTIAL | DP_CSUM_UNKNOWN;
    if (dp_unlikely(f->flags)) {
        dp_parse_checksum_state(p);
    }
}

static inline void leave(const struct way *w, struct dp_frame *f, const struct dp_act *act,
                         const uint8_t *frame, uint32_t len) {
    struct dp_port_counters *out = &w->ports[act->egress];
    f->off = (uint32_t)(frame - w->arena);
    f->len = len;
    f->port = act->egress;
    f->verdict = DP_FORWARD;
    f->reason = DP_R_none;
    f->flags &= DP_CSUM_PARTIAL;
    f->rule = act->rule;
    f->generation = w->generation;
    f->head = 0;
    dp_count(&out->tx_frames, 1);
    dp_count(&out->tx_bytes, len);
}

/* v4: of a packet's family, known where this is compiled in. */
static dp_inline bool take(const struct pass *x, const struct way *w, struct dp_packet *p,
                           struct dp_half *half, bool v4) {
    struct dp_act *act = &half->act;
    const uint16_t flags = dp_get(act->flags);
    const struct dp_tunnel *tunnel = &w->tunnels[act->adjacency];
    uint8_t *frame = p->data;
    struct dp_ip4 *ip4 = (struct dp_ip4 *)(frame + L3);
    struct dp_ip6 *ip6 = (struct dp_ip6 *)(frame + L3);
    const uint8_t tos = v4 ? ip4->tos : dp_ip6_class(ip6);
    if (dp_unlikely(!stands(w, p, half)) ||
        dp_unlikely(flags & DP_ACT_DECAP ? !came_right(p, tunnel, frame, tos)
                                         : !may_go(x, p, act, flags, v4 ? ip4->ttl : ip6->hops)) ||
        ((flags & DP_ACT_ENCAP) && dp_unlikely(tunnel->odd)) ||
        (p->key.proto == DP_IP_TCP && dp_unlikely(!follow(act, p)))) {
        return false;
    }
    enter(w, p, act);
    if (flags & DP_ACT_NAT) {
        const struct dp_key *mirror = &dp_flow_other(w->flows, p->candidate)->key;
        dp_translate_addresses(frame + L3, half, mirror, v4);
        dp_translate_ports(frame + (v4 ? L4_OF_IP4 : L4_OF_IP6), mirror);
        dp_fix_transport(p, half);
    }
    if ((flags & DP_ACT_TTL) && v4) {
        dp_ip4_hop(ip4);
    } else if (flags & DP_ACT_TTL) {
        ip6->hops--;
    }
    memcpy(frame, act->macs, sizeof act->macs);
    if (!(flags & DP_ACT_ENCAP)) {
        leave(w, p->frame, act, frame, p->len);
    } else if (dp_likely(tunnel->usual)) {
        frame -= sizeof(struct dp_outer4);
        dp_push4(frame, tunnel, p->len, act->outer_sport, tos);
        leave(w, p->frame, act, frame, p->len + (uint32_t)sizeof(struct dp_outer4));
    } else {
        dp_encap(p, tunnel, act->outer_sport, tos);
        leave(w, p->frame, act, p->data, p->len);
    }
    return true;
}

/* Up to one that leaves the lane. */
static inline uint32_t take_some(const struct pass *x, const struct way *w, uint32_t first,
                                 uint32_t end, uint32_t *local) {
    struct dp_packet *const packets = x->w->packets;
    struct dp_packet *p = packets + first;
    for (; p < packets + end && p->lane == DP_EXPRESS && p->candidate; p++) {
        struct dp_half *half = dp_flow_half(w->flows, p->candidate);
        if (!(p->family == 4 ? take(x, w, p, half, true) : take(x, w, p, half, false))) {
            break;
        }
        *local += !(dp_get(half->act.flags) & (DP_ACT_ENCAP | DP_ACT_DECAP));
    }
    return (uint32_t)(p - packets);
}

void dp_express_begin(const struct pass *x, uint32_t n) {
    dp_flow_candidates(&x->e->flows, x->w->packets, n < AHEAD ? n : AHEAD);
}

uint32_t dp_express_take(const struct pass *x, uint32_t first, uint32_t n) {
    struct dp_flows *flows = &x->e->flows;
    const struct way w = {.flows = flows,
                          .tunnels = x->policy->tunnels,
                          .ports = x->count->ports,
                          .arena = x->arena,
                          .now_ns = x->w->now_ns,
                          .generation = x->policy->generation};
    uint32_t i = first, end = first, local = 0;
    while (i == end && i < n) {
        end = n - i < AHEAD ? n : (i | (AHEAD - 1)) + 1;
        if (i % AHEAD == 0) {
            dp_flow_candidates(flows, x->w->packets + end, n - end < AHEAD ? n - end : AHEAD);
        }
        i = take_some(x, &w, i, end, &local);
    }
    dp_count(&x->count->totals.local, local);
    dp_count(&x->count->totals.hits, i - first);
    dp_count(&x->count->totals.forwarded, i - first);
    return i;
}
