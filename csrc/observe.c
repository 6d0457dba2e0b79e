/* observe.c: one ring of bytes; records are whole in it, a gap at its end is stepped over. */
#include "observe.h"
#include <stdlib.h>

enum { ALIGN = 8 };

bool dp_observer_init(struct dp_observer *o, uint32_t size) {
    o->size = size;
    return pthread_mutex_init(&o->lock, NULL) == 0 && pthread_mutex_init(&o->reading, NULL) == 0;
}

void dp_observer_fini(struct dp_observer *o) {
    free(o->ring);
    o->ring = NULL;
    pthread_mutex_destroy(&o->lock);
    pthread_mutex_destroy(&o->reading);
}

bool dp_observer_set(struct dp_observer *o, uint32_t points, uint32_t snap) {
    pthread_mutex_lock(&o->lock);
    o->ring = o->ring || !points ? o->ring : malloc(o->size);
    const bool made = o->ring || !points;
    o->snap = snap;
    atomic_store_explicit(&o->points, made ? points : 0, memory_order_relaxed);
    pthread_mutex_unlock(&o->lock);
    return made;
}

/* Bytes up to the end of the ring, from a place in it. */
static uint32_t straight(const struct dp_observer *o, uint64_t place) {
    return o->size - (uint32_t)(place % o->size);
}

/* Where a record of that size can be written, or NULL. */
static uint8_t *room(struct dp_observer *o, uint32_t size) {
    const uint32_t end = straight(o, o->head);
    const uint32_t gap = end < size ? end : 0;
    if (!o->ring || o->size - (o->head - o->tail) < (uint64_t)gap + size) {
        return NULL;
    }
    if (gap) {
        memset(o->ring + o->head % o->size, 0, ALIGN); /* a record of no size: the gap */
        o->head += gap;
    }
    return o->ring + o->head % o->size;
}

void dp_observe_note(struct dp_observer *o, struct dp_seen *seen, const uint8_t *bytes,
                     uint32_t n) {
    pthread_mutex_lock(&o->lock);
    seen->snap = n < o->snap ? n : o->snap;
    seen->size = (uint32_t)(sizeof *seen + seen->snap + ALIGN - 1) & ~(uint32_t)(ALIGN - 1);
    uint8_t *place = room(o, seen->size);
    if (place) {
        memcpy(place, seen, sizeof *seen);
        if (seen->snap) {
            memcpy(place + sizeof *seen, bytes, seen->snap);
        }
        o->head += seen->size;
    } else {
        o->lost++;
    }
    pthread_mutex_unlock(&o->lock);
}

/* Whole records of [tail, head) that out has room for; where the next one begins. *small: the one
 * that found none. */
static uint64_t copy(const struct dp_observer *o, uint64_t tail, uint64_t head, uint8_t *out,
                     uint32_t size, uint32_t *got, bool *small) {
    while (tail < head) {
        uint32_t next;
        memcpy(&next, o->ring + tail % o->size, sizeof next);
        if (next == 0) {
            tail += straight(o, tail);
            continue;
        }
        *small = next > size - *got;
        if (*small) {
            break;
        }
        memcpy(out + *got, o->ring + tail % o->size, next);
        *got += next;
        tail += next;
    }
    return tail;
}

int dp_observer_take(struct dp_observer *o, uint8_t *out, uint32_t size, uint64_t *lost) {
    uint32_t got = 0;
    bool small = false;
    pthread_mutex_lock(&o->reading);
    pthread_mutex_lock(&o->lock);
    const uint64_t tail = o->tail;
    const uint64_t head = o->head;
    *lost = o->lost;
    o->lost = 0;
    pthread_mutex_unlock(&o->lock);
    const uint64_t taken = copy(o, tail, head, out, size, &got, &small);
    pthread_mutex_lock(&o->lock);
    o->tail = taken;
    pthread_mutex_unlock(&o->lock);
    pthread_mutex_unlock(&o->reading);
    return small && got == 0 ? DP_EINVAL : (int)got;
}
