/* The shape of the ACPI tables (iasl_test judges their content), the AML writer and the memory map. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <string.h>

#include "acpi_fixture.h"
#include "boot/aml.h"

static struct ram *make_ram(uint64_t size)
{
	struct error err;
	struct ram *r = ram_new(size, &err);

	assert_non_null(r);
	return r;
}

static uint8_t sum(const void *p, size_t len)
{
	uint8_t s = 0;

	for (size_t i = 0; i < len; i++)
		s = (uint8_t)(s + ((const uint8_t *)p)[i]);
	return s;
}

static const uint8_t *table(const struct ram *r, gpa_t at, const char *signature)
{
	const uint8_t *t = ram_ptr(r, at, 36);

	assert_non_null(t);
	assert_memory_equal(t, signature, 4);
	assert_true(at >= E820_ROM && at + get_le32(t + 4) <= E820_ROM_END);
	if (strcmp(signature, "FACS"))
		assert_int_equal(sum(t, get_le32(t + 4)), 0);
	return t;
}

static void test_tables(void **state)
{
	struct acpi_config cfg = acpi_fixture(4);
	struct ram *r = make_ram(4 * MIB);
	const uint8_t *rsdp, *xsdt, *fadt, *madt, *mcfg;
	struct error err;
	gpa_t at = 0;

	(void)state;
	assert_true(acpi_build(r, &cfg, E820_ROM, E820_ROM_END - E820_ROM, &at, &err));
	assert_int_equal(at & 0xf, 0);
	rsdp = ram_ptr(r, at, 36);
	assert_memory_equal(rsdp, "RSD PTR ", 8);
	assert_int_equal(sum(rsdp, 20), 0);
	assert_int_equal(sum(rsdp, 36), 0);
	xsdt = table(r, get_le64(rsdp + 24), "XSDT");
	assert_int_equal(get_le32(xsdt + 4), 36 + 3 * 8);
	fadt = table(r, get_le64(xsdt + 36), "FACP");
	madt = table(r, get_le64(xsdt + 44), "APIC");
	mcfg = table(r, get_le64(xsdt + 52), "MCFG");
	table(r, get_le32(fadt + 40), "DSDT");
	assert_int_equal(get_le32(fadt + 40), get_le64(fadt + 140));
	table(r, get_le32(fadt + 36), "FACS");
	assert_int_equal(get_le32(fadt + 36) & 63, 0);
	assert_int_equal(get_le32(fadt + 112) & BIT(4), 0); /* the power button is fixed hardware */
	assert_true(get_le32(fadt + 112) & BIT(10));
	assert_int_equal(get_le64(fadt + 120), 0xcf9);
	assert_int_equal(fadt[128], 6);
	assert_int_equal(get_le32(madt + 4), 44 + 4 * 8 + 12 + 2 * 10 + 6);
	assert_int_equal(madt[44 + 3 * 8 + 3], 3);
	assert_int_equal(get_le64(mcfg + 44), 0xe0000000);
	assert_int_equal(mcfg[55], 255);
	ram_free(r);
}

static void test_no_room(void **state)
{
	struct acpi_config cfg = acpi_fixture(254);
	struct ram *r = make_ram(4 * MIB);
	struct error err = {{0}, {0}};
	gpa_t at;

	(void)state;
	for (uint64_t size = 0; size < 12 * KIB; size += 500) {
		uint8_t *behind = ram_ptr(r, E820_ROM + size, 16);

		memset(behind, 0x5a, 16);
		if (!acpi_build(r, &cfg, E820_ROM, size, &at, &err))
			assert_true(err.msg[0]);
		else
			assert_true(size > 8 * KIB);
		for (unsigned i = 0; i < 16; i++)
			assert_true(size < 36 || behind[i] == 0x5a);
	}
	assert_false(acpi_build(r, &cfg, 4 * MIB, 64 * KIB, &at, &err)); /* no RAM there */
	ram_free(r);
}

/* PkgLength at the borders of its encodings. */
static void test_pkg_length(void **state)
{
	static const struct {
		size_t content, bytes;
	} cases[] = {{0, 1}, {62, 1}, {63, 2}, {4093, 2}, {4094, 3}, {20000, 3}};
	static uint8_t buf[32768], zeros[20000];

	(void)state;
	for (unsigned i = 0; i < ARRAY_LEN(cases); i++) {
		size_t head = cases[i].content, len, op = head > 0xff ? 3 : head > 1 ? 2 : 1; /* of the size inside */
		struct aml a;

		if (head < op)
			continue;
		aml_init(&a, buf, sizeof(buf));
		aml_buffer(&a, zeros, head - op);
		assert_false(a.full);
		len = (buf[1] >> 6) == 0
			      ? buf[1] & 0x3fu
			      : (buf[1] & 0xfu) | (size_t)buf[2] << 4 | ((buf[1] >> 6) > 1 ? (size_t)buf[3] << 12 : 0);
		assert_int_equal((buf[1] >> 6) + 1, cases[i].bytes);
		assert_int_equal(a.len, 1 + len);
		assert_int_equal(len, cases[i].content + cases[i].bytes);
	}
	for (size_t size = 0; size < 40; size++) { /* never past the end */
		struct aml a;

		memset(buf, 0x77, 64);
		aml_init(&a, buf, size);
		aml_scope(&a, "_SB_");
		aml_name(&a, "_HID");
		aml_eisaid(&a, "PNP0A08");
		aml_string(&a, "abcdefgh");
		aml_end(&a);
		assert_int_equal(a.full, size < 26);
		assert_int_equal(buf[size], 0x77);
	}
}

static void check_map(const struct e820_map *m, const struct e820_entry *want, unsigned n)
{
	assert_int_equal(m->count, n);
	for (unsigned i = 0; i < n; i++) {
		assert_int_equal(m->e[i].base, want[i].base);
		assert_int_equal(m->e[i].size, want[i].size);
		assert_int_equal(m->e[i].type, want[i].type);
	}
}

static void test_e820(void **state)
{
	static const struct e820_entry extra[] = {
		{0xe0000000, 0x10000000, E820_RESERVED},
		{0x3000000, 0x1000, E820_ACPI},
		{0x3001000, 0x1000, E820_NVS},
	};
	static const struct e820_entry want[] = {
		{0, 0x9fc00, E820_RAM},
		{0x9fc00, 0x400, E820_RESERVED},
		{0xe0000, 0x20000, E820_RESERVED},
		{0x100000, 0x2f00000, E820_RAM},
		{0x3000000, 0x1000, E820_ACPI},
		{0x3001000, 0x1000, E820_NVS},
		{0x3002000, 0xbcffe000, E820_RAM},
		{0xe0000000, 0x10000000, E820_RESERVED},
		{0x100000000, 0x40000000, E820_RAM},
	};
	struct ram *r = make_ram(4 * GIB);
	struct e820_map m;
	struct error err;

	(void)state;
	assert_true(e820_build(&m, r, extra, ARRAY_LEN(extra), &err));
	check_map(&m, want, ARRAY_LEN(want));
	assert_true(e820_is_ram(&m, 0, 0x9fc00));
	assert_false(e820_is_ram(&m, 0, 0x9fc01));
	assert_false(e820_is_ram(&m, 0x3000000, 1));
	assert_false(e820_is_ram(&m, UINT64_MAX, 2));
	assert_true(e820_is_ram(&m, 0x100000000, 0x40000000));
	assert_false(e820_set(&m, UINT64_MAX, 2, E820_RAM));
	assert_true(e820_set(&m, 0, 0x200000000, E820_NONE));
	assert_int_equal(m.count, 0);
	assert_true(e820_set(&m, 0, 0, E820_RAM));
	assert_int_equal(m.count, 0);
	ram_free(r);
}

/* Random ranges against a byte map; and a full map stays as it was. */
static void test_e820_random(void **state)
{
	uint32_t seed = 1;

	(void)state;
	for (unsigned round = 0; round < 200; round++) {
		uint8_t model[256] = {0};
		struct e820_map m = {.count = 0};

		for (unsigned step = 0; step < 30; step++) {
			unsigned base, size, type;

			seed = seed * 1103515245 + 12345;
			base = seed >> 24;
			size = (seed >> 16 & 0xff) % (256 - base) % 64;
			type = (seed >> 8) % 5;
			assert_true(e820_set(&m, base, size, (enum e820_type)type));
			memset(model + base, (int)type, size);
		}
		for (unsigned i = 0; i < 256; i++) {
			unsigned type = E820_NONE;

			for (unsigned j = 0; j < m.count; j++)
				if (i >= m.e[j].base && i < m.e[j].base + m.e[j].size)
					type = m.e[j].type;
			assert_int_equal(type, model[i]);
		}
		for (unsigned j = 1; j < m.count; j++)
			assert_true(m.e[j - 1].base + m.e[j - 1].size <= m.e[j].base);
	}
	struct e820_map m = {.count = 0}, before;
	unsigned n = 0;

	while (before = m, e820_set(&m, n * 16, 8, E820_RAM))
		n++;
	assert_int_equal(n, E820_MAX);
	assert_memory_equal(&m, &before, sizeof(m));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_tables), cmocka_unit_test(test_no_room),	   cmocka_unit_test(test_pkg_length),
		cmocka_unit_test(test_e820),   cmocka_unit_test(test_e820_random),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
