/* checksum.h: a changed word, against a full recompute, exhaustively (RFC 1624 equation 3).
 * conformance: C1 */
#include "check.h"
#include "checksum.h"

static uint16_t whole(uint16_t a, uint16_t b) {
    const uint32_t sum = (uint32_t)a + b;
    return (uint16_t) ~((sum & 0xffff) + (sum >> 16));
}

/* Every checksum there is, with edge values before and after. Only a text that becomes all zeros is
 * left out: no header is, and both forms of zero are right for it. */
int main(void) {
    static const uint16_t edges[] = {0,      1,      2,      0x00ff, 0x0100, 0x5555,
                                     0x7ffe, 0x7fff, 0x8000, 0x8001, 0xaaaa, 0xff00,
                                     0xfeff, 0xfffd, 0xfffe, 0xffff};
    const size_t n = sizeof edges / sizeof *edges;
    uint64_t tried = 0;
    for (size_t i = 0; i < n * n; i++) {
        const uint16_t old = edges[i / n];
        const uint16_t new = edges[i % n];
        const uint32_t term = dp_csum_term(old, new);
        CHECK(dp_csum_delta(&old, &new, 2) == term);
        for (uint32_t rest = 0; rest <= 0xffff; rest++) {
            if (new == 0 && rest == 0) {
                continue;
            }
            uint16_t field = whole(old, (uint16_t)rest);
            CHECK(dp_csum_fix(field, term) == whole(new, (uint16_t)rest));
            dp_csum_fix_at(&field, term);
            CHECK(field == whole(new, (uint16_t)rest));
            tried++;
        }
    }
    CHECK(tried == n * n * 65536 - n);
    return 0;
}
