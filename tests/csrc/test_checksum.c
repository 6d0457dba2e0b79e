/* checksum.h against sums made byte by byte, and RFC 1624's own example. */
#include "check.h"
#include "checksum.h"

static uint16_t slow_sum(const uint8_t *p, size_t n) {
    uint32_t sum = 0;
    for (size_t i = 0; i < n; i++) {
        sum += i % 2 ? p[i] : (uint32_t)p[i] << 8;
        sum = (sum & 0xffff) + (sum >> 16);
    }
    return __builtin_bswap16((uint16_t)sum);
}

static void fill(uint8_t *p, size_t n, uint64_t *seed) {
    for (size_t i = 0; i < n; i++) {
        p[i] = (uint8_t)(check_random(seed) >> 32);
    }
}

static void test_add_is_the_sum_of_words(void) {
    uint64_t seed = 1;
    for (size_t n = 0; n < 100; n++) {
        uint8_t *data = malloc(n + 1);
        CHECK(data);
        fill(data + 1, n, &seed);
        CHECK(dp_csum_fold(dp_csum_add(0, data + 1, n)) == slow_sum(data + 1, n));
        free(data);
    }
    CHECK(dp_csum_fold(UINT64_MAX) == 0xffff);
    CHECK(dp_csum_fold(0) == 0);
    CHECK(dp_csum_fold(0xffff0000ffff0000u) == 0xffff);
}

static void test_rfc1624_example(void) {
    CHECK(dp_csum_fix(0xdd2f, dp_csum_term(0x5555, 0x3285)) == 0x0000);
}

/* A word of a checksummed text changes: the fixed checksum is right where the old one was, and as
 * wrong as before where it was not. */
static void test_fix_follows_a_change(void) {
    uint64_t seed = 2;
    for (int round = 0; round < 10000; round++) {
        uint8_t data[40];
        uint8_t new[16];
        fill(data, sizeof data, &seed);
        fill(new, sizeof new, &seed);
        const uint16_t damage = round % 3 ? 0 : (uint16_t)check_random(&seed);
        const uint16_t before = (uint16_t)~dp_csum_fold(dp_csum_add(damage, data, sizeof data));
        const uint32_t delta = dp_csum_delta(data + 8, new, sizeof new);
        memcpy(data + 8, new, sizeof new);
        const uint16_t fixed = dp_csum_fix(before, delta);
        const uint16_t whole = (uint16_t)~dp_csum_fold(dp_csum_add(damage, data, sizeof data));
        CHECK(fixed == whole || (fixed ^ whole) == 0xffff);
        CHECK(dp_csum_fold(dp_csum_add(damage, data, sizeof data) + fixed) == 0xffff);
    }
    CHECK(dp_csum_fix(0x1234, 0) == 0x1234);
}

static void test_partial_is_the_pseudo_header(void) {
    const uint8_t v4[3][4] = {{10, 1, 1, 2}, {10, 1, 2, 2}, {192, 0, 2, 1}};
    const struct dp_addr a = dp_addr_from4(v4[0]);
    const struct dp_addr b = dp_addr_from4(v4[1]);
    const struct dp_addr c = dp_addr_from4(v4[2]);
    const uint16_t sum = dp_csum_fold(dp_csum_pseudo(&a, &b, 17, 1000));
    const uint16_t moved = dp_csum_fold(dp_csum_pseudo(&c, &b, 17, 1000));
    CHECK(dp_csum_fix_partial(sum, dp_csum_delta(v4[0], v4[2], 4)) == moved);
    const uint8_t text[] = {10, 1, 1, 2, 10, 1, 2, 2, 0, 17, 1000 >> 8, 1000 & 255};
    CHECK(sum == slow_sum(text, sizeof text));
}

int main(void) {
    test_add_is_the_sum_of_words();
    test_rfc1624_example();
    test_fix_follows_a_change();
    test_partial_is_the_pseudo_header();
    return 0;
}
