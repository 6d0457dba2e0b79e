/* cursor.h: what is not there is not given, whatever length is claimed. */
#include "check.h"
#include "cursor.h"

int main(void) {
    uint8_t bytes[10] = {0};
    struct dp_cursor c = {bytes, sizeof bytes};
    CHECK(dp_peek(&c, 10) == bytes && dp_peek(&c, 11) == NULL);
    CHECK(dp_pull(&c, 4) == bytes && c.at == bytes + 4 && c.left == 6);
    CHECK(dp_pull(&c, 7) == NULL && c.at == bytes + 4 && c.left == 6);
    CHECK(dp_pull(&c, UINT32_MAX) == NULL && c.left == 6);
    CHECK(!dp_trim(&c, 7) && c.left == 6);
    CHECK(dp_trim(&c, 5) && c.left == 5);
    CHECK(dp_pull(&c, 5) == bytes + 4 && c.left == 0);
    CHECK(dp_pull(&c, 0) == bytes + 9 && dp_pull(&c, 1) == NULL);
    return 0;
}
