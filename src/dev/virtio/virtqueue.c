#include "dev/virtio/virtqueue.h"

#include <string.h>

enum {
	DESC_LEN = 16,
	DESC_NEXT = 1, DESC_WRITE = 2, DESC_INDIRECT = 4,
	AVAIL_NO_INTERRUPT = 1, USED_NO_NOTIFY = 1,
	RING_FLAGS = 0, RING_IDX = 2, RING_ENTRIES = 4,
	USED_ELEM_LEN = 8,
};

struct desc {
	uint64_t addr;
	uint32_t len;
	uint16_t flags, next;
};

/* One fetch: the barrier keeps the compiler from reading guest memory again in place of the copy. */
static struct desc copy_desc(const uint8_t *table, unsigned i)
{
	struct desc d;

	memcpy(&d, table + (size_t)i * DESC_LEN, sizeof(d));
	__asm__ volatile("" : "+m"(d));
	return d;
}

static uint16_t load16(const uint8_t *p) { return __atomic_load_n((const uint16_t *)p, __ATOMIC_ACQUIRE); }

static void store16(uint8_t *p, uint16_t v) { __atomic_store_n((uint16_t *)p, v, __ATOMIC_RELEASE); }

bool virtqueue_enable(struct virtqueue *q)
{
	struct virtqueue_state *s = &q->s;

	if (s->desc % 16 || s->avail % 2 || s->used % 4)
		return false;
	q->desc = ram_ptr(q->ram, s->desc, (uint64_t)s->size * DESC_LEN);
	q->avail = ram_ptr(q->ram, s->avail, RING_ENTRIES + 2u * s->size + 2);
	q->used = ram_ptr(q->ram, s->used, RING_ENTRIES + (uint64_t)USED_ELEM_LEN * s->size + 2);
	s->enabled = q->desc && q->avail && q->used;
	return s->enabled;
}

static void set_used_flags(struct virtqueue *q, uint16_t flags)
{
	store16(q->used + RING_FLAGS, flags);
	ram_wrote(q->ram, q->s.used + RING_FLAGS, 2);
}

/* 2.7.10: look again afterwards, as one may have come meanwhile. */
bool virtqueue_arm(struct virtqueue *q)
{
	struct virtqueue_state *s = &q->s;
	uint64_t at = RING_ENTRIES + (uint64_t)USED_ELEM_LEN * s->size;

	if (s->event_idx) {
		store16(q->used + at, s->next_avail);
		ram_wrote(q->ram, s->used + at, 2);
	} else if (s->quiet) {
		set_used_flags(q, 0);
	}
	s->quiet = false;
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	return load16(q->avail + RING_IDX) != s->next_avail;
}

static bool add_seg(struct virtqueue *q, struct virtqueue_chain *c, const struct desc *d)
{
	unsigned n = c->nread + c->nwrite;
	uint32_t *total = d->flags & DESC_WRITE ? &c->write_len : &c->read_len;
	uint8_t *ptr;

	/* Readable buffers come first (2.7.4.2); lengths of 0 and sums beyond 32 bits mean nothing. */
	if (n == VIRTQUEUE_MAX || !d->len || (c->nwrite && !(d->flags & DESC_WRITE)) || *total > UINT32_MAX - d->len)
		return false;
	ptr = ram_ptr(q->ram, d->addr, d->len);
	if (!ptr)
		return false;
	c->segs[n] = (struct virtqueue_seg){d->addr, ptr, d->len};
	*total += d->len;
	if (d->flags & DESC_WRITE)
		c->nwrite++;
	else
		c->nread++;
	return true;
}

/* Follow a chain through one table of `entries` descriptors; *indirect is filled when it ends in an indirect one. */
static bool walk(struct virtqueue *q, struct virtqueue_chain *c, const uint8_t *table, unsigned entries, unsigned i,
		 struct desc *indirect)
{
	for (unsigned seen = 0; seen < entries; seen++) {
		struct desc d;

		if (i >= entries)
			return false;
		d = copy_desc(table, i);
		if (d.flags & DESC_INDIRECT) {
			/* Not in an indirect table, and it ends the chain (2.7.5.3.1). */
			if (!indirect || d.flags & DESC_NEXT)
				return false;
			*indirect = d;
			return true;
		}
		if (!add_seg(q, c, &d))
			return false;
		if (!(d.flags & DESC_NEXT))
			return true;
		i = d.next;
	}
	return false; /* longer than the table: a loop */
}

static bool walk_indirect(struct virtqueue *q, struct virtqueue_chain *c, const struct desc *d)
{
	const uint8_t *table;

	if (!d->len || d->len % DESC_LEN)
		return false;
	table = ram_ptr(q->ram, d->addr, d->len);
	/* The index is 16 bits wide: more entries cannot be reached. */
	return table && walk(q, c, table, (unsigned)min_u64(d->len / DESC_LEN, 65536), 0, NULL);
}

enum virtqueue_result virtqueue_pop(struct virtqueue *q, struct virtqueue_chain *c)
{
	struct virtqueue_state *s = &q->s;
	struct desc indirect = {0};
	uint16_t waiting = load16(q->avail + RING_IDX) - s->next_avail;

	if (!waiting) {
		if (!virtqueue_arm(q))
			return VIRTQUEUE_EMPTY;
		waiting = load16(q->avail + RING_IDX) - s->next_avail;
	}
	if (waiting > s->size)
		return VIRTQUEUE_BROKEN;
	c->head = load16(q->avail + RING_ENTRIES + 2 * (s->next_avail % s->size));
	c->nread = c->nwrite = 0;
	c->read_len = c->write_len = 0;
	if (!walk(q, c, q->desc, s->size, c->head, &indirect))
		return VIRTQUEUE_BROKEN;
	if (indirect.flags && !walk_indirect(q, c, &indirect))
		return VIRTQUEUE_BROKEN;
	s->next_avail++;
	return VIRTQUEUE_CHAIN;
}

bool virtqueue_waiting(const struct virtqueue *q) { return load16(q->avail + RING_IDX) != q->s.next_avail; }

/* With EVENT_IDX the event lies behind already: the driver notifies when it passes it again, which a pop moves. */
void virtqueue_suppress(struct virtqueue *q)
{
	if (!q->s.quiet && !q->s.event_idx)
		set_used_flags(q, USED_NO_NOTIFY);
	q->s.quiet = true;
}

void virtqueue_put(struct virtqueue *q, uint16_t head, uint32_t written)
{
	struct virtqueue_state *s = &q->s;
	uint64_t at = RING_ENTRIES + (uint64_t)USED_ELEM_LEN * (s->next_used % s->size);

	put_le32(q->used + at, head);
	put_le32(q->used + at + 4, written);
	s->next_used++;
	ram_wrote(q->ram, s->used + at, USED_ELEM_LEN);
}

void virtqueue_publish(struct virtqueue *q)
{
	store16(q->used + RING_IDX, q->s.next_used);
	ram_wrote(q->ram, q->s.used + RING_IDX, 2);
}

void virtqueue_push(struct virtqueue *q, const struct virtqueue_chain *c, uint32_t written)
{
	virtqueue_put(q, c->head, written);
	virtqueue_publish(q);
}

bool virtqueue_wants_interrupt(struct virtqueue *q)
{
	struct virtqueue_state *s = &q->s;
	uint16_t old = s->signalled, event;

	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	s->signalled = s->next_used;
	if (old == s->next_used)
		return false;
	if (!s->event_idx)
		return !(load16(q->avail + RING_FLAGS) & AVAIL_NO_INTERRUPT);
	event = load16(q->avail + RING_ENTRIES + 2 * s->size);
	/* The index passed the event (2.7.10). */
	return (uint16_t)(s->next_used - event - 1) < (uint16_t)(s->next_used - old);
}

uint32_t virtqueue_write(struct virtqueue *q, const struct virtqueue_chain *c, uint32_t off, const void *buf,
			 uint32_t len)
{
	const uint8_t *p = buf;
	uint32_t left = len;

	for (unsigned i = c->nread; i < c->nread + c->nwrite && left; i++) {
		const struct virtqueue_seg *seg = &c->segs[i];
		uint32_t n;

		if (off >= seg->len) {
			off -= seg->len;
			continue;
		}
		n = (uint32_t)min_u64(left, seg->len - off);
		memcpy(seg->ptr + off, p, n);
		ram_wrote(q->ram, seg->gpa + off, n);
		p += n;
		left -= n;
		off = 0;
	}
	return len - left;
}
