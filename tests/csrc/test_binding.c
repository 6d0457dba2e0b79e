/* binding.c: chains stay short under a random key, and the search for a free port is bounded.
 * conformance: T6 N7 */
#include "../../csrc/binding.c"
#include "../../csrc/services.c"
#include "check.h"

enum { BINDINGS = 65536, LONGEST = 16 };

static const struct dp_pool pool = {
    .addr = {[10] = 0xff, 0xff, 192, 0, 2, 1}, .lo = 1, .hi = 65535};

static struct dp_bindings table(uint64_t seed) {
    uint8_t key[32];
    for (int i = 0; i < 32; i++) {
        key[i] = (uint8_t)(check_random(&seed) >> 32);
    }
    struct dp_bindings b;
    CHECK(dp_bindings_init(&b, BINDINGS, 16, key));
    return b;
}

static struct dp_binding_inside inside(uint32_t n) {
    return (struct dp_binding_inside){
        .addr = {{0, n >> 16}}, .vni = 7, .port = (uint16_t)n, .proto = DP_IP_UDP};
}

static void test_chains_are_short(uint64_t seed) {
    struct dp_bindings b = table(seed);
    for (uint32_t n = 1; n <= 65535; n++) {
        const struct dp_binding_inside in = inside(n);
        CHECK(dp_bindings_add(&b, &in, &pool, (uint16_t)n, 1, 1000) != DP_NONE);
    }
    for (uint32_t head = 0; head <= b.mask; head++) {
        int in = 0;
        int out = 0;
        for (uint32_t i = b.heads_in[head]; i; i = b.items[i - 1].next_in) {
            in++;
        }
        for (uint32_t i = b.heads_out[head]; i; i = b.items[i - 1].next_out) {
            out++;
        }
        CHECK(in < LONGEST && out < LONGEST);
    }
    dp_bindings_fini(&b);
}

static uint32_t choose(struct dp_bindings *b, const struct dp_pool *from, uint32_t n,
                       uint64_t now) {
    const struct dp_services none = {0};
    const struct dp_binding_inside in = inside(n);
    uint16_t port = 0;
    return dp_bindings_choose(b, &in, from, &none, now, &port) ? port : 0;
}

static void take(struct dp_bindings *b, const struct dp_pool *from, uint32_t n, uint32_t port) {
    const struct dp_binding_inside in = inside(n);
    CHECK(dp_bindings_add(b, &in, from, (uint16_t)port, 1, 1000) != DP_NONE);
}

/* Of a pool that the search can look through, every port is found, those of the other parity last;
 * of a large one a tenth that is free is enough, and with none free the search ends. */
static void test_ports_are_found(void) {
    const struct dp_pool small = {
        .addr = {[10] = 0xff, 0xff, 192, 0, 2, 1}, .lo = 2000, .hi = 2000 + PORT_PROBES - 1};
    struct dp_bindings b = table(9);
    for (uint32_t i = 0; i < PORT_PROBES; i++) {
        const uint32_t port = choose(&b, &small, 70000 + 2 * i, 1);
        CHECK(port >= small.lo && port <= small.hi);
        CHECK(port % 2 == (i >= PORT_PROBES / 2)); /* the inside's port is even */
        take(&b, &small, 70000 + 2 * i, port);
    }
    CHECK(choose(&b, &small, 80000, 1) == 0);
    CHECK(choose(&b, &small, 80000, 2000) != 0); /* idle ones are free again */
    dp_bindings_clear(&b);
    for (uint32_t port = 1024; port <= 65535; port++) {
        if (port % 10 > 1) {
            take(&b, &pool, port, port);
        }
    }
    for (uint32_t n = 0; n < 1000; n++) {
        const uint32_t port = choose(&b, &pool, 100000 + n, 1);
        CHECK(port >= 1024 && port % 10 <= 1);
    }
    dp_bindings_fini(&b);
}

int main(void) {
    for (uint64_t seed = 1; seed < 4; seed++) {
        test_chains_are_short(seed);
    }
    test_ports_are_found();
    return 0;
}
