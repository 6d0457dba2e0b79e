#include "fragment.h"
#include <stdlib.h>

bool dp_fragments_init(struct dp_fragments *t, uint32_t max, uint32_t max_kept, uint32_t max_ports,
                       const uint8_t seed[32]) {
    uint32_t buckets = 16;
    while (buckets < max) {
        buckets *= 2;
    }
    *t = (struct dp_fragments){.max = max, .free = max ? 1 : 0, .mask = buckets - 1};
    dp_hash_key_init(&t->key, seed, 6);
    t->buckets = calloc(buckets, sizeof *t->buckets);
    t->items = calloc((size_t)max + 1, sizeof *t->items);
    for (uint32_t i = 0; t->items && i + 1 < max; i++) {
        t->items[i].chain = i + 2;
    }
    return t->buckets && t->items && dp_shares_init(&t->datagrams, max_ports, max) &&
           dp_shares_init(&t->waiting, max_ports, max_kept) && dp_store_init(&t->store, max_kept);
}

void dp_fragments_fini(struct dp_fragments *t) {
    free(t->buckets);
    free(t->items);
    dp_shares_fini(&t->datagrams);
    dp_shares_fini(&t->waiting);
    dp_store_fini(&t->store);
    *t = (struct dp_fragments){0};
}

/* ---- the table ---------------------------------------------------------------------------- */

static struct dp_datagram *item(const struct dp_fragments *t, uint32_t ref) {
    return &t->items[ref - 1];
}

static uint32_t *bucket_of(const struct dp_fragments *t, const struct dp_key *key) {
    uint64_t m[DP_HASH_WORDS];
    dp_key_words(key, m);
    return &t->buckets[(uint32_t)dp_hash(&t->key, m) & t->mask];
}

static struct dp_key key_of(const struct dp_packet *p) {
    struct dp_key k = p->key;
    k.sport = (uint16_t)(p->datagram_id >> 16);
    k.dport = (uint16_t)p->datagram_id;
    k.proto = p->family == 4 ? p->key.proto : 0;
    return k;
}

static bool overdue(const struct dp_fragments *t, const struct dp_datagram *d, uint64_t now_ns) {
    return now_ns - d->since_ns > t->timeout_ns;
}

/* The datagram the packet is of: reference, or 0. */
static uint32_t find(const struct dp_fragments *t, const struct dp_key *key,
                     const struct dp_addr *from, uint64_t now_ns) {
    uint32_t ref = *bucket_of(t, key);
    while (ref &&
           !(dp_key_equal(&item(t, ref)->key, key) && dp_addr_equal(&item(t, ref)->from, from) &&
             !overdue(t, item(t, ref), now_ns))) {
        ref = item(t, ref)->chain;
    }
    return ref;
}

/* The youngest datagram: with the draft's key, source and time. */
static uint32_t insert(struct dp_fragments *t, const struct dp_datagram *draft) {
    const uint32_t ref = t->free;
    struct dp_datagram *d = item(t, ref);
    uint32_t *bucket = bucket_of(t, &draft->key);
    t->free = d->chain;
    *d = *draft;
    d->chain = *bucket;
    d->older = t->newest;
    *bucket = ref;
    *(t->newest ? &item(t, t->newest)->newer : &t->oldest) = ref;
    t->newest = ref;
    t->used++;
    dp_shares_take(&t->datagrams, &d->key);
    return ref;
}

void dp_fragments_forget(struct dp_fragments *t, uint32_t datagram) {
    const uint32_t ref = datagram + 1;
    struct dp_datagram *d = item(t, ref);
    uint32_t *link = bucket_of(t, &d->key);
    while (*link != ref) {
        link = &item(t, *link)->chain;
    }
    *link = d->chain;
    *(d->older ? &item(t, d->older)->newer : &t->oldest) = d->newer;
    *(d->newer ? &item(t, d->newer)->older : &t->newest) = d->older;
    dp_shares_give(&t->datagrams, &d->key);
    d->chain = t->free;
    t->free = ref;
    t->used--;
}

uint32_t dp_fragments_oldest(const struct dp_fragments *t) {
    return t->oldest ? t->oldest - 1 : DP_NONE;
}

uint32_t dp_fragments_overdue(const struct dp_fragments *t, uint64_t now_ns) {
    return t->oldest && overdue(t, item(t, t->oldest), now_ns) ? t->oldest - 1 : DP_NONE;
}

uint32_t dp_fragments_next_waiting(struct dp_fragments *t, uint32_t datagram) {
    struct dp_datagram *d = &t->items[datagram];
    const uint32_t ref = dp_kept_next(&t->store, &d->waiting);
    if (ref) {
        dp_shares_give(&t->waiting, &d->key);
    }
    return ref;
}

/* ---- what was seen of a datagram ---------------------------------------------------------- */

enum seen { FITS, REPEATS, OVERLAPS, TOO_MANY_GAPS };

static struct dp_part part_of(const struct dp_packet *p) {
    return (struct dp_part){p->part_at, (uint16_t)(p->part_at + (p->part_len + 7) / 8)};
}

/* Whether the part agrees with where the datagram ends, as far as that is known. */
static bool end_agrees(const struct dp_datagram *d, struct dp_part part, bool is_last) {
    const uint16_t reach = d->n_parts ? d->parts[d->n_parts - 1].end : 0;
    if (d->end) {
        return is_last ? part.end == d->end : part.end <= d->end;
    }
    return !is_last || part.end >= reach;
}

static void drop_part(struct dp_datagram *d, uint32_t i) {
    d->n_parts--;
    memmove(&d->parts[i], &d->parts[i + 1], (d->n_parts - i) * sizeof d->parts[0]);
}

/* Adds the part to those that were seen, if it fits. */
static enum seen see(struct dp_datagram *d, struct dp_part part, bool is_last) {
    if (!end_agrees(d, part, is_last)) {
        return OVERLAPS;
    }
    uint32_t i = 0;
    while (i < d->n_parts && d->parts[i].end < part.begin) {
        i++;
    }
    /* parts[i] is the first that reaches up to the new one */
    const bool joins = i < d->n_parts && d->parts[i].end == part.begin;
    const uint32_t behind = i + joins;
    if (behind < d->n_parts && d->parts[behind].begin < part.end) {
        const struct dp_part *other = &d->parts[behind];
        return other->begin <= part.begin && part.end <= other->end ? REPEATS : OVERLAPS;
    }
    const bool closes = behind < d->n_parts && d->parts[behind].begin == part.end;
    if (!joins && !closes && d->n_parts == DP_PARTS_MAX) {
        return TOO_MANY_GAPS;
    }
    d->end = is_last ? part.end : d->end;
    if (joins && closes) {
        d->parts[i].end = d->parts[behind].end;
        drop_part(d, behind);
    } else if (joins) {
        d->parts[i].end = part.end;
    } else if (closes) {
        d->parts[i].begin = part.begin;
    } else {
        memmove(&d->parts[i + 1], &d->parts[i], (d->n_parts - i) * sizeof d->parts[0]);
        d->parts[i] = part;
        d->n_parts++;
    }
    return FITS;
}

static bool is_complete(const struct dp_datagram *d) {
    return d->known && d->end && d->n_parts == 1 && d->parts[0].begin == 0 &&
           d->parts[0].end == d->end;
}

/* ---- judging ------------------------------------------------------------------------------ */

static uint32_t held_of(const struct dp_shares *s, const struct dp_packet *p) {
    return p->kind == DP_PORT_UNDERLAY ? dp_share_of_network(s, p->key.vni)
                                       : dp_share_of_port(s, p->key.port);
}

/* What is overdue, and only still there because a look ends nothing: in all, and of the packet's
 * share. */
struct leaving {
    uint32_t datagrams;
    uint32_t own_datagrams;
    uint32_t frames;
    uint32_t own_frames;
};

static struct leaving leaving(const struct dp_fragments *t, const struct dp_packet *p,
                              uint64_t now_ns) {
    struct leaving l = {0};
    for (uint32_t ref = t->oldest; ref && overdue(t, item(t, ref), now_ns);
         ref = item(t, ref)->newer) {
        const struct dp_datagram *d = item(t, ref);
        const bool own =
            p->kind == DP_PORT_UNDERLAY ? d->key.vni == p->key.vni : d->key.port == p->key.port;
        const uint32_t frames = dp_kept_count(&t->store, &d->waiting);
        l.datagrams++;
        l.own_datagrams += own;
        l.frames += frames;
        l.own_frames += own ? frames : 0;
    }
    return l;
}

static bool may_have_another(uint32_t held, uint32_t max) {
    return held < (max + 3) / 4;
}

static void keep(struct dp_fragments *t, const struct dp_packet *p, struct dp_datagram *d,
                 const uint8_t *arrived, uint32_t len) {
    const uint32_t ref = dp_store_take(&t->store, len);
    struct dp_kept *kept = dp_store_item(&t->store, ref);
    kept->port = p->key.port;
    kept->flags = p->frame->flags;
    memcpy(dp_store_bytes(&t->store, ref), arrived, len);
    dp_kept_append(&t->store, &d->waiting, ref);
    dp_shares_take(&t->waiting, &d->key);
}

/* Those that wait are given out, or dropped, as it was with the datagram. */
static void end_waiting(struct dp_fragments *t, uint32_t datagram) {
    const struct dp_datagram *d = &t->items[datagram];
    uint32_t ref;
    while ((ref = dp_fragments_next_waiting(t, datagram))) {
        dp_store_item(&t->store, ref)->transport = d->transport;
        dp_kept_append(&t->store, d->dead ? &t->doomed : &t->store.queue, ref);
    }
}

static int judge_part(const struct dp_fragments *t, const struct dp_packet *p,
                      struct dp_datagram *d, uint32_t len, const struct leaving *l) {
    if (d->dead) {
        return DP_R_fragment_overlap;
    }
    const bool waits = p->fragment == DP_LATER && !d->known;
    if (waits && (len > DP_STORE_FRAME || t->store.used - l->frames == t->store.max ||
                  !may_have_another(held_of(&t->waiting, p) - l->own_frames, t->store.max))) {
        return DP_R_fragment_room;
    }
    switch (see(d, part_of(p), p->part_is_last)) {
    case FITS:
        break;
    case TOO_MANY_GAPS:
        return DP_R_fragment_room;
    case OVERLAPS:
        d->dead = true;
        return DP_R_fragment_overlap;
    default:
        return DP_R_fragment_overlap;
    }
    if (p->fragment == DP_FIRST) {
        d->known = true;
        d->transport = (struct dp_transport){p->key.sport, p->key.dport, p->key.proto};
    }
    return waits ? DP_WAITS : DP_R_none;
}

int dp_fragments_judge(struct dp_fragments *t, struct dp_packet *p, const uint8_t *arrived,
                       uint32_t len, uint64_t now_ns, bool look) {
    const struct dp_addr nobody = {{0, 0}};
    const struct dp_key key = key_of(p);
    const struct dp_addr from = p->kind == DP_PORT_UNDERLAY ? p->outer_src : nobody;
    const struct leaving l = look ? leaving(t, p, now_ns) : (struct leaving){0};
    uint32_t ref = find(t, &key, &from, now_ns);
    if (!ref && (t->used - l.datagrams == t->max ||
                 !may_have_another(held_of(&t->datagrams, p) - l.own_datagrams, t->max))) {
        return DP_R_fragment_room;
    }
    struct dp_datagram d =
        ref ? *item(t, ref) : (struct dp_datagram){.key = key, .from = from, .since_ns = now_ns};
    const int r = judge_part(t, p, &d, len, &l);
    if (p->fragment == DP_LATER && r == DP_R_none) {
        dp_key_complete(&p->key, &d.transport);
    }
    if (look || (!ref && r != DP_R_none && r != DP_WAITS)) {
        return r;
    }
    if (ref) {
        *item(t, ref) = d;
    } else {
        ref = insert(t, &d);
    }
    if (r == DP_WAITS) {
        keep(t, p, item(t, ref), arrived, len);
    } else if (d.known || d.dead) {
        end_waiting(t, ref - 1);
    }
    if (is_complete(&d)) {
        dp_fragments_forget(t, ref - 1);
    }
    return r;
}
