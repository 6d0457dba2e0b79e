#include "vteps.h"
#include <stdlib.h>

enum { SPARE = 64 };

static uint32_t hash(uint32_t network, const struct dp_addr *a) {
    uint64_t h = (a->word[0] ^ (uint64_t)network << 32) * 0x9e3779b97f4a7c15u;
    h = (h ^ h >> 32 ^ a->word[1]) * 0xbf58476d1ce4e5b9u;
    h = (h ^ h >> 29) * 0x94d049bb133111ebu;
    return (uint32_t)(h >> 32);
}

bool dp_vteps_find(const struct dp_vteps *v, uint32_t network, const struct dp_addr *remote) {
    const struct dp_vtep_arrays *arrays = v->arrays;
    for (uint32_t at = hash(network, remote);; at++) {
        const uint32_t found =
            atomic_load_explicit(&arrays->index[at & arrays->mask], memory_order_acquire);
        if (found == 0) {
            return false;
        }
        if (dp_vteps_have(v, found - 1)) {
            const struct dp_adjacency *a = &arrays->adjacencies[found - 1];
            const struct dp_addr its = dp_addr_load(a->remote);
            if (a->network == network && dp_addr_equal(&its, remote)) {
                return true;
            }
        }
    }
}

/* ---- arrays ------------------------------------------------------------------------------- */

static void release(struct dp_vtep_arrays *arrays) {
    if (arrays && atomic_fetch_sub(&arrays->references, 1) == 1) {
        free(arrays->adjacencies);
        free(arrays->tunnels);
        free(arrays->index);
        free(arrays);
    }
}

/* Room for n and some more, which costs no memory before it is written. */
static struct dp_vtep_arrays *make(uint32_t n) {
    struct dp_vtep_arrays *arrays = malloc(sizeof *arrays);
    if (!arrays) {
        return NULL;
    }
    *arrays = (struct dp_vtep_arrays){.references = 1, .room = n + n / 2 + SPARE, .mask = SPARE};
    while (arrays->mask < arrays->room * 2) {
        arrays->mask *= 2;
    }
    arrays->adjacencies = malloc(arrays->room * sizeof *arrays->adjacencies);
    arrays->tunnels = malloc(arrays->room * sizeof *arrays->tunnels);
    arrays->index = calloc(arrays->mask, sizeof *arrays->index);
    arrays->mask--;
    if (!arrays->adjacencies || !arrays->tunnels || !arrays->index) {
        release(arrays);
        return NULL;
    }
    return arrays;
}

static void write(struct dp_vtep_arrays *arrays, uint32_t id, const struct dp_adjacency *a) {
    const struct dp_addr remote = dp_addr_load(a->remote);
    arrays->adjacencies[id] = *a;
    arrays->written = id >= arrays->written ? id + 1 : arrays->written;
    uint32_t at = hash(a->network, &remote);
    while (atomic_load_explicit(&arrays->index[at & arrays->mask], memory_order_relaxed)) {
        at++;
    }
    atomic_store_explicit(&arrays->index[at & arrays->mask], id + 1, memory_order_release);
    arrays->indexed++;
}

/* Whether nobody has what the changes write. Only base itself holds its arrays: nobody but it has
 * ever had what it has not. */
static bool vacant(const struct dp_vteps *base, const uint32_t *ids,
                   const struct dp_adjacency *changes, uint32_t n, uint32_t top) {
    const struct dp_vtep_arrays *arrays = base->arrays;
    if (top > arrays->room || n > arrays->mask / 4 * 3 - arrays->indexed) {
        return false;
    }
    const bool alone = atomic_load(&arrays->references) == 1;
    for (uint32_t i = 0; i < n; i++) {
        const uint32_t id = ids ? ids[i] : i;
        if (changes[i].port != DP_PORT_NONE &&
            (dp_vteps_have(base, id) || (id < arrays->written && !alone))) {
            return false;
        }
    }
    return true;
}

/* Takes over the arrays of base, unless somebody else has. */
static bool share(struct dp_vteps *v, const struct dp_vteps *base) {
    const struct dp_vteps *newest = base;
    if (!atomic_compare_exchange_strong(&base->arrays->newest, &newest, v)) {
        return false;
    }
    v->arrays = base->arrays;
    v->shared = true;
    atomic_fetch_add(&v->arrays->references, 1);
    return true;
}

static bool copy(struct dp_vteps *v, const struct dp_vteps *base, uint32_t top) {
    v->arrays = make(top);
    if (v->arrays) {
        v->arrays->newest = v;
        for (uint32_t id = 0; base && id < base->n; id++) {
            if (dp_vteps_have(base, id)) {
                write(v->arrays, id, &base->arrays->adjacencies[id]);
            }
        }
    }
    return v->arrays;
}

bool dp_vteps_init(struct dp_vteps *v, const struct dp_vteps *base, bool alike, const uint32_t *ids,
                   const struct dp_adjacency *changes, uint32_t n) {
    uint32_t top = base ? base->n : 0;
    for (uint32_t i = 0; i < n; i++) {
        const uint32_t id = ids ? ids[i] : i;
        top = id >= top ? id + 1 : top;
    }
    *v = (struct dp_vteps){.n = top, .has = calloc(top / 64 + 1, sizeof *v->has)};
    if (!v->has) {
        return false;
    }
    if (base) {
        memcpy(v->has, base->has, (base->n / 64 + 1) * sizeof *v->has);
    }
    if (!(base && alike && vacant(base, ids, changes, n, top) && share(v, base)) &&
        !copy(v, base, top)) {
        return false;
    }
    for (uint32_t i = 0; i < n; i++) {
        const uint32_t id = ids ? ids[i] : i;
        const uint64_t bit = (uint64_t)1 << id % 64;
        v->has[id / 64] &= ~bit;
        if (changes[i].port != DP_PORT_NONE) {
            v->has[id / 64] |= bit;
            write(v->arrays, id, &changes[i]);
        }
    }
    return true;
}

void dp_vteps_fini(struct dp_vteps *v) {
    const struct dp_vteps *newest = v;
    if (v->arrays) {
        atomic_compare_exchange_strong(&v->arrays->newest, &newest, NULL);
    }
    release(v->arrays);
    free(v->has);
}
