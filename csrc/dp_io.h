/* dp_io.h: ports of the operating system and the loop that moves frames between them and an engine.
 *
 * Descriptors belong to the caller, who opens them non-blocking and closes them after the loop is
 * destroyed. A TAP is opened with IFF_TAP | IFF_NO_PI | IFF_VNET_HDR (10 byte header), with
 * whatever receive offloads (TUNSETOFFLOAD). An underlay is a set of UDP sockets: those bound to
 * the VXLAN port receive, those on source ports of 49152-65535 send. Threads: one inside
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
    uint64_t
        tx_errors; /* packets the device refused; forwarded ones are counted drops of the engine */
    uint64_t truncated;
    uint64_t gso_frames;  /* sent: super-frames that the device was left to cut */
    uint64_t gso_packets; /* sent: packets of super-frames, or of one size, in one message */
    uint64_t gro_frames;  /* received: super-frames that were joined here */
    uint64_t gro_packets; /* received: packets that are parts of them */
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
/* From now on a turn looks for frames for so long before it sleeps; 0: not at all. */
void dp_loop_busy_poll(struct dp_loop *loop, uint64_t ns);
/* Moves frames until stopped (1), or until the timeout or a signal (0); < 0 is a status. Negative:
 * no timeout. */
int dp_loop_run(struct dp_loop *loop, int64_t timeout_ns);
/* One turn, after waiting up to wait_ns for frames; answers as dp_loop_run does. */
int dp_loop_step(struct dp_loop *loop, int64_t wait_ns);
void dp_loop_stop(struct dp_loop *loop);
/* An epoll descriptor that is readable when dp_loop_step has something to do. */
int dp_loop_fd(const struct dp_loop *loop);
int dp_loop_counters(const struct dp_loop *loop, uint16_t port, struct dp_io_counters *out);
/* cffi:end */

#endif
