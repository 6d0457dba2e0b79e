#include "binding.h"
#include <stdlib.h>

enum { PORT_PROBES = 128, FIRST_HIGH = 1024, IDLE_LOOKS = 64 };

static uint64_t full_hash_in(const struct dp_bindings *b, const struct dp_binding_inside *in) {
    const uint64_t words[DP_HASH_WORDS] = {in->addr.word[0],
                                           in->addr.word[1],
                                           (uint64_t)in->vni << 16 | in->place,
                                           (uint64_t)in->remote_port << 32 |
                                               (uint64_t)in->port << 8 | in->proto,
                                           in->remote.word[0],
                                           in->remote.word[1]};
    return dp_hash(&b->key, words);
}

static uint32_t hash_in(const struct dp_bindings *b, const struct dp_binding_inside *in) {
    return (uint32_t)full_hash_in(b, in);
}

static uint32_t hash_out(const struct dp_bindings *b, const struct dp_binding_outside *out) {
    const uint64_t words[DP_HASH_WORDS] = {
        out->addr.word[0], out->addr.word[1], (uint64_t)out->port << 8 | out->proto, 0, 2, 0};
    return (uint32_t)dp_hash(&b->key, words);
}

static bool inside_equal(const struct dp_binding_inside *a, const struct dp_binding_inside *b) {
    return dp_addr_equal(&a->addr, &b->addr) && a->vni == b->vni && a->place == b->place &&
           a->port == b->port && a->proto == b->proto && dp_addr_equal(&a->remote, &b->remote) &&
           a->remote_port == b->remote_port;
}

static bool outside_equal(const struct dp_binding_outside *a, const struct dp_binding_outside *b) {
    return dp_addr_equal(&a->addr, &b->addr) && a->port == b->port && a->proto == b->proto;
}

static bool in_pool(const struct dp_binding_outside *out, const struct dp_pool *pool) {
    const struct dp_addr addr = dp_addr_load(pool->addr);
    return dp_addr_equal(&out->addr, &addr) &&
           (out->port == 0 || (out->port >= pool->lo && out->port <= pool->hi));
}

bool dp_bindings_init(struct dp_bindings *b, uint32_t max, uint32_t max_ports,
                      const uint8_t seed[32]) {
    uint32_t heads = 16;
    while (heads < max) {
        heads *= 2;
    }
    *b = (struct dp_bindings){.max = max, .mask = heads - 1, .n_places = max_ports};
    dp_hash_key_init(&b->key, seed, 3);
    b->heads_in = calloc(heads, sizeof *b->heads_in);
    b->heads_out = calloc(heads, sizeof *b->heads_out);
    b->items = calloc((size_t)max + 1, sizeof *b->items);
    b->held = calloc((size_t)max_ports + 1, sizeof *b->held);
    if (!b->held || !b->heads_in || !b->heads_out || !b->items) {
        dp_bindings_fini(b);
        return false;
    }
    dp_bindings_clear(b);
    return true;
}

void dp_bindings_fini(struct dp_bindings *b) {
    free(b->heads_in);
    free(b->heads_out);
    free(b->items);
    free(b->held);
    *b = (struct dp_bindings){0};
}

void dp_bindings_clear(struct dp_bindings *b) {
    memset(b->heads_in, 0, ((size_t)b->mask + 1) * sizeof *b->heads_in);
    memset(b->heads_out, 0, ((size_t)b->mask + 1) * sizeof *b->heads_out);
    for (uint32_t i = 0; i < b->max; i++) {
        b->items[i].used = false;
        b->items[i].next_in = i + 1 < b->max ? i + 2 : 0;
    }
    b->free = b->max ? 1 : 0;
    b->used = 0;
    b->sweep = 0;
    b->hand = 0;
    memset(b->held, 0, (size_t)b->n_places * sizeof *b->held);
}

uint32_t dp_bindings_find(const struct dp_bindings *b, const struct dp_binding_inside *in,
                          const struct dp_pool *pool, uint64_t now_ns) {
    for (uint32_t i = b->heads_in[hash_in(b, in) & b->mask]; i; i = b->items[i - 1].next_in) {
        const struct dp_binding *item = &b->items[i - 1];
        if (inside_equal(&item->in, in) && in_pool(&item->out, pool) &&
            !dp_binding_idle(item, now_ns)) {
            return i - 1;
        }
    }
    return DP_NONE;
}

static uint32_t find_outside(const struct dp_bindings *b, const struct dp_binding_outside *out) {
    for (uint32_t i = b->heads_out[hash_out(b, out) & b->mask]; i; i = b->items[i - 1].next_out) {
        if (outside_equal(&b->items[i - 1].out, out)) {
            return i - 1;
        }
    }
    return DP_NONE;
}

uint32_t dp_bindings_of(const struct dp_bindings *b, const struct dp_binding_outside *out,
                        uint64_t now_ns) {
    const uint32_t i = find_outside(b, out);
    return i != DP_NONE && dp_binding_idle(&b->items[i], now_ns) ? DP_NONE : i;
}

/* Well-known ports stay well-known, others do not become so, where the pool has both kinds. */
static struct dp_range same_class(const struct dp_pool *pool, uint16_t port) {
    struct dp_range r = {pool->lo, pool->hi};
    if (r.lo < FIRST_HIGH && r.hi >= FIRST_HIGH) {
        r.lo = port < FIRST_HIGH ? r.lo : FIRST_HIGH;
        r.hi = port < FIRST_HIGH ? FIRST_HIGH - 1 : r.hi;
    }
    return r;
}

static bool is_free(const struct dp_bindings *b, const struct dp_binding_outside *out,
                    const struct dp_services *services, uint64_t now_ns) {
    return dp_bindings_of(b, out, now_ns) == DP_NONE &&
           !(out->port &&
             dp_services_find(services, DP_PORT_HOST, 0, &out->addr, out->proto, out->port));
}

/* Ports of one parity, in an order of their own for each inside: taken ports stand in no runs that
 * the search would get lost in. */
struct search {
    uint32_t first; /* port, and every other one from there */
    uint32_t size;  /* so many */
    uint64_t hash;
};

static struct search begin(const struct dp_bindings *b, const struct dp_binding_inside *in,
                           const struct dp_pool *pool, uint32_t parity) {
    const struct dp_range r = same_class(pool, in->port);
    const uint32_t first = r.lo + ((r.lo ^ in->port ^ parity) & 1);
    return (struct search){first, r.hi >= first ? (r.hi - first) / 2 + 1 : 0, full_hash_in(b, in)};
}

static uint16_t next_port(struct search *s) {
    const bool short_search = s->size <= PORT_PROBES / 2;
    const uint32_t at = short_search ? (uint32_t)s->hash : (uint32_t)(s->hash >> 32);
    s->hash = short_search ? s->hash + 1 : s->hash * 0xd6e8feb86659fd93u + 0x9e3779b97f4a7c15u;
    return (uint16_t)(s->first + at % s->size * 2);
}

uint16_t dp_bindings_expect(const struct dp_bindings *b, const struct dp_binding_inside *in,
                            const struct dp_pool *pool, uint32_t *chain) {
    struct search s = begin(b, in, pool, 0);
    struct dp_binding_outside out = {dp_addr_load(pool->addr), 0, in->proto};
    *chain = (uint32_t)s.hash & b->mask;
    dp_prefetch(&b->heads_in[*chain]);
    out.port = in->portless || !s.size ? 0 : next_port(&s);
    dp_prefetch(&b->heads_out[hash_out(b, &out) & b->mask]);
    dp_prefetch(&b->items[b->free ? b->free - 1 : 0]);
    return out.port;
}

bool dp_bindings_choose(const struct dp_bindings *b, const struct dp_binding_inside *in,
                        const struct dp_pool *pool, const struct dp_services *services,
                        uint64_t now_ns, uint16_t *port) {
    struct dp_binding_outside out = {dp_addr_load(pool->addr), 0, in->proto};
    bool found = in->portless && is_free(b, &out, services, now_ns);
    for (uint32_t other = 0; !in->portless && !found && other < 2; other++) { /* parity */
        struct search s = begin(b, in, pool, other);
        for (uint32_t i = 0; !found && i < PORT_PROBES / 2 && i < s.size; i++) {
            out.port = next_port(&s);
            found = is_free(b, &out, services, now_ns);
        }
    }
    *port = out.port;
    return found;
}

static void unlink_in(struct dp_bindings *b, uint32_t i) {
    uint32_t *at = &b->heads_in[hash_in(b, &b->items[i].in) & b->mask];
    while (*at != i + 1) {
        at = &b->items[*at - 1].next_in;
    }
    *at = b->items[i].next_in;
}

static void unlink_out(struct dp_bindings *b, uint32_t i) {
    uint32_t *at = &b->heads_out[hash_out(b, &b->items[i].out) & b->mask];
    while (*at != i + 1) {
        at = &b->items[*at - 1].next_out;
    }
    *at = b->items[i].next_out;
}

static void drop(struct dp_bindings *b, uint32_t i) {
    unlink_in(b, i);
    unlink_out(b, i);
    b->held[b->items[i].in.place]--;
    b->items[i].used = false;
    b->items[i].next_in = b->free;
    b->free = i + 1;
    b->used--;
}

bool dp_bindings_may_add(struct dp_bindings *b, uint16_t place, const struct dp_pool *pool,
                         uint64_t now_ns, bool look) {
    const uint32_t most = pool->max_bindings ? pool->max_bindings : UINT32_MAX;
    uint32_t held = b->held[place];
    uint32_t hand = b->hand;
    for (uint32_t n = 0; held >= most && n < IDLE_LOOKS && n < b->max; n++) {
        hand = hand < b->max ? hand : 0;
        const struct dp_binding *item = &b->items[hand++];
        if (item->used && item->in.place == place && dp_binding_idle(item, now_ns)) {
            held--;
            if (!look) {
                drop(b, (uint32_t)(item - b->items));
            }
        }
    }
    b->hand = look ? b->hand : hand;
    return held < most;
}

bool dp_bindings_has_room(const struct dp_bindings *b, const struct dp_pool *pool, uint8_t proto,
                          uint16_t port) {
    const struct dp_binding_outside out = {dp_addr_load(pool->addr), port, proto};
    return b->free || find_outside(b, &out) != DP_NONE;
}

uint32_t dp_bindings_add(struct dp_bindings *b, const struct dp_binding_inside *in,
                         const struct dp_pool *pool, uint16_t port, uint64_t now_ns,
                         uint64_t idle_ns) {
    const struct dp_binding_outside out = {dp_addr_load(pool->addr), port, in->proto};
    const uint32_t stale = find_outside(b, &out);
    if (stale != DP_NONE) {
        drop(b, stale);
    }
    if (!b->free) {
        return DP_NONE;
    }
    const uint32_t i = b->free - 1;
    struct dp_binding *item = &b->items[i];
    b->free = item->next_in;
    b->used++;
    b->held[in->place]++;
    uint32_t *head_in = &b->heads_in[hash_in(b, in) & b->mask];
    uint32_t *head_out = &b->heads_out[hash_out(b, &out) & b->mask];
    *item = (struct dp_binding){.in = *in,
                                .out = out,
                                .next_in = *head_in,
                                .next_out = *head_out,
                                .used = true,
                                .last_ns = now_ns,
                                .idle_ns = idle_ns};
    *head_in = i + 1;
    *head_out = i + 1;
    return i;
}

void dp_bindings_undo(struct dp_bindings *b, uint32_t i) {
    if (b->items[i].flows == 0) {
        drop(b, i);
    }
}

uint32_t dp_bindings_expire(struct dp_bindings *b, uint64_t now_ns, uint32_t budget) {
    uint32_t gone = 0;
    for (uint32_t n = 0; n < budget && n < b->max; n++) {
        b->sweep = b->sweep < b->max ? b->sweep : 0;
        struct dp_binding *item = &b->items[b->sweep++];
        if (item->used && dp_binding_idle(item, now_ns)) {
            drop(b, (uint32_t)(item - b->items));
            gone++;
        }
    }
    return gone;
}
