/* share.c: counts by port and by VNI against plain arrays, in a table that is half full. */
#include "../../csrc/share.c"
#include "check.h"

enum { PORTS = 4, PAIRS = 64, VNI_KINDS = 200, STEPS = 20000 };

static void test_counts(uint64_t *seed) {
    struct dp_shares s;
    struct dp_key held[PAIRS];
    uint32_t n = 0;
    uint32_t ports[PORTS + 1] = {0};
    uint32_t vnis[VNI_KINDS] = {0};
    CHECK(dp_shares_init(&s, PORTS, PAIRS));
    const uint32_t kinds = 1 + (uint32_t)(check_random(seed) % VNI_KINDS);
    for (int i = 0; i < STEPS; i++) {
        if (n < PAIRS && check_random(seed) % 2) {
            const uint32_t vni = (uint32_t)(check_random(seed) % kinds);
            held[n] = (struct dp_key){.vni = vni, .port = (uint16_t)(check_random(seed) % 5)};
            dp_shares_take(&s, &held[n]);
            ports[held[n].port]++;
            vnis[held[n++].vni]++;
        } else if (n > 0) {
            const uint32_t at = (uint32_t)(check_random(seed) % n);
            dp_shares_give(&s, &held[at]);
            ports[held[at].port]--;
            vnis[held[at].vni]--;
            held[at] = held[--n];
        }
        for (uint16_t p = 0; p < PORTS; p++) {
            CHECK(dp_share_of_port(&s, p) == ports[p]);
        }
        const uint32_t vni = (uint32_t)(check_random(seed) % kinds);
        CHECK(dp_share_of_network(&s, vni) == vnis[vni]);
    }
    CHECK(dp_share_of_port(&s, PORTS) == 0); /* beyond max_ports: not counted */
    dp_shares_clear(&s);
    CHECK(dp_share_of_network(&s, 0) == 0 && dp_share_of_port(&s, 0) == 0);
    dp_shares_fini(&s);
}

int main(void) {
    uint64_t seed = 5;
    for (int round = 0; round < 20; round++) {
        test_counts(&seed);
    }
    return 0;
}
