/* policy.h: the fixed policy of fuzz_engine: two endpoints, a remote subnet behind an IPv4 and one
 * behind an IPv6 VTEP, a host port, ACL groups, source NAT. seeds.py speaks of the same addresses.
 */
#ifndef FUZZ_POLICY_H
#define FUZZ_POLICY_H
#include "dp.h"

/* Network order, IPv4 as v4-mapped. */
#define V4(a, b, c, d)                                                                             \
    { 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d }
#define FD00(subnet, host)                                                                         \
    { 0xfd, 0, 0, 0, 0, 0, 0, subnet, 0, 0, 0, 0, 0, 0, 0, host }
#define DB8(host)                                                                                  \
    { 0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, host }
#define LEN(array) (sizeof(array) / sizeof *(array))

enum { FUZZ_UNDERLAY, FUZZ_HOST, FUZZ_WEB, FUZZ_DB, FUZZ_PORTS, FUZZ_RULES = 16 };

static const struct dp_port fuzz_ports[] = {
    {.id = FUZZ_UNDERLAY,
     .kind = DP_PORT_UNDERLAY,
     .mtu = 1500,
     .udp_port = 4789,
     .mac = {2, 0, 0, 0, 0, 0x10},
     .ip4 = V4(192, 0, 2, 1),
     .ip6 = DB8(1)},
    {.id = FUZZ_HOST,
     .kind = DP_PORT_HOST,
     .mtu = 1500,
     .mac = {2, 0, 0, 0, 0, 0x20},
     .peer_mac = {2, 0, 0, 0, 0, 0x21},
     .ip4 = V4(198, 51, 100, 1)},
    {.id = FUZZ_WEB, .kind = DP_PORT_ENDPOINT, .mtu = 1450},
    {.id = FUZZ_DB, .kind = DP_PORT_ENDPOINT, .mtu = 1450},
};
static const uint8_t fuzz_addrs[][16] = {
    V4(10, 1, 1, 2), FD00(1, 2), /* web */
    V4(10, 1, 1, 3), FD00(1, 3), /* db */
};
static const struct dp_network fuzz_networks[] = {
    {.vni = 4096,
     .mtu = 1450,
     .dr_mac = {2, 0, 0, 0, 0, 1},
     .gateway4 = V4(10, 1, 0, 1),
     .gateway6 = FD00(0, 1)},
};
static const struct dp_adjacency fuzz_adjacencies[] = {
    {.port = FUZZ_UNDERLAY,
     .mtu = 1450,
     .remote = V4(192, 0, 2, 2),
     .dr_mac = {2, 0, 0, 0, 0, 2},
     .outer_mac = {2, 0, 0, 0, 0, 0x11}},
    {.port = FUZZ_UNDERLAY,
     .mtu = 1430,
     .remote = DB8(2),
     .dr_mac = {2, 0, 0, 0, 0, 2},
     .outer_mac = {2, 0, 0, 0, 0, 0x11}},
};
enum { FUZZ_OUTSIDE, FUZZ_SOURCE_VIP };
static const struct dp_pool fuzz_pools[] = {
    [FUZZ_OUTSIDE] = {.addr = V4(198, 51, 100, 1), .lo = 20000, .hi = 20007, .max_bindings = 4},
    [FUZZ_SOURCE_VIP] = {.addr = V4(10, 1, 0, 1), .lo = 61000, .hi = 61003, .flags = DP_POOL_OPEN},
};
static const struct dp_backend fuzz_backends[] = {
    {V4(10, 1, 1, 2), 80, 0},
    {V4(10, 1, 1, 3), 81, 0},
    {V4(10, 1, 2, 2), 82, 0},
};
/* Of the VIP: with a source VIP, and with direct return; and a node port. */
static const struct dp_service fuzz_services[] = {
    {.addr = V4(10, 1, 9, 9),
     .port = 80,
     .proto = 6,
     .met_at = DP_PORT_ENDPOINT,
     .rule = 10,
     .pool = FUZZ_SOURCE_VIP},
    {.addr = V4(10, 1, 9, 9),
     .port = 99,
     .proto = 17,
     .met_at = DP_PORT_ENDPOINT,
     .affinity = DP_BY_SOURCE,
     .flags = DP_SERVICE_DSR,
     .rule = 11,
     .pool = DP_NONE},
    {.addr = V4(198, 51, 100, 1),
     .port = 30080,
     .proto = 6,
     .met_at = DP_PORT_HOST,
     .rule = 12,
     .pool = FUZZ_SOURCE_VIP},
};
static const struct dp_route fuzz_routes[] = {
    {V4(10, 1, 1, 2), 128, DP_TO_ENDPOINT, 0, 0}, {FD00(1, 2), 128, DP_TO_ENDPOINT, 0, 0},
    {V4(10, 1, 1, 3), 128, DP_TO_ENDPOINT, 0, 1}, {FD00(1, 3), 128, DP_TO_ENDPOINT, 0, 1},
    {V4(10, 1, 0, 1), 128, DP_TO_GATEWAY, 0, 0},  {FD00(0, 1), 128, DP_TO_GATEWAY, 0, 0},
    {V4(10, 1, 2, 0), 120, DP_TO_REMOTE, 0, 0},   {FD00(2, 0), 64, DP_TO_REMOTE, 0, 0},
    {V4(10, 1, 3, 0), 120, DP_TO_REMOTE, 0, 1},   {V4(10, 1, 0, 0), 112, DP_TO_SUBNET, 0, 0},
    {V4(10, 1, 9, 9), 128, DP_TO_VIP, 0, 0},
};
static const struct dp_prefix fuzz_prefixes[] = {
    {.addr = V4(10, 0, 0, 0), .len = 104},
    {.addr = V4(0, 0, 0, 0), .len = 96},
};
static const struct dp_range fuzz_ranges[] = {
    {6, 6}, {17, 17}, {23, 23}, {53, 53}, {80, 90}, {1, 1}, {58, 58},
};

enum { ACL_OUT, NAT, ACL_IN_STRICT, ACL_IN, GROUPS };

/* Out: TCP 23 is rejected, UDP 53 blocked, all else allowed with state. */
static const struct dp_rule acl_out[] = {
    {.id = 0, .priority = 1, .action = DP_REJECT, .proto = {0, 1}, .dport = {2, 1}},
    {.id = 1, .priority = 1, .action = DP_BLOCK, .proto = {1, 1}, .dport = {3, 1}},
    {.id = 2, .priority = 9, .action = DP_ALLOW, .flags = DP_STATEFUL},
};
/* In: UDP without state, TCP 80-90 and both ICMPs with. */
static const struct dp_rule acl_in[] = {
    {.id = 3, .priority = 1, .action = DP_ALLOW, .proto = {1, 1}},
    {.id = 4,
     .priority = 2,
     .action = DP_ALLOW,
     .flags = DP_STATEFUL | DP_TERMINATING,
     .idle_s = 10,
     .proto = {0, 1},
     .dport = {4, 1}},
    {.id = 5, .priority = 3, .action = DP_ALLOW, .flags = DP_STATEFUL, .proto = {5, 2}},
};
/* What every other generation puts before: UDP 53 and 80-90 are passed over, ICMP is blocked. */
static const struct dp_rule acl_in_strict[] = {
    {.id = 6, .priority = 1, .action = DP_PASS, .proto = {1, 1}, .dport = {3, 2}},
    {.id = 7, .priority = 2, .action = DP_BLOCK, .flags = DP_TERMINATING, .proto = {5, 1}},
};
static const struct dp_rule nat[] = {
    {.id = 8, .priority = 1, .action = DP_ALLOW, .flags = DP_TERMINATING, .dst = {0, 1}},
    {.id = 9, .priority = 2, .action = DP_SNAT, .arg = 0, .src = {1, 1}},
};

static struct dp_group *fuzz_group(uint8_t layer, uint32_t name, const struct dp_rule *rules,
                                   uint32_t n, struct dp_error *err) {
    return dp_group_create(layer, name, rules, n, fuzz_prefixes, LEN(fuzz_prefixes), fuzz_ranges,
                           LEN(fuzz_ranges), err);
}

/* Adjacencies as a policy takes them. */
struct fuzz_vteps {
    struct dp_snapshot *base;
    const struct dp_adjacency *adjacencies;
    const uint32_t *ids;
    uint32_t n;
};

/* The policy of a generation; odd ones are stricter. NULL, with the error set, if it is refused. */
static struct dp_snapshot *fuzz_policy_of(uint32_t generation, struct dp_routes *routes,
                                          const struct fuzz_vteps *vteps, struct dp_error *err) {
    const struct dp_span out = {ACL_OUT, 2};
    const struct dp_span in = {ACL_IN_STRICT, 2};
    const struct dp_span lax = {ACL_IN, 1};
    const struct dp_endpoint endpoints[] = {
        {.port = FUZZ_WEB,
         .mac = {2, 0, 0, 0, 1, 2},
         .addrs = {0, 2},
         .groups = {out, generation % 2 ? in : lax},
         .fallback = {DP_BLOCK, DP_BLOCK},
         .stamp = generation},
        {.port = FUZZ_DB,
         .mac = {2, 0, 0, 0, 1, 3},
         .addrs = {2, 2},
         .groups = {out, in},
         .fallback = {DP_ALLOW, DP_ALLOW},
         .stamp = 1},
    };
    struct dp_group *groups[GROUPS] = {
        [ACL_OUT] = fuzz_group(DP_LAYER_ACL, ACL_OUT, acl_out, LEN(acl_out), err),
        [NAT] = fuzz_group(DP_LAYER_NAT, NAT, nat, LEN(nat), err),
        [ACL_IN_STRICT] =
            fuzz_group(DP_LAYER_ACL, ACL_IN_STRICT, acl_in_strict, LEN(acl_in_strict), err),
        [ACL_IN] = fuzz_group(DP_LAYER_ACL, ACL_IN, acl_in, LEN(acl_in), err),
    };
    struct dp_balance *balance = dp_balance_create(fuzz_backends, LEN(fuzz_backends), err);
    const struct dp_policy policy = {.generation = generation,
                                     .base = vteps->base,
                                     .ports = fuzz_ports,
                                     .n_ports = LEN(fuzz_ports),
                                     .networks = fuzz_networks,
                                     .n_networks = LEN(fuzz_networks),
                                     .endpoints = endpoints,
                                     .n_endpoints = LEN(endpoints),
                                     .adjacencies = vteps->adjacencies,
                                     .adjacency_ids = vteps->ids,
                                     .n_adjacencies = vteps->n,
                                     .pools = fuzz_pools,
                                     .n_pools = LEN(fuzz_pools),
                                     .addrs = fuzz_addrs[0],
                                     .n_addrs = LEN(fuzz_addrs),
                                     .groups = groups,
                                     .n_groups = GROUPS,
                                     .routes = &routes,
                                     .n_routes = 1,
                                     .services = fuzz_services,
                                     .n_services = LEN(fuzz_services),
                                     .balances = &balance,
                                     .n_balances = 1};
    struct dp_snapshot *snapshot = dp_snapshot_create(&policy, err);
    for (int i = 0; i < GROUPS; i++) {
        dp_group_release(groups[i]);
    }
    dp_balance_release(balance);
    return snapshot;
}

static struct dp_snapshot *fuzz_policy(uint32_t generation, struct dp_error *err) {
    const struct fuzz_vteps vteps = {NULL, fuzz_adjacencies, NULL, LEN(fuzz_adjacencies)};
    struct dp_routes *routes = dp_routes_create(fuzz_routes, LEN(fuzz_routes), err);
    struct dp_snapshot *snapshot = fuzz_policy_of(generation, routes, &vteps, err);
    dp_routes_release(routes);
    return snapshot;
}

#endif
