/* The virtio-pci transport driven as a driver does it, with the rng and the console behind it, and by bad drivers. */
#include "fixture.h"

#include <string.h>

#include "dev/virtio/console.h"
#include "dev/virtio/rng.h"

#define ECAM 0xe0000000u
#define LOW 0xc0000000u
#define RAM_SIZE (4 * MIB)
#define RNG PCI_DEVFN(1, 0)
#define CONSOLE PCI_DEVFN(2, 0)

enum {
	ACKNOWLEDGE = 1,
	DRIVER = 2,
	DRIVER_OK = 4,
	FEATURES_OK = 8,
	NEEDS_RESET = 64,
	FAILED = 128,
	C_DFSEL = 0,
	C_DF = 4,
	C_GFSEL = 8,
	C_GF = 12,
	C_VECTOR = 16,
	C_NQ = 18,
	C_STATUS = 20,
	C_GEN = 21,
	C_QSEL = 22,
	C_QSIZE = 24,
	C_QVECTOR = 26,
	C_QENABLE = 28,
	C_QNOTIFY = 30,
	C_QDESC = 32,
	C_QDRIVER = 40,
	C_QDEVICE = 48,
	NEXT = 1,
	WRITE = 2,
};

/* What a driver knows of a device. */
struct driver {
	unsigned devfn;
	gpa_t common, isr, device, notify;
	uint32_t notify_multiplier;
	unsigned pci_cap, msix_cap;
};

struct rig {
	struct fixture f;
	struct ram *ram;
	struct pci_host *host;
	struct virtio_rng *rng;
	struct virtio_console *console;
	struct chardev chr;
	struct driver d; /* of the device under test */
};

static uint64_t mem(struct rig *r, gpa_t at, unsigned size) { return bus_read(r->f.bus, BUS_MMIO, at, size); }
static void set_mem(struct rig *r, gpa_t at, unsigned size, uint64_t v) { bus_write(r->f.bus, BUS_MMIO, at, size, v); }
static uint32_t cfg(struct rig *r, unsigned reg, unsigned size)
{
	return (uint32_t)mem(r, ECAM + (r->d.devfn << 12) + reg, size);
}
static void set_cfg(struct rig *r, unsigned reg, unsigned size, uint32_t v)
{
	set_mem(r, ECAM + (r->d.devfn << 12) + reg, size, v);
}
static uint32_t com(struct rig *r, unsigned off, unsigned size) { return (uint32_t)mem(r, r->d.common + off, size); }
static void set_com(struct rig *r, unsigned off, unsigned size, uint32_t v) { set_mem(r, r->d.common + off, size, v); }

/* Find the structures by their capabilities. */
static void probe(struct rig *r, unsigned devfn)
{
	gpa_t bar;

	r->d = (struct driver){.devfn = devfn};
	bar = (cfg(r, 0x10, 4) & ~0xfu) | (uint64_t)cfg(r, 0x14, 4) << 32;
	for (unsigned p = cfg(r, 0x34, 1); p; p = cfg(r, p + 1, 1)) {
		gpa_t at = bar + cfg(r, p + 8, 4);

		if (cfg(r, p, 1) == 0x11)
			r->d.msix_cap = p;
		if (cfg(r, p, 1) != 0x09)
			continue;
		switch (cfg(r, p + 3, 1)) {
		case 1: r->d.common = at; assert_true(cfg(r, p + 12, 4) >= 56); break;
		case 2: r->d.notify = at; r->d.notify_multiplier = cfg(r, p + 16, 4); break;
		case 3: r->d.isr = at; break;
		case 4: r->d.device = at; break;
		case 5: r->d.pci_cap = p; break;
		}
	}
	assert_true(r->d.common && r->d.notify && r->d.isr && r->d.pci_cap && r->d.msix_cap);
	set_cfg(r, 4, 2, 6);
}

static int setup(void **state)
{
	static struct rig r;
	struct pci_host_config host;
	struct virtio_config dev;

	memset(&r, 0, sizeof(r));
	fixture_init(&r.f);
	r.ram = ram_new(RAM_SIZE, NULL);
	assert_non_null(r.ram);
	host = (struct pci_host_config){
		.bus = r.f.bus, .ecam_base = ECAM, .ecam_buses = 1, .low = {LOW, 0x10000000}, .msi = &r.f.sink,
		.vendor = 0x1b36, .device = 8,
	};
	for (unsigned i = 0; i < 4; i++)
		host.intx[i] = fixture_line(&r.f, 16 + i);
	r.host = pci_host_new(&host, NULL);
	dev = (struct virtio_config){.host = r.host, .ram = r.ram, .timers = &r.f.timers, .devfn = RNG};
	r.rng = virtio_rng_new(&dev, NULL);
	dev.devfn = CONSOLE;
	r.console = virtio_console_new(&dev, &r.chr, NULL);
	assert_true(r.host && r.rng && r.console);
	pci_host_reset(r.host);
	*state = &r;
	return 0;
}

static int teardown(void **state)
{
	struct rig *r = *state;

	virtio_console_free(r->console);
	virtio_rng_free(r->rng);
	pci_host_free(r->host);
	ram_free(r->ram);
	fixture_fini(&r->f);
	return 0;
}

/* A queue's rings: one page each from base + q * 0x4000. */
static gpa_t ring(unsigned q) { return 0x10000 + q * 0x4000; }

static void poke(struct rig *r, gpa_t at, uint64_t v, unsigned size) { assert_true(ram_write(r->ram, at, &v, size)); }

static uint64_t peek(struct rig *r, gpa_t at, unsigned size)
{
	uint64_t v = 0;

	assert_true(ram_read(r->ram, at, &v, size));
	return v;
}

static void desc(struct rig *r, unsigned q, unsigned i, uint64_t addr, uint32_t len, unsigned flags, unsigned next)
{
	poke(r, ring(q) + 16 * i, addr, 8);
	poke(r, ring(q) + 16 * i + 8, len, 4);
	poke(r, ring(q) + 16 * i + 12, flags, 2);
	poke(r, ring(q) + 16 * i + 14, next, 2);
}

static void offer(struct rig *r, unsigned q, unsigned size, unsigned head)
{
	unsigned idx = (unsigned)peek(r, ring(q) + 0x1002, 2);

	poke(r, ring(q) + 0x1004 + 2 * (idx % size), head, 2);
	poke(r, ring(q) + 0x1002, idx + 1, 2);
}

static void notify(struct rig *r, unsigned q)
{
	set_com(r, C_QSEL, 2, q);
	set_mem(r, r->d.notify + com(r, C_QNOTIFY, 2) * r->d.notify_multiplier, 2, q);
}

static unsigned used(struct rig *r, unsigned q) { return (unsigned)peek(r, ring(q) + 0x2002, 2); }
static uint32_t used_len(struct rig *r, unsigned q, unsigned i)
{
	return (uint32_t)peek(r, ring(q) + 0x2008 + 8 * i, 4);
}

static uint64_t device_features(struct rig *r)
{
	uint64_t low;

	set_com(r, C_DFSEL, 4, 0);
	low = com(r, C_DF, 4);
	set_com(r, C_DFSEL, 4, 1);
	return low | (uint64_t)com(r, C_DF, 4) << 32;
}

static void set_features(struct rig *r, uint64_t v)
{
	set_com(r, C_GFSEL, 4, 0);
	set_com(r, C_GF, 4, (uint32_t)v);
	set_com(r, C_GFSEL, 4, 1);
	set_com(r, C_GF, 4, (uint32_t)(v >> 32));
}

static void set_queue(struct rig *r, unsigned q, unsigned size)
{
	set_com(r, C_QSEL, 2, q);
	set_com(r, C_QSIZE, 2, size);
	set_com(r, C_QDESC, 4, (uint32_t)ring(q));
	set_com(r, C_QDRIVER, 4, (uint32_t)ring(q) + 0x1000);
	set_com(r, C_QDEVICE, 4, (uint32_t)ring(q) + 0x2000);
	set_com(r, C_QENABLE, 2, 1);
}

/* Section 3.1.1, up to and with DRIVER_OK. */
static void start(struct rig *r, uint64_t features, unsigned nqueues, unsigned size)
{
	set_com(r, C_STATUS, 1, 0);
	assert_int_equal(com(r, C_STATUS, 1), 0);
	set_com(r, C_STATUS, 1, ACKNOWLEDGE);
	set_com(r, C_STATUS, 1, ACKNOWLEDGE | DRIVER);
	set_features(r, features & device_features(r));
	set_com(r, C_STATUS, 1, ACKNOWLEDGE | DRIVER | FEATURES_OK);
	assert_int_equal(com(r, C_STATUS, 1), ACKNOWLEDGE | DRIVER | FEATURES_OK);
	for (unsigned q = 0; q < nqueues; q++)
		set_queue(r, q, size);
	set_com(r, C_STATUS, 1, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
	assert_int_equal(com(r, C_STATUS, 1), ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
}

static void enable_msix(struct rig *r)
{
	gpa_t table = LOW + (cfg(r, 0x10, 4) & ~0xfu) - LOW + (cfg(r, r->d.msix_cap + 4, 4) & ~7u);

	for (unsigned v = 0; v <= (cfg(r, r->d.msix_cap + 2, 2) & 0x7ff); v++) {
		set_mem(r, table + 16 * v, 4, 0xfee00000);
		set_mem(r, table + 16 * v + 8, 4, 0x50 + v);
		set_mem(r, table + 16 * v + 12, 4, 0);
	}
	set_cfg(r, r->d.msix_cap + 2, 2, 0x8000);
}

#define VERSION_1 BIT(VIRTIO_F_VERSION_1)
#define ALL (VERSION_1 | BIT(VIRTIO_F_EVENT_IDX) | BIT(VIRTIO_F_INDIRECT_DESC))

static void test_identity(void **state)
{
	struct rig *r = *state;

	probe(r, RNG);
	assert_int_equal(cfg(r, 0, 4), 0x10441af4);
	assert_int_equal(cfg(r, 8, 1), 1);
	assert_int_equal(com(r, C_NQ, 2), 1);
	assert_int_equal(cfg(r, r->d.msix_cap + 2, 2), 1);
	assert_int_equal(device_features(r), ALL);
	probe(r, CONSOLE);
	assert_int_equal(cfg(r, 0, 4), 0x10431af4);
	assert_int_equal(com(r, C_NQ, 2), 2);
	assert_int_equal(device_features(r), ALL | BIT(2));
	set_com(r, C_DFSEL, 4, 2);
	assert_int_equal(com(r, C_DF, 4), 0);
	assert_int_equal(mem(r, r->d.device + 4, 4), 1); /* max_nr_ports */
	assert_int_equal(mem(r, r->d.device + 12, 4), 0);
	/* Queues in their power-on state; beyond them there is nothing. */
	for (unsigned q = 0; q < 2; q++) {
		set_com(r, C_QSEL, 2, q);
		assert_int_equal(com(r, C_QSIZE, 2), 128);
		assert_int_equal(com(r, C_QVECTOR, 2), 0xffff);
		assert_int_equal(com(r, C_QENABLE, 2), 0);
	}
	set_com(r, C_QSEL, 2, 2);
	assert_int_equal(com(r, C_QSIZE, 2), 0);
	set_com(r, C_QSIZE, 2, 64);
	assert_int_equal(com(r, C_QSIZE, 2), 0);
}

static void test_feature_negotiation(void **state)
{
	struct rig *r = *state;

	probe(r, RNG);
	set_com(r, C_STATUS, 1, ACKNOWLEDGE | DRIVER);
	set_com(r, C_STATUS, 1, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK); /* without VERSION_1 */
	assert_int_equal(com(r, C_STATUS, 1), ACKNOWLEDGE | DRIVER);
	set_features(r, ALL | BIT(5)); /* something that was not offered */
	set_com(r, C_STATUS, 1, ACKNOWLEDGE | DRIVER | FEATURES_OK);
	assert_int_equal(com(r, C_STATUS, 1), ACKNOWLEDGE | DRIVER);
	set_features(r, ALL);
	set_com(r, C_STATUS, 1, ACKNOWLEDGE | DRIVER | FEATURES_OK);
	assert_int_equal(com(r, C_STATUS, 1), ACKNOWLEDGE | DRIVER | FEATURES_OK);
	set_features(r, VERSION_1); /* too late */
	set_com(r, C_GFSEL, 4, 0);
	assert_int_equal(com(r, C_GF, 4), (uint32_t)ALL);
	set_com(r, C_GFSEL, 4, 7);
	assert_int_equal(com(r, C_GF, 4), 0);
	set_com(r, C_STATUS, 1, NEEDS_RESET | FAILED); /* the first is not the driver's; bits never go by themselves */
	assert_int_equal(com(r, C_STATUS, 1), ACKNOWLEDGE | DRIVER | FEATURES_OK | FAILED);
	set_com(r, C_STATUS, 1, 0);
	assert_int_equal(com(r, C_STATUS, 1), 0);
	set_com(r, C_GFSEL, 4, 0);
	assert_int_equal(com(r, C_GF, 4), 0);
}

static void test_widths(void **state)
{
	struct rig *r = *state;

	probe(r, RNG);
	set_com(r, C_QSEL, 2, 0);
	set_com(r, C_QSIZE, 1, 16); /* not the field's width */
	assert_int_equal(com(r, C_QSIZE, 2), 64);
	set_com(r, C_STATUS, 4, ACKNOWLEDGE);
	assert_int_equal(com(r, C_STATUS, 1), 0);
	set_mem(r, r->d.common + C_QDESC, 8, 0x123456789abcdef0); /* split in halves */
	assert_int_equal(com(r, C_QDESC, 4), 0x9abcdef0);
	assert_int_equal(com(r, C_QDESC + 4, 4), 0x12345678);
	assert_true(mem(r, r->d.common + C_QDESC, 8) == 0x123456789abcdef0);
	for (unsigned bad = 0; bad < 70000; bad += 3) {
		set_com(r, C_QSIZE, 2, bad);
		assert_int_equal(com(r, C_QSIZE, 2) & (com(r, C_QSIZE, 2) - 1), 0);
		assert_in_range(com(r, C_QSIZE, 2), 1, 64);
	}
}

static void test_rng_with_intx(void **state)
{
	struct rig *r = *state;
	uint8_t a[2][32], zero[32] = {0};

	probe(r, RNG);
	start(r, VERSION_1, 1, 8);
	for (unsigned i = 0; i < 2; i++) {
		desc(r, 0, 0, 0x40000, 32, WRITE, 0);
		offer(r, 0, 8, 0);
		notify(r, 0);
		assert_int_equal(used(r, 0), i + 1);
		assert_int_equal(used_len(r, 0, i), 32);
		ram_read(r->ram, 0x40000, a[i], 32);
		assert_memory_not_equal(a[i], zero, 32);
		assert_true(r->f.level[16 + 1]);
		assert_int_equal(cfg(r, 6, 2) & 8, 8);
		assert_int_equal(mem(r, r->d.isr, 1), 1); /* reading acknowledges */
		assert_false(r->f.level[16 + 1]);
		assert_int_equal(mem(r, r->d.isr, 1), 0);
	}
	assert_memory_not_equal(a[0], a[1], 32);
	assert_int_equal(peek(r, 0x40020, 8), 0); /* and not a byte more */
	/* Large requests get less; one without room gets nothing. */
	desc(r, 0, 0, 0x40000, 0x10000, WRITE, 0);
	offer(r, 0, 8, 0);
	desc(r, 0, 1, 0x40000, 64, 0, 0);
	offer(r, 0, 8, 1);
	notify(r, 0);
	assert_int_equal(used(r, 0), 4);
	assert_in_range(used_len(r, 0, 2), 1, 4096);
	assert_int_equal(used_len(r, 0, 3), 0);
}

static void test_rng_with_msix(void **state)
{
	struct rig *r = *state;

	probe(r, RNG);
	enable_msix(r);
	start(r, ALL, 1, 8);
	set_com(r, C_QSEL, 2, 0);
	set_com(r, C_QVECTOR, 2, 2); /* no such vector */
	assert_int_equal(com(r, C_QVECTOR, 2), 0xffff);
	set_com(r, C_QVECTOR, 2, 1);
	assert_int_equal(com(r, C_QVECTOR, 2), 1);
	set_com(r, C_VECTOR, 2, 9);
	assert_int_equal(com(r, C_VECTOR, 2), 0xffff);
	set_com(r, C_VECTOR, 2, 0);
	desc(r, 0, 0, 0x40000, 32, WRITE, 0);
	offer(r, 0, 8, 0);
	notify(r, 0);
	assert_int_equal(used(r, 0), 1);
	assert_int_equal(r->f.nmsi, 1);
	assert_int_equal(r->f.msi[0].data, 0x51);
	assert_int_equal(mem(r, r->d.isr, 1), 0);
	assert_false(r->f.level[16 + 1]);
	poke(r, ring(0) + 0x1004 + 16, 5, 2); /* used_event 5: no interrupt before */
	offer(r, 0, 8, 0);
	notify(r, 0);
	assert_int_equal(used(r, 0), 2);
	assert_int_equal(r->f.nmsi, 1);
	assert_int_equal(peek(r, ring(0) + 0x2004 + 64, 2), 2); /* avail_event */
}

static void test_rng_takes_turns(void **state)
{
	struct rig *r = *state;

	probe(r, RNG);
	start(r, VERSION_1, 1, 64);
	desc(r, 0, 0, 0x40000, 8, WRITE, 0);
	for (unsigned i = 0; i < 64; i++)
		offer(r, 0, 64, 0);
	notify(r, 0);
	assert_in_range(used(r, 0), 1, 63); /* one notification has its limit, the rest comes by itself */
	for (unsigned i = 0; i < 8; i++)
		timer_queue_run(&r->f.timers, clock_now());
	assert_int_equal(used(r, 0), 64);
	assert_true(timer_queue_deadline(&r->f.timers) == TIMER_NEVER);
}

static void test_nothing_happens_too_early(void **state)
{
	struct rig *r = *state;

	probe(r, RNG);
	desc(r, 0, 0, 0x40000, 32, WRITE, 0);
	offer(r, 0, 8, 0);
	notify(r, 0); /* not started */
	set_com(r, C_STATUS, 1, ACKNOWLEDGE | DRIVER);
	set_queue(r, 0, 8); /* before FEATURES_OK */
	assert_int_equal(com(r, C_QENABLE, 2), 0);
	set_features(r, ALL);
	set_com(r, C_STATUS, 1, ACKNOWLEDGE | DRIVER | FEATURES_OK);
	set_queue(r, 0, 8);
	assert_int_equal(com(r, C_QENABLE, 2), 1);
	notify(r, 0); /* no DRIVER_OK */
	assert_int_equal(used(r, 0), 0);
	set_com(r, C_STATUS, 1, DRIVER_OK);
	set_cfg(r, 4, 2, 2); /* no bus mastering */
	notify(r, 0);
	assert_int_equal(used(r, 0), 0);
	set_cfg(r, 4, 2, 6);
	notify(r, 0);
	assert_int_equal(used(r, 0), 1);
}

static void test_frozen_after_driver_ok(void **state)
{
	struct rig *r = *state;

	probe(r, CONSOLE);
	start(r, VERSION_1, 1, 8); /* queue 1 stays off */
	for (unsigned q = 0; q < 2; q++) {
		uint32_t before[7], after[7];

		set_com(r, C_QSEL, 2, q);
		for (unsigned i = 0; i < 7; i++)
			before[i] = com(r, C_QSIZE + 4 * i + (i ? 4 : 0), 4);
		set_com(r, C_QSIZE, 2, 4);
		for (unsigned off = C_QDESC; off < C_QDEVICE + 8; off += 4)
			set_com(r, off, 4, 0xdead0000);
		set_com(r, C_QENABLE, 2, !q);
		set_com(r, C_QENABLE, 2, q);
		for (unsigned i = 0; i < 7; i++)
			after[i] = com(r, C_QSIZE + 4 * i + (i ? 4 : 0), 4);
		assert_memory_equal(before, after, sizeof(before));
		assert_int_equal(com(r, C_QENABLE, 2), q == 0);
	}
}

static void test_broken_driver_needs_reset(void **state)
{
	struct rig *r = *state;

	probe(r, RNG);
	start(r, VERSION_1, 1, 8);
	desc(r, 0, 0, 0x40000, 32, WRITE | NEXT, 0); /* a loop */
	offer(r, 0, 8, 0);
	notify(r, 0);
	assert_int_equal(com(r, C_STATUS, 1), ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK | NEEDS_RESET);
	assert_int_equal(mem(r, r->d.isr, 1), 2); /* told by a configuration interrupt */
	desc(r, 0, 0, 0x40000, 32, WRITE, 0);
	notify(r, 0); /* mended, but it has to reset first */
	assert_int_equal(used(r, 0), 0);
	poke(r, ring(0) + 0x1002, 0, 2);
	start(r, VERSION_1, 1, 8);
	offer(r, 0, 8, 0);
	notify(r, 0);
	assert_int_equal(used(r, 0), 1);
	/* Rings in a device: refused when enabled. */
	set_com(r, C_STATUS, 1, 0);
	set_com(r, C_STATUS, 1, ACKNOWLEDGE | DRIVER);
	set_features(r, VERSION_1);
	set_com(r, C_STATUS, 1, FEATURES_OK);
	set_com(r, C_QSEL, 2, 0);
	set_com(r, C_QDESC, 4, LOW);
	set_com(r, C_QDRIVER, 4, LOW + 0x1000);
	set_com(r, C_QDEVICE, 4, LOW + 0x2000);
	set_com(r, C_QENABLE, 2, 1);
	assert_int_equal(com(r, C_QENABLE, 2), 0);
	assert_int_equal(com(r, C_STATUS, 1) & NEEDS_RESET, NEEDS_RESET);
}

static void test_buffer_in_a_bar(void **state)
{
	struct rig *r = *state;

	/* A descriptor that points at the device's own registers must not be followed. */
	probe(r, RNG);
	start(r, VERSION_1, 1, 8);
	desc(r, 0, 0, r->d.common, 32, WRITE, 0);
	offer(r, 0, 8, 0);
	notify(r, 0);
	assert_int_equal(com(r, C_STATUS, 1) & NEEDS_RESET, NEEDS_RESET);
	assert_int_equal(used(r, 0), 0);
}

static void test_pci_config_access(void **state)
{
	struct rig *r = *state;
	unsigned cap;

	probe(r, RNG);
	cap = r->d.pci_cap;
	set_cfg(r, cap + 4, 1, 0);
	set_cfg(r, cap + 8, 4, C_NQ); /* the common configuration starts the BAR */
	set_cfg(r, cap + 12, 4, 2);
	assert_int_equal(cfg(r, cap + 16, 4), 1);
	set_cfg(r, cap + 8, 4, C_STATUS);
	set_cfg(r, cap + 12, 4, 1);
	set_cfg(r, cap + 16, 4, ACKNOWLEDGE);
	assert_int_equal(com(r, C_STATUS, 1), ACKNOWLEDGE);
	/* Nonsense in each field: nothing happens. */
	static const struct { uint32_t bar, off, len;
	} bad[] = {
		{1, 0, 4}, {6, 0, 4}, {255, 0, 4},	  {0, 2, 4},	  {0, 0, 3},
		{0, 0, 0}, {0, 0, 8}, {0, 0xfffffffc, 4}, {0, 0x8000, 4},
	};

	set_cfg(r, cap + 12, 4, 0);
	set_cfg(r, cap + 16, 4, 0x5a5a5a5a);
	for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
		set_cfg(r, cap + 4, 1, bad[i].bar);
		set_cfg(r, cap + 8, 4, bad[i].off);
		set_cfg(r, cap + 12, 4, bad[i].len);
		set_cfg(r, cap + 16, 4, 0x77777777);
		assert_int_equal(cfg(r, cap + 16, 4), 0x77777777);
		assert_int_equal(com(r, C_STATUS, 1), ACKNOWLEDGE);
	}
}

static void test_console_output(void **state)
{
	struct rig *r = *state;

	probe(r, CONSOLE);
	start(r, ALL, 2, 8);
	ram_write(r->ram, 0x40000, "hello ", 6);
	ram_write(r->ram, 0x50000, "world", 5);
	desc(r, 1, 0, 0x40000, 6, NEXT, 1);
	desc(r, 1, 1, 0x50000, 5, 0, 0);
	offer(r, 1, 8, 0);
	notify(r, 1);
	assert_int_equal(r->chr.nout, 11);
	assert_memory_equal(r->chr.out, "hello world", 11);
	assert_int_equal(used(r, 1), 1);
	assert_int_equal(used_len(r, 1, 0), 0);
	/* Emergency write needs no queue. */
	set_mem(r, r->d.device + 8, 4, '!');
	assert_int_equal(r->chr.out[11], '!');
	set_mem(r, r->d.device + 4, 4, '?');
	assert_int_equal(r->chr.nout, 12);
}

static size_t type(struct rig *r, const char *s)
{
	return r->chr.client.receive(r->chr.client.ctx, (const uint8_t *)s, strlen(s));
}

static void test_console_input(void **state)
{
	struct rig *r = *state;
	char buf[8] = {0};

	probe(r, CONSOLE);
	assert_int_equal(type(r, "early"), 0);
	start(r, ALL, 2, 8);
	assert_int_equal(type(r, "early"), 0); /* no buffers yet: the back end keeps it */
	desc(r, 0, 0, 0x40000, 3, WRITE, 0);
	desc(r, 0, 1, 0x40100, 8, WRITE, 0);
	offer(r, 0, 8, 0);
	r->chr.resumed = 0;
	notify(r, 0);
	assert_int_equal(r->chr.resumed, 1);
	assert_int_equal(type(r, "hello"), 3);
	assert_int_equal(used_len(r, 0, 0), 3);
	offer(r, 0, 8, 1);
	notify(r, 0);
	assert_int_equal(type(r, "lo"), 2);
	assert_int_equal(used(r, 0), 2);
	assert_int_equal(used_len(r, 0, 1), 2);
	ram_read(r->ram, 0x40000, buf, 3);
	ram_read(r->ram, 0x40100, buf + 3, 2);
	assert_string_equal(buf, "hello");
	assert_true(r->f.level[16 + 2]);
	/* A malformed receive buffer, found when input comes. */
	desc(r, 0, 2, UINT64_MAX, 8, WRITE, 0);
	offer(r, 0, 8, 2);
	assert_int_equal(type(r, "x"), 0);
	assert_int_equal(com(r, C_STATUS, 1) & NEEDS_RESET, NEEDS_RESET);
}

static void test_reset_through_pci(void **state)
{
	struct rig *r = *state;

	probe(r, RNG);
	start(r, VERSION_1, 1, 8);
	desc(r, 0, 0, 0x40000, 32, WRITE, 0);
	offer(r, 0, 8, 0);
	notify(r, 0);
	assert_true(r->f.level[16 + 1]);
	pci_host_reset(r->host);
	assert_false(r->f.level[16 + 1]);
	assert_int_equal(com(r, C_STATUS, 1), 0);
	set_com(r, C_QSEL, 2, 0);
	assert_int_equal(com(r, C_QENABLE, 2), 0);
	assert_int_equal(com(r, C_QSIZE, 2), 64);
	assert_false(r->f.level[16 + 1]);
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
	const struct CMUnitTest tests[] = {
		T(test_identity),
		T(test_feature_negotiation),
		T(test_widths),
		T(test_rng_with_intx),
		T(test_rng_with_msix),
		T(test_rng_takes_turns),
		T(test_nothing_happens_too_early),
		T(test_frozen_after_driver_ok),
		T(test_broken_driver_needs_reset),
		T(test_buffer_in_a_bar),
		T(test_pci_config_access),
		T(test_console_output),
		T(test_console_input),
		T(test_reset_through_pci),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
