/* dp.h: the whole public interface of the engine.
 *
 * The engine is a function of (state, frames, now): it reads no clock, opens no socket, starts
 * no thread. Frames enter and leave in the caller's arena and are changed in place.
 *
 * Threads: as each worker one thread at a time may be inside dp_process or dp_more, as worker 0
 * also inside dp_expire, dp_learn_path or dp_flush, and besides one inside dp_trace or dp_flows (a
 * second one gets DP_EBUSY). Workers share flows and bindings: each frame may come to any of them.
 * What changes state they do one at a time; packets of standing flows they forward at once, and
 * where two of them meet on the same direction of the same flow, that flow's own packets and bytes
 * may count some too few. dp_commit and dp_counters may run on another thread at the same time.
 * Tables and snapshots are immutable once created; retain and release are thread safe. Engines are
 * independent of each other.
 *
 * Addresses are 16 bytes in network order, IPv4 as ::ffff:a.b.c.d; prefix lengths count those
 * 128 bits (10.0.0.0/8 has length 104; below 96 a prefix is of IPv6 and holds no IPv4 address).
 * Ports, VNIs and lengths are in host order.
 *
 * The text between the markers is the cffi declaration as it stands. */
#ifndef DP_H
#define DP_H
#include <stddef.h>
#include <stdint.h>

/* cffi:begin */
enum { DP_ABI = 1, DP_HEADROOM = 128, DP_BURST = 256, DP_NONE = 0x7fffffff, DP_PORT_NONE = 0xffff };

/* ---- frames ------------------------------------------------------------------------------ */

enum dp_verdict {
    DP_FORWARD = 0, /* sent on, to .port */
    DP_DROP = 1,    /* dropped for .reason; if .port is set, the arena now holds an ICMP error */
    DP_ANSWER = 2,  /* consumed; the arena now holds the answer (ARP, ND, echo), for .port */
    DP_HELD = 3     /* kept: a fragment whose datagram's first one has not come; see dp_more */
};

enum dp_frame_flag {
    DP_CSUM_PARTIAL =
        1, /* L4 checksum field holds the pseudo-header sum only (virtio NEEDS_CSUM) */
    DP_CSUM_UNKNOWN = 2,  /* in: a kernel peer may have left the inner checksum partial; find out */
    DP_OUTER_CHECKED = 4, /* in: outer checksums were verified by who received the frame */
    DP_MISS = 8           /* out: took the miss path */
};

/* A super-frame stands for many packets of one flow: one payload behind the headers of the first,
 * to be cut every gso_size bytes by the port that needs it. Its checksum is partial. Behind outer
 * headers they are checked ones, their lengths those of the first packet and a UDP checksum that
 * cannot be left out is 0 when it leaves: each packet has its own. The engine decides about it
 * once; its size is that of its largest packet, and where that is too large its sender is told.
 * Frames above 65535 bytes of IP packet there are none. */
struct dp_frame {
    uint32_t off;    /* first byte, from the start of the arena; DP_HEADROOM bytes free before it */
    uint32_t len;    /* bytes */
    uint16_t port;   /* in: ingress port id; out: egress port id or DP_PORT_NONE */
    uint8_t verdict; /* out: enum dp_verdict */
    uint8_t reason;  /* out: index into reason.def, 0 unless dropped */
    uint8_t flags;   /* enum dp_frame_flag */
    uint8_t gso_type;    /* virtio-net: 0 none, 1 TCPv4, 4 TCPv6, 5 UDP; of TCP | 0x80: with CWR */
    uint16_t gso_size;   /* payload bytes of each packet of a super-frame but the last; or 0 */
    uint16_t csum_start; /* with DP_CSUM_PARTIAL: from the inner frame to its transport header */
    uint16_t csum_field; /* with DP_CSUM_PARTIAL: from the transport header to the field */
    uint32_t rule;       /* out: id of the rule that decided, or DP_NONE */
    uint32_t generation; /* out: of the policy that judged the frame */
    uint16_t
        head; /* out: of a super-frame: bytes of all headers, which each packet repeats; or 0 */
    uint16_t zero;
};

/* ---- policy: immutable tables, then a snapshot of them ------------------------------------ */

enum dp_layer {
    DP_LAYER_GUARD = 0,
    DP_LAYER_ACL = 1,
    DP_LAYER_LB = 2,
    DP_LAYER_NAT = 3,
    DP_LAYER_VNET = 4,
    DP_LAYER_UNDERLAY = 5,
    DP_LAYERS = 6
};
enum dp_direction { DP_OUT = 0, DP_IN = 1 }; /* seen from the endpoint */
enum dp_action {
    DP_ALLOW = 0,
    DP_BLOCK = 1,
    DP_PASS = 2,   /* leave this group without a verdict */
    DP_REJECT = 3, /* block, and tell the sender */
    DP_SNAT = 4    /* source to an address and port of pool .arg */
};
enum dp_rule_flag { DP_TERMINATING = 1, DP_STATEFUL = 2 };
enum dp_route_kind {
    DP_TO_ENDPOINT = 0, /* .target: endpoint index */
    DP_TO_REMOTE = 1,   /* .target: adjacency index */
    DP_TO_GATEWAY = 2,  /* the distributed router itself */
    DP_TO_SUBNET = 3,   /* on-link, owned by no one */
    DP_TO_VIP = 4,      /* a load balancer's: what no service takes goes no further */
    DP_TO_HOST = 5,     /* the host itself, behind the host port */
    DP_TO_DIRECT = 6    /* another node's, by the host's own routes and without a tunnel */
};
enum dp_route_flag {
    DP_ROUTE_ANY_VTEP = 1 /* sources in the prefix may come from any VTEP of the network (DSR) */
};
enum dp_port_kind {
    DP_PORT_UNUSED = 0,
    DP_PORT_ENDPOINT = 1,
    DP_PORT_UNDERLAY = 2,
    DP_PORT_HOST = 3
};

struct dp_route {
    uint8_t prefix[16];
    uint8_t len;
    uint8_t kind;
    uint16_t flags;
    uint32_t target;
};
struct dp_span {
    uint32_t first;
    uint32_t count;
}; /* a slice of an array; count 0 = any */
struct dp_prefix {
    uint8_t addr[16];
    uint8_t len;
    uint8_t zero[3];
};
struct dp_range {
    uint16_t lo;
    uint16_t hi;
}; /* both inclusive */

/* One rule: the conditions are AND-ed, the values of one condition OR-ed. For ICMP the destination
 * port is type << 8 | code and the source port the echo id. */
struct dp_rule {
    uint32_t id;          /* counter slot, below the engine's max_rules */
    uint16_t priority;    /* lower is evaluated first; equal: the order given */
    uint8_t action;       /* enum dp_action */
    uint8_t flags;        /* enum dp_rule_flag */
    uint32_t idle_s;      /* idle time of the flows it decides, 0 = by protocol */
    uint32_t arg;         /* DP_SNAT: pool index */
    struct dp_span src;   /* of prefixes */
    struct dp_span dst;   /* of prefixes */
    struct dp_span sport; /* of ranges */
    struct dp_span dport; /* of ranges */
    struct dp_span proto; /* of ranges, 0-255 */
};

struct dp_port {
    uint16_t id;  /* below the engine's max_ports */
    uint8_t kind; /* enum dp_port_kind */
    uint8_t zero;
    uint16_t mtu;        /* largest IP packet the port carries */
    uint16_t udp_port;   /* underlay: VXLAN destination port */
    uint8_t mac[6];      /* our side: underlay and host */
    uint8_t peer_mac[6]; /* host: the TAP's own MAC */
    uint8_t ip4[16];     /* our side: VTEP or host link address; all zero = none */
    uint8_t ip6[16];
    uint32_t stamp; /* host: generation that last changed what may pass it */
};
/* How a network stands on the wire; none of them: as RFC 7348 has it. */
enum dp_wire_flag {
    DP_WIRE_DF_CLEAR = 1,      /* outer DF clear; no packet is fragmented here in any case */
    DP_WIRE_DF_INHERIT = 2,    /* outer DF as the inner IPv4 packet's; IPv6: set */
    DP_WIRE_UDP_CHECKSUM = 4,  /* outer UDP checksum over IPv4 too */
    DP_WIRE_STRICT = 8,        /* a VXLAN header with a reserved bit is dropped */
    DP_WIRE_UDP6_ZERO_RX = 16, /* a zero UDP checksum over IPv6 is accepted (RFC 6936) */
    DP_WIRE_VLAN_STRIP = 32,   /* frames of endpoints lose a single 802.1Q tag */
    DP_WIRE_DSCP_BACK = 64     /* uniform: the outer DSCP becomes the inner one on receipt */
};
enum { DP_DSCP_COPY = 64 };

struct dp_network {
    uint32_t vni;
    uint16_t mtu;         /* largest inner IP packet */
    uint8_t dr_mac[6];    /* distributed router */
    uint32_t routes;      /* index into dp_policy.routes */
    uint32_t domain;      /* networks of one routing domain may route into each other; 0 = alone */
    uint8_t ttl;          /* outer TTL or hop limit; 0 = 64 */
    uint8_t dscp;         /* outer DSCP: 0-63, or DP_DSCP_COPY of the inner packet's */
    uint16_t wire;        /* enum dp_wire_flag */
    uint8_t gateway4[16]; /* source of ICMP errors; zero = none */
    uint8_t gateway6[16];
    uint32_t max_flows; /* pairs; at most so many, 0 = no quota */
};
struct dp_endpoint {
    uint32_t network;
    uint16_t port;
    uint8_t mac[6];
    struct dp_span addrs;     /* of addresses */
    struct dp_span groups[2]; /* [DP_OUT, DP_IN] of groups, in the order they are walked */
    uint8_t fallback[2];      /* DP_ALLOW or DP_BLOCK where no ACL rule matches, by direction */
    uint16_t zero;
    uint32_t stamp;     /* generation that last changed what this endpoint may do */
    uint32_t max_flows; /* pairs it began; at most so many, 0 = no quota */
};
/* A VTEP of one network as this node reaches it, and takes packets from. Ids are stable from commit
 * to commit. */
struct dp_adjacency {
    uint32_t network;
    uint16_t port;        /* underlay port */
    uint16_t mtu;         /* largest inner IP packet on this path */
    uint8_t remote[16];   /* provider address */
    uint8_t dr_mac[6];    /* inner destination MAC */
    uint8_t outer_mac[6]; /* next hop on the underlay */
};
enum dp_pool_flag {
    DP_POOL_SYMMETRIC =
        1,           /* a binding for each remote address and port; else endpoint independent */
    DP_POOL_OPEN = 2 /* a bound port takes new flows from anyone (RFC 4787 REQ-8) */
};
/* Outside address and ports of a source NAT. */
struct dp_pool {
    uint8_t addr[16];
    uint16_t lo;
    uint16_t hi;
    uint32_t flags;        /* enum dp_pool_flag */
    uint32_t max_bindings; /* of one endpoint; 0 = no quota */
};

enum dp_backend_flag { DP_BACKEND_DRAINING = 1 }; /* keeps its flows, gets no new ones */
struct dp_backend {
    uint8_t addr[16];
    uint16_t port;
    uint16_t flags; /* enum dp_backend_flag */
};
enum dp_affinity {
    DP_BY_FLOW = 0,           /* each flow by itself */
    DP_BY_SOURCE = 1,         /* all flows of a source address to one backend */
    DP_BY_SOURCE_PROTOCOL = 2 /* … and protocol */
};
enum dp_service_flag {
    DP_SERVICE_DSR = 1 /* a remote backend's node gets the packet as it came and answers directly */
};
/* One address, protocol and port of a load balancer or a port mapping, and where its flows go. */
struct dp_service {
    uint8_t addr[16];
    uint16_t port;
    uint8_t proto;
    uint8_t met_at;   /* enum dp_port_kind: where its clients come in */
    uint8_t affinity; /* enum dp_affinity */
    uint8_t flags;    /* enum dp_service_flag */
    uint8_t zero[2];
    uint32_t network; /* of the backends, and of clients that are not met at the host port */
    uint32_t rule;    /* counter slot */
    uint32_t pool;    /* source VIP where answers would else go astray, or DP_NONE */
    uint32_t balance; /* index into dp_policy.balances */
};

/* ICMP errors a second, and at once where there were none for a while: to one ingress port, and to
 * all of them together. At most a million each. How it is counted: limit.h. */
struct dp_icmp_rate {
    uint32_t port;
    uint32_t port_burst;
    uint32_t all;
    uint32_t all_burst;
};

struct dp_balance;  /* immutable: backends, and the table that spreads flows over them */
struct dp_group;    /* immutable classifier over rules of one layer and direction */
struct dp_routes;   /* immutable longest-prefix table */
struct dp_snapshot; /* immutable policy of one generation */
struct dp_engine;

/* Idle seconds; 0 keeps the default. Half-open TCP is kept for less than RFC 5382 REQ-5 has it, its
 * NAT binding is not: a lapse costs the next SYN a walk and no more, while a flood would hold the
 * table for as long. SYNs are sent again after 1, 3, 7, 15 seconds (RFC 6298), so 30 is more than
 * the silence of a handshake that goes on. */
struct dp_timers {
    uint32_t tcp_established; /* 7440: RFC 5382 REQ-5 */
    uint32_t tcp_transitory;  /* 240: RFC 5382 REQ-5, once both sides were seen */
    uint32_t tcp_half_open;   /* 30: only one side was seen */
    uint32_t udp;             /* 300: RFC 4787 REQ-5 */
    uint32_t icmp;            /* 60: RFC 5508 REQ-2 */
    uint32_t other;           /* 300 */
    uint32_t fragment;        /* 30: how long a datagram may be incomplete */
    uint32_t path_mtu;        /* 600: how long a learned one holds (RFC 1191 section 6.3) */
};

/* base: NULL, or a snapshot whose adjacencies this one has too, but for those that are named; if it
 * is the newest one made so, they are shared and not copied. Its networks are the first ones here.
 */
struct dp_policy {
    uint32_t generation; /* above every earlier one */
    struct dp_snapshot *base;
    const struct dp_port *ports;
    uint32_t n_ports;
    const struct dp_network *networks;
    uint32_t n_networks;
    const struct dp_endpoint *endpoints;
    uint32_t n_endpoints;
    const struct dp_adjacency *adjacencies; /* without a port (DP_PORT_NONE): there is none */
    const uint32_t *adjacency_ids;          /* ascending; NULL: 0, 1, … */
    uint32_t n_adjacencies;
    const struct dp_pool *pools;
    uint32_t n_pools;
    const uint8_t *addrs;
    uint32_t n_addrs; /* 16 bytes each */
    struct dp_group *const *groups;
    uint32_t n_groups;
    struct dp_routes *const *routes;
    uint32_t n_routes;
    const struct dp_service *services;
    uint32_t n_services;
    struct dp_balance *const *balances;
    uint32_t n_balances;
    struct dp_timers timers;  /* 0: as the engine was created with */
    struct dp_icmp_rate icmp; /* all 0: as the engine was created */
};

/* Where a rejected object stands: .what is "rule", "route", "port", …; .index its place. */
struct dp_error {
    int status;
    const char *what;
    uint32_t index;
    const char *why;
};

struct dp_group *dp_group_create(uint8_t layer, uint32_t name, const struct dp_rule *rules,
                                 uint32_t n_rules, const struct dp_prefix *prefixes,
                                 uint32_t n_prefixes, const struct dp_range *ranges,
                                 uint32_t n_ranges, struct dp_error *err);
void dp_group_release(struct dp_group *group);
struct dp_routes *dp_routes_create(const struct dp_route *routes, uint32_t n, struct dp_error *err);
/* The table of base without some prefixes (what else their routes say does not matter), then with
 * others. It costs what changes: all else is shared. */
struct dp_routes *dp_routes_edit(const struct dp_routes *base, const struct dp_route *gone,
                                 uint32_t n_gone, const struct dp_route *come, uint32_t n_come,
                                 struct dp_error *err);
/* How many routes lead to an adjacency. */
uint32_t dp_routes_uses(const struct dp_routes *routes, uint32_t adjacency);
void dp_routes_release(struct dp_routes *routes);
/* Maglev (Eisenbud et al., NSDI 2016): removing one of n backends moves about 1/n of new flows. */
struct dp_balance *dp_balance_create(const struct dp_backend *backends, uint32_t n,
                                     struct dp_error *err);
void dp_balance_release(struct dp_balance *balance);
struct dp_snapshot *dp_snapshot_create(const struct dp_policy *policy, struct dp_error *err);
void dp_snapshot_release(struct dp_snapshot *snapshot);

/* ---- engine ------------------------------------------------------------------------------- */

struct dp_limits {
    uint32_t max_flows;    /* flow pairs */
    uint32_t max_bindings; /* NAT bindings */
    uint32_t max_ports;
    uint32_t max_rules;
    uint32_t max_datagrams;   /* incomplete ones; 0 keeps the default: 4096 */
    uint32_t max_kept;        /* frames, of 9.5 KiB each; 0 keeps the default: 1024 */
    struct dp_icmp_rate icmp; /* 0 keeps the default: 100, 50, 1000, 200 */
    uint32_t max_workers;     /* threads that judge frames at the same time; 0 = 1 */
    uint32_t max_observed;    /* bytes of records that wait; 0 keeps the default: 8 MiB */
};
/* key: 32 random bytes of the caller; all tables are hashed under it. */
struct dp_engine *dp_engine_create(const struct dp_limits *limits, const struct dp_timers *timers,
                                   const uint8_t key[32], struct dp_error *err);
void dp_engine_destroy(struct dp_engine *engine);
uint32_t dp_worker_count(const struct dp_engine *engine);
/* Publishes a snapshot and waits until no burst still runs on the old one. Takes a reference. */
int dp_commit(struct dp_engine *engine, struct dp_snapshot *snapshot, struct dp_error *err);

/* Judges n frames in place, as a worker of 0 to max_workers - 1. now_ns never runs backwards (an
 * earlier one counts as the latest). */
int dp_process(struct dp_engine *engine, uint32_t worker, uint8_t *arena, size_t arena_len,
               struct dp_frame *frames, uint32_t n, uint64_t now_ns);
/* Gives out what the engine kept or made: fragments whose first one has come since, pieces of
 * packets too large for their way. Up to n frames are put into the caller's slots (each
 * frames[i].off and .len say where there is room, with DP_HEADROOM in front) and judged as
 * dp_process would. Returns how many, or DP_EINVAL where the next one does not fit. To be called
 * after dp_process until it returns 0; what is not fetched takes room from what comes later. */
int dp_more(struct dp_engine *engine, uint32_t worker, uint8_t *arena, size_t arena_len,
            struct dp_frame *frames, uint32_t n, uint64_t now_ns);
/* Looks at up to budget flow pairs and bindings and removes the idle ones; returns how many, or a
 * status. */
int dp_expire(struct dp_engine *engine, uint64_t now_ns, uint32_t budget);
/* An ICMP message about a packet of ours to a provider address: its path carries mtu bytes, outer
 * IP header included. vni: of the packet it quotes, or DP_NONE where it quotes too little. Believed
 * if the policy has the address as a VTEP of that network (or of any), never below 576 bytes (IPv6:
 * 1280), and only where it is less than what is known; returns whether it was. */
int dp_learn_path(struct dp_engine *engine, const uint8_t remote[16], uint32_t vni, uint16_t mtu,
                  uint64_t now_ns);
/* What was learned of the path to a provider address and holds still, and when it will be
 * forgotten; 0: nothing. */
int dp_path_mtu(struct dp_engine *engine, const uint8_t remote[16], uint64_t now_ns,
                uint64_t *until_ns);
/* Forgets all flows and bindings, and drops what is held. */
int dp_flush(struct dp_engine *engine);
/* Packets that an egress port could not send: their forward count becomes a drop for the reason. */
void dp_egress_drop(struct dp_engine *engine, uint32_t worker, uint16_t port, uint8_t reason,
                    uint32_t packets, uint64_t bytes);

/* ---- looking ------------------------------------------------------------------------------ */

/* All of them count packets as they are on the wire: a super-frame as many as it is cut into (the
 * headers of each among the bytes) once its headers are parsed, one that is dropped before as one.
 * Only hits, misses and reconciled count decisions, and so frames. */
struct dp_port_counters {
    uint64_t rx_frames;
    uint64_t rx_bytes;
    uint64_t tx_frames; /* forwarded + originated, to this port */
    uint64_t tx_bytes;
    uint64_t originated; /* of tx: answers and ICMP errors made here */
    uint64_t consumed;   /* of rx: answered */
    uint64_t dropped;    /* of rx: counted under a reason */
};
struct dp_totals {
    uint64_t rx;
    uint64_t forwarded;
    uint64_t dropped;
    uint64_t consumed;
    uint64_t originated;
    uint64_t icmp_limited; /* ICMP errors due, but not sent: too many */
    uint64_t hits;
    uint64_t misses;
    uint64_t reconciled;
    uint64_t local;  /* forwarded without leaving this host: no outer headers put on or taken off */
    uint64_t copies; /* frames made of others: all pieces of a packet but the first */
    uint64_t held;   /* kept now, see dp_more */
    uint64_t flows;  /* pairs alive */
    uint64_t bindings; /* alive */
    uint64_t paths;    /* whose MTU was learned */
    uint64_t expired;
    uint64_t evicted;     /* half-open pairs that gave way to new ones */
    uint64_t rule_blocks; /* searched by walks: 512 rules each, in five binary searches */
    uint64_t generation;
};
/* The law: rx + copies == forwarded + dropped + consumed + held. Any pointer may be NULL. */
int dp_counters(struct dp_engine *engine, struct dp_totals *totals, uint64_t *reasons,
                uint32_t n_reasons, struct dp_port_counters *ports, uint32_t n_ports,
                uint64_t *rules, uint32_t n_rules, uint64_t *layers, uint32_t n_layers);

struct dp_flow_info {
    uint8_t src[16]; /* initiator's addresses and ports as sent */
    uint8_t dst[16];
    uint8_t new_src[16]; /* as they leave */
    uint8_t new_dst[16];
    uint16_t sport;
    uint16_t dport;
    uint16_t new_sport;
    uint16_t new_dport;
    uint8_t proto;
    uint8_t state; /* 1 initiator seen, 2 responder seen, 4 closing; not both seen: half-open */
    uint16_t in_port;
    uint16_t out_port;
    uint32_t vni;
    uint32_t adjacency;
    uint32_t rule;
    uint32_t generation;
    uint64_t packets[2]; /* initiator, responder */
    uint64_t bytes[2];
    uint64_t last_ns[2];
};
/* Copies up to n flows from *cursor (0 at first) on; returns how many, advances *cursor;
 * fewer than n: that was the end. */
int dp_flows(struct dp_engine *engine, uint32_t *cursor, struct dp_flow_info *out, uint32_t n);

/* What of flows and bindings outlives a process, in a format of its own: DP_SAVED changes with it.
 * Times are those of the clock that both processes read. */
enum { DP_SAVED = 1 };
struct dp_saved_binding {
    uint8_t addr[16]; /* inside, as it comes in */
    uint8_t remote[16];
    uint8_t out[16]; /* outside */
    uint32_t vni;
    uint16_t place; /* ingress port id */
    uint16_t port;
    uint16_t remote_port;
    uint16_t out_port;
    uint8_t proto;
    uint8_t portless;
    uint16_t zero;
    uint64_t last_ns;
    uint64_t idle_ns;
};
struct dp_saved_half {
    uint8_t src[16]; /* the flow id of this direction's packets as they come in */
    uint8_t dst[16];
    uint32_t vni;
    uint16_t sport;
    uint16_t dport;
    uint16_t port;
    uint16_t flags; /* 1: can be found; 2: ack is known */
    uint32_t next;
    uint32_t ack;
    uint32_t zero;
    uint64_t packets;
    uint64_t bytes;
    uint64_t last_ns;
};
struct dp_saved_flow {
    struct dp_saved_half half[2]; /* of initiator and responder */
    uint32_t binding;             /* place among the saved ones, or DP_NONE */
    uint32_t idle_s;              /* by rule; 0 = by protocol */
    uint8_t proto;
    uint8_t state; /* as in struct dp_flow_info */
    uint8_t zero[6];
};
/* As dp_flows, of what is to be saved: of bindings by their places in the table, which flows
 * name. */
int dp_save_flows(struct dp_engine *engine, uint32_t *cursor, struct dp_saved_flow *out,
                  uint32_t n);
int dp_save_bindings(struct dp_engine *engine, uint32_t *cursor, struct dp_saved_binding *out,
                     uint32_t *places, uint32_t n);
/* Takes them over into an engine that has a policy: each flow is judged by it on its next packet,
 * keeping translation, backend, state and counters where it still allows them. Port ids must mean
 * what they meant. places: of the bindings, as saved. What does not fit, or is no flow, is left
 * out; returns how many flows came in. Any thread. */
int dp_restore(struct dp_engine *engine, const struct dp_saved_binding *bindings,
               const uint32_t *places, uint32_t n_bindings, const struct dp_saved_flow *flows,
               uint32_t n_flows, uint64_t now_ns);

/* Where frames and flows can be observed. */
enum dp_at {
    DP_AT_RX = 1,     /* frames as they came */
    DP_AT_DROP = 2,   /* dropped ones, as they came */
    DP_AT_NEW = 4,    /* those that began a flow, as they came */
    DP_AT_TX = 8,     /* frames as they leave */
    DP_AT_ENCAP = 16, /* of those: with outer headers that were put on here */
    DP_AT_DECAP = 32, /* of those: without the outer headers they came with */
    DP_AT_END = 64,   /* flows that are forgotten */
    DP_AT_ALL = 127
};
/* What was seen at one point. Behind it stand `snap` bytes of the frame, of DP_AT_END a struct
 * dp_flow_info. */
struct dp_seen {
    uint32_t size; /* of this record, the bytes behind it and up to the next multiple of 8 */
    uint32_t snap;
    uint32_t len;     /* of the frame, all of it */
    uint32_t packets; /* that it stands for */
    uint64_t now_ns;
    uint32_t rule; /* that decided, or DP_NONE */
    uint32_t generation;
    uint16_t in_port; /* or DP_PORT_NONE */
    uint16_t egress;  /* or DP_PORT_NONE */
    uint8_t point;    /* one of enum dp_at */
    uint8_t reason;   /* of drops */
    uint8_t zero[2];
};
/* Records what passes at some points from now on, up to `snap` bytes of each frame; 0: no more. Any
 * thread. */
int dp_observe(struct dp_engine *engine, uint32_t points, uint32_t snap);
/* Takes whole records, oldest first; returns their bytes, 0 where there is none, DP_EINVAL where
 * the next one is larger than `size`. lost: how many found no room since the last call. Any thread.
 */
int dp_seen(struct dp_engine *engine, uint8_t *out, uint32_t size, uint64_t *lost);

/* One thing tried on the way of a traced frame. */
enum dp_step_kind {
    DP_STEP_PARSE = 0, /* what the parser found */
    DP_STEP_FLOW = 1,  /* flow lookup: .matched = hit */
    DP_STEP_LAYER = 2, /* a layer was entered and said .action / .reason */
    DP_STEP_GROUP = 3, /* .group was walked; .rule matched or DP_NONE */
    DP_STEP_RULE = 4,  /* .rule of .group was looked at and .matched or not */
    DP_STEP_VERDICT = 5
};
struct dp_step {
    uint8_t kind;
    uint8_t layer;     /* enum dp_layer */
    uint8_t direction; /* enum dp_direction */
    uint8_t matched;
    uint8_t action; /* enum dp_action */
    uint8_t reason;
    uint16_t port;
    uint32_t group; /* name given at dp_group_create, or DP_NONE */
    uint32_t rule;
    uint32_t adjacency;
    uint32_t vni;
    uint8_t src[16]; /* the flow id after this step */
    uint8_t dst[16];
    uint16_t sport;
    uint16_t dport;
    uint8_t proto;
    uint8_t ttl;
    uint16_t zero;
};
/* The same path as dp_process for one frame, changing no state and no counter; the frame is
 * rewritten. Returns the number of steps written (at most n) or a status. */
int dp_trace(struct dp_engine *engine, uint8_t *arena, size_t arena_len, struct dp_frame *frame,
             uint64_t now_ns, struct dp_step *steps, uint32_t n);

/* ---- names -------------------------------------------------------------------------------- */

int dp_abi(void);
uint32_t dp_reason_count(void);
const char *dp_reason_name(uint32_t i);
const char *dp_reason_layer(uint32_t i);
const char *dp_reason_text(uint32_t i);
const char *dp_status_name(int status);
const char *dp_status_text(int status);
/* cffi:end */

#endif
