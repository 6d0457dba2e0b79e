/* dp_io.h: ports of the operating system and the loop that moves frames between them and an engine.
 *
 * Descriptors belong to the caller, who opens them non-blocking and closes them after the loop is
 * destroyed. A TAP is opened with IFF_TAP | IFF_NO_PI | IFF_VNET_HDR (10 byte header), with
 * whatever receive offloads (TUNSETOFFLOAD). An underlay is a set of UDP sockets: those bound to
 * the VXLAN port receive, those on source ports of 49152-65535 send; AF_XDP may stand beside them.
 * Threads: one inside
 * dp_loop_run or dp_loop_step of one loop at a time, a second one gets DP_EBUSY; ports are added
 * while none is; dp_loop_stop and dp_loop_counters from any. */
#ifndef DP_IO_H
#define DP_IO_H
#include "dp.h"
#include <stdbool.h>

/* cffi:begin */
struct dp_underlay_sockets {
    int receive4; /* bound to the VXLAN port, or -1: another loop's, or without IPv4 */
    int receive6;
    const int *send4; /* n_send sockets, each with a source port of its own; NULL without IPv4 */
    const int *send6;
    uint32_t n_send;
    int icmp4; /* raw ICMP, for errors about what AF_XDP sent; -1: none is wanted */
    int icmp6;
    uint8_t ip4[16]; /* own provider addresses, as in struct dp_port */
    uint8_t ip6[16];
    uint16_t udp_port;
    bool segment; /* messages of many packets are sent (UDP_SEGMENT); needs UDP checksums on */
    bool gro;     /* the receiving sockets have UDP_GRO on */
};

struct dp_io_counters {
    uint64_t rx_frames;
    uint64_t rx_calls; /* system calls */
    uint64_t tx_frames;
    uint64_t tx_calls;
    uint64_t rx_errors; /* receive calls that failed, ICMP errors of the underlay among them */
    uint64_t rx_lost;   /* not received: what the kernel dropped at the underlay's sockets, most
                         * likely because their queues were full; of one joined by it, one */
    uint64_t
        tx_errors; /* packets the device refused; forwarded ones are counted drops of the engine */
    uint64_t truncated;
    uint64_t gso_frames;  /* sent: super-frames that the device was left to cut */
    uint64_t gso_packets; /* sent: packets of super-frames, or of one size, in one message */
    uint64_t gro_frames;  /* received: super-frames that were joined here */
    uint64_t gro_packets; /* received: packets that are parts of them */
    uint64_t xdp_rx;      /* received: packets that AF_XDP brought */
    uint64_t xdp_tx;      /* sent: packets that AF_XDP took */
    uint64_t xdp_lost;    /* not received: packets that came while AF_XDP's rings were full */
};

struct dp_loop;

/* The loop of one worker of the engine. */
struct dp_loop *dp_loop_create(struct dp_engine *engine, uint32_t worker, struct dp_error *err);
void dp_loop_destroy(struct dp_loop *loop);
struct dp_tap {
    int fd;
    uint16_t mtu;   /* of the device */
    bool vnet_hdr;  /* opened with IFF_VNET_HDR; else super-frames are cut here */
    bool uso;       /* its kernel cuts UDP super-frames too (Linux 6.2) */
    bool send_only; /* another loop receives from it */
};
int dp_loop_add_tap(struct dp_loop *loop, uint16_t port, const struct dp_tap *tap,
                    struct dp_error *err);
int dp_loop_add_underlay(struct dp_loop *loop, uint16_t port,
                         const struct dp_underlay_sockets *sockets, struct dp_error *err);

/* AF_XDP beside an underlay's sockets: whole outer frames past the host's stack, both ways. A
 * program on the interface hands over what is UDP over plain IP to our addresses and port; all
 * else, fragments and tags among it, goes on to the kernel, and so to the sockets. A packet leaves
 * by AF_XDP once its way is known, else by the sockets. Super-frames, and what is in a burst with
 * them, take the sockets, too, where AF_XDP would copy each packet: UDP_SEGMENT costs less. */
struct dp_xdp_config {
    uint32_t ifindex;  /* of an Ethernet device in the calling thread's namespace */
    uint16_t udp_port; /* as those of the underlay */
    uint16_t senders;  /* loops that send: the first so many queues do */
    uint8_t ip4[16];   /* all zero: none */
    uint8_t ip6[16];
    bool checksum4; /* packets cut from super-frames have UDP checksums over IPv4, too */
    bool cut;       /* super-frames are cut here even where the kernel copies what is sent */
};
/* How packets to a provider address leave. */
struct dp_way {
    uint8_t remote[16];
    uint8_t mac[6];     /* of the next hop */
    uint8_t own_mac[6]; /* of the interface */
    uint16_t mtu;       /* largest IP packet; 0: unknown, so they leave by the sockets */
    uint16_t used;      /* out: it was asked for since it was last read */
};
struct dp_xdp;
/* The program and a socket for each queue. It goes with the process, however that ends. NULL:
 * err->what is the step that failed, errno says why. */
struct dp_xdp *dp_xdp_create(const struct dp_xdp_config *config, struct dp_error *err);
/* After the loops that use it. */
void dp_xdp_destroy(struct dp_xdp *xdp);
/* No more frames come; those that have come are still received. Not beside another call of these.
 */
void dp_xdp_let_go(struct dp_xdp *xdp);
uint32_t dp_xdp_queues(const struct dp_xdp *xdp);
bool dp_xdp_zero_copy(const struct dp_xdp *xdp);
/* An eventfd: packets were sent to an address of which no way was listed; it is listed now. These
 * three from any thread, at any time. */
int dp_xdp_fd(const struct dp_xdp *xdp);
uint32_t dp_xdp_ways(struct dp_xdp *xdp, struct dp_way *ways, uint32_t n); /* up to n; how many */
void dp_xdp_set_way(struct dp_xdp *xdp, const struct dp_way *way);         /* of a listed remote */
void dp_xdp_forget(struct dp_xdp *xdp, const uint8_t remote[16]);
/* The underlay of that port id gets every queues-th queue, from queue on. */
int dp_loop_add_xdp(struct dp_loop *loop, uint16_t port, struct dp_xdp *xdp, uint32_t queue,
                    uint32_t queues, struct dp_error *err);
/* From now on a turn looks for frames for so long before it sleeps; 0: only where packets come one
 * by one within 0.1 ms. */
void dp_loop_busy_poll(struct dp_loop *loop, uint64_t ns);
/* Moves frames until stopped (1), or until the timeout or a signal (0); < 0 is a status. Negative:
 * no timeout. */
int dp_loop_run(struct dp_loop *loop, int64_t timeout_ns);
/* One turn, after waiting up to wait_ns for frames; answers as dp_loop_run does. */
int dp_loop_step(struct dp_loop *loop, int64_t wait_ns);
void dp_loop_stop(struct dp_loop *loop);
/* An epoll descriptor that is readable when dp_loop_step has something to do. */
int dp_loop_fd(const struct dp_loop *loop);
/* By CLOCK_MONOTONIC, when its last turn ended: while it runs, some 0.1 s ago. From any thread. */
uint64_t dp_loop_turned_ns(const struct dp_loop *loop);
int dp_loop_counters(const struct dp_loop *loop, uint16_t port, struct dp_io_counters *out);
/* cffi:end */

#endif
