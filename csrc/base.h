/* base.h: scalars, attributes and byte order. Lowest tier; every other file stands on it. */
#ifndef DP_BASE_H
#define DP_BASE_H
#include "dp.h"
#include <stdbool.h>
#include <string.h>

#define dp_packed __attribute__((packed))
#define dp_line __attribute__((aligned(64)))
#define dp_cold __attribute__((cold, noinline))
/* A function that only prefetches: GCC takes it for one without effects, and its calls away. */
#if defined(__has_attribute) && __has_attribute(noipa)
#define dp_hint __attribute__((noipa))
#else
#define dp_hint __attribute__((noinline))
#endif
#define dp_inline inline __attribute__((always_inline))
#define dp_likely(x) __builtin_expect(!!(x), 1)
#define dp_unlikely(x) __builtin_expect(!!(x), 0)
#define dp_prefetch(p) __builtin_prefetch(p)
/* A word that another thread may write, or read, at the same time: whole, in no order. */
#define dp_get(x) __atomic_load_n(&(x), __ATOMIC_RELAXED)
#define dp_set(x, to) __atomic_store_n(&(x), to, __ATOMIC_RELAXED)

/* Network order is a type: only the functions below open it. */
typedef struct {
    uint16_t net;
} be16;
typedef struct {
    uint32_t net;
} be32;

static inline uint16_t be16_get(be16 x) {
    return __builtin_bswap16(x.net);
}
static inline be16 be16_put(uint32_t x) {
    return (be16){__builtin_bswap16((uint16_t)x)};
}
static inline uint32_t be32_get(be32 x) {
    return __builtin_bswap32(x.net);
}
static inline be32 be32_put(uint32_t x) {
    return (be32){__builtin_bswap32(x)};
}
_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "be16_get and friends swap");

/* An IP address as 16 bytes in network order; IPv4 is ::ffff:a.b.c.d. */
struct dp_addr {
    uint64_t word[2];
};
_Static_assert(sizeof(struct dp_addr) == 16, "an address is 16 bytes");
#define DP_V4_MARK 0xffff0000u /* bytes 8-11 of a v4-mapped address, as a little-endian word */

static inline bool dp_addr_equal(const struct dp_addr *a, const struct dp_addr *b) {
    return a->word[0] == b->word[0] && a->word[1] == b->word[1];
}
static inline bool dp_addr_is_zero(const struct dp_addr *a) {
    return (a->word[0] | a->word[1]) == 0;
}
/* Prefixes of IPv4 have at least 96 bits; a shorter one is of IPv6 and holds no IPv4 address. */
enum { DP_V4_BITS = 96 };
static inline bool dp_addr_is_v4(const struct dp_addr *a) {
    return a->word[0] == 0 && (uint32_t)a->word[1] == DP_V4_MARK;
}
static inline struct dp_addr dp_addr_load(const uint8_t bytes[16]) {
    struct dp_addr a;
    memcpy(&a, bytes, sizeof a);
    return a;
}
static inline struct dp_addr dp_addr_from4(const uint8_t bytes[4]) {
    uint32_t v4;
    memcpy(&v4, bytes, 4);
    return (struct dp_addr){{0, (uint64_t)v4 << 32 | DP_V4_MARK}};
}
static inline const uint8_t *dp_addr_bytes(const struct dp_addr *a) {
    return (const uint8_t *)a->word;
}
/* The four bytes of a v4-mapped address. */
static inline const uint8_t *dp_addr_v4(const struct dp_addr *a) {
    return (const uint8_t *)a->word + 12;
}
/* What no IPv6 packet may be sent to: unspecified, loopback, v4-mapped (RFC 4291 section 2.5). */
static inline bool dp_addr_is_no_ip6(const struct dp_addr *a) {
    return (a->word[0] == 0 && (a->word[1] == 0 || a->word[1] == (uint64_t)1 << 56)) ||
           dp_addr_is_v4(a);
}
/* Multicast of either family, and the IPv4 limited broadcast. */
static inline bool dp_addr_is_multicast(const struct dp_addr *a) {
    const uint8_t *b = dp_addr_bytes(a);
    if (!dp_addr_is_v4(a)) {
        return b[0] == 0xff;
    }
    return (b[12] & 0xf0) == 0xe0 || a->word[1] >> 32 == 0xffffffffu;
}

enum dp_reason {
#define DP_REASON(symbol, layer, text) DP_R_##symbol,
#include "reason.def"
#undef DP_REASON
    DP_REASONS
};

enum dp_status {
#define DP_STATUS(symbol, value, text) DP_##symbol = value,
#include "status.def"
#undef DP_STATUS
};

#endif
