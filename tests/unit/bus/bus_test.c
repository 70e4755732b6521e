/* Overlap, range, width, splitting, and changes of the map by a device in the middle of an access. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "bus/bus.h"

struct access {
	bool write;
	uint64_t off, value;
	unsigned size;
};

/* Answers a read with the bytes of its offsets: off, off + 1, ... */
struct dev {
	struct bus *bus;
	struct access log[16];
	unsigned n;
	bool move; /* a write unmaps it from 0x1000 and maps it at 0x5000 */
};

static uint64_t dev_read(void *opaque, uint64_t off, unsigned size)
{
	struct dev *d = opaque;
	uint64_t v = 0;

	d->log[d->n++ % 16] = (struct access){.off = off, .size = size};
	for (unsigned i = 0; i < 8; i++) /* more than asked for: the bus cuts it */
		v |= ((off + i) & 0xff) << (8 * i);
	return v;
}

static void dev_write(void *opaque, uint64_t off, unsigned size, uint64_t value);

static const struct bus_ops any = {.read = dev_read, .write = dev_write};
static const struct bus_ops narrow = {.read = dev_read, .write = dev_write, .max_size = 1};
static const struct bus_ops dword = {.read = dev_read, .write = dev_write, .min_size = 4, .max_size = 4};
static const struct bus_ops read_only = {.read = dev_read};

static void dev_write(void *opaque, uint64_t off, unsigned size, uint64_t value)
{
	struct dev *d = opaque;

	d->log[d->n++ % 16] = (struct access){.write = true, .off = off, .size = size, .value = value};
	if (d->move) {
		bus_unmap(d->bus, BUS_MMIO, 0x1000);
		assert_true(bus_map(d->bus, BUS_MMIO, 0x5000, 0x100, &narrow, d, "moved", NULL));
	}
}

static int setup(void **state)
{
	struct dev *d = calloc(1, sizeof(*d));

	if (!d)
		return -1;
	d->bus = bus_new();
	*state = d;
	return d->bus ? 0 : -1;
}

static int teardown(void **state)
{
	struct dev *d = *state;

	bus_free(d->bus);
	free(d);
	return 0;
}

static bool map(struct dev *d, enum bus_space s, uint64_t base, uint64_t len, const struct bus_ops *ops)
{
	struct error err = {0};
	bool ok = bus_map(d->bus, s, base, len, ops, d, "dev", &err);

	assert_int_equal(ok, err.msg[0] == 0);
	return ok;
}

static void ranges(void **state)
{
	struct dev *d = *state;
	static const struct bus_ops bad_width = {.read = dev_read, .max_size = 3};
	static const struct bus_ops bad_order = {.read = dev_read, .min_size = 4, .max_size = 2};

	assert_true(map(d, BUS_MMIO, 0x1000, 0x100, &any));
	assert_false(map(d, BUS_MMIO, 0x1000, 0x100, &any));
	assert_false(map(d, BUS_MMIO, 0xfff, 2, &any));
	assert_false(map(d, BUS_MMIO, 0x10ff, 1, &any));
	assert_false(map(d, BUS_MMIO, 0, 0x10000, &any));
	assert_true(map(d, BUS_MMIO, 0xfff, 1, &any));
	assert_true(map(d, BUS_MMIO, 0x1100, 1, &any));
	assert_true(map(d, BUS_PIO, 0x1000, 0x100, &any)); /* another space */
	assert_false(map(d, BUS_MMIO, 0x2000, 0, &any));
	assert_false(map(d, BUS_MMIO, UINT64_MAX, 2, &any));
	assert_true(map(d, BUS_MMIO, UINT64_MAX, 1, &any));
	assert_false(map(d, BUS_PIO, 0xffff, 2, &any));
	assert_true(map(d, BUS_PIO, 0xffff, 1, &any));
	assert_false(map(d, BUS_PIO, 0x10000, 1, &any));
	assert_false(map(d, BUS_MMIO, 0x3000, 1, &bad_width));
	assert_false(map(d, BUS_MMIO, 0x3000, 1, &bad_order));
	assert_int_equal(bus_read(d->bus, BUS_MMIO, UINT64_MAX, 1), 0);
	assert_int_equal(bus_read(d->bus, BUS_MMIO, UINT64_MAX, 8), UINT64_MAX);
	bus_unmap(d->bus, BUS_MMIO, 0x1050); /* not a base */
	assert_int_equal(bus_read(d->bus, BUS_MMIO, 0x1050, 1), 0x50);
	bus_unmap(d->bus, BUS_MMIO, 0x1000);
	bus_unmap(d->bus, BUS_MMIO, 0x1000);
	assert_int_equal(bus_read(d->bus, BUS_MMIO, 0x1050, 1), 0xff);
	assert_true(map(d, BUS_MMIO, 0x1000, 0x100, &any));
}

static void widths(void **state)
{
	struct dev *d = *state;

	assert_true(map(d, BUS_MMIO, 0x1000, 0x100, &any));
	assert_int_equal(bus_read(d->bus, BUS_MMIO, 0x1010, 1), 0x10);
	assert_int_equal(bus_read(d->bus, BUS_MMIO, 0x1010, 2), 0x1110);
	assert_int_equal(bus_read(d->bus, BUS_MMIO, 0x1011, 4), 0x14131211);
	assert_int_equal(bus_read(d->bus, BUS_MMIO, 0x1013, 8), UINT64_C(0x1a19181716151413));
	assert_int_equal(d->n, 4);
	/* Over the end, or from before the start: refused as a whole. */
	assert_int_equal(bus_read(d->bus, BUS_MMIO, 0x10ff, 2), 0xffff);
	assert_int_equal(bus_read(d->bus, BUS_MMIO, 0x10fd, 4), 0xffffffff);
	assert_int_equal(bus_read(d->bus, BUS_MMIO, 0xfff, 2), 0xffff);
	assert_int_equal(bus_read(d->bus, BUS_MMIO, 0x10fc, 8), UINT64_MAX);
	bus_write(d->bus, BUS_MMIO, 0x10ff, 2, 0);
	assert_int_equal(d->n, 4);
	bus_write(d->bus, BUS_MMIO, 0x1020, 2, 0xdeadbeef);
	assert_int_equal(d->log[4].value, 0xbeef);
	assert_int_equal(bus_counts(d->bus)->reads, 8);
	assert_int_equal(bus_counts(d->bus)->writes, 2);
	assert_int_equal(bus_counts(d->bus)->unclaimed, 5);
}

static void splitting(void **state)
{
	struct dev *d = *state;

	assert_true(map(d, BUS_PIO, 0x100, 8, &narrow));
	assert_int_equal(bus_read(d->bus, BUS_PIO, 0x102, 4), 0x05040302);
	assert_int_equal(d->n, 4);
	for (unsigned i = 0; i < 4; i++) {
		assert_int_equal(d->log[i].off, 2 + i);
		assert_int_equal(d->log[i].size, 1);
	}
	bus_write(d->bus, BUS_PIO, 0x101, 2, 0x1234);
	assert_int_equal(d->log[4].off, 1);
	assert_int_equal(d->log[4].value, 0x34);
	assert_int_equal(d->log[5].off, 2);
	assert_int_equal(d->log[5].value, 0x12);
	assert_true(map(d, BUS_MMIO, 0x200, 16, &dword));
	d->n = 0;
	assert_int_equal(bus_read(d->bus, BUS_MMIO, 0x204, 8), UINT64_C(0x0b0a090807060504));
	assert_int_equal(d->n, 2);
	assert_int_equal(bus_read(d->bus, BUS_MMIO, 0x204, 2), 0xffff); /* narrower: refused */
	bus_write(d->bus, BUS_MMIO, 0x204, 1, 0);
	assert_int_equal(d->n, 2);
	assert_true(map(d, BUS_MMIO, 0x300, 16, &read_only));
	bus_write(d->bus, BUS_MMIO, 0x300, 4, 0);
	assert_int_equal(d->n, 2);
}

/* A BAR that its own write moves: the rest of the access is dropped, and the cache of the last hit does not lie. */
static void moves_itself(void **state)
{
	struct dev *d = *state;

	assert_true(map(d, BUS_MMIO, 0x1000, 0x100, &narrow));
	assert_int_equal(bus_read(d->bus, BUS_MMIO, 0x1000, 1), 0);
	d->n = 0;
	d->move = true;
	bus_write(d->bus, BUS_MMIO, 0x1000, 4, 0);
	assert_int_equal(d->n, 1);
	assert_int_equal(bus_read(d->bus, BUS_MMIO, 0x1000, 1), 0xff);
	assert_int_equal(bus_read(d->bus, BUS_MMIO, 0x5005, 1), 5);
}

/* Many regions in random order against a plain array of owners. */
static void many(void **state)
{
	struct dev *d = *state;
	enum { SPACE = 4096 };
	static uint16_t owner[SPACE]; /* base + 1 */
	unsigned seed = 1;

	memset(owner, 0, sizeof(owner));
	for (unsigned round = 0; round < 20000; round++) {
		unsigned base, len;
		bool free_range = true;

		seed = seed * 1103515245 + 12345;
		base = (seed >> 8) % SPACE;
		len = 1 + (seed >> 20) % 40;
		if (base + len > SPACE)
			continue;
		switch (seed >> 29) {
		case 0:
			for (unsigned i = 0; i < len; i++)
				free_range &= !owner[base + i];
			assert_int_equal(map(d, BUS_PIO, base, len, &any), free_range);
			for (unsigned i = 0; free_range && i < len; i++)
				owner[base + i] = (uint16_t)(base + 1);
			break;
		case 1:
			bus_unmap(d->bus, BUS_PIO, base);
			if (owner[base] == base + 1)
				for (unsigned i = base; i < SPACE && owner[i] == base + 1; i++)
					owner[i] = 0;
			break;
		default:
			assert_int_equal(bus_read(d->bus, BUS_PIO, base, 1),
					 owner[base] ? (base - (owner[base] - 1u)) & 0xff : 0xff);
		}
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(ranges, setup, teardown),
		cmocka_unit_test_setup_teardown(widths, setup, teardown),
		cmocka_unit_test_setup_teardown(splitting, setup, teardown),
		cmocka_unit_test_setup_teardown(moves_itself, setup, teardown),
		cmocka_unit_test_setup_teardown(many, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
