/* hash.h: NH (Black et al., UMAC, CRYPTO '99), folded under two more key words. Whoever does not
 * know the key meets collisions with the odds of chance only, so tables keyed by it cannot be
 * flooded. */
#ifndef DP_HASH_H
#define DP_HASH_H
#include "base.h"

enum { DP_HASH_WORDS = 6 };

struct dp_hash_key {
    uint64_t word[DP_HASH_WORDS + 2];
};

__extension__ typedef unsigned __int128 dp_u128;

static inline uint64_t dp_hash(const struct dp_hash_key *k, const uint64_t m[DP_HASH_WORDS]) {
    dp_u128 sum = 0;
    for (int i = 0; i < DP_HASH_WORDS; i += 2) {
        sum += (dp_u128)(m[i] + k->word[i]) * (m[i + 1] + k->word[i + 1]);
    }
    const dp_u128 mix =
        (dp_u128)((uint64_t)sum ^ k->word[6]) * ((uint64_t)(sum >> 64) ^ k->word[7]);
    return (uint64_t)mix ^ (uint64_t)(mix >> 64);
}

/* Stretches 32 random bytes to a hash key; different purposes get unrelated keys (splitmix64). */
static inline void dp_hash_key_init(struct dp_hash_key *k, const uint8_t seed[32],
                                    uint64_t purpose) {
    uint64_t state[4];
    memcpy(state, seed, sizeof state);
    uint64_t x = purpose;
    for (int i = 0; i < DP_HASH_WORDS + 2; i++) {
        x += 0x9e3779b97f4a7c15u + state[i % 4];
        uint64_t z = x;
        z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
        z = (z ^ z >> 27) * 0x94d049bb133111ebu;
        k->word[i] = z ^ z >> 31 ^ state[(i + 1) % 4];
    }
}

#endif
