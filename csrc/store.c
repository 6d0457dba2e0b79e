#include "store.h"
#include <stdlib.h>

bool dp_store_init(struct dp_store *s, uint32_t max) {
    *s = (struct dp_store){.max = max, .free = max ? 1 : 0};
    s->items = calloc((size_t)max + 1, sizeof *s->items);
    s->bytes = calloc((size_t)max + 1, DP_STORE_FRAME);
    for (uint32_t i = 0; s->items && i + 1 < max; i++) {
        s->items[i].next = i + 2;
    }
    return s->items && s->bytes;
}

void dp_store_fini(struct dp_store *s) {
    free(s->items);
    free(s->bytes);
    *s = (struct dp_store){0};
}

uint32_t dp_store_take(struct dp_store *s, uint32_t len) {
    const uint32_t ref = len <= DP_STORE_FRAME ? s->free : 0;
    if (ref) {
        s->free = dp_store_item(s, ref)->next;
        *dp_store_item(s, ref) = (struct dp_kept){.len = len};
        s->used++;
    }
    return ref;
}

void dp_store_give(struct dp_store *s, uint32_t ref) {
    dp_store_item(s, ref)->next = s->free;
    s->free = ref;
    s->used--;
}

void dp_kept_append(struct dp_store *s, struct dp_kept_list *list, uint32_t ref) {
    dp_store_item(s, ref)->next = 0;
    if (list->last) {
        dp_store_item(s, list->last)->next = ref;
    } else {
        list->first = ref;
    }
    list->last = ref;
}

uint32_t dp_kept_next(struct dp_store *s, struct dp_kept_list *list) {
    const uint32_t ref = list->first;
    if (ref) {
        list->first = dp_store_item(s, ref)->next;
        list->last = list->first ? list->last : 0;
    }
    return ref;
}

uint32_t dp_kept_count(const struct dp_store *s, const struct dp_kept_list *list) {
    uint32_t n = 0;
    for (uint32_t ref = list->first; ref; ref = s->items[ref - 1].next) {
        n++;
    }
    return n;
}
