/*
 * All devices of a board on one bus, driven by random register accesses and random rings. Meant for sanitizer builds:
 * there must be no report, no hang and no assertion, whatever the guest does. An operation that takes longer than a
 * second is a hang.
 *
 *   dev_fuzz SECONDS SEED
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/timer.h"
#include "dev/acpi_pm.h"
#include "dev/debug_exit.h"
#include "dev/reset.h"
#include "dev/rtc.h"
#include "dev/uart.h"
#include "dev/virtio/console.h"
#include "dev/virtio/rng.h"

#define ECAM 0xe0000000u
#define LOW 0xc0000000u
#define LOW_LEN 0x100000u
#define HIGH (UINT64_C(64) << 30)
#define RAM_SIZE (4 * MIB)
#define RINGS 0x100000u /* where the fuzzer puts rings, indirect tables and buffers */
#define QUEUES 2
#define MAX_OP_NS INT64_C(1000000000)

struct chardev {
	struct chardev_client client;
	uint64_t written, sum;
};

struct rig {
	uint64_t rng;
	struct bus *bus;
	struct timer_queue timers;
	struct irq_sink sink;
	struct ram *ram;
	struct uart *uart;
	struct rtc *rtc;
	struct acpi_pm *pm;
	struct reset *reset;
	struct debug_exit *debug_exit;
	struct pci_host *pci;
	struct virtio_rng *vrng;
	struct virtio_console *console;
	struct chardev chr[2];
	gpa_t bar[2]; /* of the virtio devices, as last set up */
	uint64_t irqs, msis, callbacks;
};

/* Every byte that a device sends is touched, so that a sanitizer sees a bad pointer. */
void chardev_write(struct chardev *c, const void *buf, size_t len)
{
	const uint8_t *p = buf;

	for (size_t i = 0; i < len; i++)
		c->sum += p[i];
	c->written += len;
}

void chardev_set_client(struct chardev *c, const struct chardev_client *client) { c->client = *client; }
void chardev_resume(struct chardev *c) {}

static uint64_t next(struct rig *r)
{
	r->rng ^= r->rng << 13;
	r->rng ^= r->rng >> 7;
	r->rng ^= r->rng << 17;
	return r->rng * UINT64_C(0x2545f4914f6cdd1d) >> 11;
}

static uint64_t below(struct rig *r, uint64_t n) { return next(r) % n; }

/* Values that like to break things, among plain random ones. */
static uint64_t value(struct rig *r)
{
	static const uint64_t odd[] = {0, 1, 2, 4, 8, 15, 16, 0x7f, 0x80, 0xff, 0x100, 0x7fff, 0x8000, 0xffff, 0x10000,
		0x7fffffff, 0x80000000, 0xffffffff, 0x100000000, UINT64_MAX, LOW, ECAM, RINGS, RAM_SIZE, RAM_SIZE - 16};

	switch (below(r, 4)) {
	case 0: return odd[below(r, ARRAY_LEN(odd))];
	case 1: return below(r, 256);
	case 2: return BIT(below(r, 64)) - below(r, 2);
	default: return next(r) << below(r, 32);
	}
}

static void set_gsi(void *ctx, unsigned gsi, bool level)
{
	if (gsi >= 24)
		abort();
	((struct rig *)ctx)->irqs++;
}

static bool msi(void *ctx, uint64_t addr, uint32_t data)
{
	((struct rig *)ctx)->msis++;
	return false;
}

static void note(void *ctx) { ((struct rig *)ctx)->callbacks++; }
static void note_value(void *ctx, uint32_t v) { ((struct rig *)ctx)->callbacks++; }

static struct irq_line line(struct rig *r, unsigned gsi) { return (struct irq_line){&r->sink, gsi}; }

static void rig_init(struct rig *r, uint64_t seed)
{
	struct virtio_config v;

	*r = (struct rig){.rng = seed * UINT64_C(0x9e3779b97f4a7c15) | 1};
	r->sink = (struct irq_sink){set_gsi, msi, r};
	timer_queue_init(&r->timers);
	r->bus = bus_new();
	r->ram = ram_new(RAM_SIZE, NULL);
	r->uart = uart_new(&(struct uart_config){r->bus, BUS_PIO, 0x3f8, line(r, 4), &r->chr[0], &r->timers, "uart"},
			   NULL);
	r->rtc = rtc_new(&(struct rtc_config){r->bus, line(r, 8), &r->timers, RAM_SIZE, 0}, NULL);
	r->pm = acpi_pm_new(&(struct acpi_pm_config){.bus = r->bus,
						     .base = 0x600,
						     .sci = line(r, 9),
						     .timers = &r->timers,
						     .timer_32bit = seed & 1,
						     .s5_type = 5,
						     .on_power_off = note,
						     .ctx = r},
			    NULL);
	r->reset = reset_new(r->bus, note, r, NULL);
	r->debug_exit = debug_exit_new(r->bus, 0xf4, note_value, r, NULL);
	r->pci = pci_host_new(&(struct pci_host_config){
		.bus = r->bus, .ecam_base = ECAM, .ecam_buses = 1, .low = {LOW, LOW_LEN}, .high = {HIGH, 4 * MIB},
		.intx = {line(r, 16), line(r, 17), line(r, 18), line(r, 19)}, .msi = &r->sink, .reset = r->reset,
		.vendor = 0x1b36, .device = 8}, NULL);
	v = (struct virtio_config){r->pci, PCI_DEVFN(1, 0), r->ram, &r->timers};
	r->vrng = virtio_rng_new(&v, NULL);
	v.devfn = PCI_DEVFN(2, 0);
	r->console = virtio_console_new(&v, &r->chr[1], NULL);
	if (!r->bus || !r->ram || !r->uart || !r->rtc || !r->pm || !r->reset || !r->debug_exit || !r->vrng ||
	    !r->console)
		abort();
	pci_host_reset(r->pci);
}

static void rig_fini(struct rig *r)
{
	virtio_console_free(r->console);
	virtio_rng_free(r->vrng);
	pci_host_free(r->pci);
	debug_exit_free(r->debug_exit);
	reset_free(r->reset);
	acpi_pm_free(r->pm);
	rtc_free(r->rtc);
	uart_free(r->uart);
	if (r->timers.first)
		abort();
	ram_free(r->ram);
	bus_free(r->bus);
}

static void access_bus(struct rig *r, enum bus_space space, uint64_t at)
{
	unsigned size = 1u << below(r, space == BUS_PIO ? 3 : 4);

	if (below(r, 2))
		bus_read(r->bus, space, at, size);
	else
		bus_write(r->bus, space, at, size, value(r) & mask_bytes(size));
}

static void random_port(struct rig *r)
{
	static const struct { uint16_t base, len;
	} ports[] = {
		{0x3f8, 8}, {0x70, 2}, {0x600, 0x40}, {0x60, 1},  {0x64, 1},
		{0x92, 1},  {0xf4, 4}, {0xcf8, 8},    {0xcf8, 8},
	};
	size_t i = below(r, ARRAY_LEN(ports) + 1);

	access_bus(r, BUS_PIO, i < ARRAY_LEN(ports) ? ports[i].base + below(r, ports[i].len) : below(r, 65536));
}

static void random_mmio(struct rig *r)
{
	switch (below(r, 6)) {
	case 0: access_bus(r, BUS_MMIO, ECAM + (below(r, 4) << 15) + below(r, 256)); break;
	case 1: access_bus(r, BUS_MMIO, ECAM + below(r, MIB)); break;
	case 2: access_bus(r, BUS_MMIO, LOW + below(r, LOW_LEN)); break;
	case 3: access_bus(r, BUS_MMIO, r->bar[below(r, 2)] + below(r, 64)); break;
	case 4: access_bus(r, BUS_MMIO, r->bar[below(r, 2)] + below(r, 8) * 0x1000 + below(r, 128)); break;
	default: access_bus(r, BUS_MMIO, value(r)); break;
	}
}

static void poke(struct rig *r, gpa_t at, uint64_t v, unsigned size) { ram_write(r->ram, at, &v, size); }

static gpa_t queue_base(unsigned dev, unsigned q) { return RINGS + (dev * QUEUES + q) * 0x10000; }

/* Mostly plausible, so that the walk goes deep. */
static void random_desc(struct rig *r, gpa_t at)
{
	uint64_t addr = below(r, 8) ? RINGS + below(r, 0x80000) : value(r);
	uint64_t len = below(r, 8) ? below(r, 4096) : value(r);

	if (!below(r, 4)) { /* an indirect table */
		addr &= ~UINT64_C(15);
		len = 16 * below(r, 300);
	}
	poke(r, at, addr, 8);
	poke(r, at + 8, len, 4);
	poke(r, at + 12, below(r, 8) ? below(r, 8) : value(r), 2);
	poke(r, at + 14, below(r, 8) ? below(r, 16) : value(r), 2);
}

static void random_ring(struct rig *r)
{
	gpa_t base = queue_base((unsigned)below(r, 2), (unsigned)below(r, QUEUES));
	uint16_t idx;

	switch (below(r, 4)) {
	case 0:
		random_desc(r, base + 16 * below(r, 16));
		break;
	case 1: /* in some table */
		random_desc(r, RINGS + 16 * below(r, 0x8000));
		break;
	case 2:
		poke(r, base + 0x1000 + below(r, 0x120), value(r), 2);
		break;
	default: /* one more chain */
		ram_read(r->ram, base + 0x1002, &idx, 2);
		poke(r, base + 0x1004 + 2 * (idx % 16), below(r, 16), 2);
		poke(r, base + 0x1002, idx + 1 + (below(r, 32) ? 0 : below(r, 20)), 2);
		break;
	}
}

static void w(struct rig *r, gpa_t at, unsigned size, uint64_t v) { bus_write(r->bus, BUS_MMIO, at, size, v); }

static void enable_msix(struct rig *r, gpa_t config, gpa_t bar)
{
	uint8_t cap = (uint8_t)bus_read(r->bus, BUS_MMIO, config + 0x34, 1);

	while (cap && bus_read(r->bus, BUS_MMIO, config + cap, 1) != 0x11)
		cap = (uint8_t)bus_read(r->bus, BUS_MMIO, config + cap + 1, 1);
	w(r, config + cap + 2, 2, 0x8000);
	for (unsigned v = 0; v <= QUEUES; v++)
		w(r, bar + 0x4000 + 16 * v + 12, 4, below(r, 2));
}

/* Bring a device up as a driver would, with something amiss now and then. */
static void start_device(struct rig *r)
{
	unsigned dev = (unsigned)below(r, 2);
	gpa_t config = ECAM + ((uint64_t)PCI_DEVFN(dev + 1, 0) << 12), bar = LOW + dev * 0x8000;

	w(r, config + 4, 2, 0);
	w(r, config + 0x10, 4, bar);
	w(r, config + 0x14, 4, 0);
	w(r, config + 4, 2, below(r, 16) ? 6 : value(r));
	r->bar[dev] = bar;
	if (below(r, 2))
		enable_msix(r, config, bar);
	w(r, bar + 20, 1, 0);
	w(r, bar + 20, 1, 3);
	w(r, bar + 8, 4, 1);
	w(r, bar + 12, 4, below(r, 16) ? 1 : value(r));
	w(r, bar + 8, 4, 0);
	w(r, bar + 12, 4, below(r, 16) ? below(r, 4) << 28 : value(r));
	w(r, bar + 20, 1, 11);
	for (unsigned q = 0; q < QUEUES; q++) {
		gpa_t base = below(r, 16) ? queue_base(dev, q) : value(r);

		w(r, bar + 22, 2, q);
		w(r, bar + 24, 2, below(r, 16) ? 16 : value(r));
		w(r, bar + 26, 2, below(r, 4));
		w(r, bar + 32, 8, base);
		w(r, bar + 40, 8, base + 0x1000);
		w(r, bar + 48, 8, base + 0x2000);
		poke(r, queue_base(dev, q) + 0x1000, 0, 4);
		w(r, bar + 28, 2, 1);
	}
	w(r, bar + 20, 1, 15);
}

static void notify(struct rig *r)
{
	w(r, r->bar[below(r, 2)] + 0x3000 + 4 * below(r, QUEUES), 2, 0);
}

static void receive(struct rig *r)
{
	struct chardev *c = &r->chr[below(r, 2)];
	uint8_t buf[512];

	for (size_t i = 0; i < sizeof(buf); i++)
		buf[i] = (uint8_t)next(r);
	if (c->client.receive(c->client.ctx, buf, below(r, sizeof(buf)) + 1) > sizeof(buf))
		abort();
}

static void power(struct rig *r)
{
	switch (below(r, 40)) {
	case 0: uart_reset(r->uart); break;
	case 1: rtc_reset(r->rtc); break;
	case 2: acpi_pm_reset(r->pm); break;
	case 3: reset_reset(r->reset); break;
	case 4: pci_host_reset(r->pci); break;
	case 5: acpi_pm_power_button(r->pm); break;
	case 6: acpi_pm_gpe(r->pm, (unsigned)value(r)); break;
	default: timer_queue_run(&r->timers, clock_now()); break;
	}
}

static void step(struct rig *r)
{
	switch (below(r, 64)) {
	case 0: start_device(r); break;
	case 1: power(r); break;
	case 2 ... 4: receive(r); break;
	case 5 ... 20: random_port(r); break;
	case 21 ... 36: random_mmio(r); break;
	case 37 ... 42: notify(r); break;
	default: random_ring(r); break;
	}
}

int main(int argc, char **argv)
{
	int64_t seconds = argc > 1 ? strtoll(argv[1], NULL, 0) : 5, begin = clock_now(), now = begin, before;
	uint64_t seed = argc > 2 ? strtoull(argv[2], NULL, 0) : 1, total = 0, written = 0, msis = 0, irqs = 0;

	for (; now - begin < seconds * 1000000000; seed++) {
		struct rig r;

		rig_init(&r, seed);
		for (unsigned i = 0; i < 20000; i++, total++) {
			step(&r);
			before = now;
			now = clock_now();
			if (now - before > MAX_OP_NS + (i ? 0 : MAX_OP_NS)) {
				fprintf(stderr, "dev_fuzz: seed %" PRIu64 " step %u took %" PRId64 " ms\n", seed, i,
					(now - before) / 1000000);
				return 1;
			}
		}
		written += r.chr[0].written + r.chr[1].written;
		msis += r.msis;
		irqs += r.irqs;
		rig_fini(&r);
	}
	printf("dev_fuzz: %" PRIu64 " operations, next seed %" PRIu64 "; %" PRIu64 " bytes out, %" PRIu64
	       " MSIs, %" PRIu64 " line changes\n",
	       total, seed, written, msis, irqs);
	return written && msis && irqs ? 0 : 1; /* a run that reached nothing proves nothing */
}
