/* path.h: path MTUs of the underlay, learned from ICMP (RFC 1191, RFC 8201): by provider address,
 * so that forged messages about one do not concern the others. Whoever calls has checked the
 * message.
 *
 * A value only falls while it is young, and is forgotten when it is old: then large packets try
 * again (RFC 1191 section 6.3). Bounded: sets of four under a secret hash; in a full set the oldest
 * gives way, and is learned again. One thread. */
#ifndef DP_PATH_H
#define DP_PATH_H
#include "hash.h"

enum { DP_PATH_MTU_MIN4 = 576, DP_PATH_MTU_MIN6 = 1280, DP_PATH_SETS = 256, DP_PATH_WAYS = 4 };

struct dp_learned_path {
    struct dp_addr remote;
    uint64_t until_ns; /* 0: free */
    uint16_t mtu;      /* of the outer packet, IP header included */
};
struct dp_paths {
    uint32_t used; /* learned at all; those that are too old by now included */
    uint64_t age_ns;
    struct dp_hash_key key;
    struct dp_learned_path sets[DP_PATH_SETS][DP_PATH_WAYS];
};

void dp_paths_init(struct dp_paths *t, const uint8_t seed[32]);
/* What is known of packets to the remote, or NULL; its MTU, or 0. */
const struct dp_learned_path *dp_paths_find(const struct dp_paths *t, const struct dp_addr *remote,
                                            uint64_t now_ns);
uint16_t dp_paths_mtu(const struct dp_paths *t, const struct dp_addr *remote, uint64_t now_ns);
/* Not below the floor of RFC 791 or RFC 8200, and only if it is less than what is known. */
bool dp_paths_learn(struct dp_paths *t, const struct dp_addr *remote, uint16_t mtu,
                    uint64_t now_ns);
void dp_paths_expire(struct dp_paths *t, uint64_t now_ns);

#endif
