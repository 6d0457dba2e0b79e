#include "balance.h"
#include "array.h"

enum { BACKENDS_MAX = 5000, SHARE = 100, SIZES = 12 };

/* Primes; the table has at least SHARE places a backend, so that shares differ by about 1 %. */
static const uint32_t sizes[SIZES] = {251,   509,   1021,  2039,   4093,   8191,
                                      16381, 32749, 65521, 131071, 262139, 524287};
_Static_assert(BACKENDS_MAX *SHARE < 524287, "the largest table serves the most backends");

struct turn {
    uint32_t at;
    uint32_t skip;
    uint16_t backend;
};

static int compare(const void *a, const void *b) {
    const struct dp_backend *x = a;
    const struct dp_backend *y = b;
    const int order = memcmp(x->addr, y->addr, sizeof x->addr);
    return order ? order : (int)x->port - (int)y->port;
}

const struct dp_backend *dp_balance_find(const struct dp_balance *b, const struct dp_addr *addr,
                                         uint16_t port) {
    struct dp_backend key = {.port = port};
    memcpy(key.addr, addr, sizeof key.addr);
    return b->n ? bsearch(&key, b->backends, b->n, sizeof key, compare) : NULL;
}

/* Depends on the backend alone, so that every table with it tries the same places. */
static uint64_t identity(const struct dp_backend *b, uint64_t purpose) {
    const struct dp_addr a = dp_addr_load(b->addr);
    uint64_t h = purpose;
    const uint64_t words[3] = {a.word[0], a.word[1], b->port};
    for (int i = 0; i < 3; i++) {
        h = (h ^ words[i]) * 0x9e3779b97f4a7c15u;
        h = (h ^ h >> 32) * 0xd6e8feb86659fd93u;
        h ^= h >> 29;
    }
    return h;
}

/* Backends take turns; each takes the next place of its own permutation that is still free. */
static void fill(struct dp_balance *b, struct turn *turns, uint32_t n) {
    memset(b->table, 0xff, b->size * sizeof *b->table);
    for (uint32_t taken = 0, i = 0; taken < b->size; taken++, i = i + 1 < n ? i + 1 : 0) {
        struct turn *t = &turns[i];
        while (b->table[t->at] != UINT16_MAX) {
            t->at = (t->at + t->skip) % b->size;
        }
        b->table[t->at] = t->backend;
    }
}

static bool build(struct dp_balance *b) {
    struct turn *turns = malloc(((size_t)b->n + 1) * sizeof *turns);
    if (!turns) {
        return false;
    }
    uint32_t n = 0;
    for (uint32_t i = 0; i < b->n; i++) {
        n += !(b->backends[i].flags & DP_BACKEND_DRAINING);
    }
    for (int s = 0; n && b->size < n * SHARE; s++) {
        b->size = sizes[s];
    }
    b->table = malloc(((size_t)b->size + 1) * sizeof *b->table);
    uint32_t turn = 0;
    for (uint32_t i = 0; i < b->n; i++) {
        if (!(b->backends[i].flags & DP_BACKEND_DRAINING)) {
            turns[turn++] = (struct turn){
                (uint32_t)(identity(&b->backends[i], 1) % b->size),
                (uint32_t)(identity(&b->backends[i], 2) % (b->size - 1)) + 1, (uint16_t)i};
        }
    }
    if (b->table && n) {
        fill(b, turns, n);
    }
    free(turns);
    return b->table != NULL;
}

static bool check(const struct dp_backend *backends, uint32_t n, struct dp_error *err) {
    if (n > BACKENDS_MAX) {
        *err = (struct dp_error){DP_ELIMIT, "backend", n, "more than 5,000 backends"};
        return false;
    }
    if (!dp_array_given(backends, n)) {
        *err = (struct dp_error){DP_EINVAL, "backend", 0, "the array is NULL, its count is not 0"};
        return false;
    }
    for (uint32_t i = 0; i < n; i++) {
        if (backends[i].port == 0 || backends[i].flags & ~DP_BACKEND_DRAINING) {
            *err = (struct dp_error){DP_EINVAL, "backend", i, "port 0, or an unknown flag"};
            return false;
        }
    }
    return true;
}

static bool no_doubles(const struct dp_balance *b, struct dp_error *err) {
    for (uint32_t i = 1; i < b->n; i++) {
        if (compare(&b->backends[i - 1], &b->backends[i]) == 0) {
            *err = (struct dp_error){DP_EDUP, "backend", i, "the same address and port twice"};
            return false;
        }
    }
    return true;
}

struct dp_balance *dp_balance_create(const struct dp_backend *backends, uint32_t n,
                                     struct dp_error *err) {
    if (!check(backends, n, err)) {
        return NULL;
    }
    *err = (struct dp_error){DP_ENOMEM, "backend", 0, "no memory"};
    struct dp_balance *b = calloc(1, sizeof *b);
    if (!b) {
        return NULL;
    }
    b->references = 1;
    b->n = n;
    b->backends = dp_array_copy(backends, n, sizeof *backends);
    if (b->backends) {
        qsort(b->backends, n, sizeof *b->backends, compare);
    }
    if (!b->backends || !no_doubles(b, err) || !build(b)) {
        dp_balance_release(b);
        return NULL;
    }
    *err = (struct dp_error){DP_OK, NULL, 0, NULL};
    return b;
}

struct dp_balance *dp_balance_retain(struct dp_balance *b) {
    atomic_fetch_add(&b->references, 1);
    return b;
}

void dp_balance_release(struct dp_balance *b) {
    if (b && atomic_fetch_sub(&b->references, 1) == 1) {
        free(b->backends);
        free(b->table);
        free(b);
    }
}
