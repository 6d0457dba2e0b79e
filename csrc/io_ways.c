#include "io_ways.h"
#include <pthread.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

enum { PLACES = 4096, PROBES = 8 };

struct place {
    uint64_t remote[2]; /* zero: free */
    uint64_t answer[2]; /* two MAC addresses and the MTU; see struct answer */
    uint64_t used;
};

struct answer {
    uint8_t mac[6];
    uint8_t own_mac[6];
    uint16_t mtu;
    uint16_t zero;
};
_Static_assert(sizeof(struct answer) == 2 * sizeof(uint64_t), "an answer is two words");

struct io_ways {
    uint64_t turn; /* odd while somebody writes */
    int asked;     /* eventfd */
    pthread_mutex_t writing;
    struct place places[PLACES];
};

struct io_ways *io_ways_create(void) {
    struct io_ways *w = calloc(1, sizeof *w);
    if (w && (w->asked = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) < 0) {
        free(w);
        return NULL;
    }
    if (w) {
        pthread_mutex_init(&w->writing, NULL);
    }
    return w;
}

void io_ways_destroy(struct io_ways *w) {
    if (w) {
        close(w->asked);
        pthread_mutex_destroy(&w->writing);
        free(w);
    }
}

int io_ways_fd(const struct io_ways *w) {
    return w->asked;
}

/* ---- places ------------------------------------------------------------------------------- */

static struct place *first_of(struct io_ways *w, const struct dp_addr *remote) {
    const uint64_t mixed = (remote->word[0] ^ remote->word[1]) * 0x9e3779b97f4a7c15u;
    return &w->places[(mixed >> 32) % (PLACES - PROBES)];
}

static struct place *find(struct io_ways *w, const struct dp_addr *remote) {
    struct place *p = first_of(w, remote);
    for (int i = 0; i < PROBES; i++, p++) {
        if (dp_get(p->remote[1]) == remote->word[1] && dp_get(p->remote[0]) == remote->word[0]) {
            return p;
        }
    }
    return NULL;
}

/* All that is written at a place, by one thread at a time. */
static void write_place(struct io_ways *w, struct place *p, const struct dp_addr *remote,
                        const struct answer *answer) {
    uint64_t words[2];
    memcpy(words, answer, sizeof words);
    dp_set(w->turn, w->turn + 1);
    __atomic_thread_fence(__ATOMIC_RELEASE);
    for (int i = 0; i < 2; i++) {
        dp_set(p->remote[i], remote->word[i]);
        dp_set(p->answer[i], words[i]);
    }
    __atomic_store_n(&w->turn, w->turn + 1, __ATOMIC_RELEASE);
}

/* Not listed, or listed a moment ago by another worker, or no place is left: then never. */
static dp_cold void list(struct io_ways *w, const struct dp_addr *remote) {
    static const struct dp_addr none;
    static const struct answer unknown;
    const uint64_t one = 1;
    if (pthread_mutex_trylock(&w->writing)) {
        return; /* the next packet asks again */
    }
    struct place *p = find(w, remote) ? NULL : first_of(w, remote);
    for (int i = 0; p && i < PROBES; i++, p++) {
        if (!memcmp(p->remote, &none, sizeof none)) {
            dp_set(p->used, 1);
            write_place(w, p, remote, &unknown);
            (void)!write(w->asked, &one, sizeof one);
            break;
        }
    }
    pthread_mutex_unlock(&w->writing);
}

/* ---- asking ------------------------------------------------------------------------------- */

bool io_ways_ask(struct io_ways *w, const struct dp_addr *remote, struct dp_way *way) {
    uint64_t words[2];
    struct answer answer;
    const uint64_t turn = __atomic_load_n(&w->turn, __ATOMIC_ACQUIRE);
    struct place *p = find(w, remote);
    if (!p) {
        list(w, remote);
        return false;
    }
    words[0] = dp_get(p->answer[0]);
    words[1] = dp_get(p->answer[1]);
    if (!dp_get(p->used)) {
        dp_set(p->used, 1);
    }
    __atomic_thread_fence(__ATOMIC_ACQUIRE);
    memcpy(&answer, words, sizeof answer);
    memcpy(way->mac, answer.mac, sizeof way->mac);
    memcpy(way->own_mac, answer.own_mac, sizeof way->own_mac);
    way->mtu = answer.mtu;
    return way->mtu && !(turn & 1) && dp_get(w->turn) == turn;
}

/* ---- answering ---------------------------------------------------------------------------- */

uint32_t io_ways_list(struct io_ways *w, struct dp_way *ways, uint32_t n) {
    uint32_t found = 0;
    pthread_mutex_lock(&w->writing);
    for (uint32_t i = 0; i < PLACES && found < n; i++) {
        struct place *p = &w->places[i];
        if (p->remote[0] | p->remote[1]) {
            struct dp_way *way = &ways[found++];
            *way = (struct dp_way){.used = dp_get(p->used) != 0};
            memcpy(way->remote, p->remote, sizeof way->remote);
            dp_set(p->used, 0);
        }
    }
    pthread_mutex_unlock(&w->writing);
    return found;
}

void io_ways_set(struct io_ways *w, const struct dp_addr *remote, const struct dp_way *way) {
    static const struct dp_addr none;
    struct answer answer = {0};
    if (way) {
        answer.mtu = way->mtu;
        memcpy(answer.mac, way->mac, sizeof answer.mac);
        memcpy(answer.own_mac, way->own_mac, sizeof answer.own_mac);
    }
    pthread_mutex_lock(&w->writing);
    struct place *p = find(w, remote);
    if (p) {
        write_place(w, p, way ? remote : &none, &answer);
    }
    pthread_mutex_unlock(&w->writing);
}
