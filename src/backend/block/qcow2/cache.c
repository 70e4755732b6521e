#include "backend/block/qcow2/qcow2_int.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define RUN_MAX 256u /* slices in one write */

bool qcow2_cache_init(struct qcow2_cache *c, uint32_t slice_size, uint64_t bytes)
{
	*c = (struct qcow2_cache){.slice_size = slice_size, .max = (uint32_t)(bytes / slice_size), .nbuckets = 1024};
	c->buckets = calloc(c->nbuckets, sizeof(struct qcow2_slice *));
	c->lru.lru_prev = c->lru.lru_next = &c->lru;
	return c->buckets;
}

void qcow2_cache_fini(struct qcow2_cache *c)
{
	struct qcow2_slice *s = c->lru.lru_next;

	while (s && s != &c->lru) {
		struct qcow2_slice *next = s->lru_next;

		free(s->data);
		free(s);
		s = next;
	}
	free(c->buckets);
	*c = (struct qcow2_cache){0};
}

static struct qcow2_slice **bucket(const struct qcow2_cache *c, uint64_t off)
{
	uint64_t h = off / c->slice_size * UINT64_C(0x9e3779b97f4a7c15);

	return &c->buckets[h >> 32 & (c->nbuckets - 1)];
}

static void unhash(struct qcow2_cache *c, struct qcow2_slice *s)
{
	struct qcow2_slice **p = bucket(c, s->off);

	while (*p != s)
		p = &(*p)->hash_next;
	*p = s->hash_next;
}

static void lru_remove(struct qcow2_slice *s)
{
	s->lru_prev->lru_next = s->lru_next;
	s->lru_next->lru_prev = s->lru_prev;
}

static void lru_front(struct qcow2_cache *c, struct qcow2_slice *s)
{
	s->lru_next = c->lru.lru_next;
	s->lru_prev = &c->lru;
	s->lru_next->lru_prev = s;
	c->lru.lru_next = s;
}

/* Longer chains are slow, more buckets than slices useless. */
static void grow_buckets(struct qcow2_cache *c)
{
	uint32_t n = c->nbuckets * 4;
	struct qcow2_slice **b = c->n > c->nbuckets ? calloc(n, sizeof(struct qcow2_slice *)) : NULL;

	if (!b)
		return;
	free(c->buckets);
	c->buckets = b;
	c->nbuckets = n;
	for (struct qcow2_slice *s = c->lru.lru_next; s != &c->lru; s = s->lru_next) {
		struct qcow2_slice **p = bucket(c, s->off);

		s->hash_next = *p;
		*p = s;
	}
}

static struct qcow2_slice *slice_new(struct qcow2_cache *c)
{
	struct qcow2_slice *s = calloc(1, sizeof(*s));

	if (!s)
		return NULL;
	s->data = qcow2_buffer(c->slice_size);
	if (!s->data) {
		free(s);
		return NULL;
	}
	c->n++;
	return s;
}

/* A slice that is in no list: a new one, or the one that was not used for longest. */
static int slice_take(struct qcow2 *q, struct qcow2_cache *c, struct qcow2_slice **out)
{
	struct qcow2_slice *s = c->n < c->max ? slice_new(c) : NULL;
	int r;

	if (s) {
		*out = s;
		return 0;
	}
	s = c->lru.lru_prev;
	if (s == &c->lru)
		return -ENOMEM;
	if (s->dirty) {
		r = qcow2_commit(q);
		if (r)
			return r;
	}
	unhash(c, s);
	lru_remove(s);
	*out = s;
	return 0;
}

struct qcow2_slice *qcow2_cache_peek(const struct qcow2_cache *c, uint64_t off)
{
	struct qcow2_slice *s = *bucket(c, off);

	while (s && s->off != off)
		s = s->hash_next;
	return s;
}

int qcow2_cache_get(struct qcow2 *q, struct qcow2_cache *c, uint64_t off, struct qcow2_slice **out)
{
	struct qcow2_slice **p, *s = qcow2_cache_peek(c, off);
	int r;

	if (s) {
		if (c->lru.lru_next != s) {
			lru_remove(s);
			lru_front(c, s);
		}
		*out = s;
		return 0;
	}
	r = slice_take(q, c, &s);
	if (r)
		return r;
	r = qcow2_pread(q, off, s->data, c->slice_size);
	if (r) {
		free(s->data);
		free(s);
		c->n--;
		return r;
	}
	s->off = off;
	s->dirty = false;
	lru_front(c, s);
	p = bucket(c, off);
	s->hash_next = *p;
	*p = s;
	grow_buckets(c);
	*out = s;
	return 0;
}

void qcow2_cache_dirty(struct qcow2_cache *c, struct qcow2_slice *s)
{
	c->ndirty += !s->dirty;
	s->dirty = true;
}

static void drop_one(struct qcow2_cache *c, struct qcow2_slice *s)
{
	c->ndirty -= s->dirty;
	unhash(c, s);
	lru_remove(s);
	free(s->data);
	free(s);
	c->n--;
}

void qcow2_cache_drop(struct qcow2_cache *c, uint64_t off, uint64_t len)
{
	for (uint64_t end = off + len; off < end; off += c->slice_size) {
		struct qcow2_slice *s = qcow2_cache_peek(c, off);

		if (s)
			drop_one(c, s);
	}
}

static int by_offset(const void *a, const void *b)
{
	uint64_t x = (*(struct qcow2_slice *const *)a)->off, y = (*(struct qcow2_slice *const *)b)->off;

	return x < y ? -1 : x > y;
}

/* Slices list[0..n) are sorted; write as many as lie side by side. Returns how many, or -errno. */
static int write_run(struct qcow2 *q, struct qcow2_cache *c, struct qcow2_slice **list, size_t n)
{
	struct iovec v[RUN_MAX];
	uint64_t off = list[0]->off;
	unsigned k = 0;
	int r;

	for (; k < n && k < RUN_MAX && list[k]->off == off + (uint64_t)k * c->slice_size; k++)
		v[k] = (struct iovec){list[k]->data, c->slice_size};
	n = k;
	r = qcow2_pwrite_slices(q, off, v, k);
	if (r)
		return r;
	for (size_t i = 0; i < n; i++)
		list[i]->dirty = false;
	c->ndirty -= (uint32_t)n;
	return (int)n;
}

int qcow2_cache_write(struct qcow2 *q, struct qcow2_cache *c)
{
	struct qcow2_slice **list;
	size_t n = 0, i = 0;
	int r = 0;

	if (!c->ndirty)
		return 0;
	list = malloc(c->ndirty * sizeof(struct qcow2_slice *));
	if (!list)
		return -ENOMEM;
	/* Dirty slices were used lately: they are near the front. */
	for (struct qcow2_slice *s = c->lru.lru_next; s != &c->lru && n < c->ndirty; s = s->lru_next) {
		if (s->dirty)
			list[n++] = s;
	}
	qsort(list, n, sizeof(struct qcow2_slice *), by_offset);
	while (i < n && r >= 0) {
		r = write_run(q, c, list + i, n - i);
		i += r > 0 ? (size_t)r : 0;
	}
	free(list);
	return r < 0 ? r : 0;
}

bool qcow2_table_init(struct qcow2_table *t, uint64_t off, uint32_t n)
{
	*t = (struct qcow2_table){.off = off, .n = n};
	t->e = calloc((size_t)n + 1, 8);
	t->dirty_sectors = calloc((size_t)n / 512 + 1, 1);
	return t->e && t->dirty_sectors;
}

void qcow2_table_fini(struct qcow2_table *t)
{
	free(t->e);
	free(t->dirty_sectors);
	*t = (struct qcow2_table){0};
}

int qcow2_table_load(struct qcow2 *q, struct qcow2_table *t)
{
	int r = qcow2_pread(q, t->off, t->e, (size_t)t->n * 8);

	for (uint32_t i = 0; !r && i < t->n; i++)
		t->e[i] = __builtin_bswap64(t->e[i]);
	return r;
}

void qcow2_table_set(struct qcow2_table *t, uint32_t i, uint64_t e)
{
	t->e[i] = e;
	t->dirty_sectors[i / 512] |= (uint8_t)(1u << (i / 64 & 7));
	t->dirty = true;
}

static bool sector_dirty(const struct qcow2_table *t, uint32_t s) { return t->dirty_sectors[s / 8] >> (s & 7) & 1; }

/* A table is alone in its clusters: its last sector may be written whole. */
int qcow2_table_write(struct qcow2 *q, struct qcow2_table *t)
{
	uint32_t sectors = (t->n + 63) / 64;
	uint8_t buf[64 * BLOCK_SECTOR];

	if (!t->dirty)
		return 0;
	for (uint32_t s = 0; s < sectors;) {
		uint32_t first = s, n = 0;
		int r;

		if (!(s & 7) && !t->dirty_sectors[s / 8]) {
			s += 8;
			continue;
		}
		for (; s < sectors && s - first < 64 && sector_dirty(t, s); s++) {
			for (uint32_t i = s * 64; i < s * 64 + 64; i++)
				put_be64(buf + 8 * n++, i < t->n ? t->e[i] : 0);
		}
		if (!n) {
			s++;
			continue;
		}
		r = qcow2_pwrite(q, t->off + (uint64_t)first * BLOCK_SECTOR, buf, (size_t)n * 8);
		if (r)
			return r;
	}
	memset(t->dirty_sectors, 0, (size_t)t->n / 512 + 1);
	t->dirty = false;
	return 0;
}
