/* names.c: what the lists in reason.def and status.def are called. */
#include "base.h"

struct reason_name {
    const char *name;
    const char *layer;
    const char *text;
};

static const struct reason_name reasons[] = {
#define DP_REASON(symbol, layer, text) {#symbol, #layer, text},
#include "reason.def"
#undef DP_REASON
};
_Static_assert(sizeof reasons / sizeof *reasons == DP_REASONS, "one name for each reason");
_Static_assert(DP_REASONS <= 256, "a reason is a byte in struct dp_frame");

int dp_abi(void) {
    return DP_ABI;
}

uint32_t dp_reason_count(void) {
    return DP_REASONS;
}

static const struct reason_name *reason_at(uint32_t i) {
    static const struct reason_name unknown = {"unknown", "unknown", "no such reason"};
    return i < DP_REASONS ? &reasons[i] : &unknown;
}

const char *dp_reason_name(uint32_t i) {
    return reason_at(i)->name;
}

const char *dp_reason_layer(uint32_t i) {
    return reason_at(i)->layer;
}

const char *dp_reason_text(uint32_t i) {
    return reason_at(i)->text;
}

const char *dp_status_name(int status) {
    switch (status) {
#define DP_STATUS(symbol, value, text)                                                             \
    case value:                                                                                    \
        return #symbol;
#include "status.def"
#undef DP_STATUS
    default:
        return "UNKNOWN";
    }
}

const char *dp_status_text(int status) {
    switch (status) {
#define DP_STATUS(symbol, value, text)                                                             \
    case value:                                                                                    \
        return text;
#include "status.def"
#undef DP_STATUS
    default:
        return "unknown status";
    }
}
