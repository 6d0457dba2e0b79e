/* io_xdp_program.h: the XDP program that picks our packets out of an interface's, assembled here
 * and loaded by bpf(2): what is UDP to our addresses and port over IP without options, extension
 * headers, fragmentation or tags goes to the AF_XDP socket of its queue, all else to the kernel. */
#ifndef DP_IO_XDP_PROGRAM_H
#define DP_IO_XDP_PROGRAM_H
#include "dp_io.h"

/* Descriptors, or -1. The program stays on its interface as long as the link is open. */
struct io_xdp_program {
    int map;
    int program;
    int link;
};

/* Puts it on the interface, sockets[i] being that of queue i. NULL, or the step that failed; errno
 * says why, and io_xdp_detach closes what was opened. */
const char *io_xdp_attach(struct io_xdp_program *p, const struct dp_xdp_config *config,
                          const int *sockets, uint32_t n);
void io_xdp_detach(struct io_xdp_program *p);

#endif
