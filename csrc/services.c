#include "services.h"

/* An index entry with this bit stands for the address of its item alone, whatever the port. */
enum { ADDRESS_ONLY = 1 << 30 };

struct known_by {
    struct dp_addr addr;
    uint32_t network; /* index + 1; 0 at the host port */
    uint16_t port;
    uint8_t proto; /* with port 0: the address alone */
    uint8_t met_at;
};

static struct known_by known_by(const struct dp_service *v) {
    return (struct known_by){.addr = dp_addr_load(v->addr),
                             .network = v->met_at == DP_PORT_HOST ? 0 : v->network + 1,
                             .port = v->port,
                             .proto = v->proto,
                             .met_at = v->met_at};
}

static struct known_by address_of(struct known_by k) {
    k.proto = 0;
    k.port = 0;
    return k;
}

static bool equal(const struct known_by *a, const struct known_by *b) {
    return dp_addr_equal(&a->addr, &b->addr) && a->network == b->network && a->port == b->port &&
           a->proto == b->proto && a->met_at == b->met_at;
}

static uint32_t hash(const struct known_by *k) {
    uint64_t h = k->addr.word[0] ^ (uint64_t)k->network << 32;
    h = (h ^ k->addr.word[1]) * 0x9e3779b97f4a7c15u;
    h = (h ^ h >> 32 ^ (uint64_t)k->met_at << 24 ^ (uint64_t)k->proto << 16 ^ k->port) *
        0xbf58476d1ce4e5b9u;
    return (uint32_t)(h >> 32);
}

/* The slot that is the key's, or the free one where it belongs. */
static uint32_t *slot_of(const struct dp_services *t, const struct known_by *k) {
    for (uint32_t at = hash(k);; at++) {
        uint32_t *slot = &t->index[at & t->mask];
        if (*slot == 0) {
            return slot;
        }
        struct known_by found = known_by(&t->items[(*slot & ~(uint32_t)ADDRESS_ONLY) - 1]);
        found = *slot & ADDRESS_ONLY ? address_of(found) : found;
        if (equal(&found, k)) {
            return slot;
        }
    }
}

bool dp_services_init(struct dp_services *t, const struct dp_service *items, uint32_t n) {
    uint32_t slots = 16;
    while (slots < n * 4) { /* two entries an item, half of the slots stay free */
        slots *= 2;
    }
    *t = (struct dp_services){.n = n, .mask = slots - 1};
    t->items = dp_array_copy(items, n, sizeof *items);
    t->index = calloc(slots, sizeof *t->index);
    return t->items && t->index;
}

void dp_services_fini(struct dp_services *t) {
    free(t->items);
    free(t->index);
}

bool dp_services_add(struct dp_services *t, uint32_t i) {
    const struct known_by k = known_by(&t->items[i]);
    const struct known_by address = address_of(k);
    uint32_t *slot = slot_of(t, &k);
    if (*slot) {
        return false;
    }
    *slot = i + 1;
    slot = slot_of(t, &address);
    *slot = *slot ? *slot : (i + 1) | ADDRESS_ONLY;
    return true;
}

const struct dp_service *dp_services_find(const struct dp_services *t, enum dp_port_kind met_at,
                                          uint32_t network, const struct dp_addr *addr,
                                          uint8_t proto, uint16_t port) {
    const struct known_by k = {.addr = *addr,
                               .network = met_at == DP_PORT_HOST ? 0 : network + 1,
                               .port = port,
                               .proto = proto,
                               .met_at = (uint8_t)met_at};
    const uint32_t slot = t->n ? *slot_of(t, &k) : 0;
    return slot ? &t->items[(slot & ~(uint32_t)ADDRESS_ONLY) - 1] : NULL;
}

bool dp_services_have(const struct dp_services *t, enum dp_port_kind met_at, uint32_t network,
                      const struct dp_addr *addr) {
    return dp_services_find(t, met_at, network, addr, 0, 0) != NULL;
}
