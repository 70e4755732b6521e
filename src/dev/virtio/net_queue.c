#include "dev/virtio/net_int.h"

#include "backend/net/offload.h"

/* What a worker takes at once: the lock is held for some microseconds. */
#define TX_BYTES (256 * KIB)
#define TX_CHAINS 64
#define RX_BYTES (256 * KIB)
/*
 * Sent chains go back at once, but the interrupt for them waits until there is nothing more to send, or this many are owed: most often
 * the answer of the peer has brought one by then, in whose course the driver takes the chains too.
 */
#define TX_OWED 32

static void ring_clear(struct net_ring *r)
{
	r->nchains = r->nsegs = r->used = r->owed = 0;
	r->bytes = 0;
}

static void ring_add(struct net_ring *r, bool writable)
{
	const struct virtqueue_chain *c = &r->popped;
	unsigned first = writable ? c->nread : 0, count = writable ? c->nwrite : c->nread;
	uint32_t len = writable ? c->write_len : c->read_len;

	memcpy(&r->segs[r->nsegs], &c->segs[first], count * sizeof(c->segs[0]));
	r->chains[r->nchains++] = (struct net_chain){.head = c->head, .first = (uint16_t)r->nsegs, .count = (uint16_t)count, .len = len};
	r->nsegs += count;
	r->bytes += len;
}

static bool ring_room(const struct net_ring *r)
{
	return r->nchains < NET_CHAINS && r->nsegs + VIRTQUEUE_MAX <= NET_SEGS;
}

/* Drop the used chains from the start. */
static void ring_compact(struct net_ring *r)
{
	unsigned first = r->used < r->nchains ? r->chains[r->used].first : r->nsegs;

	r->nchains -= r->used;
	r->nsegs -= first;
	memmove(r->chains, r->chains + r->used, r->nchains * sizeof(r->chains[0]));
	memmove(r->segs, r->segs + first, r->nsegs * sizeof(r->segs[0]));
	for (unsigned i = 0; i < r->nchains; i++)
		r->chains[i].first = (uint16_t)(r->chains[i].first - first);
	r->used = 0;
}

/* Lock held. */
static void refresh_view(struct virtio_net *n, struct net_view *view)
{
	uint64_t f = n->s.features;

	if (view->version == n->version)
		return;
	view->version = n->version;
	view->mergeable = f & BIT(NET_F_MRG_RXBUF);
	view->allowed = (f & BIT(NET_F_CSUM) ? NET_CSUM : 0) | (f & BIT(NET_F_HOST_TSO4) ? NET_TSO4 : 0) |
			(f & BIT(NET_F_HOST_TSO6) ? NET_TSO6 : 0) | (f & BIT(NET_F_HOST_ECN) ? NET_TSO_ECN : 0) |
			(f & BIT(NET_F_HOST_USO) ? NET_USO : 0);
	view->accepts = n->s.accepts;
	view->filter = n->s.filter;
}

/* Lock held. The chains of a driver from before a reset are nobody's. */
static void enter(struct virtio_net *n, struct net_pair *p, struct net_ring *r)
{
	if (r->generation != n->generation)
		ring_clear(r);
	r->generation = n->generation;
	r->size = virtio_queue_size(n->virtio, r->q);
	refresh_view(n, &p->view);
}

/* Lock held. */
static void settle(struct virtio_net *n, struct net_ring *r)
{
	if (r->owed)
		virtio_interrupt(n->virtio, r->q);
	r->owed = 0;
}

/* Hand the used chains back, all at once, unless there was a reset meanwhile. */
static void give_back(struct virtio_net *n, struct net_ring *r, unsigned may_owe)
{
	atomic_store_explicit(&r->busy, false, memory_order_release);
	if (!r->used)
		return;
	pthread_mutex_lock(n->cfg.lock);
	if (r->generation == n->generation) {
		for (unsigned i = 0; i < r->used; i++)
			virtio_put(n->virtio, r->q, r->chains[i].head, r->chains[i].written);
		virtio_publish(n->virtio, r->q);
		r->owed += r->used;
		if (r->owed > may_owe)
			settle(n, r);
	}
	pthread_mutex_unlock(n->cfg.lock);
	ring_compact(r);
}

/* ---- guest to peer ---- */

static void copy_frame(struct virtio_net *n, const struct net_pair *p, const struct net_chain *c, struct net_fifo *out)
{
	const struct virtqueue_seg *segs = &p->tx.segs[c->first];
	uint8_t hdr[NET_HDR_LEN];
	struct net_frame *f;

	if (c->len < NET_HDR_LEN + NET_FRAME_MIN || c->len > NET_HDR_LEN + NET_FRAME_MAX)
		return;
	f = net_fifo_reserve(out, c->len - NET_HDR_LEN);
	if (!f)
		return;
	f->len = c->len - NET_HDR_LEN;
	net_gather(segs, c->count, 0, hdr, NET_HDR_LEN);
	net_gather(segs, c->count, NET_HDR_LEN, f->data, f->len);
	memcpy(&f->hdr, hdr, sizeof(f->hdr));
	f->hdr.flags &= NET_HDR_NEEDS_CSUM;
	/* From here on it is our copy that counts: what the guest changes meanwhile, it changes for nobody. */
	if (!net_offload_valid(f, p->view.allowed) || (n->cfg.mac_filter && memcmp(f->data + 6, n->cfg.mac, 6)))
		return;
	net_fifo_commit(out, f);
}

unsigned virtio_net_fetch(void *ctx, unsigned pair, struct net_fifo *out)
{
	struct virtio_net *n = ctx;
	struct net_pair *p = &n->pairs[pair];
	struct net_ring *r = &p->tx;
	unsigned taken;

	pthread_mutex_lock(n->cfg.lock);
	enter(n, p, r);
	while (r->bytes < TX_BYTES && r->nchains < TX_CHAINS && ring_room(r) && n->s.started && virtio_waiting(n->virtio, r->q) &&
	       virtio_pop(n->virtio, r->q, &r->popped))
		ring_add(r, false);
	if (r->nchains) {
		virtio_suppress(n->virtio, r->q);
		atomic_store(&r->busy, true);
	} else {
		settle(n, r);
	}
	pthread_mutex_unlock(n->cfg.lock);
	taken = r->nchains;
	if (!taken)
		return 0;
	for (unsigned i = 0; i < taken; i++)
		copy_frame(n, p, &r->chains[i], out);
	r->used = taken;
	r->bytes = 0;
	give_back(n, r, TX_OWED);
	return taken;
}

bool virtio_net_arm(void *ctx, unsigned pair, bool starved)
{
	struct virtio_net *n = ctx;
	const struct net_pair *p = &n->pairs[pair];
	bool work;

	pthread_mutex_lock(n->cfg.lock);
	work = n->s.started && virtio_arm(n->virtio, p->tx.q);
	work |= starved && (!n->s.started || virtio_arm(n->virtio, p->rx.q));
	pthread_mutex_unlock(n->cfg.lock);
	return work;
}

/* ---- peer to guest ---- */

/* Where in the ring's chains the next byte goes. */
struct cursor {
	struct net_ring *r;
	struct ram *ram;
	unsigned chain, seg;
	uint32_t off;
};

static void scatter(struct cursor *at, const uint8_t *p, uint32_t len)
{
	while (len) {
		struct net_chain *c = &at->r->chains[at->chain];
		const struct virtqueue_seg *s;
		uint32_t part;

		if (at->seg == c->count) {
			at->chain++;
			at->seg = 0;
			continue;
		}
		s = &at->r->segs[c->first + at->seg];
		part = (uint32_t)min_u64(len, s->len - at->off);
		memcpy(s->ptr + at->off, p, part);
		ram_wrote(at->ram, s->gpa + at->off, part);
		c->written += part;
		p += part;
		len -= part;
		at->off += part;
		if (at->off == s->len) {
			at->seg++;
			at->off = 0;
		}
	}
}

/* How many chains from the first free one a frame takes; 0: more than there are. */
static unsigned chains_for(const struct net_ring *r, bool mergeable, uint32_t bytes)
{
	uint64_t sum = 0;

	for (unsigned i = r->used; i < r->nchains; i++) {
		sum += r->chains[i].len;
		if (sum >= bytes)
			return i - r->used + 1;
		if (!mergeable)
			return 0;
	}
	return 0;
}

/* False: the guest has to give room first. A frame that can have none is dropped. */
static bool put_frame(struct virtio_net *n, struct net_pair *p, const struct net_frame *f)
{
	struct net_ring *r = &p->rx;
	struct cursor at = {.r = r, .ram = n->ram, .chain = r->used};
	uint32_t bytes = NET_HDR_LEN + f->len;
	uint8_t hdr[NET_HDR_LEN];
	unsigned count;

	if (!net_offload_acceptable(&f->hdr, p->view.accepts) || !virtio_net_wants(&p->view.filter, f->data))
		return true;
	if (r->used == r->nchains)
		return false;
	count = chains_for(r, p->view.mergeable, bytes);
	if (!count)
		return !p->view.mergeable || r->nchains - r->used >= r->size;
	memcpy(hdr, &f->hdr, sizeof(f->hdr));
	if (!(p->view.accepts & NET_CSUM))
		hdr[0] = 0;
	put_le16(hdr + 10, (uint16_t)count);
	scatter(&at, hdr, NET_HDR_LEN);
	scatter(&at, f->data, f->len);
	for (unsigned i = 0; i < count; i++)
		r->bytes -= r->chains[r->used + i].len;
	r->used += count;
	return true;
}

bool virtio_net_deliver(void *ctx, unsigned pair, struct net_fifo *in)
{
	struct virtio_net *n = ctx;
	struct net_pair *p = &n->pairs[pair];
	struct net_ring *r = &p->rx;
	/* Each frame leaves a part of its last buffer unused, which is rarely longer than this. */
	uint64_t want = min_u64(net_fifo_used(in) + in->count * 2 * KIB, RX_BYTES);
	bool some = false;

	pthread_mutex_lock(n->cfg.lock);
	enter(n, p, r);
	if (!n->s.started) {
		pthread_mutex_unlock(n->cfg.lock);
		net_fifo_clear(in);
		return true;
	}
	while ((r->bytes < want || r->nchains < in->count) && ring_room(r) && virtio_pop(n->virtio, r->q, &r->popped))
		ring_add(r, true);
	atomic_store(&r->busy, true);
	pthread_mutex_unlock(n->cfg.lock);
	while (!net_fifo_empty(in) && put_frame(n, p, net_fifo_first(in))) {
		net_fifo_drop(in);
		some = true;
	}
	give_back(n, r, 0);
	return some;
}
