/* flow.c: keys drawn by chance spread over the index; keys that collide by design are refused when
 * their two buckets are full, and harm no other.
 * conformance: T6 */
#include "../../csrc/flow.c"
#include "../../csrc/grace.c"
#include "../../csrc/share.c"
#include "check.h"

enum { FLOWS = 65536, COLLIDING = 100000, SLOTS = 2 * DP_BUCKET_SLOTS };

static struct dp_flows table(uint64_t seed) {
    uint8_t key[32];
    for (int i = 0; i < 32; i++) {
        key[i] = (uint8_t)(check_random(&seed) >> 32);
    }
    static struct dp_grace alone;
    CHECK(dp_grace_init(&alone, 1));
    struct dp_flows t;
    CHECK(dp_flows_init(&t, FLOWS, 16, key, &alone));
    return t;
}

static struct dp_key key_of(uint64_t a, uint64_t b) {
    struct dp_key k = {.src = {{a, b}}, .dst = {{1, 2}}, .vni = 7, .proto = DP_IP_UDP};
    return k;
}

/* One direction only, so that a flow is one key. */
static uint32_t add(struct dp_flows *t, const struct dp_key *key) {
    struct dp_pair draft = {0};
    draft.half[0].key = *key;
    draft.half[0].act.flags = DP_ACT_INDEXED;
    return dp_flow_add(t, &draft);
}

/* How many references a lookup may have to compare: those of the key's tag in its two buckets. */
static int compared(const struct dp_flows *t, const struct dp_key *key) {
    const uint64_t hash = dp_flow_hash(t, key);
    int n = 0;
    for (int which = 0; which < 2; which++) {
        const struct dp_bucket *b = &t->buckets[dp_flow_bucket(t, hash, which)];
        for (int i = 0; i < DP_BUCKET_SLOTS; i++) {
            n += b->ref[i] && b->tag[i] == dp_flow_tag(hash);
        }
    }
    return n;
}

/* A full table of neighbouring tuples, as a scan makes them: none refused, all found at once. */
static void test_a_random_key_spreads(uint64_t seed) {
    struct dp_flows t = table(seed);
    int most = 0;
    for (uint32_t i = 0; i < FLOWS; i++) {
        const struct dp_key key = key_of(0x0a000000, i);
        CHECK(add(&t, &key));
    }
    for (uint32_t i = 0; i < FLOWS; i++) {
        const struct dp_key key = key_of(0x0a000000, i);
        const int n = compared(&t, &key);
        CHECK(n >= 1 && dp_flow_find(&t, &key, dp_flow_hash(&t, &key)));
        most = n > most ? n : most;
    }
    CHECK(most < SLOTS / 2);
    dp_grace_fini(t.grace);
    dp_flows_fini(&t);
}

/* Who knows the key makes one factor of NH zero, and the other does not matter any more. */
static struct dp_key colliding(const struct dp_flows *t, uint64_t i) {
    return key_of(0 - t->key.word[0], i);
}

static void test_a_known_key_costs_its_owner_only(void) {
    struct dp_flows t = table(1);
    uint32_t taken = 0;
    for (uint32_t i = 0; i < FLOWS / 2; i++) {
        const struct dp_key key = key_of(0x0a000000, i);
        CHECK(add(&t, &key));
    }
    const struct dp_key first = colliding(&t, 0);
    for (uint64_t i = 0; i < COLLIDING; i++) {
        const struct dp_key key = colliding(&t, i);
        CHECK(dp_flow_hash(&t, &key) == dp_flow_hash(&t, &first));
        taken += add(&t, &key) != 0;
        CHECK(compared(&t, &key) <= SLOTS);
    }
    CHECK(taken >= 1 && taken <= SLOTS && t.used == FLOWS / 2 + taken);
    for (uint32_t i = 0; i < FLOWS / 2; i++) {
        const struct dp_key key = key_of(0x0a000000, i);
        CHECK(dp_flow_find(&t, &key, dp_flow_hash(&t, &key)));
    }
    const struct dp_key other = key_of(0x0b000000, 1);
    CHECK(add(&t, &other));
    dp_grace_fini(t.grace);
    dp_flows_fini(&t);
}

/* The key of outer source ports is another one, so what leaves tells nothing of the index. */
static void test_purposes_have_keys_of_their_own(void) {
    const uint8_t seed[32] = {1, 2, 3};
    struct dp_hash_key keys[3];
    const struct dp_key flow = key_of(3, 4);
    uint64_t m[DP_HASH_WORDS];
    dp_key_words(&flow, m);
    for (uint64_t purpose = 0; purpose < 3; purpose++) {
        dp_hash_key_init(&keys[purpose], seed, purpose + 1);
        for (uint64_t i = 0; i < purpose; i++) {
            CHECK(dp_hash(&keys[i], m) != dp_hash(&keys[purpose], m));
            CHECK(memcmp(&keys[i], &keys[purpose], 8) != 0);
        }
    }
}

int main(void) {
    for (uint64_t seed = 1; seed < 4; seed++) {
        test_a_random_key_spreads(seed);
    }
    test_a_known_key_costs_its_owner_only();
    test_purposes_have_keys_of_their_own();
    return 0;
}
