/* traffic.c: makes and counts traffic for `make bench-peers`; every command prints one line of
 * JSON.
 *
 *   traffic tcp-sink PORT STREAMS                    what came over so many connections
 *   traffic tcp-send ADDRESS PORT STREAMS SECONDS
 *   traffic udp-sink PORT PORTS                      counts; a number on stdin: tell that run's
 *   traffic udp-send ADDRESS PORT PORTS SOURCES RUN RATE SECONDS
 *   traffic pong PORT                                sends back what comes
 *   traffic ping ADDRESS PORT COUNT                  round trips, one at a time
 *
 * PORTS x SOURCES flows take turns; datagrams are paced in steps of 100 us, and each is numbered.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum {
    BLOCK = 128 << 10,
    STREAMS = 64,
    PORTS = 256,
    BURST = 64,
    PAYLOAD = 18, /* bytes: the least that fills an Ethernet frame */
    NUMBERED = 1 << 24,
    STEP_NS = 100000,
    WARM = 200, /* round trips that are not told */
};

/* Linux's own default, whatever the machine's is: BBR waits by its clock, not for the forwarder. */
static const char CONTROL[] = "cubic";

struct __attribute__((packed)) mark {
    uint32_t run, number;
    uint8_t rest[PAYLOAD - 8];
};

static void check(bool good, const char *what) {
    if (!good) {
        perror(what);
        exit(1);
    }
}

static uint64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static struct sockaddr_in place(const char *address, int port) {
    struct sockaddr_in made = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    check(inet_pton(AF_INET, address, &made.sin_addr) == 1, address);
    return made;
}

static int bound(int type, int port) {
    const struct sockaddr_in own = place("0.0.0.0", port);
    const int fd = socket(AF_INET, type, 0), on = 1, room = 16 << 20;
    check(setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) == 0, "SO_REUSEADDR");
    check(type == SOCK_STREAM ||
              setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &room, sizeof room) == 0,
          "SO_RCVBUFFORCE");
    check(bind(fd, (const struct sockaddr *)&own, sizeof own) == 0, "bind");
    return fd;
}

static void fill(struct mark *m, uint32_t run, uint32_t number) {
    m->run = run;
    m->number = number;
    for (size_t i = 0; i < sizeof m->rest; i++) {
        m->rest[i] = (uint8_t)(run + number + i);
    }
}

/* ---- TCP ------------------------------------------------------------------------------------ */

struct stream {
    pthread_t thread;
    int fd;
    uint64_t until, bytes, start, end;
};

static void *receive(void *context) {
    struct stream *s = context;
    static _Thread_local uint8_t block[4 * BLOCK];
    ssize_t got;
    s->start = now_ns();
    while ((got = recv(s->fd, block, sizeof block, 0)) > 0) {
        s->bytes += (uint64_t)got;
    }
    check(got == 0, "recv");
    s->end = now_ns();
    close(s->fd);
    return NULL;
}

static void *transmit(void *context) {
    struct stream *s = context;
    static _Thread_local uint8_t block[BLOCK];
    for (size_t i = 0; i < sizeof block; i++) {
        block[i] = (uint8_t)(i * 2654435761u >> 13);
    }
    s->start = now_ns();
    while (now_ns() < s->until) {
        const ssize_t sent = send(s->fd, block, sizeof block, MSG_NOSIGNAL);
        check(sent > 0, "send");
        s->bytes += (uint64_t)sent;
    }
    shutdown(s->fd, SHUT_WR);
    check(recv(s->fd, block, 1, 0) == 0, "the other end");
    s->end = now_ns();
    return NULL;
}

static void all(struct stream *streams, int n, void *(*work)(void *)) {
    uint64_t bytes = 0, start = UINT64_MAX, end = 0;
    for (int i = 0; i < n; i++) {
        check(pthread_create(&streams[i].thread, NULL, work, &streams[i]) == 0, "thread");
    }
    for (int i = 0; i < n; i++) {
        pthread_join(streams[i].thread, NULL);
        bytes += streams[i].bytes;
        start = streams[i].start < start ? streams[i].start : start;
        end = streams[i].end > end ? streams[i].end : end;
    }
    printf("{\"bytes\": %lu, \"ns\": %lu}\n", bytes, end - start);
}

static void tcp_sink(char **words) {
    const int n = atoi(words[1]), listener = bound(SOCK_STREAM, atoi(words[0]));
    static struct stream streams[STREAMS];
    check(n > 0 && n <= STREAMS && listen(listener, STREAMS) == 0, "listen");
    puts("ready");
    fflush(stdout);
    for (int i = 0; i < n; i++) {
        streams[i].fd = accept(listener, NULL, NULL);
        check(streams[i].fd >= 0, "accept");
    }
    all(streams, n, receive);
}

static void tcp_send(char **words) {
    const struct sockaddr_in to = place(words[0], atoi(words[1]));
    const int n = atoi(words[2]);
    static struct stream streams[STREAMS];
    check(n > 0 && n <= STREAMS, "streams");
    for (int i = 0; i < n; i++) {
        streams[i].fd = socket(AF_INET, SOCK_STREAM, 0);
        check(setsockopt(streams[i].fd, IPPROTO_TCP, TCP_CONGESTION, CONTROL, strlen(CONTROL)) == 0,
              "TCP_CONGESTION");
        check(connect(streams[i].fd, (const struct sockaddr *)&to, sizeof to) == 0, "connect");
    }
    for (int i = 0; i < n; i++) {
        streams[i].until = now_ns() + (uint64_t)(atof(words[3]) * 1e9);
    }
    all(streams, n, transmit);
}

/* ---- datagrams without loss ----------------------------------------------------------------- */

static uint8_t seen[NUMBERED / 8];
static uint32_t run;
static uint64_t received, wrong, twice, first_ns, last_ns;

static void count(const struct mark *m, size_t size, uint64_t now) {
    struct mark wanted;
    fill(&wanted, m->run, m->number);
    if (size != sizeof *m || memcmp(m, &wanted, sizeof wanted) != 0 || m->number >= NUMBERED) {
        wrong++;
        return;
    }
    if (m->run != run) {
        if ((int32_t)(m->run - run) < 0) {
            return; /* late, of a run that was told */
        }
        memset(seen, 0, sizeof seen);
        received = wrong = twice = 0;
        run = m->run;
        first_ns = now;
    }
    last_ns = now;
    uint8_t *octet = &seen[m->number / 8];
    const uint8_t bit = (uint8_t)(1u << m->number % 8);
    twice += (*octet & bit) != 0;
    received += (*octet & bit) == 0;
    *octet |= bit;
}

static void drain(int fd) {
    static struct mark marks[BURST];
    static struct iovec slices[BURST];
    static struct mmsghdr messages[BURST];
    int got;
    do {
        for (int i = 0; i < BURST; i++) {
            slices[i] = (struct iovec){&marks[i], sizeof marks[i]};
            messages[i].msg_hdr = (struct msghdr){.msg_iov = &slices[i], .msg_iovlen = 1};
        }
        got = recvmmsg(fd, messages, BURST, MSG_DONTWAIT | MSG_TRUNC, NULL);
        const uint64_t now = now_ns();
        for (int i = 0; i < got; i++) {
            count(&marks[i], messages[i].msg_len, now);
        }
    } while (got == BURST);
}

/* Whether there may be more questions. */
static bool answer(void) {
    char line[64];
    if (!fgets(line, sizeof line, stdin)) {
        return false;
    }
    const bool known = strtoul(line, NULL, 10) == run;
    printf("{\"received\": %lu, \"wrong\": %lu, \"twice\": %lu, \"ns\": %lu}\n",
           known ? received : 0, wrong, known ? twice : 0, last_ns - first_ns);
    fflush(stdout);
    return true;
}

static void sleep_until(uint64_t ns) {
    const struct timespec t = {(time_t)(ns / 1000000000u), (long)(ns % 1000000000u)};
    clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL);
}

/* Looks once a step of time, so that packets wake nobody: what is measured is who brings them. */
static void udp_sink(char **words) {
    const int first = atoi(words[0]), n = atoi(words[1]), queue = epoll_create1(0);
    struct epoll_event events[PORTS], input = {.events = EPOLLIN, .data.fd = 0};
    check(n > 0 && n < PORTS && epoll_ctl(queue, EPOLL_CTL_ADD, 0, &input) == 0, "epoll");
    for (int i = 0; i < n; i++) {
        struct epoll_event e = {.events = EPOLLIN, .data.fd = bound(SOCK_DGRAM, first + i)};
        check(epoll_ctl(queue, EPOLL_CTL_ADD, e.data.fd, &e) == 0, "epoll");
    }
    memset(seen, 1, sizeof seen); /* touched before anything comes */
    puts("ready");
    fflush(stdout);
    while (true) {
        const int ready = epoll_wait(queue, events, PORTS, -1);
        for (int i = 0; i < ready; i++) {
            if (events[i].data.fd) {
                drain(events[i].data.fd);
            } else if (!answer()) {
                return;
            }
        }
        sleep_until(now_ns() + STEP_NS);
    }
}

struct source {
    int sockets[PORTS], n, ports;
    struct sockaddr_in to[PORTS];
    uint32_t run;
    uint64_t sent, refused;
};

/* The next ones, as many as one socket sends in one call, up to `most`. */
static void burst(struct source *s, uint64_t most) {
    static struct mark marks[BURST];
    static struct iovec slices[BURST];
    static struct mmsghdr messages[BURST];
    const uint64_t next = s->sent + s->refused;
    const int socket = s->sockets[next / (uint64_t)s->ports % (uint64_t)s->n];
    const uint64_t left = s->n == 1 ? BURST : (uint64_t)s->ports - next % (uint64_t)s->ports;
    unsigned n = (unsigned)(most < left ? most : left);
    n = n < BURST ? n : BURST;
    for (unsigned i = 0; i < n; i++) {
        fill(&marks[i], s->run, (uint32_t)(next + i));
        slices[i] = (struct iovec){&marks[i], sizeof marks[i]};
        messages[i].msg_hdr = (struct msghdr){.msg_name = &s->to[(next + i) % (uint64_t)s->ports],
                                              .msg_namelen = sizeof s->to[0],
                                              .msg_iov = &slices[i],
                                              .msg_iovlen = 1};
    }
    const int done = sendmmsg(socket, messages, n, 0);
    check(done > 0 || errno == ENOBUFS || errno == EAGAIN, "sendmmsg");
    s->sent += done > 0 ? (uint64_t)done : 0;
    s->refused += done > 0 ? 0 : 1;
}

static void udp_send(char **words) {
    static struct source s;
    s.ports = atoi(words[2]);
    s.n = atoi(words[3]);
    s.run = (uint32_t)strtoul(words[4], NULL, 10);
    const double rate = atof(words[5]) / 1e9, seconds = atof(words[6]);
    check(s.ports > 0 && s.ports < PORTS && s.n > 0 && s.n < PORTS, "flows");
    for (int i = 0; i < s.ports; i++) {
        s.to[i] = place(words[0], atoi(words[1]) + i);
    }
    for (int i = 0; i < s.n; i++) {
        s.sockets[i] = bound(SOCK_DGRAM, 0);
    }
    prctl(PR_SET_TIMERSLACK, 1);
    const uint64_t start = now_ns(), until = start + (uint64_t)(seconds * 1e9);
    const uint64_t most = (uint64_t)(rate * 1e6) + BURST; /* a ms: what it is late is forgiven */
    uint64_t due = 0, forgiven = 0;
    for (uint64_t now = start; now < until; now = now_ns()) {
        uint64_t left = (uint64_t)(rate * (double)(now - start)) - due;
        if (left > most) {
            forgiven += left - most;
            due += left - most;
            left = most;
        }
        while (left > 0) {
            const uint64_t before = s.sent + s.refused;
            burst(&s, left);
            left -= s.sent + s.refused - before;
            due += s.sent + s.refused - before;
        }
        sleep_until(now + STEP_NS); /* not at all where that is past */
    }
    printf("{\"sent\": %lu, \"refused\": %lu, \"forgiven\": %lu, \"ns\": %lu}\n", s.sent, s.refused,
           forgiven, now_ns() - start);
}

/* ---- round trips ---------------------------------------------------------------------------- */

static void pong(char **words) {
    const int fd = bound(SOCK_DGRAM, atoi(words[0]));
    uint8_t data[2048];
    struct sockaddr_in from;
    puts("ready");
    fflush(stdout);
    while (true) {
        socklen_t size = sizeof from;
        const ssize_t got = recvfrom(fd, data, sizeof data, 0, (struct sockaddr *)&from, &size);
        check(got >= 0 && sendto(fd, data, (size_t)got, 0, (struct sockaddr *)&from, size) == got,
              "pong");
    }
}

static void ping(char **words) {
    const struct sockaddr_in to = place(words[0], atoi(words[1]));
    const int fd = bound(SOCK_DGRAM, 0);
    const struct timeval patience = {.tv_sec = 1};
    check(setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience) == 0, "SO_RCVTIMEO");
    check(connect(fd, (const struct sockaddr *)&to, sizeof to) == 0, "connect");
    const uint32_t n = (uint32_t)atoi(words[2]) + WARM;
    uint64_t lost = 0;
    printf("{\"ns\": [");
    for (uint32_t i = 0; i < n; i++) {
        struct mark out, back;
        fill(&out, 1, i);
        const uint64_t start = now_ns();
        check(send(fd, &out, sizeof out, 0) == sizeof out, "send");
        const bool came =
            recv(fd, &back, sizeof back, 0) == sizeof back && memcmp(&out, &back, sizeof out) == 0;
        const uint64_t took = now_ns() - start;
        lost += !came;
        check(lost < 10, "ping: no answers");
        if (came && i >= WARM) {
            printf("%lu, ", took);
        }
    }
    printf("0], \"lost\": %lu}\n", lost);
}

int main(int n, char **words) {
    static const struct {
        const char *name;
        int words;
        void (*work)(char **words);
    } COMMANDS[] = {{"tcp-sink", 2, tcp_sink}, {"tcp-send", 4, tcp_send}, {"udp-sink", 2, udp_sink},
                    {"udp-send", 7, udp_send}, {"pong", 1, pong},         {"ping", 3, ping}};
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    for (size_t i = 0; n > 1 && i < sizeof COMMANDS / sizeof *COMMANDS; i++) {
        if (strcmp(words[1], COMMANDS[i].name) == 0 && n == COMMANDS[i].words + 2) {
            COMMANDS[i].work(words + 2);
            return 0;
        }
    }
    fputs("traffic: see its first lines\n", stderr);
    return 2;
}
