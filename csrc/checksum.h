/* checksum.h: the Internet checksum, whole (RFC 1071) and incremental (RFC 1624 equation 3).
 *
 * Sums are of 16-bit words as they lie in memory: one's complement addition does not care for byte
 * order. A delta is the folded sum of ~m + m' over the words that change; applying it keeps a wrong
 * checksum wrong by as much as it was. */
#ifndef DP_CHECKSUM_H
#define DP_CHECKSUM_H
#include "base.h"

static inline uint16_t dp_csum_fold(uint64_t sum) {
    sum = (sum & 0xffffffff) + (sum >> 32);
    sum = (sum & 0xffff) + (sum >> 16 & 0xffff) + (sum >> 32);
    sum = (sum & 0xffff) + (sum >> 16);
    return (uint16_t)((sum & 0xffff) + (sum >> 16));
}

/* The same of a sum below 2^32 in fewer steps: both halves are added in the upper one, where the
 * lower one's carry comes in. */
static inline uint16_t dp_csum_fold32(uint32_t sum) {
    return (uint16_t)((sum + (sum << 16 | sum >> 16)) >> 16);
}

/* Adds n bytes to a running sum; an odd last byte counts as the high half of a word. */
static inline uint64_t dp_csum_add(uint64_t sum, const void *data, size_t n) {
    const uint8_t *p = data;
    for (; n >= 4; p += 4, n -= 4) {
        uint32_t word;
        memcpy(&word, p, 4);
        sum += word;
    }
    if (n >= 2) {
        uint16_t word;
        memcpy(&word, p, 2);
        sum += word;
        p += 2;
        n -= 2;
    }
    return n ? sum + *p : sum;
}

static inline uint64_t dp_csum_pseudo(const struct dp_addr *src, const struct dp_addr *dst,
                                      uint8_t proto, uint32_t len) {
    const bool v4 = dp_addr_is_v4(src);
    const size_t skip = v4 ? 12 : 0;
    uint64_t sum = dp_csum_add(0, dp_addr_bytes(src) + skip, 16 - skip);
    sum = dp_csum_add(sum, dp_addr_bytes(dst) + skip, 16 - skip);
    return sum + be16_put(proto).net + be32_put(len).net;
}

/* Makes a partial checksum whole: the field, so many bytes into the transport header, holds the sum
 * of the pseudo header. 0 would mean that there is none (RFC 768). */
static inline void dp_csum_complete(uint8_t *l4, uint32_t len, uint32_t field) {
    const uint16_t csum = (uint16_t)~dp_csum_fold(dp_csum_add(0, l4, len));
    const uint16_t whole = csum ? csum : 0xffff;
    memcpy(l4 + field, &whole, sizeof whole);
}

/* One changed word, as a term of a delta. */
static inline uint32_t dp_csum_term(uint16_t old, uint16_t new) {
    return old == new ? 0u : (uint32_t)(uint16_t)~old + new;
}
/* The delta of n bytes (n even, few) that change from old to new. */
static inline uint32_t dp_csum_delta(const void *old, const void *new, size_t n) {
    uint32_t sum = 0;
    for (size_t i = 0; i < n; i += 2) {
        uint16_t a;
        uint16_t b;
        memcpy(&a, (const uint8_t *)old + i, 2);
        memcpy(&b, (const uint8_t *)new + i, 2);
        sum += dp_csum_term(a, b);
    }
    return sum;
}
static inline uint16_t dp_csum_fix(uint16_t csum, uint32_t delta) {
    return (uint16_t)~dp_csum_fold32((uint16_t)~csum + delta);
}
/* The same for a field in a packet, at any address. */
static inline void dp_csum_fix_at(void *field, uint32_t delta) {
    uint16_t csum;
    memcpy(&csum, field, sizeof csum);
    csum = dp_csum_fix(csum, delta);
    memcpy(field, &csum, sizeof csum);
}
/* A partial checksum field holds the pseudo-header's sum itself, not its complement. */
static inline uint16_t dp_csum_fix_partial(uint16_t sum, uint32_t delta) {
    return dp_csum_fold((uint64_t)sum + delta);
}

#endif
