#include "io_xdp_program.h"
#include "wire.h"
#include <errno.h>
#include <linux/bpf.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { ROOM = 128, NEXT = INT16_MAX };
enum { R0, R1, R2, R3, R4, R5, R6 };
enum {
    L3 = sizeof(struct dp_eth),
    L4_4 = L3 + sizeof(struct dp_ip4),
    L4_6 = L3 + sizeof(struct dp_ip6)
};

struct assembly {
    struct bpf_insn at[ROOM];
    uint32_t n;
};

static void emit(struct assembly *a, int code, int dst, int src, int off, int32_t imm) {
    a->at[a->n++] = (struct bpf_insn){.code = (uint8_t)code,
                                      .dst_reg = (uint8_t)(dst & 15),
                                      .src_reg = (uint8_t)(src & 15),
                                      .off = (int16_t)off,
                                      .imm = imm};
}

/* The next block, unless the bytes at that offset are so. */
static void match(struct assembly *a, int size, size_t offset, const void *bytes) {
    uint32_t value = 0;
    memcpy(&value, bytes, size == BPF_W ? 4 : size == BPF_H ? 2 : 1);
    emit(a, BPF_LDX | BPF_MEM | size, R5, R2, (int)offset, 0);
    emit(a, BPF_JMP32 | BPF_JNE | BPF_K, R5, 0, NEXT, (int32_t)value);
}

static void match8(struct assembly *a, size_t offset, uint8_t value) {
    match(a, BPF_B, offset, &value);
}

static void match16(struct assembly *a, size_t offset, uint16_t value) {
    const be16 wire = be16_put(value);
    match(a, BPF_H, offset, &wire);
}

/* The next block, unless the frame has so many bytes. */
static void reach(struct assembly *a, size_t len) {
    emit(a, BPF_ALU64 | BPF_MOV | BPF_X, R4, R2, 0, 0);
    emit(a, BPF_ALU64 | BPF_ADD | BPF_K, R4, 0, 0, (int32_t)len);
    emit(a, BPF_JMP | BPF_JGT | BPF_X, R4, R3, NEXT, 0);
}

/* A packet that came so far is ours; of what jumped to the next block, that is now found. */
static void redirect(struct assembly *a, uint32_t block, int map) {
    emit(a, BPF_LDX | BPF_MEM | BPF_W, R2, R6, offsetof(struct xdp_md, rx_queue_index), 0);
    emit(a, BPF_LD | BPF_DW | BPF_IMM, R1, BPF_PSEUDO_MAP_FD, 0, map);
    emit(a, 0, 0, 0, 0, 0);                                   /* upper half of the constant */
    emit(a, BPF_ALU64 | BPF_MOV | BPF_K, R3, 0, 0, XDP_PASS); /* for a queue without socket */
    emit(a, BPF_JMP | BPF_CALL, 0, 0, 0, BPF_FUNC_redirect_map);
    emit(a, BPF_JMP | BPF_EXIT, 0, 0, 0, 0);
    for (uint32_t i = block; i < a->n; i++) {
        if (a->at[i].off == NEXT) {
            a->at[i].off = (int16_t)(a->n - i - 1);
        }
    }
}

static void block4(struct assembly *a, const struct dp_xdp_config *c, int map) {
    const uint32_t block = a->n;
    reach(a, L4_4 + sizeof(struct dp_udp));
    match16(a, offsetof(struct dp_eth, type), DP_ETH_IP4);
    match8(a, L3, 0x45);
    emit(a, BPF_LDX | BPF_MEM | BPF_H, R5, R2, L3 + offsetof(struct dp_ip4, frag), 0);
    emit(a, BPF_JMP32 | BPF_JSET | BPF_K, R5, 0, NEXT, be16_put(DP_IP4_MF | DP_IP4_OFFSET).net);
    match8(a, L3 + offsetof(struct dp_ip4, proto), DP_IP_UDP);
    match(a, BPF_W, L3 + offsetof(struct dp_ip4, dst), c->ip4 + 12);
    match16(a, L4_4 + offsetof(struct dp_udp, dport), c->udp_port);
    redirect(a, block, map);
}

static void block6(struct assembly *a, const struct dp_xdp_config *c, int map) {
    const uint32_t block = a->n;
    reach(a, L4_6 + sizeof(struct dp_udp));
    match16(a, offsetof(struct dp_eth, type), DP_ETH_IP6);
    match8(a, L3 + offsetof(struct dp_ip6, next), DP_IP_UDP);
    for (size_t i = 0; i < 16; i += 4) {
        match(a, BPF_W, L3 + offsetof(struct dp_ip6, dst) + i, c->ip6 + i);
    }
    match16(a, L4_6 + offsetof(struct dp_udp, dport), c->udp_port);
    redirect(a, block, map);
}

static void assemble(struct assembly *a, const struct dp_xdp_config *c, int map) {
    const struct dp_addr ip4 = dp_addr_load(c->ip4);
    const struct dp_addr ip6 = dp_addr_load(c->ip6);
    emit(a, BPF_ALU64 | BPF_MOV | BPF_X, R6, R1, 0, 0);
    emit(a, BPF_LDX | BPF_MEM | BPF_W, R2, R1, offsetof(struct xdp_md, data), 0);
    emit(a, BPF_LDX | BPF_MEM | BPF_W, R3, R1, offsetof(struct xdp_md, data_end), 0);
    if (!dp_addr_is_zero(&ip4)) {
        block4(a, c, map);
    }
    if (!dp_addr_is_zero(&ip6)) {
        block6(a, c, map);
    }
    emit(a, BPF_ALU64 | BPF_MOV | BPF_K, R0, 0, 0, XDP_PASS);
    emit(a, BPF_JMP | BPF_EXIT, 0, 0, 0, 0);
}

/* ---- bpf(2): descriptors are closed on exec ------------------------------------------------ */

static int bpf(int command, union bpf_attr *attr) {
    return (int)syscall(SYS_bpf, command, attr, sizeof *attr);
}

static bool fill(int map, const int *sockets, uint32_t n) {
    for (uint32_t i = 0; i < n; i++) {
        union bpf_attr attr = {0};
        attr.map_fd = (uint32_t)map;
        attr.key = (uintptr_t)&i;
        attr.value = (uintptr_t)&sockets[i];
        if (bpf(BPF_MAP_UPDATE_ELEM, &attr) < 0) {
            return false;
        }
    }
    return true;
}

static int load(const struct assembly *a) {
    union bpf_attr attr = {.prog_type = BPF_PROG_TYPE_XDP};
    attr.insns = (uintptr_t)a->at;
    attr.insn_cnt = a->n;
    attr.license = (uintptr_t) "Apache-2.0";
    return bpf(BPF_PROG_LOAD, &attr);
}

static int attach(int program, uint32_t ifindex) {
    union bpf_attr attr = {0};
    attr.link_create.prog_fd = (uint32_t)program;
    attr.link_create.target_ifindex = ifindex;
    attr.link_create.attach_type = BPF_XDP;
    return bpf(BPF_LINK_CREATE, &attr);
}

const char *io_xdp_attach(struct io_xdp_program *p, const struct dp_xdp_config *config,
                          const int *sockets, uint32_t n) {
    struct assembly a = {.n = 0};
    union bpf_attr attr = {
        .map_type = BPF_MAP_TYPE_XSKMAP, .key_size = 4, .value_size = 4, .max_entries = n};
    *p = (struct io_xdp_program){-1, -1, -1};
    if ((p->map = bpf(BPF_MAP_CREATE, &attr)) < 0 || !fill(p->map, sockets, n)) {
        return "map";
    }
    assemble(&a, config, p->map);
    if ((p->program = load(&a)) < 0) {
        return "program";
    }
    return (p->link = attach(p->program, config->ifindex)) < 0 ? "attach" : NULL;
}

void io_xdp_detach(struct io_xdp_program *p) {
    const int fds[] = {p->link, p->program, p->map};
    for (size_t i = 0; i < 3; i++) {
        if (fds[i] >= 0) {
            close(fds[i]);
        }
    }
    *p = (struct io_xdp_program){-1, -1, -1};
}
