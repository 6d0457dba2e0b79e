/* fuzz_engine.c: the whole engine under a fixed policy, through its public interface. The input is
 * a row of events, each a frame for a port after a step of time, perhaps after a commit:
 *
 *   byte 0    bits 0-1 the port; 2 put the IPv4 header checksums right; 3-5 frame flags; 6-7 op
 *   byte 1    t: the clock goes on by t * t * 10 ms
 *   byte 2-3  the frame's length; it is cut where the input ends
 *   then, with DP_CSUM_PARTIAL, two bytes: segment size, and above its 13 bits the kind of
 *             super-frame; then the frame
 *
 * After each: the counters add up, what was foretold happened, what was observed is what was
 * counted, and what left can be read. */
#include "checksum.h"
#include "cursor.h"
#include "parse.h"
#include "policy.h"
#include "segment.h"
#include <stdio.h>
#include <stdlib.h>

#define CHECK(condition)                                                                           \
    ((condition) ? (void)0                                                                         \
                 : (fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition), abort()))

enum op { OP_FRAME, OP_TRACE, OP_COMMIT, OP_EXPIRE };
enum { REASONS = 256, STEPS = 128, MAX_EVENTS = 64, ROOM = 10000, SNAP = 64 };

/* What was observed of one engine. */
struct seen {
    uint64_t rx;
    uint64_t dropped;
};

struct event {
    struct dp_frame frame;
    enum op op;
    bool mend;
    uint64_t step_ns;
    const uint8_t *bytes; /* of the input */
};

/* ---- input -------------------------------------------------------------------------------- */

static bool next_event(struct dp_cursor *in, struct event *e) {
    const uint8_t *head = dp_pull(in, 4);
    if (!head) {
        return false;
    }
    const uint8_t flags = (uint8_t)(head[0] >> 3 & 7);
    *e = (struct event){.op = head[0] >> 6, .mend = head[0] & 4};
    e->step_ns = (uint64_t)head[1] * head[1] * 10000000u;
    e->frame = (struct dp_frame){.off = DP_HEADROOM, .port = head[0] & 3, .flags = flags};
    if (flags & DP_CSUM_PARTIAL) {
        const uint8_t *size = dp_pull(in, 2);
        static const uint8_t kinds[] = {1, 4, 5, 0x81, 0x84, 0x85, 0, 3};
        e->frame.gso_size = size ? (uint16_t)(size[0] | (size[1] & 0x1f) << 8) : 0;
        e->frame.gso_type = size ? kinds[size[1] >> 5] : 0;
    }
    const uint32_t len = (uint32_t)head[2] | (uint32_t)head[3] << 8;
    e->frame.len = len < in->left ? len : in->left;
    e->bytes = dp_pull(in, e->frame.len);
    return true;
}

/* Checksums are the one thing that chance does not find. */
static void mend_ip4(uint8_t *ip, uint32_t len) {
    if (len < 20 || ip[0] != 0x45) {
        return;
    }
    memset(ip + 10, 0, 2);
    const uint16_t sum = (uint16_t)~dp_csum_fold(dp_csum_add(0, ip, 20));
    memcpy(ip + 10, &sum, 2);
}

static void mend(uint8_t *eth, uint32_t len, bool vxlan) {
    enum { OUTER = 50 }; /* Ethernet, IPv4, UDP, VXLAN */
    if (len > 14) {
        mend_ip4(eth + 14, len - 14);
    }
    if (vxlan && len > OUTER) {
        mend(eth + OUTER, len - OUTER, false);
    }
}

/* An arena of just this frame: one byte beyond it is an error. */
static uint8_t *arena_of(const struct event *e) {
    uint8_t *arena = calloc(1, DP_HEADROOM + e->frame.len);
    CHECK(arena);
    memcpy(arena + DP_HEADROOM, e->bytes, e->frame.len);
    if (e->mend) {
        mend(arena + DP_HEADROOM, e->frame.len, e->frame.port == FUZZ_UNDERLAY);
    }
    return arena;
}

/* ---- what must hold ----------------------------------------------------------------------- */

static void check_law(struct dp_engine *engine) {
    struct dp_totals t;
    uint64_t reasons[REASONS];
    struct dp_port_counters ports[FUZZ_PORTS];
    CHECK(dp_counters(engine, &t, reasons, dp_reason_count(), ports, FUZZ_PORTS, NULL, 0, NULL,
                      0) == 0);
    CHECK(t.rx + t.copies == t.forwarded + t.dropped + t.consumed + t.held);
    uint64_t dropped = 0;
    for (uint32_t i = 1; i < dp_reason_count(); i++) {
        dropped += reasons[i];
    }
    CHECK(reasons[0] == 0 && dropped == t.dropped);
    uint64_t tx = 0;
    for (int i = 0; i < FUZZ_PORTS; i++) {
        CHECK(ports[i].rx_frames + t.copies >= ports[i].dropped + ports[i].consumed);
        tx += ports[i].tx_frames;
    }
    CHECK(tx == t.forwarded + t.originated);
}

/* Each packet of a super-frame can be read, too; here of the first and the last. */
static void check_cut(const uint8_t *data, const struct dp_frame *f, uint32_t outer) {
    struct dp_super s;
    uint8_t packet[DP_SEGMENT_HEADERS + ROOM];
    CHECK(f->gso_type && f->gso_size && (f->flags & DP_CSUM_PARTIAL));
    CHECK(dp_super_read(&s, f, data, outer) && dp_super_count(&s) > 1 && f->gso_size < ROOM);
    for (uint32_t i = 0; i < dp_super_count(&s); i += dp_super_count(&s) - 1) {
        const uint32_t payload = dp_segment(&s, i, packet);
        memcpy(packet + s.head, data + dp_super_at(&s, i), payload);
        struct dp_frame one = {.len = s.head + payload};
        struct dp_packet p = {.frame = &one, .data = packet + outer, .len = one.len - outer};
        CHECK(dp_parse(&p) == 0 && p.len == one.len - outer);
    }
}

/* What leaves must be readable by the same rules. */
static void check_sent(uint8_t *arena, size_t arena_len, struct dp_frame f) {
    static const struct dp_port peer = {.udp_port = 4789, .ip4 = V4(192, 0, 2, 2), .ip6 = DB8(2)};
    CHECK(f.off <= arena_len && f.len <= arena_len - f.off);
    struct dp_packet p = {.frame = &f, .data = arena + f.off, .len = f.len};
    if (f.port == FUZZ_UNDERLAY) {
        CHECK(dp_parse_outer(&p, &peer) == 0 && p.key.vni == 4096);
    }
    CHECK(dp_parse(&p) == 0);
    if (f.head) {
        check_cut(arena + f.off, &f, (uint32_t)(p.data - (arena + f.off)));
    }
}

static void check_outcome(uint8_t *arena, size_t arena_len, const struct dp_frame *f) {
    CHECK(f->verdict <= DP_HELD && f->reason < dp_reason_count());
    CHECK((f->verdict == DP_DROP) == (f->reason != 0));
    CHECK(f->verdict == DP_DROP || f->verdict == DP_HELD || f->port < FUZZ_PORTS);
    if (f->port != DP_PORT_NONE) {
        check_sent(arena, arena_len, *f);
    }
}

/* What came out with the frame. */
static void fetch(struct dp_engine *engine, uint64_t now_ns) {
    static uint8_t arena[DP_HEADROOM + ROOM];
    struct dp_frame frame = {.off = DP_HEADROOM, .len = ROOM};
    while (dp_more(engine, 0, arena, sizeof arena, &frame, 1, now_ns) == 1) {
        check_outcome(arena, sizeof arena, &frame);
        CHECK(frame.verdict != DP_HELD);
        frame = (struct dp_frame){.off = DP_HEADROOM, .len = ROOM};
    }
}

/* A trace foretells what then happens, and leaves no mark. */
static void process(struct dp_engine *engine, const struct event *e, uint64_t now_ns) {
    const size_t arena_len = DP_HEADROOM + e->frame.len;
    struct dp_step steps[STEPS];
    struct dp_frame told = e->frame;
    uint8_t *told_arena = arena_of(e);
    if (e->op == OP_TRACE) {
        CHECK(dp_trace(engine, told_arena, arena_len, &told, now_ns, steps, STEPS) >= 0);
    }
    struct dp_frame frame = e->frame;
    uint8_t *arena = arena_of(e);
    CHECK(dp_process(engine, 0, arena, arena_len, &frame, 1, now_ns) == 0);
    check_outcome(arena, arena_len, &frame);
    if (e->op == OP_TRACE) {
        CHECK(told.verdict == frame.verdict && told.reason == frame.reason);
        CHECK(told.port == frame.port && told.off == frame.off && told.len == frame.len);
        CHECK(frame.port == DP_PORT_NONE ||
              memcmp(told_arena + told.off, arena + frame.off, frame.len) == 0);
    }
    fetch(engine, now_ns);
    free(told_arena);
    free(arena);
}

/* Every frame was seen as it came, and every drop. */
static void check_seen(struct dp_engine *engine, struct seen *sum) {
    static uint8_t room[1 << 16];
    struct dp_totals t;
    uint64_t lost;
    int n;
    while ((n = dp_seen(engine, room, sizeof room, &lost)) > 0) {
        CHECK(lost == 0);
        for (int at = 0; at < n;) {
            struct dp_seen seen;
            memcpy(&seen, room + at, sizeof seen);
            CHECK(seen.size >= sizeof seen + seen.snap && seen.snap <= SNAP);
            CHECK((seen.reason != 0) == (seen.point == DP_AT_DROP));
            sum->rx += seen.point == DP_AT_RX;
            sum->dropped += seen.point == DP_AT_DROP ? seen.packets : 0;
            at += (int)seen.size;
        }
    }
    CHECK(n == 0 && dp_counters(engine, &t, NULL, 0, NULL, 0, NULL, 0, NULL, 0) == 0);
    CHECK(sum->dropped == t.dropped && sum->rx == t.rx);
}

/* ---- the run ------------------------------------------------------------------------------ */

/* Policies are immutable: each generation is made once and kept for all inputs. */
static struct dp_snapshot *policy_of(uint32_t generation) {
    static struct dp_snapshot *made[MAX_EVENTS + 2];
    struct dp_error err;
    if (!made[generation] && !(made[generation] = fuzz_policy(generation, &err))) {
        fprintf(stderr, "%s %u: %s\n", err.what, err.index, err.why);
        abort();
    }
    return made[generation];
}

static void commit(struct dp_engine *engine, uint32_t generation) {
    struct dp_error err;
    CHECK(dp_commit(engine, policy_of(generation), &err) == 0);
}

static struct dp_engine *engine_of_little(void) {
    const struct dp_limits limits = {.max_flows = 8,
                                     .max_bindings = 8,
                                     .max_datagrams = 8,
                                     .max_kept = 16,
                                     .max_observed = 1 << 16,
                                     .max_ports = FUZZ_PORTS,
                                     .max_rules = FUZZ_RULES};
    const struct dp_timers timers = {0};
    const uint8_t key[32] = {1, 2, 3};
    struct dp_error err;
    struct dp_engine *engine = dp_engine_create(&limits, &timers, key, &err);
    CHECK(engine);
    return engine;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct dp_engine *engine = engine_of_little();
    struct dp_cursor in = {(uint8_t *)(uintptr_t)data, (uint32_t)size};
    uint32_t generation = 1;
    uint64_t now_ns = 1;
    struct event e;
    struct seen sum = {0};
    commit(engine, generation);
    CHECK(dp_observe(engine, DP_AT_ALL, SNAP) == 0);
    for (int n = 0; n < MAX_EVENTS && next_event(&in, &e); n++) {
        now_ns += e.step_ns;
        if (e.op == OP_COMMIT) {
            commit(engine, ++generation);
        } else if (e.op == OP_EXPIRE) {
            CHECK(dp_expire(engine, now_ns, 4) >= 0);
        }
        process(engine, &e, now_ns);
        check_law(engine);
        check_seen(engine, &sum);
    }
    CHECK(dp_flush(engine) == 0);
    check_seen(engine, &sum);
    dp_engine_destroy(engine);
    return 0;
}
