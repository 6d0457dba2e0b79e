/* io_ways.h: by which neighbour packets to a provider address leave, as the kernel's tables have
 * it.
 *
 * Whoever sends asks; an address that is not listed gets listed, and the descriptor tells so.
 * Somebody else fills in what he finds. Any number of threads ask without a lock; those that write
 * take turns, and who asks meanwhile is told that the way is not known, which is never wrong. */
#ifndef DP_IO_WAYS_H
#define DP_IO_WAYS_H
#include "base.h"
#include "dp_io.h"

struct io_ways;

struct io_ways *io_ways_create(void);
void io_ways_destroy(struct io_ways *w);
int io_ways_fd(const struct io_ways *w);
/* Whether the way is known. */
bool io_ways_ask(struct io_ways *w, const struct dp_addr *remote, struct dp_way *way);
uint32_t io_ways_list(struct io_ways *w, struct dp_way *ways, uint32_t n);
/* Of a listed address; NULL: it is listed no longer. */
void io_ways_set(struct io_ways *w, const struct dp_addr *remote, const struct dp_way *way);

#endif
