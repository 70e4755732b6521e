#include "backend/net/fifo.h"

#include <assert.h>
#include <stdlib.h>

_Static_assert(offsetof(struct net_frame, data) == offsetof(struct net_frame, hdr) + sizeof(struct net_hdr), "no gap");

#define ALIGN 16u

bool net_fifo_init(struct net_fifo *f, uint32_t size)
{
	*f = (struct net_fifo){.buf = malloc(size), .size = size};
	return f->buf;
}

void net_fifo_fini(struct net_fifo *f)
{
	free(f->buf);
	f->buf = NULL;
}

static uint32_t footprint(uint32_t len) { return (uint32_t)align_up(sizeof(struct net_frame) + len, ALIGN); }

uint32_t net_fifo_used(const struct net_fifo *f)
{
	return f->wrap ? f->wrap - f->head + f->tail : f->tail - f->head;
}

void net_fifo_clear(struct net_fifo *f) { f->head = f->tail = f->wrap = f->count = f->last = 0; }

struct net_frame *net_fifo_reserve(struct net_fifo *f, uint32_t max)
{
	uint32_t need = footprint(max);
	struct net_frame *frame;

	if (!f->count)
		net_fifo_clear(f); /* the same memory again and again: it is in the cache */
	if (!f->wrap && need > f->size - f->tail) {
		if (need >= f->head)
			return NULL;
		f->wrap = f->tail;
		f->tail = 0;
	}
	if (f->wrap && need >= f->head - f->tail) {
		if (!f->tail) { /* nothing is behind the wrap */
			f->tail = f->wrap;
			f->wrap = 0;
		}
		return NULL;
	}
	frame = (struct net_frame *)(f->buf + f->tail);
	*frame = (struct net_frame){.room = need};
	return frame;
}

void net_fifo_commit(struct net_fifo *f, struct net_frame *frame)
{
	assert(footprint(frame->len) <= frame->room);
	frame->room = footprint(frame->len);
	f->last = f->tail;
	f->tail += frame->room;
	f->count++;
}

struct net_frame *net_fifo_first(struct net_fifo *f)
{
	return f->count ? (struct net_frame *)(f->buf + f->head) : NULL;
}

struct net_frame *net_fifo_last(struct net_fifo *f)
{
	return f->count ? (struct net_frame *)(f->buf + f->last) : NULL;
}

bool net_fifo_grow(struct net_fifo *f, uint32_t bytes)
{
	struct net_frame *frame = net_fifo_last(f);
	uint32_t need, end;

	if (!frame)
		return false;
	need = footprint(frame->len + bytes);
	end = f->wrap && f->last < f->wrap && f->last >= f->head ? 0 : f->wrap ? f->head - 1 : f->size;
	if (f->tail != f->last + frame->room || end < f->last || need > end - f->last)
		return false;
	frame->len += bytes;
	frame->room = need;
	f->tail = f->last + need;
	return true;
}

void net_fifo_drop(struct net_fifo *f)
{
	struct net_frame *frame = net_fifo_first(f);

	if (!frame)
		return;
	f->head += frame->room;
	f->count--;
	if (f->wrap && f->head == f->wrap)
		f->head = f->wrap = 0;
}
