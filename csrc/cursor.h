/* cursor.h: the one bounds check. Headers are reached by dp_pull and dp_peek only; a length inside
 * a header is a claim, to be checked against .left. */
#ifndef DP_CURSOR_H
#define DP_CURSOR_H
#include "base.h"

struct dp_cursor {
    uint8_t *at;
    uint32_t left; /* bytes from .at on */
};

/* The next n bytes, or NULL if they are not there. Does not move. */
static inline void *dp_peek(const struct dp_cursor *c, uint32_t n) {
    return dp_likely(n <= c->left) ? c->at : NULL;
}
/* The next n bytes, stepping over them, or NULL (and no step). */
static inline void *dp_pull(struct dp_cursor *c, uint32_t n) {
    if (dp_unlikely(n > c->left)) {
        return NULL;
    }
    uint8_t *at = c->at;
    c->at += n;
    c->left -= n;
    return at;
}
/* Forgets what lies beyond the next n bytes; false if they are not there. */
static inline bool dp_trim(struct dp_cursor *c, uint32_t n) {
    if (dp_unlikely(n > c->left)) {
        return false;
    }
    c->left = n;
    return true;
}

#endif
