/* workers.c: several workers on the same few flows, commits, expiry, listing and counters beside
 * them, all through the public interface; built with the thread sanitizer by tests/test_workers.py.
 *
 * Frames are drawn from so few addresses and ports that workers meet in the same directions of the
 * same flows, and the flow table is so small that pairs give way to others all the time. At the end
 * everything adds up. */
#include "../csrc/check.h"
#include "../fuzz/policy.h"
#include "checksum.h"
#include "wire.h"
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <string.h>

enum { WORKERS = 4, BATCH = 64, SLOT = 512, ROUNDS = 400, FLOWS = 96, REASONS = 256, LIST = 64 };

static struct dp_engine *engine;
static atomic_bool over;
static atomic_ullong now_ns;

static const uint8_t web[4] = {10, 1, 1, 2};
static const uint8_t db[4] = {10, 1, 1, 3};
static const uint8_t remote[4] = {10, 1, 2, 9};
static const uint8_t outside[4] = {203, 0, 113, 9};
static const uint8_t link_host[4] = {198, 51, 100, 1};

/* ---- frames ------------------------------------------------------------------------------- */

struct ends {
    uint16_t port;
    const uint8_t *src, *dst;
    uint16_t sport, dport;
};

static struct ends draw_ends(uint64_t *dice) {
    const uint16_t near = (uint16_t)(1000 + check_random(dice) % 24);
    switch (check_random(dice) % 7) {
    case 0:
        return (struct ends){FUZZ_WEB, web, db, near, 2000};
    case 1:
        return (struct ends){FUZZ_DB, db, web, 2000, near};
    case 2:
        return (struct ends){FUZZ_WEB, web, remote, near, 2000};
    case 3:
        return (struct ends){FUZZ_UNDERLAY, remote, web, 2000, near};
    case 4:
        return (struct ends){FUZZ_WEB, web, outside, near, 443};
    case 5:
        return (struct ends){FUZZ_HOST, outside, link_host, 443,
                             (uint16_t)(20000 + check_random(dice) % 8)};
    default:
        return (struct ends){FUZZ_DB, db, remote, near, 80};
    }
}

static void put_ip4(struct dp_ip4 *ip, uint32_t total, uint8_t proto, const uint8_t src[4],
                    const uint8_t dst[4]) {
    *ip = (struct dp_ip4){.version_ihl = 0x45, .total = be16_put(total), .ttl = 64, .proto = proto};
    memcpy(ip->src, src, 4);
    memcpy(ip->dst, dst, 4);
    ip->csum = (uint16_t)~dp_csum_fold(dp_csum_add(0, ip, sizeof *ip));
}

/* Towards our router; returns the length. */
static uint32_t put_inner(uint8_t *at, const struct ends *e, uint64_t *dice) {
    static const uint8_t router[6] = {2, 0, 0, 0, 0, 1};
    static const uint8_t host[6] = {2, 0, 0, 0, 0, 0x20};
    struct dp_eth *eth = (struct dp_eth *)at;
    struct dp_ip4 *ip = (struct dp_ip4 *)(eth + 1);
    const bool tcp = check_random(dice) % 2;
    memset(at, 0, sizeof *eth + sizeof *ip + sizeof(struct dp_tcp));
    memcpy(eth->dst, e->port == FUZZ_HOST ? host : router, 6);
    memcpy(eth->src, (const uint8_t[]){2, 0, 0, 0, 1, e->port == FUZZ_DB ? 3 : 2}, 6);
    eth->type = be16_put(DP_ETH_IP4);
    if (tcp) {
        struct dp_tcp *t = (struct dp_tcp *)(ip + 1);
        *t = (struct dp_tcp){.sport = be16_put(e->sport),
                             .dport = be16_put(e->dport),
                             .seq = be32_put(1),
                             .ack = be32_put(1),
                             .offset = 5 << 4,
                             .flags = DP_TCP_ACK};
        t->flags |= check_random(dice) % 50 ? 0 : DP_TCP_FIN;
        put_ip4(ip, sizeof *ip + sizeof *t, DP_IP_TCP, e->src, e->dst);
        return sizeof *eth + sizeof *ip + sizeof *t;
    }
    struct dp_udp *u = (struct dp_udp *)(ip + 1);
    *u = (struct dp_udp){
        .sport = be16_put(e->sport), .dport = be16_put(e->dport), .len = be16_put(sizeof *u)};
    put_ip4(ip, sizeof *ip + sizeof *u, DP_IP_UDP, e->src, e->dst);
    return sizeof *eth + sizeof *ip + sizeof *u;
}

static uint32_t put_outer(uint8_t *at, uint32_t inner) {
    static const uint8_t peer[4] = {192, 0, 2, 2};
    static const uint8_t own[4] = {192, 0, 2, 1};
    struct dp_outer4 *o = (struct dp_outer4 *)at;
    memset(o, 0, sizeof *o);
    o->eth.type = be16_put(DP_ETH_IP4);
    put_ip4(&o->ip, sizeof *o - sizeof o->eth + inner, DP_IP_UDP, peer, own);
    o->udp = (struct dp_udp){.sport = be16_put(50000),
                             .dport = be16_put(4789),
                             .len = be16_put(sizeof o->udp + sizeof o->vxlan + inner)};
    o->vxlan = (struct dp_vxlan){.flags = DP_VXLAN_I, .vni = {0, 16, 0}};
    return sizeof *o + inner;
}

/* Now and then a fragment, or nonsense. */
static void draw_frame(uint8_t *at, struct dp_frame *f, uint64_t *dice) {
    const struct ends e = draw_ends(dice);
    const uint32_t front = e.port == FUZZ_UNDERLAY ? sizeof(struct dp_outer4) : 0;
    uint32_t len = put_inner(at + front, &e, dice);
    struct dp_ip4 *ip = (struct dp_ip4 *)(at + front + sizeof(struct dp_eth));
    if (check_random(dice) % 20 == 0) {
        ip->frag = be16_put(check_random(dice) % 2 ? DP_IP4_MF : 1);
        ip->csum = 0;
        ip->csum = (uint16_t)~dp_csum_fold(dp_csum_add(0, ip, sizeof *ip));
    } else if (check_random(dice) % 20 == 0) {
        at[front + check_random(dice) % len] ^= (uint8_t)(1 << check_random(dice) % 8);
    }
    len = front ? put_outer(at, len) : len;
    f->len = len;
    f->port = e.port;
}

/* ---- threads ------------------------------------------------------------------------------ */

static void *work(void *number) {
    const uint32_t worker = *(const uint32_t *)number;
    static uint8_t arenas[WORKERS][BATCH * SLOT];
    uint8_t *arena = arenas[worker];
    struct dp_frame frames[BATCH];
    uint64_t dice = 77 + worker;
    for (int round = 0; round < ROUNDS; round++) {
        for (uint32_t i = 0; i < BATCH; i++) {
            frames[i] = (struct dp_frame){.off = i * SLOT + DP_HEADROOM};
            draw_frame(arena + frames[i].off, &frames[i], &dice);
        }
        const uint64_t now = atomic_fetch_add(&now_ns, 100000);
        int status;
        while ((status = dp_process(engine, worker, arena, BATCH * SLOT, frames, BATCH, now)) ==
               DP_EBUSY) {
            sched_yield();
        }
        CHECK(status == 0);
        for (uint32_t i = 0; i < BATCH; i++) {
            CHECK(frames[i].verdict <= DP_HELD &&
                  (frames[i].reason != 0) == (frames[i].verdict == DP_DROP));
        }
        do {
            for (uint32_t i = 0; i < BATCH; i++) {
                const uint32_t off = i * SLOT + DP_HEADROOM;
                frames[i] = (struct dp_frame){.off = off, .len = SLOT - DP_HEADROOM};
            }
            status = dp_more(engine, worker, arena, BATCH * SLOT, frames, BATCH, now);
        } while (status > 0 || status == DP_EBUSY);
        CHECK(status == 0);
    }
    return NULL;
}

/* The policy with one VTEP under another number: that of the odd generations, or of the even ones.
 * The table is replaced by its edited one. */
static struct dp_snapshot *edited(struct dp_snapshot *base, struct dp_routes **routes,
                                  uint32_t generation, struct dp_error *err) {
    enum { VTEP = LEN(fuzz_adjacencies) - 1 };
    const uint32_t ids[] = {VTEP, VTEP + 1};
    struct dp_adjacency rows[] = {{.port = DP_PORT_NONE}, {.port = DP_PORT_NONE}};
    const uint32_t to = generation % 2 ? 0 : 1;
    rows[to] = fuzz_adjacencies[VTEP];
    struct dp_route moved[LEN(fuzz_routes)];
    uint32_t n = 0;
    for (uint32_t i = 0; i < LEN(fuzz_routes); i++) {
        if (fuzz_routes[i].kind == DP_TO_REMOTE && fuzz_routes[i].target == VTEP) {
            moved[n] = fuzz_routes[i];
            moved[n++].target = ids[to];
        }
    }
    CHECK(n > 0);
    struct dp_routes *next = dp_routes_edit(*routes, moved, n, moved, n, err);
    CHECK(next);
    dp_routes_release(*routes);
    *routes = next;
    const struct fuzz_vteps vteps = {base, rows, ids, 2};
    return fuzz_policy_of(generation, next, &vteps, err);
}

/* Of eight generations one is made from scratch, the others from the one before. */
static void *commit(void *unused) {
    (void)unused;
    struct dp_error error;
    struct dp_snapshot *last = NULL;
    struct dp_routes *routes = dp_routes_create(fuzz_routes, LEN(fuzz_routes), &error);
    for (uint32_t generation = 3; !atomic_load(&over); generation++) {
        struct dp_snapshot *policy = last && generation % 8 != 1
                                         ? edited(last, &routes, generation, &error)
                                         : fuzz_policy(generation, &error);
        CHECK(policy && dp_commit(engine, policy, &error) == 0);
        dp_snapshot_release(last);
        last = policy;
        sched_yield();
    }
    dp_snapshot_release(last);
    dp_routes_release(routes);
    return NULL;
}

/* What any thread may do besides, and worker 0, which another thread is now and then. */
static void *look(void *unused) {
    (void)unused;
    static const uint8_t vtep[16] = V4(192, 0, 2, 2);
    static uint8_t seen[1 << 20];
    struct dp_flow_info list[LIST];
    struct dp_totals totals;
    uint64_t lost;
    for (uint32_t turn = 0; !atomic_load(&over); turn++) {
        uint32_t cursor = 0;
        int n;
        while ((n = dp_flows(engine, &cursor, list, LIST)) == LIST) {
            CHECK(list[0].vni == 4096 || list[0].vni == 0);
        }
        CHECK(n >= 0 || n == DP_EBUSY);
        CHECK(dp_counters(engine, &totals, NULL, 0, NULL, 0, NULL, 0, NULL, 0) == 0);
        CHECK(totals.flows <= FLOWS);
        CHECK(dp_observe(engine, turn % 4 ? DP_AT_ALL : 0, 64) == 0);
        CHECK(dp_seen(engine, seen, sizeof seen, &lost) >= 0);
        (void)dp_expire(engine, atomic_load(&now_ns), 16);
        (void)dp_learn_path(engine, vtep, DP_NONE, 1400, atomic_load(&now_ns));
        if (turn % 64 == 0) {
            (void)dp_flush(engine);
        }
        sched_yield();
    }
    return NULL;
}

static void check_sums(void) {
    struct dp_totals t;
    uint64_t reasons[REASONS];
    struct dp_port_counters ports[FUZZ_PORTS];
    CHECK(dp_flush(engine) == 0);
    CHECK(dp_counters(engine, &t, reasons, dp_reason_count(), ports, FUZZ_PORTS, NULL, 0, NULL,
                      0) == 0);
    uint64_t dropped = 0;
    uint64_t rx = 0;
    uint64_t tx = 0;
    for (uint32_t i = 1; i < dp_reason_count(); i++) {
        dropped += reasons[i];
    }
    for (int i = 0; i < FUZZ_PORTS; i++) {
        rx += ports[i].rx_frames;
        tx += ports[i].tx_frames;
    }
    CHECK(t.rx == (uint64_t)WORKERS * ROUNDS * BATCH && rx == t.rx && dropped == t.dropped);
    CHECK(t.rx + t.copies == t.forwarded + t.dropped + t.consumed + t.held && t.held == 0);
    CHECK(tx == t.forwarded + t.originated && t.flows == 0 && t.bindings == 0);
    CHECK(t.hits > t.rx / 10 && t.misses > 100 && t.reconciled > 0 && t.evicted > 0);
    printf("%llu frames, %llu hits, %llu misses, %llu reconciled, %llu evicted, %llu dropped\n",
           (unsigned long long)t.rx, (unsigned long long)t.hits, (unsigned long long)t.misses,
           (unsigned long long)t.reconciled, (unsigned long long)t.evicted,
           (unsigned long long)t.dropped);
}

int main(void) {
    static const uint8_t key[32] = {1, 2, 3};
    static const uint32_t numbers[WORKERS] = {0, 1, 2, 3};
    const struct dp_limits limits = {.max_flows = FLOWS,
                                     .max_bindings = FLOWS,
                                     .max_ports = FUZZ_PORTS,
                                     .max_rules = FUZZ_RULES,
                                     .max_workers = WORKERS};
    struct dp_error error;
    struct dp_snapshot *policy = fuzz_policy(1, &error);
    pthread_t workers[WORKERS];
    pthread_t others[2];
    engine = dp_engine_create(&limits, NULL, key, &error);
    CHECK(engine && policy && dp_commit(engine, policy, &error) == 0);
    dp_snapshot_release(policy);
    for (int i = 0; i < WORKERS; i++) {
        CHECK(pthread_create(&workers[i], NULL, work, (void *)(uintptr_t)&numbers[i]) == 0);
    }
    CHECK(pthread_create(&others[0], NULL, commit, NULL) == 0);
    CHECK(pthread_create(&others[1], NULL, look, NULL) == 0);
    for (int i = 0; i < WORKERS; i++) {
        pthread_join(workers[i], NULL);
    }
    atomic_store(&over, true);
    pthread_join(others[0], NULL);
    pthread_join(others[1], NULL);
    check_sums();
    dp_engine_destroy(engine);
    return 0;
}
