/* io_loop.c: the forwarder's turn: wait, receive a burst from each port that has one, let the
 * engine judge it, send what it forwards. Between turns idle flows are removed. The only place that
 * reads the clock. */
#include "io.h"
#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum { EVENTS = 64, TURN_MS = 100, EXPIRE_BUDGET = 8192, ERRORS_A_TURN = 16, POLLED = 256 };
enum { FEW = 2, IN_A_ROW = 4, SOON_NS = 100000 };
enum { ON_STOP = INT32_MAX, ON_V6 = 1, QUEUE = 32 };
#define ON_XDP (1ull << 63)
#define ON_ICMP (1ull << 62)
/* epoll data: port id * 2 + family, or the stop; with ON_ICMP, raw ICMP of the family; with ON_XDP,
 * from bit QUEUE on the number of a queue */
#define ARENA ((size_t)IO_FRAMES * IO_SLOT)
enum { GO_ON = 0, STOPPED = 1, INTERRUPTED = 2 };

struct dp_loop {
    struct dp_engine *engine;
    uint32_t worker;
    int epoll;
    int stop;           /* eventfd */
    atomic_flag inside; /* a thread is in dp_loop_run or dp_loop_step */
    uint64_t turned_ns; /* when the last turn ended */
    uint64_t kept_ns;   /* when idle flows and ICMP errors were last looked for */
    uint64_t busy_ns;   /* how long to look for frames before sleeping, whatever came before */
    uint32_t lone;      /* how many turns in a row had one packet or two, and soon */
    uint32_t served;    /* packets of this turn */
    struct io_burst burst;
    struct io_port *underlays;           /* all of them, or NULL */
    struct io_port *xdp;                 /* the one that has some, or NULL */
    struct io_port *ports[DP_PORT_NONE]; /* by id */
};

static uint64_t clock_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* ---- a turn ------------------------------------------------------------------------------- */

static void send_underlay(struct dp_loop *l, struct io_port *p, struct dp_frame *const *run,
                          uint32_t n) {
    struct dp_frame *rest[IO_FRAMES];
    if (p->xdp) {
        n = io_xdp_send(p, l->engine, l->burst.arena, run, n, rest);
        run = rest;
    }
    if (n) {
        io_underlay_send(p, l->engine, l->burst.arena, run, n);
    }
}

/* Sends the frames of the burst that leave by the first one's port, in order; then they are done.
 */
static void send_port(struct dp_loop *l, uint32_t first) {
    struct dp_frame *run[IO_FRAMES];
    uint32_t n = 0;
    struct io_burst *b = &l->burst;
    const uint16_t id = b->frames[first].port;
    for (uint32_t i = first; i < b->n; i++) {
        if (b->frames[i].port == id) {
            run[n++] = &b->frames[i];
        }
    }
    struct io_port *p = l->ports[id];
    if (!p) {
        for (uint32_t i = 0; i < n; i++) {
            io_lost(l->engine, l->worker, run[i], DP_R_egress_down);
        }
    } else if (p->kind == DP_PORT_UNDERLAY) {
        send_underlay(l, p, run, n);
    } else {
        io_tap_send(p, l->engine, b->arena, run, n);
    }
    for (uint32_t i = 0; i < n; i++) {
        run[i]->port = DP_PORT_NONE;
    }
}

static void send_burst(struct dp_loop *l) {
    for (uint32_t i = 0; i < l->burst.n; i++) {
        if (l->burst.frames[i].port != DP_PORT_NONE) {
            send_port(l, i);
        }
    }
}

/* Refills the burst with what the engine has kept or made; messages may still wait in the first
 * slots. */
static int more(struct dp_loop *l) {
    struct io_burst *b = &l->burst;
    for (uint32_t i = 0; i < IO_FRAMES - IO_BURST; i++) {
        b->frames[i] =
            (struct dp_frame){.off = (uint32_t)(io_slot(b, IO_BURST + i) + IO_FRONT - b->arena),
                              .len = IO_SLOT - IO_FRONT};
    }
    const int n =
        dp_more(l->engine, l->worker, b->arena, ARENA, b->frames, IO_FRAMES - IO_BURST, clock_ns());
    b->n = n > 0 ? (uint32_t)n : 0;
    return n;
}

static void forward_burst(struct dp_loop *l) {
    struct io_burst *b = &l->burst;
    int status;
    for (uint32_t i = 0; i < b->n; i++) {
        l->served += b->frames[i].gso_size ? FEW + 1 : 1;
    }
    while ((status = dp_process(l->engine, l->worker, b->arena, ARENA, b->frames, b->n,
                                clock_ns())) == DP_EBUSY) {
        sched_yield(); /* somebody traces or lists flows: a moment */
    }
    if (status >= 0) {
        send_burst(l);
    }
    while ((status = more(l)) > 0 || status == DP_EBUSY) {
        send_burst(l);
    }
}

static void serve(struct dp_loop *l, struct io_port *p, bool v6) {
    if (p->dead) {
        return;
    }
    if (p->kind == DP_PORT_UNDERLAY) {
        io_underlay_receive(p, v6 ? p->sockets.receive6 : p->sockets.receive4, &l->burst);
        while (io_underlay_gather(p, &l->burst)) {
            forward_burst(l);
        }
        return;
    }
    if (!io_tap_receive(p, &l->burst)) {
        p->dead = true;
        (void)epoll_ctl(l->epoll, EPOLL_CTL_DEL, p->fd, NULL);
    }
    if (l->burst.n) {
        dp_count(&p->count.rx_frames, l->burst.n);
        forward_burst(l);
    }
}

static void serve_xdp(struct dp_loop *l, struct io_port *p, uint32_t queue, uint32_t events) {
    io_xdp_receive(p, queue, &l->burst);
    if (l->burst.n) {
        forward_burst(l);
    } else if (events & (EPOLLERR | EPOLLHUP)) { /* the interface is gone */
        (void)epoll_ctl(l->epoll, EPOLL_CTL_DEL, io_xdp_fd(p->xdp, queue), NULL);
    }
}

/* Of what ICMP tells about packets sent before, the path MTUs are for the engine. */
static void learn(struct dp_loop *l, const struct io_path *path) {
    while (path->mtu && dp_learn_path(l->engine, dp_addr_bytes(&path->remote), path->vni, path->mtu,
                                      clock_ns()) == DP_EBUSY) {
        sched_yield();
    }
}

static void serve_icmp(struct dp_loop *l, struct io_port *p, bool v4) {
    struct io_path path;
    for (int i = 0; i < ERRORS_A_TURN && io_icmp_error(p, v4, &path); i++) {
        learn(l, &path);
    }
}

static void serve_socket_errors(struct dp_loop *l, struct io_port *p, int fd) {
    struct io_path path;
    for (int i = 0; i < ERRORS_A_TURN && io_underlay_error(p, fd, &path); i++) {
        learn(l, &path);
    }
}

/* Errors of the sending sockets are asked for: a socket that wakes somebody does so for each packet
 * that has left. */
static void look_for_errors(struct dp_loop *l, struct io_port *p) {
    struct pollfd asked[POLLED];
    const uint32_t sockets = p->sockets.n_send * 2;
    p->told = false;
    for (uint32_t from = 0; from < sockets; from += POLLED) {
        const uint32_t n = sockets - from < POLLED ? sockets - from : POLLED;
        for (uint32_t i = 0; i < n; i++) {
            asked[i] = (struct pollfd){.fd = p->sending[from + i]};
        }
        const int found = poll(asked, n, 0);
        for (uint32_t i = 0; found > 0 && i < n; i++) {
            if (asked[i].revents & POLLERR) {
                serve_socket_errors(l, p, asked[i].fd);
            }
        }
    }
}

static void housekeeping(struct dp_loop *l, uint64_t now) {
    dp_set(l->turned_ns, now);
    const bool due = l->worker == 0 && now - l->kept_ns >= TURN_MS * 1000000u;
    if (due) {
        l->kept_ns = now;
        (void)dp_expire(l->engine, now, EXPIRE_BUDGET);
    }
    for (struct io_port *p = l->underlays; p; p = p->next) {
        if (due || p->told) {
            look_for_errors(l, p);
        }
    }
}

/* Looks for frames, without sleep, for up to so long. */
static int look(const struct dp_loop *l, struct epoll_event *events, uint64_t begin, uint64_t ns) {
    do {
        const int n = epoll_wait(l->epoll, events, EVENTS, 0);
        if (n) {
            return n;
        }
        sched_yield();
    } while (clock_ns() - begin < ns);
    return 0;
}

/* Sleeps only after it has looked for a while, where that was asked for, or where packets came one
 * by one, each soon after the one before: waking up costs more than a packet. Who sends many at
 * once does not wait for each, so then it is no use. */
static int wait_for_events(struct dp_loop *l, struct epoll_event *events, int wait_ms) {
    const uint64_t begin = clock_ns();
    const bool few = l->served > 0 && l->served <= FEW;
    const bool likely = few && l->lone >= IN_A_ROW && l->busy_ns < SOON_NS;
    const uint64_t patience = likely ? SOON_NS : l->busy_ns;
    int n = patience && wait_ms ? look(l, events, begin, patience) : 0;
    if (!n) {
        n = epoll_wait(l->epoll, events, EVENTS, wait_ms);
    }
    l->lone = few && n > 0 && clock_ns() - begin < SOON_NS ? l->lone + 1 : 0;
    l->served = 0;
    return n;
}

/* One turn: what is ready is served. GO_ON, STOPPED, INTERRUPTED, or a status. */
static int turn(struct dp_loop *l, int wait_ms) {
    struct epoll_event events[EVENTS];
    if (l->xdp && wait_ms && !io_xdp_flush(l->xdp)) {
        wait_ms = 1; /* then it may take more */
    }
    const int n = wait_for_events(l, events, wait_ms);
    if (n < 0) {
        return errno == EINTR ? INTERRUPTED : DP_EIO;
    }
    for (int i = 0; i < n; i++) {
        const uint64_t what = events[i].data.u64;
        if (what == ON_STOP) {
            uint64_t count;
            return read(l->stop, &count, sizeof count) > 0 ? STOPPED : DP_EIO;
        }
        struct io_port *port = l->ports[(uint32_t)what >> 1];
        if (what & ON_XDP) {
            serve_xdp(l, port, (uint32_t)((what & ~ON_XDP) >> QUEUE), events[i].events);
        } else if (what & ON_ICMP) {
            serve_icmp(l, port, !(what & ON_V6));
        } else {
            serve(l, port, what & ON_V6);
        }
    }
    housekeeping(l, clock_ns());
    return GO_ON;
}

uint64_t dp_loop_turned_ns(const struct dp_loop *l) {
    return l ? dp_get(l->turned_ns) : 0;
}

void dp_loop_busy_poll(struct dp_loop *l, uint64_t ns) {
    if (l) {
        l->busy_ns = ns;
    }
}

/* Up to the end, rounded up: a wait that ends early would be followed by others of nothing. */
static int ms_until(uint64_t end_ns, int most) {
    const uint64_t now = clock_ns();
    const uint64_t left = end_ns > now ? (end_ns - now + 999999) / 1000000 : 0;
    return left < (uint64_t)most ? (int)left : most;
}

static uint64_t after(int64_t timeout_ns) {
    return timeout_ns < 0 ? UINT64_MAX : clock_ns() + (uint64_t)timeout_ns;
}

int dp_loop_step(struct dp_loop *l, int64_t wait_ns) {
    if (!l) {
        return DP_EINVAL;
    }
    if (atomic_flag_test_and_set(&l->inside)) {
        return DP_EBUSY;
    }
    const int status = turn(l, wait_ns < 0 ? -1 : ms_until(after(wait_ns), INT_MAX));
    atomic_flag_clear(&l->inside);
    return status == INTERRUPTED ? GO_ON : status;
}

int dp_loop_run(struct dp_loop *l, int64_t timeout_ns) {
    if (!l) {
        return DP_EINVAL;
    }
    if (atomic_flag_test_and_set(&l->inside)) {
        return DP_EBUSY;
    }
    const uint64_t end = after(timeout_ns);
    int status;
    do {
        status = turn(l, ms_until(end, TURN_MS));
    } while (status == GO_ON && clock_ns() < end);
    atomic_flag_clear(&l->inside);
    return status == INTERRUPTED ? GO_ON : status;
}

void dp_loop_stop(struct dp_loop *l) {
    const uint64_t one = 1;
    if (l && write(l->stop, &one, sizeof one) < 0) {
        return; /* the counter is full, so it is readable already */
    }
}

/* ---- life --------------------------------------------------------------------------------- */

static bool watch(const struct dp_loop *l, int fd, uint64_t what) {
    struct epoll_event event = {.events = EPOLLIN, .data.u64 = what};
    return epoll_ctl(l->epoll, EPOLL_CTL_ADD, fd, &event) == 0;
}

/* The sockets of an underlay that there are; raw ICMP, which workers share, by the first one. */
static bool watch_underlay(const struct dp_loop *l, const struct io_port *p) {
    const struct dp_underlay_sockets *s = &p->sockets;
    const uint64_t what = (uint64_t)p->id << 1;
    return (s->receive4 < 0 || watch(l, s->receive4, what)) &&
           (s->receive6 < 0 || watch(l, s->receive6, what | ON_V6)) &&
           (s->icmp4 < 0 || l->worker > 0 || watch(l, s->icmp4, ON_ICMP | what)) &&
           (s->icmp6 < 0 || l->worker > 0 || watch(l, s->icmp6, ON_ICMP | what | ON_V6));
}

static void *touched_arena(void) {
    void *p = aligned_alloc(4096, (ARENA + 4095) / 4096 * 4096);
    if (p) {
        (void)madvise(p, ARENA, MADV_HUGEPAGE);
        memset(p, 0, ARENA);
    }
    return p;
}

struct dp_loop *dp_loop_create(struct dp_engine *engine, uint32_t worker, struct dp_error *err) {
    struct dp_loop *l = calloc(1, sizeof *l);
    *err = (struct dp_error){DP_ENOMEM, "loop", 0, "no memory"};
    if (!l) {
        return NULL;
    }
    l->engine = engine;
    l->worker = worker;
    l->turned_ns = clock_ns();
    atomic_flag_clear(&l->inside);
    l->epoll = epoll_create1(EPOLL_CLOEXEC);
    l->stop = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    l->burst.arena = touched_arena();
    if (!engine || worker >= dp_worker_count(engine) || l->epoll < 0 || l->stop < 0 ||
        !l->burst.arena || !watch(l, l->stop, ON_STOP)) {
        *err = (struct dp_error){worker < dp_worker_count(engine) ? DP_EIO : DP_EINVAL, "loop",
                                 worker, "no engine or worker, descriptor or memory"};
        dp_loop_destroy(l);
        return NULL;
    }
    *err = (struct dp_error){DP_OK, NULL, 0, NULL};
    return l;
}

static void free_port(struct io_port *p) {
    if (p) {
        free(p->sending);
        free(p->uncut);
        free(p->inbox);
        free(p->outbox);
        free(p->xdp);
        free(p);
    }
}

void dp_loop_destroy(struct dp_loop *l) {
    if (!l) {
        return;
    }
    for (uint32_t i = 0; i < DP_PORT_NONE; i++) {
        free_port(l->ports[i]);
    }
    if (l->epoll >= 0) {
        close(l->epoll);
    }
    if (l->stop >= 0) {
        close(l->stop);
    }
    free(l->burst.arena);
    free(l);
}

static struct io_port *new_port(struct dp_loop *l, uint16_t id, uint8_t kind,
                                struct dp_error *err) {
    if (!l || id == DP_PORT_NONE || l->ports[id]) {
        *err = (struct dp_error){DP_EDUP, "port", id, "no loop, no port id, or one in use"};
        return NULL;
    }
    struct io_port *p = calloc(1, sizeof *p);
    if (!p) {
        *err = (struct dp_error){DP_ENOMEM, "port", id, "no memory"};
        return NULL;
    }
    p->id = id;
    p->worker = l->worker;
    p->kind = kind;
    p->fd = -1;
    *err = (struct dp_error){DP_OK, NULL, 0, NULL};
    return p;
}

/* The port joins the loop if its descriptors can be polled; else it is freed. */
static int join(struct dp_loop *l, struct io_port *p, bool polled, struct dp_error *err) {
    if (!polled) {
        *err = (struct dp_error){DP_EIO, "port", p->id, "its descriptor cannot be polled"};
        free_port(p);
        return err->status;
    }
    l->ports[p->id] = p;
    return DP_OK;
}

int dp_loop_add_tap(struct dp_loop *l, uint16_t port, const struct dp_tap *tap,
                    struct dp_error *err) {
    if (!tap) {
        *err = (struct dp_error){DP_EINVAL, "port", port, "no TAP"};
        return err->status;
    }
    struct io_port *p = new_port(l, port, DP_PORT_ENDPOINT, err);
    if (!p) {
        return err->status;
    }
    p->fd = tap->fd;
    p->mtu = tap->mtu;
    p->front = tap->vnet_hdr ? IO_VNET_HDR : 0;
    p->uso = tap->uso;
    return join(l, p, tap->send_only || watch(l, p->fd, (uint64_t)port << 1), err);
}

int dp_loop_add_underlay(struct dp_loop *l, uint16_t port, const struct dp_underlay_sockets *s,
                         struct dp_error *err) {
    if (!s || s->n_send == 0 || s->n_send > 16384) {
        *err = (struct dp_error){DP_EINVAL, "port", port,
                                 "an underlay has 1 to 16384 sending sockets"};
        return err->status;
    }
    struct io_port *p = new_port(l, port, DP_PORT_UNDERLAY, err);
    if (!p) {
        return err->status;
    }
    p->sockets = *s;
    p->sending = calloc((size_t)s->n_send * 2, sizeof *p->sending);
    p->uncut = calloc((size_t)s->n_send * 2, sizeof *p->uncut);
    p->inbox = io_inbox_create();
    p->outbox = io_outbox_create();
    for (uint32_t i = 0; p->sending && i < s->n_send; i++) {
        p->sending[i] = s->send4 ? s->send4[i] : -1;
        p->sending[s->n_send + i] = s->send6 ? s->send6[i] : -1;
    }
    const bool made = p->sending && p->uncut && p->inbox && p->outbox;
    if (join(l, p, made && watch_underlay(l, p), err) == DP_OK) {
        p->next = l->underlays;
        l->underlays = p;
    }
    return err->status;
}

int dp_loop_add_xdp(struct dp_loop *l, uint16_t port, struct dp_xdp *xdp, uint32_t queue,
                    uint32_t queues, struct dp_error *err) {
    struct io_port *p = l && port != DP_PORT_NONE ? l->ports[port] : NULL;
    *err = (struct dp_error){DP_EINVAL, "port", port, "no underlay, or one has XDP already"};
    if (!p || p->kind != DP_PORT_UNDERLAY || l->xdp || !xdp || queue >= queues) {
        return err->status;
    }
    if (!(p->xdp = io_xdp_create(xdp, queue, queues))) {
        *err = (struct dp_error){DP_ENOMEM, "port", port, "no memory"};
        return err->status;
    }
    l->xdp = p;
    for (uint32_t i = 0; io_xdp_fd(p->xdp, i) >= 0; i++) {
        if (!watch(l, io_xdp_fd(p->xdp, i), ON_XDP | (uint64_t)i << QUEUE | (uint64_t)port << 1)) {
            *err = (struct dp_error){DP_EIO, "port", port, "its descriptor cannot be polled"};
            return err->status;
        }
    }
    *err = (struct dp_error){DP_OK, NULL, 0, NULL};
    return DP_OK;
}

int dp_loop_fd(const struct dp_loop *l) {
    return l ? l->epoll : DP_EINVAL;
}

int dp_loop_counters(const struct dp_loop *l, uint16_t port, struct dp_io_counters *out) {
    const struct io_port *p = l && out && port != DP_PORT_NONE ? l->ports[port] : NULL;
    if (!p) {
        return DP_EINVAL;
    }
    *out = p->count;
    out->rx_lost = p->kind == DP_PORT_UNDERLAY ? io_underlay_lost(p) : 0;
    out->xdp_lost = p->xdp ? io_xdp_lost(p->xdp) : 0;
    return DP_OK;
}
