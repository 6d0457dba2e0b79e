/* fuzz_offload.c: whatever packets come, joining and cutting read and write nothing beyond them; no
 * packet is lost or made up; and what was joined is cut into the bytes that came, but for ids under
 * DF. Input: one byte (1: with a VXLAN header in front), then packets: a byte of flags (1: as the
 * one before, 2: and then the bytes that follow change it), two of length, the bytes. A changed one
 * is a list of places and values. */
#include "dp_offload.h"
#include "wire.h"
#include <stdlib.h>

#define CHECK(condition) ((condition) ? (void)0 : abort())

enum { PACKETS = 24, SLOT = 8192, HEADS = 300 };

static uint32_t fill(uint8_t *arena, struct dp_frame *frames, const uint8_t *data, size_t size) {
    uint32_t n = 0;
    while (size >= 3 && n < PACKETS) {
        uint8_t *at = arena + (size_t)n * SLOT;
        const uint8_t flags = data[0];
        uint32_t len = (uint32_t)(data[1] | data[2] << 8) % 1600;
        data += 3;
        size -= 3;
        len = len < size ? len : (uint32_t)size;
        frames[n] = (struct dp_frame){.off = n * SLOT, .len = len};
        if ((flags & 1) && n) {
            frames[n].len = frames[n - 1].len;
            memcpy(at, at - SLOT, frames[n].len);
            for (uint32_t i = 0; (flags & 2) && i + 1 < len && frames[n].len; i += 2) {
                at[data[i] % frames[n].len] = data[i + 1];
            }
        } else if (len) {
            memcpy(at, data, len);
        }
        data += len;
        size -= len;
        n++;
    }
    return n;
}

/* Without what joining may change. */
static void plain(uint8_t *packet, uint32_t len, uint32_t outer) {
    const uint32_t ip = outer + (uint32_t)sizeof(struct dp_eth);
    if (len >= ip + sizeof(struct dp_ip4) && packet[ip] == 0x45) {
        memset(packet + ip + 4, 0, packet[ip + 6] & 0x40 ? 2 : 0);
        memset(packet + ip + 10, 0, 2);
    }
}

/* Whether the packet came in; each is found once. A partial checksum was made whole. */
static bool came(uint8_t *packet, uint32_t len, uint8_t *arena, struct dp_frame *in, uint32_t n,
                 uint32_t outer, uint32_t field) {
    plain(packet, len, outer);
    for (uint32_t i = 0; i < n; i++) {
        uint8_t *other = arena + in[i].off;
        if (in[i].len != len || in[i].verdict) {
            continue;
        }
        plain(other, len, outer);
        if (memcmp(other, packet, field) == 0 &&
            memcmp(other + field + 2, packet + field + 2, len - field - 2) == 0) {
            in[i].verdict = 1;
            return true;
        }
    }
    return false;
}

static uint32_t take_apart(const uint8_t *arena, const struct dp_frame *f, uint32_t outer,
                           uint8_t *before, struct dp_frame *in, uint32_t n) {
    uint8_t *out = malloc((size_t)PACKETS * (HEADS + 1600));
    uint32_t lens[PACKETS];
    struct dp_frame described = *f;
    const uint32_t l4 = outer + f->csum_start;
    const uint8_t *tcp = arena + f->off + l4;
    described.head = (uint16_t)(l4 + (f->gso_type == 5 ? 8u : (uint32_t)(tcp[12] >> 4) * 4));
    CHECK(out);
    const int count = dp_offload_cut(arena, (size_t)PACKETS * SLOT, &described, outer, out,
                                     (size_t)PACKETS * (HEADS + 1600), lens, PACKETS);
    CHECK(count > 1);
    uint8_t *at = out;
    for (int i = 0; i < count; i++) {
        CHECK(came(at, lens[i], before, in, n, outer, l4 + f->csum_field));
        at += lens[i];
    }
    free(out);
    return (uint32_t)count;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct dp_frame frames[PACKETS];
    struct dp_frame in[PACKETS];
    const size_t room = (size_t)PACKETS * SLOT;
    uint8_t *arena = calloc(1, room);
    uint8_t *before = malloc(room);
    CHECK(arena && before);
    if (size > 0) {
        const uint32_t outer = data[0] & 1 ? 8 : 0;
        const uint32_t n = fill(arena, frames, data + 1, size - 1);
        memcpy(before, arena, room);
        memcpy(in, frames, sizeof in);
        const int left = dp_offload_join(arena, room, frames, n, outer, SLOT);
        CHECK(left >= 0 && (uint32_t)left <= n);
        uint32_t seen = 0;
        for (int i = 0; i < left; i++) {
            seen += frames[i].gso_size ? take_apart(arena, &frames[i], outer, before, in, n) : 1;
        }
        CHECK(seen == n);
    }
    free(arena);
    free(before);
    return 0;
}
