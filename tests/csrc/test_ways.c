/* io_ways.c: what is listed, answered and forgotten, and that nobody is ever told another's way
 * while places change hands. */
#include "../../csrc/io_ways.c"
#include "check.h"

enum { REMOTES = 12, STEPS = 1000000 };

static struct dp_addr remote_of(uint32_t i) {
    const uint8_t bytes[4] = {10, (uint8_t)(i >> 16), (uint8_t)(i >> 8), (uint8_t)i};
    return dp_addr_from4(bytes);
}

static struct dp_way way_of(uint32_t i) {
    struct dp_way way = {.mtu = (uint16_t)(1000 + i)};
    const struct dp_addr remote = remote_of(i);
    memcpy(way.remote, &remote, sizeof way.remote);
    memcpy(way.mac, &i, sizeof i);
    memcpy(way.own_mac, &i, sizeof i);
    return way;
}

static bool is_way_of(const struct dp_way *way, uint32_t i) {
    const struct dp_way right = way_of(i);
    return way->mtu == right.mtu && !memcmp(way->mac, right.mac, 6) &&
           !memcmp(way->own_mac, right.own_mac, 6);
}

static bool ask(struct io_ways *w, uint32_t i, struct dp_way *way) {
    const struct dp_addr remote = remote_of(i);
    return io_ways_ask(w, &remote, way);
}

static void set(struct io_ways *w, uint32_t i, bool known) {
    const struct dp_addr remote = remote_of(i);
    const struct dp_way way = way_of(i);
    io_ways_set(w, &remote, known ? &way : NULL);
}

static bool was_told(const struct io_ways *w) {
    uint64_t count;
    return read(io_ways_fd(w), &count, sizeof count) > 0;
}

static void test_one(void) {
    struct io_ways *w = io_ways_create();
    struct dp_way way;
    struct dp_way listed[4];
    CHECK(!was_told(w) && io_ways_list(w, listed, 4) == 0);
    set(w, 1, true); /* nobody asked */
    CHECK(!ask(w, 1, &way) && was_told(w));
    CHECK(!ask(w, 1, &way) && !was_told(w));
    CHECK(io_ways_list(w, listed, 4) == 1 && listed[0].used && listed[0].mtu == 0);
    CHECK(io_ways_list(w, listed, 4) == 1 && !listed[0].used);
    set(w, 1, true);
    CHECK(ask(w, 1, &way) && is_way_of(&way, 1));
    CHECK(io_ways_list(w, listed, 4) == 1 && listed[0].used);
    set(w, 1, false);
    CHECK(io_ways_list(w, listed, 4) == 0 && !ask(w, 1, &way) && was_told(w));
    io_ways_destroy(w);
}

/* A full table lists no more of them, and forgets none of those it has. */
static void test_full(void) {
    struct io_ways *w = io_ways_create();
    struct dp_way way;
    struct dp_way *listed = calloc(PLACES, sizeof *listed);
    for (uint32_t i = 0; i < 2 * PLACES; i++) {
        CHECK(!ask(w, i, &way));
        set(w, i, true);
    }
    const uint32_t n = io_ways_list(w, listed, PLACES);
    CHECK(n > PLACES / 2);
    uint32_t known = 0;
    for (uint32_t i = 0; i < 2 * PLACES; i++) {
        const bool found = ask(w, i, &way);
        CHECK(!found || is_way_of(&way, i));
        known += found;
    }
    CHECK(known == n);
    free(listed);
    io_ways_destroy(w);
}

/* More remotes than there are places for them, all at the same ones. */
static uint32_t crowd[REMOTES];

static void gather_crowd(struct io_ways *w) {
    const struct dp_addr first = remote_of(0);
    uint32_t n = 0;
    for (uint32_t i = 0; n < REMOTES; i++) {
        const struct dp_addr remote = remote_of(i);
        if (first_of(w, &remote) == first_of(w, &first)) {
            crowd[n++] = i;
        }
    }
}

static bool over;

static void *change(void *data) {
    uint64_t seed = 7;
    while (!__atomic_load_n(&over, __ATOMIC_RELAXED)) { /* places pass from one to another */
        struct dp_way way;
        const uint32_t old = crowd[check_random(&seed) % REMOTES];
        const uint32_t new = crowd[check_random(&seed) % REMOTES];
        set(data, old, false);
        (void)ask(data, new, &way);
        set(data, new, true);
    }
    return NULL;
}

static void test_while_it_changes(void) {
    struct io_ways *w = io_ways_create();
    pthread_t changing;
    uint32_t known = 0;
    uint64_t seed = 9;
    gather_crowd(w);
    CHECK(pthread_create(&changing, NULL, change, w) == 0);
    for (int i = 0; i < STEPS || (known == 0 && i < 100 * STEPS); i++) {
        struct dp_way way;
        const uint32_t which = crowd[check_random(&seed) % REMOTES];
        if (ask(w, which, &way)) {
            CHECK(is_way_of(&way, which));
            known++;
        }
    }
    __atomic_store_n(&over, true, __ATOMIC_RELAXED);
    pthread_join(changing, NULL);
    CHECK(known > 0);
    io_ways_destroy(w);
}

int main(void) {
    test_one();
    test_full();
    test_while_it_changes();
    return 0;
}
