/* binding.c: chains stay short under a random key, and the search for a free port is bounded.
 * conformance: T6 N7 */
#include "../../csrc/binding.c"
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
    CHECK(dp_bindings_init(&b, BINDINGS, key));
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

/* Ports next to each other are taken until the search gives up, others being free still. */
static void test_the_search_is_bounded(void) {
    struct dp_bindings b = table(9);
    const struct dp_binding_inside wanted = inside(70000);
    const uint16_t start = dp_bindings_choose(&b, &wanted, &pool, 1);
    for (uint32_t i = 0; i < PORT_PROBES; i++) {
        const struct dp_binding_inside in = inside(i);
        const uint16_t port = (uint16_t)(pool.lo + (start - pool.lo + i) % 65535);
        CHECK(dp_bindings_choose(&b, &wanted, &pool, 1) == port);
        CHECK(dp_bindings_add(&b, &in, &pool, port, 1, 1000) != DP_NONE);
    }
    CHECK(dp_bindings_choose(&b, &wanted, &pool, 1) == 0);
    CHECK(dp_bindings_choose(&b, &wanted, &pool, 2000) == start); /* idle ones are free again */
    dp_bindings_fini(&b);
}

int main(void) {
    for (uint64_t seed = 1; seed < 4; seed++) {
        test_chains_are_short(seed);
    }
    test_the_search_is_bounded();
    return 0;
}
