#include "path.h"

void dp_paths_init(struct dp_paths *t, const uint8_t seed[32]) {
    *t = (struct dp_paths){0};
    dp_hash_key_init(&t->key, seed, 7);
}

static uint32_t set_of(const struct dp_paths *t, const struct dp_addr *remote) {
    const uint64_t m[DP_HASH_WORDS] = {remote->word[0], remote->word[1]};
    return (uint32_t)dp_hash(&t->key, m) % DP_PATH_SETS;
}

static uint32_t find(const struct dp_learned_path *set, const struct dp_addr *remote,
                     uint64_t now_ns) {
    uint32_t i = 0;
    while (i < DP_PATH_WAYS &&
           !(set[i].until_ns > now_ns && dp_addr_equal(&set[i].remote, remote))) {
        i++;
    }
    return i;
}

static uint32_t oldest(const struct dp_learned_path *set) {
    uint32_t found = 0;
    for (uint32_t i = 1; i < DP_PATH_WAYS; i++) {
        found = set[i].until_ns < set[found].until_ns ? i : found;
    }
    return found;
}

const struct dp_learned_path *dp_paths_find(const struct dp_paths *t, const struct dp_addr *remote,
                                            uint64_t now_ns) {
    const struct dp_learned_path *set = t->sets[set_of(t, remote)];
    const uint32_t i = find(set, remote, now_ns);
    return i < DP_PATH_WAYS ? &set[i] : NULL;
}

uint16_t dp_paths_mtu(const struct dp_paths *t, const struct dp_addr *remote, uint64_t now_ns) {
    const struct dp_learned_path *path = dp_paths_find(t, remote, now_ns);
    return path ? path->mtu : 0;
}

bool dp_paths_learn(struct dp_paths *t, const struct dp_addr *remote, uint16_t mtu,
                    uint64_t now_ns) {
    const uint16_t floor = dp_addr_is_v4(remote) ? DP_PATH_MTU_MIN4 : DP_PATH_MTU_MIN6;
    const uint16_t learned = mtu < floor ? floor : mtu;
    struct dp_learned_path *set = t->sets[set_of(t, remote)];
    uint32_t i = find(set, remote, now_ns);
    if (i < DP_PATH_WAYS && set[i].mtu <= learned) {
        return false;
    }
    i = i < DP_PATH_WAYS ? i : oldest(set);
    dp_set(t->used, t->used + (set[i].until_ns == 0));
    set[i] = (struct dp_learned_path){*remote, now_ns + t->age_ns, learned};
    return true;
}

void dp_paths_expire(struct dp_paths *t, uint64_t now_ns) {
    for (uint32_t i = 0; t->used && i < DP_PATH_SETS * DP_PATH_WAYS; i++) {
        struct dp_learned_path *path = &t->sets[0][0] + i;
        if (path->until_ns && path->until_ns <= now_ns) {
            path->until_ns = 0;
            dp_set(t->used, t->used - 1);
        }
    }
}
