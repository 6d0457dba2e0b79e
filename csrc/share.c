#include "share.h"
#include <stdlib.h>

enum { VNIS = 1 << 24 };

static uint32_t home(const struct dp_shares *s, uint32_t vni) {
    return vni * 0x9e3779b1u >> 7 & s->mask; /* VNIs are of the policy: no one can flood them */
}

/* Where the VNI is, or else would be put. */
static uint32_t place(const struct dp_shares *s, uint32_t vni) {
    uint32_t at = home(s, vni);
    while (s->vnis[at].pairs && s->vnis[at].vni != vni) {
        at = (at + 1) & s->mask;
    }
    return at;
}

bool dp_shares_init(struct dp_shares *s, uint32_t n_ports, uint32_t max_pairs) {
    const uint32_t most = max_pairs < VNIS ? max_pairs : VNIS;
    uint32_t slots = 16;
    while (slots / 2 < most) {
        slots *= 2;
    }
    *s = (struct dp_shares){.n_ports = n_ports, .mask = slots - 1};
    s->ports = calloc((size_t)n_ports + 1, sizeof *s->ports);
    s->vnis = calloc(slots, sizeof *s->vnis);
    return s->ports && s->vnis;
}

void dp_shares_fini(struct dp_shares *s) {
    free(s->ports);
    free(s->vnis);
    *s = (struct dp_shares){0};
}

void dp_shares_clear(struct dp_shares *s) {
    memset(s->ports, 0, (size_t)s->n_ports * sizeof *s->ports);
    memset(s->vnis, 0, ((size_t)s->mask + 1) * sizeof *s->vnis);
}

void dp_shares_take(struct dp_shares *s, const struct dp_key *key) {
    struct dp_vni_share *network = &s->vnis[place(s, key->vni)];
    network->vni = key->vni;
    network->pairs++;
    if (key->port < s->n_ports) {
        s->ports[key->port]++;
    }
}

/* Frees a slot: those behind it that would no longer be found move up. */
static void close_gap(struct dp_shares *s, uint32_t gap) {
    for (uint32_t at = (gap + 1) & s->mask; s->vnis[at].pairs; at = (at + 1) & s->mask) {
        const uint32_t from_home = (at - home(s, s->vnis[at].vni)) & s->mask;
        if (from_home >= ((at - gap) & s->mask)) {
            s->vnis[gap] = s->vnis[at];
            s->vnis[at].pairs = 0;
            gap = at;
        }
    }
}

void dp_shares_give(struct dp_shares *s, const struct dp_key *key) {
    const uint32_t at = place(s, key->vni);
    if (--s->vnis[at].pairs == 0) {
        close_gap(s, at);
    }
    if (key->port < s->n_ports) {
        s->ports[key->port]--;
    }
}

uint32_t dp_share_of_network(const struct dp_shares *s, uint32_t vni) {
    return s->vnis[place(s, vni)].pairs;
}
