/* services.h: services by what their clients meet: place, network, address, protocol and port.
 * Part of a snapshot, filled before it is published and immutable then. */
#ifndef DP_SERVICES_H
#define DP_SERVICES_H
#include "array.h"
#include "wire.h"

struct dp_services {
    uint32_t n;
    uint32_t mask;
    struct dp_service *items;
    uint32_t *index; /* hash table: place in items + 1, 0 = free; see services.c */
};

/* Copies n items; none can be found yet. */
bool dp_services_init(struct dp_services *t, const struct dp_service *items, uint32_t n);
void dp_services_fini(struct dp_services *t);

/* Makes item i found; false: its clients meet another one there already. */
bool dp_services_add(struct dp_services *t, uint32_t i);

/* The service that clients who come in at the kind of port meet, or NULL. network: of clients, but
 * for those of the host port. */
const struct dp_service *dp_services_find(const struct dp_services *t, enum dp_port_kind met_at,
                                          uint32_t network, const struct dp_addr *addr,
                                          uint8_t proto, uint16_t port);
/* Whether any service has the address there. */
bool dp_services_have(const struct dp_services *t, enum dp_port_kind met_at, uint32_t network,
                      const struct dp_addr *addr);

#endif
