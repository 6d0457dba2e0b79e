/* share.h: how many pairs of the flow table each ingress port and each network holds, so that a
 * quota can keep one from taking the others' share. All memory is taken at creation. */
#ifndef DP_SHARE_H
#define DP_SHARE_H
#include "packet.h"

struct dp_vni_share {
    uint32_t vni;
    uint32_t pairs; /* 0 = free slot */
};
struct dp_shares {
    uint32_t n_ports;
    uint32_t mask;
    uint32_t *ports;           /* pairs by ingress port id */
    struct dp_vni_share *vnis; /* open addressing, linear */
};

bool dp_shares_init(struct dp_shares *s, uint32_t n_ports, uint32_t max_pairs);
void dp_shares_fini(struct dp_shares *s);
void dp_shares_clear(struct dp_shares *s);

/* A pair with the initiator's key comes and goes. */
void dp_shares_take(struct dp_shares *s, const struct dp_key *key);
void dp_shares_give(struct dp_shares *s, const struct dp_key *key);

static inline uint32_t dp_share_of_port(const struct dp_shares *s, uint16_t port) {
    return port < s->n_ports ? s->ports[port] : 0;
}
uint32_t dp_share_of_network(const struct dp_shares *s, uint32_t vni);

#endif
