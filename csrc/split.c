#include "split.h"
#include "checksum.h"

enum { IP4_MTU_MIN = 68, HEADER_MAX = 60, COPIED = 0x80 };

/* The header of a piece but for its length, offset and checksum. */
struct header {
    uint32_t len;
    uint8_t bytes[HEADER_MAX];
};

/* Of the options, a piece that is not the first has those with the copied flag. The parser has seen
 * that they are whole. */
static struct header later_header(const struct dp_ip4 *ip, uint32_t len) {
    struct header h = {.len = sizeof *ip};
    memcpy(h.bytes, ip, sizeof *ip);
    const uint8_t *at = (const uint8_t *)(ip + 1);
    const uint8_t *end = (const uint8_t *)ip + len;
    while (at < end && at[0] != 0) {
        const uint32_t option = at[0] == 1 ? 1 : at[1];
        if (at[0] & COPIED) {
            memcpy(h.bytes + h.len, at, option);
            h.len += option;
        }
        at += option;
    }
    h.len = (h.len + 3) & ~3u;
    h.bytes[0] = (uint8_t)(0x40 | h.len / 4);
    return h;
}

static void finish(uint8_t *header, uint32_t header_len, uint32_t data_len, uint32_t frag) {
    struct dp_ip4 *ip = (struct dp_ip4 *)header;
    ip->total = be16_put(header_len + data_len);
    ip->frag = be16_put(frag);
    ip->csum = 0;
    ip->csum = (uint16_t)~dp_csum_fold(dp_csum_add(0, header, header_len));
}

/* One piece, as the frame it would be had it come in so. */
static void queue_piece(struct dp_store *store, const struct dp_packet *p, const struct header *h,
                        const uint8_t *data, uint32_t data_len, uint32_t frag) {
    const uint32_t ref = dp_store_take(store, p->l3 + h->len + data_len);
    struct dp_kept *kept = dp_store_item(store, ref);
    uint8_t *at = dp_store_bytes(store, ref);
    kept->port = p->key.port;
    kept->transport = (struct dp_transport){p->key.sport, p->key.dport, p->key.proto};
    memcpy(at, p->data, p->l3);
    memcpy(at + p->l3, h->bytes, h->len);
    finish(at + p->l3, h->len, data_len, frag);
    memcpy(at + p->l3 + h->len, data, data_len);
    dp_kept_append(store, &store->queue, ref);
}

uint32_t dp_split(struct dp_store *store, struct dp_packet *p, uint16_t mtu, bool look) {
    struct dp_ip4 *ip = dp_packet_ip4(p);
    const uint32_t head = (uint32_t)(ip->version_ihl & 15) * 4;
    const uint32_t data_len = p->len - p->l3 - head;
    const struct header later = later_header(ip, head);
    if (p->frame->gso_size || mtu < IP4_MTU_MIN || p->l3 + mtu > DP_STORE_FRAME) {
        return 0;
    }
    const uint32_t first = (mtu - head) & ~7u;
    const uint32_t most = (mtu - later.len) & ~7u;
    const uint32_t pieces = (data_len - first + most - 1) / most;
    if (pieces > store->max - store->used) {
        return 0;
    }
    if (p->frame->flags & DP_CSUM_PARTIAL) {
        dp_csum_complete(dp_packet_l4(p), p->len - p->l4, p->frame->csum_field);
        p->frame->flags &= (uint8_t)~DP_CSUM_PARTIAL; /* once cut, nobody behind could */
    }
    const uint8_t *data = (const uint8_t *)ip + head;
    const uint32_t frag = be16_get(ip->frag); /* of a fragment the pieces are fragments again */
    for (uint32_t at = first; at < data_len && !look; at += most) {
        const bool is_last = at + most >= data_len;
        queue_piece(store, p, &later, data + at, is_last ? data_len - at : most,
                    (frag + at / 8) | (is_last ? 0 : DP_IP4_MF));
    }
    finish((uint8_t *)ip, head, first, frag | DP_IP4_MF);
    p->len = p->l3 + head + first;
    p->fragment = p->fragment ? p->fragment : DP_FIRST;
    return pieces;
}
