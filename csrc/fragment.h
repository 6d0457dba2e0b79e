/* fragment.h: datagrams that come in fragments. The first fragment holds the transport header; the
 * others get its protocol and ports from here and so go the way of its flow (virtual reassembly: no
 * byte is put together). Those that come before it wait in the store.
 *
 * Of each datagram it is known which parts were seen. One that overlaps another ends the whole
 * datagram (RFC 5722; for IPv4 likewise, as RFC 1858 and RFC 3128 are about); a part that was seen
 * is dropped by itself.
 *
 * Bounded: all memory is taken at creation. Of datagrams and of waiting fragments an endpoint or
 * the host may hold a quarter; through tunnels come no more once their network holds one. Complete
 * and overdue datagrams are forgotten. One thread. */
#ifndef DP_FRAGMENT_H
#define DP_FRAGMENT_H
#include "hash.h"
#include "share.h"
#include "store.h"

enum { DP_PARTS_MAX = 16 }; /* gaps in a datagram, as far as they are followed */

struct dp_part { /* of a datagram, in units of 8 bytes; .end is the first behind */
    uint16_t begin;
    uint16_t end;
};
struct dp_datagram {
    struct dp_key key;   /* the ports hold the id; of IPv6 no protocol, as the first one tells it */
    struct dp_addr from; /* outer source; zero: none */
    uint64_t since_ns;
    uint32_t chain; /* the next one of the bucket, or free one: index + 1 */
    uint32_t older; /* by age: index + 1 */
    uint32_t newer;
    struct dp_kept_list waiting;
    struct dp_transport transport; /* once .known */
    bool known;                    /* the first fragment was seen */
    bool dead;                     /* there was an overlap */
    uint16_t end;                  /* of the datagram, once the last fragment was seen */
    uint8_t n_parts;
    struct dp_part parts[DP_PARTS_MAX]; /* seen; ascending, none touches the next */
};

struct dp_fragments {
    uint32_t max;
    uint32_t used;
    uint32_t free;
    uint32_t oldest;
    uint32_t newest;
    uint32_t mask;
    uint32_t *buckets; /* index + 1 */
    struct dp_datagram *items;
    struct dp_hash_key key;
    struct dp_shares datagrams;
    struct dp_shares waiting;
    uint64_t timeout_ns;
    struct dp_kept_list doomed; /* waited in datagrams that ended; the caller drops them */
    struct dp_store store;
};

bool dp_fragments_init(struct dp_fragments *t, uint32_t max, uint32_t max_kept, uint32_t max_ports,
                       const uint8_t seed[32]);
void dp_fragments_fini(struct dp_fragments *t);

enum { DP_WAITS = DP_REASONS + 1 }; /* beside the reasons: the fragment waits for the first one */
/* Where a fragment stands in its datagram. DP_R_none: it goes on, its key completed; those that
 * waited for it are queued in the store. DP_WAITS: it was copied into the store. Else the reason to
 * drop it. arrived, len: the frame as it came, outer headers included. look: changes nothing. */
int dp_fragments_judge(struct dp_fragments *t, struct dp_packet *p, const uint8_t *arrived,
                       uint32_t len, uint64_t now_ns, bool look);

/* The oldest datagram if it is overdue, or DP_NONE. */
uint32_t dp_fragments_overdue(const struct dp_fragments *t, uint64_t now_ns);
uint32_t dp_fragments_oldest(const struct dp_fragments *t);
/* Takes the next of a datagram's waiting fragments out; 0 = none. The caller gives it back. */
uint32_t dp_fragments_next_waiting(struct dp_fragments *t, uint32_t datagram);
/* Of one that has no fragment waiting any more. */
void dp_fragments_forget(struct dp_fragments *t, uint32_t datagram);

#endif
