/* naive.c: the simplest VXLAN forwarder there is, one packet a system call, no offload: TAP to UDP
 * and back. Looks at no header but VXLAN's. An opponent of `make bench-peers`.
 *
 *   naive POD_NETNS TAP LOCAL REMOTE VNI      (runs in the host's namespace, dies with its parent)
 */
#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

enum { HEADER = 8, PORT = 4789, LARGEST = 65536 };

static int fail(const char *what) {
    perror(what);
    exit(1);
}

static void enter(const char *netns) {
    const int fd = open(netns, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || setns(fd, CLONE_NEWNET) < 0) {
        fail(netns);
    }
    close(fd);
}

static int tap(const char *netns, const char *name) {
    enter(netns);
    const int fd = open("/dev/net/tun", O_RDWR | O_NONBLOCK);
    struct ifreq request = {.ifr_flags = IFF_TAP | IFF_NO_PI};
    snprintf(request.ifr_name, sizeof request.ifr_name, "%s", name);
    if (fd < 0 || ioctl(fd, TUNSETIFF, &request) < 0) {
        fail("tap");
    }
    return fd;
}

static int vxlan(const char *local, struct sockaddr_in *remote, const char *to) {
    struct sockaddr_in own = {.sin_family = AF_INET, .sin_port = htons(PORT)};
    *remote = own;
    const int fd = socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK, 0);
    const int room = 8 << 20;
    if (fd < 0 || inet_pton(AF_INET, local, &own.sin_addr) != 1 ||
        inet_pton(AF_INET, to, &remote->sin_addr) != 1 ||
        setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &room, sizeof room) < 0 ||
        bind(fd, (struct sockaddr *)&own, sizeof own) < 0) {
        fail("vxlan");
    }
    return fd;
}

int main(int n, char **words) {
    if (n != 6) {
        fputs("usage: naive POD_NETNS TAP LOCAL REMOTE VNI\n", stderr);
        return 2;
    }
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    struct sockaddr_in remote;
    const int out = vxlan(words[3], &remote, words[4]), in = tap(words[1], words[2]);
    const uint32_t vni = (uint32_t)strtoul(words[5], NULL, 0);
    static uint8_t frame[HEADER + LARGEST];
    const uint8_t header[HEADER] = {
        8, 0, 0, 0, (uint8_t)(vni >> 16), (uint8_t)(vni >> 8), (uint8_t)vni, 0};
    struct pollfd ready[] = {{.fd = in, .events = POLLIN}, {.fd = out, .events = POLLIN}};
    puts("ready");
    fflush(stdout);
    while (poll(ready, 2, -1) >= 0) {
        if (ready[0].revents) {
            const ssize_t got = read(in, frame + HEADER, LARGEST);
            memcpy(frame, header, HEADER);
            if (got > 0) {
                (void)!sendto(out, frame, (size_t)got + HEADER, 0, (struct sockaddr *)&remote,
                              sizeof remote);
            }
        }
        if (ready[1].revents) {
            const ssize_t got = recv(out, frame, sizeof frame, 0);
            if (got > HEADER && memcmp(frame, header, HEADER) == 0) {
                (void)!write(in, frame + HEADER, (size_t)got - HEADER);
            }
        }
    }
    return fail("poll");
}
