#include "limit.h"
#include <stdlib.h>

bool dp_limit_init(struct dp_limit *l, uint32_t n_ports, const uint8_t seed[32]) {
    dp_hash_key_init(&l->key, seed, DP_LIMIT_PURPOSE);
    l->n_ports = n_ports;
    l->ports = calloc((size_t)n_ports + 1, sizeof *l->ports);
    return l->ports;
}

void dp_limit_fini(struct dp_limit *l) {
    free(l->ports);
}

/* The bucket as it stands now. */
static struct dp_bucket_state paid(const struct dp_limit *l, struct dp_bucket_state b,
                                   uint32_t number, uint32_t rate, uint32_t burst,
                                   uint64_t now_ns) {
    const uint64_t slot = now_ns / DP_LIMIT_SLOT_NS;
    const uint64_t m[DP_HASH_WORDS] = {slot, number};
    const uint64_t word = dp_hash(&l->key, m);
    const uint64_t instant = (word & 0xffffffff) * DP_LIMIT_SLOT_NS >> 32;
    const uint64_t instants = slot + (now_ns % DP_LIMIT_SLOT_NS >= instant);
    if (instants > b.instants) {
        const uint64_t payment = (instants - b.instants) * rate;
        const uint64_t least = ((word >> 32) * (burst / 4 + 1) >> 32) * DP_LIMIT_SLOTS;
        b.owed -= payment < b.owed ? payment : b.owed;
        b.owed = b.owed > least ? b.owed : least;
        b.instants = instants;
    }
    return b;
}

bool dp_limit_take(struct dp_limit *l, const struct dp_icmp_rate *rate, uint16_t port,
                   uint64_t now_ns, bool dry) {
    if (port >= l->n_ports) {
        return false;
    }
    struct dp_bucket_state own =
        paid(l, l->ports[port], port, rate->port, rate->port_burst, now_ns);
    struct dp_bucket_state all = paid(l, l->all, DP_LIMIT_ALL, rate->all, rate->all_burst, now_ns);
    const bool may = own.owed + DP_LIMIT_SLOTS <= (uint64_t)rate->port_burst * DP_LIMIT_SLOTS &&
                     all.owed + DP_LIMIT_SLOTS <= (uint64_t)rate->all_burst * DP_LIMIT_SLOTS;
    if (!dry) {
        own.owed += may ? DP_LIMIT_SLOTS : 0;
        all.owed += may ? DP_LIMIT_SLOTS : 0;
        l->ports[port] = own;
        l->all = all;
    }
    return may;
}
