/* limit.h: how many ICMP errors may be sent: a token bucket for each ingress port and one for all
 * (RFC 1812 section 4.3.2.8, RFC 4443 section 2.4 f).
 *
 * A bucket counts what is owed, in shares of a token, DP_LIMIT_SLOTS to one. Time is cut into slots
 * of 1/DP_LIMIT_SLOTS s; once in each, at an instant nobody can foretell, `rate` shares are paid
 * back. So of a bucket with number b (port id; all: DP_LIMIT_ALL), at the time t in ns:
 *
 *   slot     = t / SLOT_NS                                  (integers throughout)
 *   word     = dp_hash(key of purpose DP_LIMIT_PURPOSE, {slot, b, 0, 0, 0, 0})
 *   instants = slot + (t % SLOT_NS >= (word & 0xffffffff) * SLOT_NS >> 32)
 *   least    = ((word >> 32) * (burst / 4 + 1) >> 32) * DP_LIMIT_SLOTS
 *   if instants > bucket.instants:
 *       owed = max(owed - min(owed, (instants - bucket.instants) * rate), least)
 *   an error may go if owed + DP_LIMIT_SLOTS <= burst * DP_LIMIT_SLOTS; then it is owed too
 *
 * `least` hides up to a quarter of the burst, so how many errors are left tells an observer neither
 * the time nor what others have caused (SAD DNS, CVE-2020-25705). In any second at most
 * burst + rate * 21 / 20 errors are sent; in one that finds the bucket empty, rate * 21 / 20. */
#ifndef DP_LIMIT_H
#define DP_LIMIT_H
#include "hash.h"

enum {
    DP_LIMIT_SLOTS = 20,
    DP_LIMIT_SLOT_NS = 1000000000 / DP_LIMIT_SLOTS,
    DP_LIMIT_PURPOSE = 5,
    DP_LIMIT_ALL = DP_PORT_NONE
};

struct dp_bucket_state {
    uint64_t instants; /* of payment that have been seen */
    uint64_t owed;
};

struct dp_limit {
    struct dp_hash_key key;
    struct dp_bucket_state all;
    struct dp_bucket_state *ports; /* by ingress port id */
    uint32_t n_ports;
};

bool dp_limit_init(struct dp_limit *l, uint32_t n_ports, const uint8_t seed[32]);
void dp_limit_fini(struct dp_limit *l);

/* Whether no rate or burst is so large that the sums above might overflow. */
static inline bool dp_limit_allows(const struct dp_icmp_rate *r) {
    const uint32_t most = 1000000;
    return r->port <= most && r->port_burst <= most && r->all <= most && r->all_burst <= most;
}

/* Whether one more error may be sent to the port; if so, and unless it is a dry run, it is owed to
 * both buckets. */
bool dp_limit_take(struct dp_limit *l, const struct dp_icmp_rate *rate, uint16_t port,
                   uint64_t now_ns, bool dry);

#endif
