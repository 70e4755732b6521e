/* Host bridge, configuration space, BARs and MSI-X. */
#include "fixture.h"

#include <string.h>

#include "dev/pci/pci.h"

#define ECAM 0xe0000000u
#define LOW 0xc0000000u
#define LOW_LEN 0x10000000u
#define HIGH (UINT64_C(64) << 30)
#define HIGH_LEN (UINT64_C(1) << 30)
#define BAR0_LEN 0x10000u
#define BAR2_LEN 0x4000u
#define MSIX_TABLE 0x1000u
#define MSIX_PBA 0x2000u
#define VECTORS 5
#define DEVFN PCI_DEVFN(3, 0)
#define INTX 16

struct rig {
	struct fixture f;
	struct pci_host *host;
	struct pci_function *fn;
	uint64_t regs[2][8]; /* of BAR 0 and BAR 2 */
	unsigned resets, written, asked;
	struct reset *reset;
	unsigned system_resets;
	unsigned cap;
};

static uint64_t bar_read(void *dev, unsigned bar, uint64_t off, unsigned size)
{
	struct rig *r = dev;

	assert_true(bar == 0 || bar == 2);
	assert_true(size <= 4);
	return r->regs[bar / 2][off / 4 % 8];
}

static void bar_write(void *dev, unsigned bar, uint64_t off, unsigned size, uint64_t value)
{
	struct rig *r = dev;

	assert_true(off + size <= (bar ? BAR2_LEN : BAR0_LEN));
	r->regs[bar / 2][off / 4 % 8] = value;
}

static void config_read(void *dev, unsigned off, unsigned size) { ((struct rig *)dev)->asked++; }
static void config_written(void *dev, unsigned off, unsigned size) { ((struct rig *)dev)->written++; }
static void reset(void *dev) { ((struct rig *)dev)->resets++; }
static void system_reset(void *ctx) { ((struct rig *)ctx)->system_resets++; }

static const struct pci_function_ops ops = {bar_read, bar_write, config_read, config_written, reset};

static int setup(void **state)
{
	static struct rig r;
	struct pci_host_config host;
	struct pci_function_config fn = {
		.devfn = DEVFN, .vendor = 0x1234, .device = 0x5678, .subsystem_vendor = 0x9abc, .subsystem = 0xdef0,
		.class_code = 0x0a0b0c, .revision = 7, .intx = true, .ops = &ops, .dev = &r, .name = "test",
	};

	memset(&r, 0, sizeof(r));
	fixture_init(&r.f);
	r.reset = reset_new(r.f.bus, system_reset, &r, NULL);
	host = (struct pci_host_config){
		.bus = r.f.bus, .ecam_base = ECAM, .ecam_buses = 2, .low = {LOW, LOW_LEN}, .high = {HIGH, HIGH_LEN},
		.msi = &r.f.sink, .reset = r.reset, .vendor = 0x1b36, .device = 0x0008,
	};
	for (unsigned i = 0; i < 4; i++)
		host.intx[i] = fixture_line(&r.f, INTX + i);
	r.host = pci_host_new(&host, NULL);
	assert_non_null(r.host);
	r.fn = pci_function_new(r.host, &fn, NULL);
	assert_non_null(r.fn);
	pci_add_bar(r.fn, 0, BAR0_LEN, false);
	pci_add_bar(r.fn, 2, BAR2_LEN, true);
	r.cap = pci_add_cap(r.fn, 0x09, 20);
	pci_config_writable(r.fn, r.cap + 4, 4);
	pci_add_msix(r.fn, 2, MSIX_TABLE, MSIX_PBA, VECTORS);
	pci_host_reset(r.host);
	*state = &r;
	return 0;
}

static int teardown(void **state)
{
	struct rig *r = *state;

	pci_function_free(r->fn);
	pci_host_free(r->host);
	reset_free(r->reset);
	assert_int_equal(bus_read(r->f.bus, BUS_MMIO, LOW, 4), 0xffffffff);
	fixture_fini(&r->f);
	return 0;
}

static uint32_t mem(struct rig *r, gpa_t at, unsigned size) { return (uint32_t)bus_read(r->f.bus, BUS_MMIO, at, size); }
static void set_mem(struct rig *r, gpa_t at, unsigned size, uint64_t v) { bus_write(r->f.bus, BUS_MMIO, at, size, v); }
static uint32_t cfg(struct rig *r, unsigned reg, unsigned size) { return mem(r, ECAM + (DEVFN << 12) + reg, size); }
static void set_cfg(struct rig *r, unsigned reg, unsigned size, uint32_t v)
{
	set_mem(r, ECAM + (DEVFN << 12) + reg, size, v);
}

static uint32_t legacy(struct rig *r, uint32_t address, unsigned lane, unsigned size)
{
	bus_write(r->f.bus, BUS_PIO, 0xcf8, 4, address);
	return (uint32_t)bus_read(r->f.bus, BUS_PIO, (uint16_t)(0xcfc + lane), size);
}

static void test_header(void **state)
{
	struct rig *r = *state;

	assert_int_equal(cfg(r, 0, 4), 0x56781234);
	assert_int_equal(cfg(r, 8, 4), 0x0a0b0c07);
	assert_int_equal(cfg(r, 0x0e, 1), 0);
	assert_int_equal(cfg(r, 0x2c, 4), 0xdef09abc);
	assert_int_equal(cfg(r, 0x3d, 1), 1);
	assert_int_equal(cfg(r, 0x3c, 1), INTX + 3); /* device 3, INTA# */
	assert_int_equal(cfg(r, 0x06, 2), 0x0010);
	assert_int_equal(cfg(r, 0x30, 4), 0); /* no ROM */
	assert_int_equal(cfg(r, 0x100, 4), 0); /* no extended capability */
	assert_true(r->asked > 0);
	/* Read-only registers. */
	for (unsigned reg = 0; reg < 0x40; reg += 4)
		if (reg != 4 && !(reg >= 0x10 && reg < 0x28) && reg != 0x3c) {
			uint32_t before = cfg(r, reg, 4);

			set_cfg(r, reg, 4, ~before);
			assert_int_equal(cfg(r, reg, 4), before);
		}
	set_cfg(r, 0x3c, 1, 0x5a);
	assert_int_equal(cfg(r, 0x3c, 2), 0x015a);
	set_cfg(r, 0x04, 4, 0xffffffff);
	assert_int_equal(cfg(r, 0x04, 4), 0x00100546);
}

static void test_nobody_home(void **state)
{
	struct rig *r = *state;

	assert_int_equal(mem(r, ECAM, 4), 0x00081b36);
	assert_int_equal(mem(r, ECAM + 8, 4), 0x06000000);
	assert_int_equal(mem(r, ECAM + (PCI_DEVFN(4, 0) << 12), 4), 0xffffffff);
	assert_int_equal(mem(r, ECAM + (PCI_DEVFN(3, 1) << 12), 2), 0xffff);
	assert_int_equal(mem(r, ECAM + (1 << 20) + (DEVFN << 12), 4), 0xffffffff); /* bus 1 */
	assert_int_equal(mem(r, ECAM + (2 << 20), 4), 0xffffffff);
	set_mem(r, ECAM + (1 << 20), 4, 0x12345678);
}

static void test_mechanism_1(void **state)
{
	struct rig *r = *state;

	assert_int_equal(legacy(r, 0x80000000 | DEVFN << 8, 0, 4), 0x56781234);
	assert_int_equal(bus_read(r->f.bus, BUS_PIO, 0xcf8, 4), 0x80000000 | DEVFN << 8);
	assert_int_equal(legacy(r, 0x80000000 | DEVFN << 8, 2, 2), 0x5678);
	assert_int_equal(legacy(r, 0x80000000 | DEVFN << 8 | 8, 3, 1), 0x0a);
	assert_int_equal(legacy(r, 0x80000000 | DEVFN << 8 | 8, 3, 2), 0xffff); /* over the doubleword's end */
	assert_int_equal(legacy(r, 0x80000000 | 9 << 11, 0, 4), 0xffffffff);
	assert_int_equal(legacy(r, 0x80010000 | DEVFN << 8, 0, 4), 0xffffffff);
	assert_int_equal(legacy(r, DEVFN << 8, 0, 4), 0xffffffff); /* not enabled */
	legacy(r, 0x8000003c | DEVFN << 8, 0, 4);
	bus_write(r->f.bus, BUS_PIO, 0xcfc, 1, 0x77);
	assert_int_equal(cfg(r, 0x3c, 1), 0x77);
	/* Only a doubleword write sets the address; a byte at 0xcf9 is the reset register. */
	bus_write(r->f.bus, BUS_PIO, 0xcf8, 2, 0);
	assert_int_equal(bus_read(r->f.bus, BUS_PIO, 0xcf8, 4), 0x8000003c | DEVFN << 8);
	pio_out8(&r->f, 0xcf9, 0x06);
	assert_int_equal(r->system_resets, 1);
	assert_int_equal(pio_in8(&r->f, 0xcf9), 0x06);
}

static void test_assigned_like_firmware(void **state)
{
	struct rig *r = *state;

	assert_int_equal(cfg(r, 0x10, 4), LOW);
	assert_int_equal(cfg(r, 0x18, 4), (LOW + BAR0_LEN) | 4);
	assert_int_equal(cfg(r, 0x1c, 4), 0);
	assert_int_equal(cfg(r, 0x04, 2), 0x0002);
	set_mem(r, LOW + 4, 4, 0xcafe);
	assert_int_equal(r->regs[0][1], 0xcafe);
	assert_int_equal(mem(r, LOW + 4, 4), 0xcafe);
	set_mem(r, LOW + BAR0_LEN + 8, 4, 0xbabe);
	assert_int_equal(r->regs[1][2], 0xbabe);
	set_mem(r, LOW, 8, 0x1111111122222222);
	assert_int_equal(r->regs[0][0], 0x22222222);
	assert_int_equal(r->regs[0][1], 0x11111111);
}

static void test_bar_sizing(void **state)
{
	struct rig *r = *state;

	set_cfg(r, 0x04, 2, 0);
	set_cfg(r, 0x10, 4, 0xffffffff);
	assert_int_equal(cfg(r, 0x10, 4), ~(BAR0_LEN - 1));
	set_cfg(r, 0x18, 4, 0xffffffff);
	set_cfg(r, 0x1c, 4, 0xffffffff);
	assert_int_equal(cfg(r, 0x18, 4), (uint32_t)~(BAR2_LEN - 1) | 4);
	assert_int_equal(cfg(r, 0x1c, 4), 0xffffffff);
	set_cfg(r, 0x14, 4, 0xffffffff); /* none there */
	assert_int_equal(cfg(r, 0x14, 4), 0);
	set_cfg(r, 0x10, 4, 0);
	assert_int_equal(cfg(r, 0x10, 4), 0);
	/* With decoding on, as some do: nothing gets mapped over the chips below 4 GiB. */
	set_cfg(r, 0x04, 2, 2);
	set_cfg(r, 0x10, 4, 0xffffffff);
	assert_int_equal(mem(r, 0xffff0000, 4), 0xffffffff);
	set_cfg(r, 0x10, 4, LOW);
	r->regs[0][0] = 1;
	assert_int_equal(mem(r, LOW, 4), 1);
}

static void test_bar_moves(void **state)
{
	struct rig *r = *state;

	r->regs[0][0] = 0x1234;
	r->regs[1][0] = 0x5678;
	set_cfg(r, 0x10, 4, LOW + 0x800000);
	assert_int_equal(mem(r, LOW, 4), 0xffffffff);
	assert_int_equal(mem(r, LOW + 0x800000, 4), 0x1234);
	/* Above 4 GiB, half by half. */
	set_cfg(r, 0x1c, 4, (uint32_t)(HIGH >> 32));
	set_cfg(r, 0x18, 4, 0);
	assert_int_equal(mem(r, HIGH, 4), 0x5678);
	set_cfg(r, 0x04, 2, 0);
	assert_int_equal(mem(r, HIGH, 4), 0xffffffff);
	assert_int_equal(mem(r, LOW + 0x800000, 4), 0xffffffff);
	set_cfg(r, 0x04, 2, 2);
	assert_int_equal(mem(r, HIGH, 4), 0x5678);
	/* Outside of the windows: RAM, the ECAM itself, nowhere. */
	static const uint32_t wild[] = {0, 0x100000, ECAM, LOW - 0x10000, LOW + LOW_LEN, 0xfee00000};

	for (size_t i = 0; i < ARRAY_LEN(wild); i++) {
		set_cfg(r, 0x10, 4, wild[i]);
		assert_int_equal(cfg(r, 0x10, 4), wild[i]);
		if (wild[i] != ECAM)
			assert_int_equal(mem(r, wild[i], 4), 0xffffffff);
	}
	assert_int_equal(mem(r, ECAM, 4), 0x00081b36);
}

static void test_bars_that_overlap(void **state)
{
	struct rig *r = *state;

	r->regs[0][0] = 0xaa;
	r->regs[1][0] = 0xbb;
	set_cfg(r, 0x18, 4, LOW); /* onto BAR 0 */
	assert_int_equal(mem(r, LOW, 4), 0xaa);
	set_cfg(r, 0x10, 4, LOW + 0x100000); /* BAR 0 moves away: BAR 2 appears */
	assert_int_equal(mem(r, LOW, 4), 0xbb);
	assert_int_equal(mem(r, LOW + 0x100000, 4), 0xaa);
	set_cfg(r, 0x10, 4, LOW);
	assert_int_equal(mem(r, LOW, 4), 0xbb);
	assert_int_equal(mem(r, LOW + 0x100000, 4), 0xffffffff);
}

static void test_capabilities(void **state)
{
	struct rig *r = *state;
	unsigned p = cfg(r, 0x34, 1);

	assert_int_equal(p, 0x40);
	assert_int_equal(cfg(r, p, 1), 0x09);
	set_cfg(r, p + 4, 4, 0x12345678);
	assert_int_equal(cfg(r, p + 4, 4), 0x12345678);
	assert_true(r->written > 0);
	set_cfg(r, p + 8, 4, 0x12345678);
	assert_int_equal(cfg(r, p + 8, 4), 0);
	p = cfg(r, p + 1, 1);
	assert_int_equal(cfg(r, p, 1), 0x11);
	assert_int_equal(cfg(r, p + 1, 1), 0);
	assert_int_equal(cfg(r, p + 2, 2), VECTORS - 1);
	assert_int_equal(cfg(r, p + 4, 4), MSIX_TABLE | 2);
	assert_int_equal(cfg(r, p + 8, 4), MSIX_PBA | 2);
	set_cfg(r, p + 2, 2, 0xffff);
	assert_int_equal(cfg(r, p + 2, 2), 0xc000 | (VECTORS - 1));
}

static void test_reset_restores(void **state)
{
	struct rig *r = *state;
	unsigned resets = r->resets;
	uint8_t before[PCI_CONFIG_LEN], after[PCI_CONFIG_LEN];

	for (unsigned i = 0; i < PCI_CONFIG_LEN; i++)
		before[i] = (uint8_t)cfg(r, i, 1);
	for (unsigned i = 0; i < PCI_CONFIG_LEN; i += 4)
		set_cfg(r, i, 4, 0xffffffff);
	pci_set_intx(r->fn, true);
	pci_host_reset(r->host);
	assert_int_equal(r->resets, resets + 1);
	for (unsigned i = 0; i < PCI_CONFIG_LEN; i++)
		after[i] = (uint8_t)cfg(r, i, 1);
	assert_memory_equal(before, after, sizeof(before));
	assert_false(r->f.level[INTX + 3]);
}

static void test_intx(void **state)
{
	struct rig *r = *state;
	struct pci_function_config other = {.devfn = PCI_DEVFN(7, 0), .vendor = 1, .intx = true, .name = "other"};
	struct pci_function *fn = pci_function_new(r->host, &other, NULL);

	assert_non_null(fn);
	assert_null(pci_function_new(r->host, &other, NULL)); /* the slot is taken */
	pci_set_intx(r->fn, true);
	assert_true(r->f.level[INTX + 3]);
	assert_int_equal(cfg(r, 6, 2), 0x0018);
	pci_set_intx(fn, true); /* shares the line */
	pci_set_intx(r->fn, false);
	assert_true(r->f.level[INTX + 3]);
	pci_set_intx(fn, false);
	assert_false(r->f.level[INTX + 3]);
	pci_set_intx(r->fn, true);
	set_cfg(r, 4, 2, 0x0400); /* disabled: the line falls, the status stays */
	assert_false(r->f.level[INTX + 3]);
	assert_int_equal(cfg(r, 6, 2), 0x0018);
	set_cfg(r, 4, 2, 0);
	assert_true(r->f.level[INTX + 3]);
	pci_set_intx(fn, true);
	pci_set_intx(r->fn, false);
	pci_function_free(fn);
	assert_false(r->f.level[INTX + 3]);
}

#define ENTRY(v) (LOW + BAR0_LEN + MSIX_TABLE + 16 * (v))
#define PBA (LOW + BAR0_LEN + MSIX_PBA)

static void enable_msix(struct rig *r, uint16_t control)
{
	unsigned cap = cfg(r, r->cap + 1, 1);

	set_cfg(r, 4, 2, 0x0006);
	set_cfg(r, cap + 2, 2, control);
	for (unsigned v = 0; v < VECTORS; v++) {
		set_mem(r, ENTRY(v), 4, 0xfee01003);
		set_mem(r, ENTRY(v) + 4, 4, 0);
		set_mem(r, ENTRY(v) + 8, 4, 0x40 + v);
	}
}

static void test_msix_table(void **state)
{
	struct rig *r = *state;

	assert_int_equal(mem(r, ENTRY(0) + 12, 4), 1); /* masked after reset */
	enable_msix(r, 0x8000);
	assert_int_equal(mem(r, ENTRY(2), 4), 0xfee01000);
	assert_int_equal(mem(r, ENTRY(2) + 8, 4), 0x42);
	set_mem(r, ENTRY(2) + 12, 4, 0xffffffff);
	assert_int_equal(mem(r, ENTRY(2) + 12, 4), 1);
	assert_int_equal(bus_read(r->f.bus, BUS_MMIO, ENTRY(2) + 8, 8), 0x100000042);
	set_mem(r, ENTRY(2) + 8, 2, 0xffff); /* not a doubleword */
	assert_int_equal(mem(r, ENTRY(2) + 8, 4), 0x42);
	assert_int_equal(mem(r, ENTRY(2) + 8, 2), 0xffff);
	set_mem(r, PBA, 4, 0xffffffff); /* read-only */
	assert_int_equal(mem(r, PBA, 4), 0);
	r->regs[1][0] = 7;
	assert_int_equal(mem(r, ENTRY(VECTORS), 4), r->regs[1][(MSIX_TABLE + 16 * VECTORS) / 4 % 8]);
}

static void test_msix_delivery(void **state)
{
	struct rig *r = *state;

	pci_msix_notify(r->fn, 1);
	assert_int_equal(r->f.nmsi, 0); /* not enabled */
	enable_msix(r, 0x8000);
	assert_true(pci_msix_enabled(r->fn));
	set_mem(r, ENTRY(1) + 12, 4, 0);
	assert_int_equal(r->f.nmsi, 0);
	pci_msix_notify(r->fn, 1);
	assert_int_equal(r->f.nmsi, 1);
	assert_int_equal(r->f.msi[0].addr, 0xfee01000);
	assert_int_equal(r->f.msi[0].data, 0x41);
	pci_msix_notify(r->fn, VECTORS);
	pci_msix_notify(r->fn, 0xffff);
	assert_int_equal(r->f.nmsi, 1);
	/* Masked: pending, then sent once. */
	pci_msix_notify(r->fn, 3);
	pci_msix_notify(r->fn, 3);
	assert_int_equal(r->f.nmsi, 1);
	assert_int_equal(mem(r, PBA, 4), 1 << 3);
	set_mem(r, ENTRY(3) + 12, 4, 0);
	assert_int_equal(r->f.nmsi, 2);
	assert_int_equal(r->f.msi[1].data, 0x43);
	assert_int_equal(mem(r, PBA, 4), 0);
	/* The same with the function's mask. */
	enable_msix(r, 0xc000);
	pci_msix_notify(r->fn, 1);
	assert_int_equal(r->f.nmsi, 2);
	assert_int_equal(mem(r, PBA, 4), 1 << 1);
	set_cfg(r, cfg(r, r->cap + 1, 1) + 2, 2, 0x8000);
	assert_int_equal(r->f.nmsi, 3);
	/* Without bus mastering a function writes nowhere. */
	set_cfg(r, 4, 2, 0x0002);
	assert_false(pci_bus_master(r->fn));
	pci_msix_notify(r->fn, 1);
	assert_int_equal(r->f.nmsi, 3);
}

static void test_bar_access_is_checked(void **state)
{
	struct rig *r = *state;
	uint64_t v = 0;

	assert_true(pci_bar_access(r->fn, 0, BAR0_LEN - 4, 4, false, &v));
	assert_false(pci_bar_access(r->fn, 0, BAR0_LEN - 3, 4, false, &v));
	assert_false(pci_bar_access(r->fn, 0, UINT64_MAX, 4, false, &v));
	assert_false(pci_bar_access(r->fn, 1, 0, 4, false, &v));
	assert_false(pci_bar_access(r->fn, 3, 0, 4, true, &v));
	assert_false(pci_bar_access(r->fn, 255, 0, 4, true, &v));
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
	const struct CMUnitTest tests[] = {
		T(test_header),
		T(test_nobody_home),
		T(test_mechanism_1),
		T(test_assigned_like_firmware),
		T(test_bar_sizing),
		T(test_bar_moves),
		T(test_bars_that_overlap),
		T(test_capabilities),
		T(test_reset_restores),
		T(test_intx),
		T(test_msix_table),
		T(test_msix_delivery),
		T(test_bar_access_is_checked),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
