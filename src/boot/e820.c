#include "boot/e820.h"

#include <string.h>

static bool insert(struct e820_map *m, struct e820_entry e)
{
	unsigned i = 0;

	if (!e.size)
		return true;
	if (m->count == E820_MAX)
		return false;
	while (i < m->count && m->e[i].base < e.base)
		i++;
	memmove(&m->e[i + 1], &m->e[i], (m->count - i) * sizeof(e));
	m->e[i] = e;
	m->count++;
	return true;
}

/* Neighbours of one type become one range. */
static void merge(struct e820_map *m)
{
	unsigned out = 0;

	for (unsigned i = 1; i < m->count; i++) {
		struct e820_entry *last = &m->e[out];

		if (last->type == m->e[i].type && last->base + last->size == m->e[i].base)
			last->size += m->e[i].size;
		else
			m->e[++out] = m->e[i];
	}
	if (m->count)
		m->count = out + 1;
}

bool e820_set(struct e820_map *m, gpa_t base, uint64_t size, enum e820_type type)
{
	struct e820_map old = *m;
	gpa_t end = base + size;

	if (!size)
		return true;
	if (end < base)
		return false;
	m->count = 0;
	for (unsigned i = 0; i < old.count; i++) {
		struct e820_entry e = old.e[i], before = e, after = e;

		before.size = min_u64(e.base + e.size, max_u64(base, e.base)) - e.base;
		after.base = max_u64(e.base, min_u64(end, e.base + e.size));
		after.size = e.base + e.size - after.base;
		if (!insert(m, before) || !insert(m, after)) {
			*m = old;
			return false;
		}
	}
	if (type != E820_NONE && !insert(m, (struct e820_entry){base, size, type})) {
		*m = old;
		return false;
	}
	merge(m);
	return true;
}

bool e820_is_ram(const struct e820_map *m, gpa_t gpa, uint64_t len)
{
	for (unsigned i = 0; i < m->count; i++)
		if (m->e[i].type == E820_RAM && gpa >= m->e[i].base && range_ok(gpa - m->e[i].base, len, m->e[i].size))
			return true;
	return false;
}

bool e820_build(struct e820_map *m, const struct ram *ram, const struct e820_entry *extra, unsigned nextra,
		struct error *err)
{
	const struct ram_region *region;
	unsigned n = ram_regions(ram, &region);
	bool ok = true;

	m->count = 0;
	for (unsigned i = 0; i < n; i++)
		ok &= e820_set(m, region[i].gpa, region[i].size, E820_RAM);
	ok &= e820_set(m, E820_EBDA, E820_VGA - E820_EBDA, E820_RESERVED);
	ok &= e820_set(m, E820_VGA, E820_ROM - E820_VGA, E820_NONE);
	ok &= e820_set(m, E820_ROM, E820_ROM_END - E820_ROM, E820_RESERVED);
	for (unsigned i = 0; i < nextra; i++)
		ok &= e820_set(m, extra[i].base, extra[i].size, extra[i].type);
	return ok || error_set(err, "the memory map has ranges that wrap around, or more than %u", E820_MAX);
}
