/* binding.h: NAT bindings. A binding ties an inside (network, port, protocol, address, port) to an
 * outside (address, protocol, port): endpoint independent (RFC 4787 REQ-1) unless the remote is
 * part of the inside, and never two to one outside (no port overloading, REQ-3). It outlives its
 * flows by its timer only, so that a re-simulated flow finds the translation it had. Of protocols
 * without ports only one inside can have an address. One thread at a time. */
#ifndef DP_BINDING_H
#define DP_BINDING_H
#include "hash.h"
#include "packet.h"
#include "services.h"

struct dp_binding_inside {
    struct dp_addr addr;
    struct dp_addr remote; /* symmetric NAT: whom it speaks to; else zero */
    uint32_t vni;
    uint16_t place; /* port id where it comes in */
    uint16_t port;  /* source port or echo id */
    uint16_t remote_port;
    uint8_t proto;
    bool portless; /* neither ports nor an echo id: the address alone is translated */
};
struct dp_binding_outside {
    struct dp_addr addr;
    uint16_t port;
    uint8_t proto;
};

struct dp_binding {
    struct dp_binding_inside in;
    struct dp_binding_outside out;
    uint32_t next_in; /* index + 1 of the next in the chain, 0 = end; free list too */
    uint32_t next_out;
    bool used;
    uint32_t flows;   /* that stand on it; it is not idle while there are any */
    uint64_t last_ns; /* last packet of the last flow that left */
    uint64_t idle_ns;
};

struct dp_bindings {
    uint32_t max;
    uint32_t used;
    uint32_t free; /* index + 1 */
    uint32_t mask;
    uint32_t sweep; /* where the next expiry goes on */
    uint32_t hand;  /* where the next search for an idle one goes on */
    uint32_t n_places;
    uint32_t *held; /* bindings by port id of the endpoint */
    uint32_t *heads_in;
    uint32_t *heads_out;
    struct dp_binding *items;
    struct dp_hash_key key;
};

bool dp_bindings_init(struct dp_bindings *b, uint32_t max, uint32_t max_ports,
                      const uint8_t seed[32]);
void dp_bindings_fini(struct dp_bindings *b);
void dp_bindings_clear(struct dp_bindings *b);

/* The live binding of an inside whose outside belongs to the pool, or DP_NONE. */
uint32_t dp_bindings_find(const struct dp_bindings *b, const struct dp_binding_inside *in,
                          const struct dp_pool *pool, uint64_t now_ns);

/* The live binding of an outside, or DP_NONE. */
uint32_t dp_bindings_of(const struct dp_bindings *b, const struct dp_binding_outside *out,
                        uint64_t now_ns);

/* Asks for the lines that finding the inside, or else binding it, will read; returns the outside
 * port that is tried first. *chain: what to ask for once those have come. */
uint16_t dp_bindings_expect(const struct dp_bindings *b, const struct dp_binding_inside *in,
                            const struct dp_pool *pool, uint32_t *chain);
static inline void dp_bindings_expect_chain(const struct dp_bindings *b, uint32_t chain) {
    const struct dp_binding *first = &b->items[b->heads_in[chain] ? b->heads_in[chain] - 1 : 0];
    dp_prefetch(first);
    dp_prefetch((const char *)(first + 1) - 1);
}

/* Chooses a free outside port of the pool for the inside, other than those that services have on
 * the address: of the same class and parity as the inside's (RFC 4787 REQ-3, REQ-4), else of the
 * other parity; at most 128 probes in a keyed order. False: none found. Changes nothing. */
bool dp_bindings_choose(const struct dp_bindings *b, const struct dp_binding_inside *in,
                        const struct dp_pool *pool, const struct dp_services *services,
                        uint64_t now_ns, uint16_t *port);

/* Whether the endpoint may hold one more, by the pool's quota. At the quota idle ones of its own
 * give way, as far as they are met among 64; look: only say whether they would. */
bool dp_bindings_may_add(struct dp_bindings *b, uint16_t place, const struct dp_pool *pool,
                         uint64_t now_ns, bool look);

/* Adds a binding; DP_NONE when the table is full. An idle one with the same outside is removed
 * first. */
uint32_t dp_bindings_add(struct dp_bindings *b, const struct dp_binding_inside *in,
                         const struct dp_pool *pool, uint16_t port, uint64_t now_ns,
                         uint64_t idle_ns);

/* Whether it would find room, at an outside port that was chosen. */
bool dp_bindings_has_room(const struct dp_bindings *b, const struct dp_pool *pool, uint8_t proto,
                          uint16_t port);

/* Takes back one that no flow came to stand on. */
void dp_bindings_undo(struct dp_bindings *b, uint32_t i);

/* A flow begins and ends to stand on the binding. */
static inline void dp_bindings_hold(struct dp_bindings *b, uint32_t i) {
    b->items[i].flows++;
}
static inline void dp_bindings_leave(struct dp_bindings *b, uint32_t i, uint64_t last_ns) {
    b->items[i].flows--;
    b->items[i].last_ns = last_ns > b->items[i].last_ns ? last_ns : b->items[i].last_ns;
}
static inline bool dp_binding_idle(const struct dp_binding *b, uint64_t now_ns) {
    return b->flows == 0 && now_ns - b->last_ns > b->idle_ns;
}

/* Removes idle ones among the next budget; returns how many. */
uint32_t dp_bindings_expire(struct dp_bindings *b, uint64_t now_ns, uint32_t budget);

#endif
