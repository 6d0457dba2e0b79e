/* vteps.c: every version of a set of adjacencies, against a plain list of it. */
#include "../../csrc/vteps.c"
#include "check.h"

enum { IDS = 24, VERSIONS = 12 };

static struct dp_adjacency draw(uint64_t *seed) {
    struct dp_adjacency a = {.network = (uint32_t)(check_random(seed) % 2)};
    a.remote[15] = (uint8_t)(check_random(seed) % 8);
    a.port = check_random(seed) % 3 ? 0 : DP_PORT_NONE;
    return a;
}

static void check_same(const struct dp_vteps *v, const struct dp_adjacency *all) {
    for (uint32_t id = 0; id < IDS; id++) {
        const bool has = all[id].port != DP_PORT_NONE;
        CHECK(dp_vteps_have(v, id) == has);
        CHECK(!has || memcmp(&v->arrays->adjacencies[id], &all[id], sizeof all[id]) == 0);
    }
    for (uint32_t i = 0; i < 16; i++) {
        const uint8_t bytes[16] = {[15] = (uint8_t)(i / 2)};
        const struct dp_addr a = dp_addr_load(bytes);
        bool wanted = false;
        for (uint32_t id = 0; id < IDS; id++) {
            wanted |= all[id].port != DP_PORT_NONE && all[id].network == i % 2 &&
                      all[id].remote[15] == i / 2;
        }
        CHECK(dp_vteps_find(v, i % 2, &a) == wanted);
    }
}

/* Each made from a random one that lives; some are given up on the way. */
static uint32_t test_versions(uint64_t *seed) {
    static struct dp_vteps sets[VERSIONS];
    struct dp_adjacency all[VERSIONS][IDS];
    bool lives[VERSIONS] = {true};
    uint32_t shared = 0;
    for (uint32_t id = 0; id < IDS; id++) {
        all[0][id] = (struct dp_adjacency){.port = DP_PORT_NONE};
    }
    CHECK(dp_vteps_init(&sets[0], NULL, false, NULL, NULL, 0));
    for (int i = 1; i < VERSIONS; i++) {
        int from = i - 1;
        while (!lives[from] || (from > 0 && check_random(seed) % 4 == 0 && lives[from - 1])) {
            from--;
        }
        struct dp_adjacency changes[IDS];
        uint32_t ids[IDS];
        uint32_t n = 0;
        memcpy(all[i], all[from], sizeof all[i]);
        for (uint32_t id = 0; id < IDS; id++) {
            if (check_random(seed) % 8 == 0) {
                ids[n] = id;
                all[i][id] = changes[n++] = draw(seed);
            }
        }
        const bool alike = check_random(seed) % 8;
        CHECK(dp_vteps_init(&sets[i], &sets[from], alike, ids, changes, n));
        CHECK(alike || !sets[i].shared);
        lives[i] = true;
        shared += sets[i].shared;
        const int gone = (int)(check_random(seed) % (uint64_t)(i + 1));
        if (gone > 0 && lives[gone]) {
            dp_vteps_fini(&sets[gone]);
            lives[gone] = false;
        }
        for (int known = 0; known <= i; known++) {
            if (lives[known]) {
                check_same(&sets[known], all[known]);
            }
        }
    }
    for (int i = 0; i < VERSIONS; i++) {
        if (lives[i]) {
            dp_vteps_fini(&sets[i]);
        }
    }
    return shared;
}

/* One comes and one goes, for long: holes are filled, the index does not fill up. */
static void test_churn(void) {
    struct dp_vteps sets[2];
    uint32_t shared = 0;
    CHECK(dp_vteps_init(&sets[0], NULL, false, NULL, NULL, 0));
    for (uint32_t i = 1; i < 10000; i++) {
        struct dp_vteps *v = &sets[i % 2];
        struct dp_vteps *base = &sets[1 - i % 2];
        struct dp_adjacency a[2] = {{.port = DP_PORT_NONE}, {.port = DP_PORT_NONE}};
        const uint32_t ids[2] = {0, 1};
        a[i % 2].port = 0;
        a[i % 2].remote[14] = (uint8_t)(i >> 8);
        a[i % 2].remote[15] = (uint8_t)i;
        CHECK(dp_vteps_init(v, base, true, ids, a, 2));
        shared += v->shared;
        dp_vteps_fini(base);
        const struct dp_addr remote = dp_addr_load(a[i % 2].remote);
        CHECK(v->n <= 2 && dp_vteps_find(v, 0, &remote));
    }
    CHECK(shared > 9000);
    dp_vteps_fini(&sets[1]);
}

int main(void) {
    uint64_t seed = 5;
    uint32_t shared = 0;
    for (int round = 0; round < 2000; round++) {
        shared += test_versions(&seed);
    }
    CHECK(shared > 2000);
    test_churn();
}
