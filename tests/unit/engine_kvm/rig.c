#include "rig.h"

#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

enum { CODE = 0x8000, STACK = 0x7000, PML4 = 0x10000, PDPT = 0x11000, PD = 0x12000 };

void rig_need_kvm(void)
{
	int fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);

	if (fd < 0) {
		printf("skipped: /dev/kvm cannot be opened: %s\n", strerror(errno));
		exit(77);
	}
	close(fd);
}

static void record(struct rig *r, enum bus_space space, bool write, uint64_t off, unsigned size, uint64_t value)
{
	if (r->count < RIG_LOG)
		r->log[r->count++] = (struct rig_access){space, write, off, size, value};
}

static uint64_t mmio_read(void *dev, uint64_t off, unsigned size)
{
	struct rig *r = dev;

	record(r, BUS_MMIO, false, off, size, 0);
	return r->read_value;
}

static void mmio_write(void *dev, uint64_t off, unsigned size, uint64_t value)
{
	record(dev, BUS_MMIO, true, off, size, value);
}

static uint64_t pio_read(void *dev, uint64_t off, unsigned size)
{
	struct rig *r = dev;

	record(r, BUS_PIO, false, off, size, 0);
	return r->read_value++;
}

static void pio_write(void *dev, uint64_t off, unsigned size, uint64_t value)
{
	record(dev, BUS_PIO, true, off, size, value);
}

static void exit_write(void *dev, uint64_t off, unsigned size, uint64_t value)
{
	struct rig *r = dev;

	r->exits++;
	r->engine->ops->kick(r->engine, 0);
}

static const struct bus_ops mmio_ops = {.read = mmio_read, .write = mmio_write};
static const struct bus_ops pio_ops = {.read = pio_read, .write = pio_write};
static const struct bus_ops exit_ops = {.read = pio_read, .write = exit_write};

void rig_make(struct rig *r, unsigned ncpus)
{
	struct engine_config cfg = {.ncpus = ncpus, .lock = &r->lock, .cpuid = &r->cpuid};
	struct error err = {0};

	memset(r, 0, sizeof(*r));
	pthread_mutex_init(&r->lock, NULL);
	cfg.ram = r->ram = ram_new(RIG_RAM, &err);
	cfg.bus = r->bus = bus_new();
	assert_non_null(r->ram);
	assert_non_null(r->bus);
	assert_true(bus_map(r->bus, BUS_MMIO, RIG_MMIO, 0x1000, &mmio_ops, r, "test", &err));
	assert_true(bus_map(r->bus, BUS_PIO, RIG_PORT, 16, &pio_ops, r, "test", &err));
	assert_true(bus_map(r->bus, BUS_PIO, RIG_EXIT_PORT, 4, &exit_ops, r, "exit", &err));
	assert_true(cpuid_policy_init(&r->cpuid, CPU_MAX, ncpus, tsc_khz_measure(), &err));
	r->engine = engine_kvm.create(&cfg, &err);
	if (!r->engine)
		fail_msg("%s", err.msg);
}

void rig_free(struct rig *r)
{
	engine_kvm.destroy(r->engine);
	bus_free(r->bus);
	ram_free(r->ram);
	pthread_mutex_destroy(&r->lock);
}

static void load(struct rig *r, const struct cpu_state *s, const void *code, size_t len)
{
	struct error err = {0};

	assert_true(ram_write(r->ram, CODE, code, len));
	if (!engine_kvm.set_state(r->engine, 0, s, &err))
		fail_msg("%s", err.msg);
}

void rig_real(struct rig *r, const void *code, size_t len)
{
	struct cpu_state s;

	cpu_state_reset(&s, 0);
	for (unsigned i = 0; i < SEG_COUNT; i++) {
		s.seg[i].base = 0;
		s.seg[i].sel = 0;
	}
	s.rip = CODE;
	s.gpr[R_SP] = STACK;
	load(r, &s, code, len);
}

static struct cpu_seg flat(uint16_t sel, uint32_t attr, unsigned ring)
{
	return (struct cpu_seg){.sel = (uint16_t)(sel | ring),
				.limit = ~0u,
				.attr = attr | SEG_S | SEG_P | SEG_G | ring << SEG_DPL_SHIFT};
}

void rig_long_state(struct rig *r, struct cpu_state *s, unsigned ring)
{
	uint64_t entry;

	cpu_state_reset(s, 0);
	entry = PDPT | 7;
	assert_true(ram_write(r->ram, PML4, &entry, 8));
	for (unsigned i = 0; i < 4; i++) {
		entry = (PD + i * PAGE_SIZE) | 7;
		assert_true(ram_write(r->ram, PDPT + 8 * i, &entry, 8));
	}
	for (uint64_t i = 0; i < 4 * 512; i++) {
		entry = i << 21 | 0x87;
		assert_true(ram_write(r->ram, PD + 8 * i, &entry, 8));
	}
	for (unsigned i = 0; i < SEG_COUNT; i++)
		s->seg[i] = flat(0x10, SEG_DB | 3, ring);
	s->seg[SEG_CS] = flat(0x08, SEG_L | 11, ring);
	s->tr = (struct cpu_seg){.sel = 0x18, .limit = 0x67, .attr = SEG_P | 11};
	s->cr0 = CR0_PE | CR0_MP | CR0_ET | CR0_NE | CR0_WP | CR0_PG;
	s->cr3 = PML4;
	s->cr4 = CR4_PAE | CR4_OSFXSR;
	s->efer = EFER_LME | EFER_LMA;
	s->idt.limit = 0;
	s->rip = CODE;
	s->gpr[R_SP] = STACK;
}

void rig_long(struct rig *r, const void *code, size_t len, unsigned ring)
{
	struct cpu_state s;

	rig_long_state(r, &s, ring);
	load(r, &s, code, len);
}
