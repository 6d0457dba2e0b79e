/* peers_udp.c: small datagrams at a steady rate, and how many of them arrive.
 *
 *   peers_udp send ADDRESS PORT FLOWS RATE MILLISECONDS    prints how many were sent
 *   peers_udp count PORT                                   on SIGTERM prints how many came */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { SIZE = 18, BATCH = 64, MAX_FLOWS = 1000, BUFFER = 16 << 20, STEP_NS = 200000 };

static volatile sig_atomic_t over;

static void stop(int number) {
    (void)number;
    over = 1;
}

static uint64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static int fail(const char *what) {
    perror(what);
    return 1;
}

static void prepare(struct mmsghdr *m, struct iovec *v, uint8_t data[][64], size_t size) {
    for (int i = 0; i < BATCH; i++) {
        v[i] = (struct iovec){data[i], size};
        m[i] = (struct mmsghdr){.msg_hdr = {.msg_iov = &v[i], .msg_iovlen = 1}};
    }
}

static int count(int port) {
    static uint8_t data[BATCH][64];
    struct mmsghdr m[BATCH];
    struct iovec v[BATCH];
    struct sockaddr_in any = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    const int size = BUFFER;
    const int fd = socket(AF_INET, SOCK_DGRAM, 0);
    uint64_t n = 0;
    const struct sigaction action = {.sa_handler = stop};
    sigaction(SIGTERM, &action, NULL);
    if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &size, sizeof size) ||
        bind(fd, (struct sockaddr *)&any, sizeof any)) {
        return fail("count");
    }
    puts("ready");
    fflush(stdout);
    while (!over) {
        prepare(m, v, data, sizeof data[0]);
        const int got = recvmmsg(fd, m, BATCH, MSG_WAITFORONE, NULL);
        n += got > 0 ? (uint64_t)got : 0;
    }
    printf("%llu\n", (unsigned long long)n);
    return 0;
}

/* In turn of the flows, so many each step of time as the rate says. */
static int send_all(const int *fds, int flows, double rate, uint64_t length_ns) {
    static uint8_t data[BATCH][64];
    struct mmsghdr m[BATCH];
    struct iovec v[BATCH];
    const int each = flows == 1 ? BATCH : 1;
    const uint64_t begin = now_ns();
    uint64_t sent = 0;
    uint64_t now;
    prepare(m, v, data, SIZE);
    while ((now = now_ns()) - begin < length_ns) {
        const uint64_t due = (uint64_t)(rate * (double)(now - begin) / 1e9);
        while (sent < due) {
            const uint64_t left = due - sent;
            const unsigned n = left < (uint64_t)each ? (unsigned)left : (unsigned)each;
            const int done = sendmmsg(fds[sent % (uint64_t)flows], m, n, 0);
            if (done < 0) {
                return fail("send");
            }
            sent += (uint64_t)done;
        }
        const struct timespec rest = {.tv_nsec = STEP_NS};
        nanosleep(&rest, NULL);
    }
    printf("%llu\n", (unsigned long long)sent);
    return 0;
}

static int send_to(char **args) {
    static int fds[MAX_FLOWS];
    const int flows = atoi(args[2]);
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(args[1]))};
    if (flows < 1 || flows > MAX_FLOWS || inet_pton(AF_INET, args[0], &to.sin_addr) != 1) {
        return 2;
    }
    for (int i = 0; i < flows; i++) {
        fds[i] = socket(AF_INET, SOCK_DGRAM, 0);
        if (fds[i] < 0 || connect(fds[i], (struct sockaddr *)&to, sizeof to)) {
            return fail("connect");
        }
    }
    return send_all(fds, flows, atof(args[3]), (uint64_t)atoi(args[4]) * 1000000u);
}

int main(int n, char **args) {
    if (n == 7 && strcmp(args[1], "send") == 0) {
        return send_to(args + 2);
    }
    if (n == 3 && strcmp(args[1], "count") == 0) {
        return count(atoi(args[2]));
    }
    fprintf(stderr, "peers_udp send ADDRESS PORT FLOWS RATE MILLISECONDS | count PORT\n");
    return 2;
}
