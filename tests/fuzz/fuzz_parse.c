/* fuzz_parse.c: whatever bytes come, the parser reads none beyond them, and what it says of them
 * lies within them. Input: one byte (1: with outer headers, 2: whose checksums are known to be
 * right), then the frame. */
#include "parse.h"
#include <stdlib.h>

#define CHECK(condition) ((condition) ? (void)0 : abort())

static const struct dp_port port = {
    .kind = DP_PORT_UNDERLAY,
    .udp_port = 4789,
    .ip4 = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 192, 0, 2, 1},
    .ip6 = {0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1},
};

static void check_parsed(const struct dp_packet *p, const uint8_t *end) {
    CHECK(p->data + p->len <= end);
    CHECK(p->family == 0 || p->family == 4 || p->family == 6);
    CHECK(p->l3 <= p->len && p->l4 <= p->len);
    CHECK(p->l4 == 0 || p->l4 > p->l3);
    if (p->frame->flags & DP_CSUM_PARTIAL) {
        CHECK(p->frame->csum_start == p->l4);
        CHECK((uint32_t)p->frame->csum_start + p->frame->csum_field + 2 <= p->len);
    }
}

static void parse_all(struct dp_packet *p, const uint8_t *end, uint8_t mode) {
    if ((mode & 1) && dp_parse_outer(p, &port)) {
        return;
    }
    CHECK(p->data + p->len <= end);
    if (dp_parse(p)) {
        return;
    }
    dp_parse_checksum_state(p);
    check_parsed(p, end);
    struct dp_quote q;
    if (p->l4 && dp_key_is_icmp_error(&p->key) && dp_parse_quote(p, &q)) {
        CHECK(q.l3 > p->l4 && q.l4 > q.l3 && q.l4 + 8u <= p->len);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size < 1) {
        return 0;
    }
    const uint32_t len = (uint32_t)size - 1;
    uint8_t *frame = malloc(len + !len); /* of just this size: one byte beyond is an error */
    CHECK(frame);
    memcpy(frame, data + 1, len);
    struct dp_frame f = {.len = len, .flags = data[0] & 2 ? DP_OUTER_CHECKED : 0};
    struct dp_packet p = {.frame = &f, .data = frame, .len = len};
    parse_all(&p, frame + len, data[0]);
    free(frame);
    return 0;
}
