#include "bus/bus.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

struct region {
	uint64_t base, last; /* inclusive: a region may end at the end of the space */
	const struct bus_ops *ops;
	void *dev;
	const char *name;
};

struct space {
	struct region *regions; /* sorted by base, disjoint */
	size_t count, capacity;
	size_t hit;	     /* where the last access went; may be stale */
	uint64_t generation; /* of the map: a device's callback may change it */
};

struct bus {
	struct space space[2];
	struct bus_counts counts;
};

struct bus *bus_new(void) { return calloc(1, sizeof(struct bus)); }

void bus_free(struct bus *b)
{
	if (!b)
		return;
	free(b->space[BUS_MMIO].regions);
	free(b->space[BUS_PIO].regions);
	free(b);
}

/* The index of the first region that ends at or after addr; count when there is none. */
static size_t lower_bound(const struct space *s, uint64_t addr)
{
	size_t lo = 0, hi = s->count;

	while (lo < hi) {
		size_t mid = lo + (hi - lo) / 2;

		if (s->regions[mid].last < addr)
			lo = mid + 1;
		else
			hi = mid;
	}
	return lo;
}

static bool valid_size(unsigned size) { return size == 0 || size == 1 || size == 2 || size == 4 || size == 8; }

static unsigned min_size(const struct bus_ops *ops) { return ops->min_size ? ops->min_size : 1; }
static unsigned max_size(const struct bus_ops *ops) { return ops->max_size ? ops->max_size : 8; }

static bool grow(struct space *s)
{
	size_t capacity = s->capacity ? 2 * s->capacity : 16;
	struct region *r;

	if (s->count < s->capacity)
		return true;
	r = realloc(s->regions, capacity * sizeof(*r));
	if (!r)
		return false;
	s->regions = r;
	s->capacity = capacity;
	return true;
}

bool bus_map(struct bus *b, enum bus_space space, uint64_t base, uint64_t len, const struct bus_ops *ops, void *dev,
	     const char *name, struct error *err)
{
	struct space *s = &b->space[space];
	uint64_t limit = space == BUS_PIO ? 0xffff : UINT64_MAX;
	size_t i;

	if (!len || base > limit || len - 1 > limit - base)
		return error_set(err, "%s: 0x%" PRIx64 " bytes at 0x%" PRIx64 " lie outside of the %s space", name, len,
				 base, space == BUS_PIO ? "I/O" : "memory");
	if (!valid_size(ops->min_size) || !valid_size(ops->max_size) || min_size(ops) > max_size(ops))
		return error_set(err, "%s: access sizes %u to %u are impossible", name, ops->min_size, ops->max_size);
	i = lower_bound(s, base);
	if (i < s->count && s->regions[i].base <= base + (len - 1))
		return error_set(err, "%s at 0x%" PRIx64 " overlaps %s at 0x%" PRIx64, name, base, s->regions[i].name,
				 s->regions[i].base);
	if (!grow(s))
		return error_set(err, "%s: out of memory", name);
	memmove(&s->regions[i + 1], &s->regions[i], (s->count - i) * sizeof(s->regions[0]));
	s->regions[i] = (struct region){.base = base, .last = base + (len - 1), .ops = ops, .dev = dev, .name = name};
	s->count++;
	s->generation++;
	return true;
}

void bus_unmap(struct bus *b, enum bus_space space, uint64_t base)
{
	struct space *s = &b->space[space];
	size_t i = lower_bound(s, base);

	if (i == s->count || s->regions[i].base != base)
		return;
	s->count--;
	memmove(&s->regions[i], &s->regions[i + 1], (s->count - i) * sizeof(s->regions[0]));
	s->generation++;
}

/* The region that takes the access, copied, as its device may change the map. False: nobody, or refused. */
static bool find(struct space *s, uint64_t addr, unsigned size, struct region *out)
{
	size_t i = s->hit;
	const struct region *r;

	if (i >= s->count || addr < s->regions[i].base || addr > s->regions[i].last) {
		i = lower_bound(s, addr);
		if (i == s->count || addr < s->regions[i].base)
			return false;
		s->hit = i;
	}
	r = &s->regions[i];
	if (size - 1 > r->last - addr || size < min_size(r->ops))
		return false;
	*out = *r;
	return true;
}

uint64_t bus_read(struct bus *b, enum bus_space space, uint64_t addr, unsigned size)
{
	struct space *s = &b->space[space];
	uint64_t generation = s->generation, value = 0;
	struct region r;
	unsigned piece;

	b->counts.reads++;
	if (!find(s, addr, size, &r) || !r.ops->read) {
		b->counts.unclaimed++;
		return mask_bytes(size);
	}
	piece = (unsigned)min_u64(size, max_size(r.ops));
	for (unsigned i = 0; i < size; i += piece) {
		uint64_t part = mask_bytes(piece);

		if (s->generation == generation)
			part &= r.ops->read(r.dev, addr - r.base + i, piece);
		value |= part << (8 * i);
	}
	return value;
}

void bus_write(struct bus *b, enum bus_space space, uint64_t addr, unsigned size, uint64_t value)
{
	struct space *s = &b->space[space];
	uint64_t generation = s->generation;
	struct region r;
	unsigned piece;

	b->counts.writes++;
	if (!find(s, addr, size, &r) || !r.ops->write) {
		b->counts.unclaimed++;
		return;
	}
	piece = (unsigned)min_u64(size, max_size(r.ops));
	/* The rest of a split write is dropped when its first part moved the device (a BAR). */
	for (unsigned i = 0; i < size && s->generation == generation; i += piece)
		r.ops->write(r.dev, addr - r.base + i, piece, (value >> (8 * i)) & mask_bytes(piece));
}

const struct bus_counts *bus_counts(const struct bus *b) { return &b->counts; }
