/* io.h: what the loop and its ports have in common: a burst of frames in slots of one arena. */
#ifndef DP_IO_INTERNAL_H
#define DP_IO_INTERNAL_H
#include "counters.h"
#include "dp_io.h"
#include "packet.h"

enum {
    IO_BURST = 64,   /* frames or messages of one receive call, each in a slot of its own */
    IO_FRAMES = 128, /* frames of a burst, and slots */
    IO_FRONT = 256,  /* bytes in front of a received frame: headroom, virtio and outer headers */
    IO_SLOT = IO_FRONT + 65536 + 256, /* a super-frame of 64 KiB fits */
    IO_VNET_HDR = 10,
    IO_FRONT4 = 42, /* bytes of outer headers in front of VXLAN */
    IO_FRONT6 = 62,
};

/* After so many bytes a receive call ends: what it took is still in the core's cache when it is
 * sent, and who is next on the way has work meanwhile. */
enum { IO_BYTES = 512 << 10 };

struct dp_coalescer;

struct io_port {
    uint16_t id;
    uint32_t worker; /* whose port this is */
    uint8_t kind;    /* enum dp_port_kind: endpoint (a TAP) or underlay */
    bool dead;       /* the device is gone: no longer polled */
    uint16_t mtu;
    uint8_t front; /* TAP: bytes of virtio-net header in front of a frame: 10, or 0 without */
    bool uso;      /* TAP: the kernel cuts UDP super-frames */
    int fd;        /* TAP */
    struct dp_underlay_sockets sockets;
    int *sending;         /* n_send IPv4 sockets, then n_send IPv6 ones */
    bool *uncut;          /* of each: its way was found not to take UDP_SEGMENT */
    bool told;            /* one of them told of an ICMP error: their queues are to be read */
    struct io_port *next; /* the loop's next underlay */
    struct io_inbox *inbox;
    struct io_outbox *outbox;
    struct io_xdp *xdp; /* or NULL */
    struct dp_io_counters count;
};

struct io_burst {
    uint8_t *arena;
    struct dp_frame frames[IO_FRAMES];
    uint32_t n;
};

static inline uint8_t *io_slot(const struct io_burst *b, uint32_t i) {
    return b->arena + (size_t)i * IO_SLOT;
}

/* Receives up to IO_BURST frames, of about IO_BYTES, into the slots; sets b->n. False: the device
 * is gone for good. */
bool io_tap_receive(struct io_port *p, struct io_burst *b);
/* Receives up to IO_BURST messages, of about IO_BYTES, into the first slots; io_underlay_gather
 * then makes bursts of them, until it returns false. A message may be of many packets, so there may
 * be several bursts; between them the slots from IO_BURST on are free. */
void io_underlay_receive(struct io_port *p, int fd, const struct io_burst *b);
bool io_underlay_gather(struct io_port *p, struct io_burst *b);

/* What the kernel dropped at the receiving sockets. Any thread. */
uint64_t io_underlay_lost(const struct io_port *p);

/* What ICMP said of the way to a provider address; mtu 0: nothing of its size. */
struct io_path {
    struct dp_addr remote;
    uint32_t vni; /* of the packet quoted, or DP_NONE */
    uint16_t mtu;
};
/* Takes one error off a sending socket's queue; false: there is none. */
bool io_underlay_error(struct io_port *p, int fd, struct io_path *path);
/* Reads one message of the raw ICMP socket of that family; false: there is none. */
bool io_icmp_error(struct io_port *p, bool v4, struct io_path *path);

/* Send frames of the burst; what the device refuses is counted with dp_egress_drop. */
void io_tap_send(struct io_port *p, struct dp_engine *e, uint8_t *arena,
                 struct dp_frame *const *frames, uint32_t n);
void io_underlay_send(struct io_port *p, struct dp_engine *e, uint8_t *arena,
                      struct dp_frame *const *frames, uint32_t n);

/* Of an underlay; to be freed. */
struct io_inbox *io_inbox_create(void);
struct io_outbox *io_outbox_create(void);

/* A loop's share of the queues, to be freed; its i-th socket, -1 beyond the last. */
struct io_xdp *io_xdp_create(struct dp_xdp *of, uint32_t queue, uint32_t queues);
int io_xdp_fd(const struct io_xdp *x, uint32_t i);
/* Receives up to IO_BURST packets of the i-th queue into the first slots. */
void io_xdp_receive(struct io_port *p, uint32_t i, struct io_burst *b);
/* Sends the frames whose ways are known; the others are put into rest, in order: how many. */
uint32_t io_xdp_send(struct io_port *p, struct dp_engine *e, uint8_t *arena,
                     struct dp_frame *const *frames, uint32_t n, struct dp_frame **rest);
/* Packets that the rings of its queues had no room for. From any thread. */
uint64_t io_xdp_lost(const struct io_xdp *x);
/* Whether a packet of this source port was sent. */
bool io_xdp_sent_from(const struct io_xdp *x, uint16_t port);
/* Sends what the device did not take before; false: it still does not. */
bool io_xdp_flush(struct io_port *p);

/* Completes the descriptors of a burst whose frames were opened in the coalescer one by one, .len
 * being what stands in front of their bytes there. */
void io_finish_joined(struct io_port *p, struct dp_coalescer *c, struct io_burst *b);

/* Where TCP or UDP begins right behind IP, if it does, and what it is; else 0. A single VLAN tag is
 * stepped over. */
uint32_t io_find_transport(uint8_t *frame, uint32_t len, uint8_t *proto);

/* Makes a partial checksum whole, where nobody behind the port would. outer: bytes in front of the
 * inner frame. */
void io_complete(const struct dp_frame *f, uint8_t *frame, uint32_t outer);

/* The frame was not sent, for a reason or for the errno that the device gave; of a super-frame that
 * had been begun, so many packets of so many bytes. */
void io_lost(struct dp_engine *e, uint32_t worker, const struct dp_frame *f, enum dp_reason reason);
enum dp_reason io_reason_of(int error);
void io_refused(struct io_port *p, struct dp_engine *e, const struct dp_frame *f, int error);
void io_refused_part(struct io_port *p, struct dp_engine *e, const struct dp_frame *f,
                     uint32_t packets, uint64_t bytes, int error);

#endif
