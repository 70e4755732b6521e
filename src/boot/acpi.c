#include "boot/acpi.h"

#include <stdlib.h>
#include <string.h>

#include "boot/aml.h"

#define TABLE_MAX (64 * KIB)
#define HEADER_LEN 36
#define FADT_LEN 276
#define FADT_MINOR 5
#define FACS_LEN 64
#define RSDP_LEN 36
#define PCI_DEVICES 32
#define PCI_PINS 4

struct builder {
	struct ram *ram;
	const struct acpi_config *cfg;
	gpa_t next, end;
	bool full;
	uint8_t *t; /* the table being made: TABLE_MAX bytes */
	size_t len;
	gpa_t xsdt[8];
	unsigned count;
};

static void set_checksum(uint8_t *p, size_t len, size_t at)
{
	uint8_t sum = 0;

	p[at] = 0;
	for (size_t i = 0; i < len; i++)
		sum = (uint8_t)(sum + p[i]);
	p[at] = (uint8_t)-sum;
}

/* Place `len` bytes of b->t in RAM; 0 when they do not fit. */
static gpa_t place(struct builder *b, size_t len)
{
	gpa_t at = align_up(b->next, 64);

	if (len > TABLE_MAX || !range_ok(at, len, b->end) || !ram_write(b->ram, at, b->t, len)) {
		b->full = true;
		return 0;
	}
	b->next = at + len;
	return at;
}

/* ACPI 6.5, 5.2.6: the header that begins each table. */
static void begin(struct builder *b, const char *signature, uint8_t revision)
{
	memset(b->t, 0, TABLE_MAX);
	memcpy(b->t, signature, 4);
	b->t[8] = revision;
	memcpy(b->t + 10, "DOPPEL", 6);
	memcpy(b->t + 16, "MACHINE ", 8);
	put_le32(b->t + 24, 1);
	memcpy(b->t + 28, "DPPL", 4);
	put_le32(b->t + 32, 1);
	b->len = HEADER_LEN;
}

static uint8_t *take(struct builder *b, size_t len)
{
	uint8_t *p = b->t + b->len;

	b->len += len;
	return p;
}

static gpa_t finish(struct builder *b)
{
	put_le32(b->t + 4, (uint32_t)b->len);
	set_checksum(b->t, b->len, 9);
	return place(b, b->len);
}

static void finish_listed(struct builder *b) { b->xsdt[b->count++] = finish(b); }

/* 5.2.3.2: generic address. Access size 1 byte, 2: word, 3: dword. */
static void put_gas(uint8_t *p, uint8_t bits, uint8_t access, uint64_t port)
{
	if (!port)
		return;
	p[0] = 1; /* system I/O */
	p[1] = bits;
	p[3] = access;
	put_le64(p + 4, port);
}

static gpa_t build_facs(struct builder *b)
{
	memset(b->t, 0, FACS_LEN);
	memcpy(b->t, "FACS", 4);
	put_le32(b->t + 4, FACS_LEN);
	b->t[32] = 2; /* version */
	return place(b, FACS_LEN);
}

/* 5.2.9. What is zero is not there: SMI_CMD, PM1b, PM2, GPE1, P_BLK. */
static void build_fadt(struct builder *b, gpa_t facs, gpa_t dsdt)
{
	enum {
		WBINVD = 1 << 0,
		PROC_C1 = 1 << 2,
		NO_SLP_BUTTON = 1 << 5,
		NO_FIX_RTC = 1 << 6,
		TMR_VAL_EXT = 1 << 8,
		RESET_REG_SUP = 1 << 10,
	};
	enum { LEGACY_DEVICES = 1 << 0, NO_VGA = 1 << 2, NO_ASPM = 1 << 4, NO_RTC = 1 << 5 };
	const struct acpi_config *c = b->cfg;
	uint8_t *t = b->t;

	begin(b, "FACP", 6);
	take(b, FADT_LEN - HEADER_LEN);
	put_le32(t + 36, (uint32_t)facs);
	put_le32(t + 40, (uint32_t)dsdt);
	put_le16(t + 46, c->sci);
	put_le32(t + 56, c->pm1_evt);
	put_le32(t + 64, c->pm1_cnt);
	put_le32(t + 76, c->pm_tmr);
	put_le32(t + 80, c->gpe0_len ? c->gpe0 : 0);
	t[88] = 4; /* PM1_EVT_LEN */
	t[89] = 2; /* PM1_CNT_LEN */
	t[91] = c->pm_tmr ? 4 : 0;
	t[92] = c->gpe0_len;
	put_le16(t + 96, 0x65);	 /* over 100 us: no C2 */
	put_le16(t + 98, 0x3e9); /* over 1000 us: no C3 */
	t[108] = c->rtc ? c->rtc_century : 0;
	put_le16(t + 109,
		 (uint16_t)((c->uart[0].port ? LEGACY_DEVICES : 0) | NO_VGA | NO_ASPM | (c->rtc ? 0 : NO_RTC)));
	put_le32(t + 112, WBINVD | PROC_C1 | NO_SLP_BUTTON | NO_FIX_RTC | (c->pm_tmr_32bit ? TMR_VAL_EXT : 0) |
				  (c->reset_port ? RESET_REG_SUP : 0));
	put_gas(t + 116, 8, 1, c->reset_port);
	t[128] = c->reset_value;
	t[131] = FADT_MINOR;
	put_le64(t + 132, 0); /* X_FIRMWARE_CTRL: FIRMWARE_CTRL is used */
	put_le64(t + 140, dsdt);
	put_gas(t + 148, 32, 2, c->pm1_evt);
	put_gas(t + 172, 16, 2, c->pm1_cnt);
	put_gas(t + 208, 32, 3, c->pm_tmr);
	put_gas(t + 220, (uint8_t)(c->gpe0_len * 8), 1, c->gpe0_len ? c->gpe0 : 0);
	finish_listed(b);
}

/* 5.2.12.5: IRQ `source` of the ISA bus comes in at `gsi`. */
static void add_override(struct builder *b, uint8_t source, uint32_t gsi, uint16_t flags)
{
	uint8_t *p = take(b, 10);

	p[0] = 2;
	p[1] = 10;
	p[3] = source;
	put_le32(p + 4, gsi);
	put_le16(p + 8, flags);
}

/* 5.2.12 */
static void build_madt(struct builder *b)
{
	const uint16_t high_level = 1 | 3 << 2;
	const struct acpi_config *c = b->cfg;
	uint8_t *p;

	begin(b, "APIC", 5);
	p = take(b, 8);
	put_le32(p, c->lapic_base);
	put_le32(p + 4, c->pic ? 1 : 0);
	for (unsigned i = 0; i < c->ncpus; i++) {
		p = take(b, 8); /* local APIC: UID, id, enabled */
		p[1] = 8;
		p[2] = p[3] = (uint8_t)i;
		put_le32(p + 4, 1);
	}
	p = take(b, 12);
	p[0] = 1;
	p[1] = 12;
	p[2] = c->ioapic_id;
	put_le32(p + 4, c->ioapic_base);
	add_override(b, 0, 2, 0);
	add_override(b, c->sci, c->sci, high_level);
	p = take(b, 6); /* local APIC NMI: LINT1 of all */
	p[0] = 4;
	p[1] = 6;
	p[2] = 0xff;
	p[5] = 1;
	finish_listed(b);
}

/* PCI Firmware Specification 3.2, 4.1.2 */
static void build_mcfg(struct builder *b)
{
	uint8_t *p;

	begin(b, "MCFG", 1);
	p = take(b, 8 + 16) + 8;
	put_le64(p, b->cfg->ecam_base);
	p[10] = b->cfg->pci_bus_first;
	p[11] = b->cfg->pci_bus_last;
	finish_listed(b);
}

static void name_hid(struct aml *a, const char *id, uint64_t uid)
{
	aml_name(a, "_HID");
	aml_eisaid(a, id);
	aml_name(a, "_UID");
	aml_int(a, uid);
}

static void add_cpus(struct aml *a, unsigned ncpus)
{
	static const char digits[] = "0123456789ABCDEF";

	for (unsigned i = 0; i < ncpus; i++) {
		const char name[5] = {'C', '0', digits[i >> 4 & 0xf], digits[i & 0xf], 0};

		aml_device(a, name);
		aml_name(a, "_HID");
		aml_string(a, "ACPI0007");
		aml_name(a, "_UID");
		aml_int(a, i);
		aml_end(a);
	}
}

/* 6.2.13: each pin of each device, by rotation. */
static void add_prt(struct aml *a, const struct acpi_config *c)
{
	aml_name(a, "_PRT");
	aml_package(a, PCI_DEVICES * PCI_PINS);
	for (unsigned dev = 0; dev < PCI_DEVICES; dev++)
		for (unsigned pin = 0; pin < PCI_PINS; pin++) {
			aml_package(a, 4);
			aml_int(a, dev << 16 | 0xffff);
			aml_int(a, pin);
			aml_int(a, 0); /* no link device: the next is a GSI */
			aml_int(a, c->intx_gsi[(dev + pin) % 4]);
			aml_end(a);
		}
	aml_end(a);
}

static void add_pci(struct aml *a, const struct acpi_config *c)
{
	uint64_t buses = (uint64_t)c->pci_bus_last - c->pci_bus_first + 1;
	struct aml_res bridge = {.len = 0}, ecam = {.len = 0};

	aml_device(a, "PCI0");
	name_hid(a, "PNP0A08", 0);
	aml_name(a, "_CID");
	aml_eisaid(a, "PNP0A03");
	aml_name(a, "_SEG");
	aml_int(a, 0);
	aml_name(a, "_BBN");
	aml_int(a, c->pci_bus_first);
	aml_res_window(&bridge, AML_BUS, 16, true, c->pci_bus_first, buses);
	aml_res_io(&bridge, 0xcf8, 8);
	aml_res_window(&bridge, AML_IO, 16, true, 0, 0xcf8);
	aml_res_window(&bridge, AML_IO, 16, true, 0xd00, 0xf300);
	if (c->mmio32.size)
		aml_res_window(&bridge, AML_MEMORY, 32, true, c->mmio32.base, c->mmio32.size);
	if (c->mmio64.size)
		aml_res_window(&bridge, AML_MEMORY, 64, true, c->mmio64.base, c->mmio64.size);
	aml_resources(a, &bridge);
	add_prt(a, c);
	aml_end(a);

	/* PCI Firmware Specification, 4.1.2: ECAM is a motherboard resource, else no system believes the MCFG. */
	aml_device(a, "ECAM");
	name_hid(a, "PNP0C02", 0);
	aml_res_window(&ecam, AML_MEMORY, 64, false, c->ecam_base, buses * MIB);
	aml_resources(a, &ecam);
	aml_end(a);
}

static void add_uart(struct aml *a, const struct acpi_uart *u, unsigned n)
{
	const char name[5] = {'C', 'O', 'M', (char)('1' + n), 0};
	struct aml_res r = {.len = 0};

	aml_device(a, name);
	name_hid(a, "PNP0501", n + 1);
	aml_res_io(&r, u->port, 8);
	aml_res_irq(&r, u->irq);
	aml_resources(a, &r);
	aml_end(a);
}

static void add_rtc(struct aml *a)
{
	struct aml_res r = {.len = 0};

	aml_device(a, "RTC_");
	name_hid(a, "PNP0B00", 0);
	aml_res_io(&r, 0x70, 2);
	aml_res_irq(&r, 8);
	aml_resources(a, &r);
	aml_end(a);
}

static gpa_t build_dsdt(struct builder *b)
{
	const struct acpi_config *c = b->cfg;
	struct aml a;

	begin(b, "DSDT", 2);
	aml_init(&a, b->t + HEADER_LEN, TABLE_MAX - HEADER_LEN);
	aml_name(&a, "_S5_");
	aml_package(&a, 4);
	aml_int(&a, c->s5_type);
	aml_int(&a, c->s5_type);
	aml_int(&a, 0);
	aml_int(&a, 0);
	aml_end(&a);
	aml_scope(&a, "_SB_");
	add_cpus(&a, c->ncpus);
	add_pci(&a, c);
	for (unsigned i = 0; i < ACPI_UARTS; i++)
		if (c->uart[i].port)
			add_uart(&a, &c->uart[i], i);
	if (c->rtc)
		add_rtc(&a);
	aml_end(&a);
	b->full |= a.full;
	b->len += a.len;
	return finish(b);
}

static gpa_t build_xsdt(struct builder *b)
{
	begin(b, "XSDT", 1);
	for (unsigned i = 0; i < b->count; i++)
		put_le64(take(b, 8), b->xsdt[i]);
	return finish(b);
}

/* 5.2.5.3. It comes first in the area, so that it is where systems look for it: on a 16-byte boundary. */
static void write_rsdp(struct builder *b, gpa_t at, gpa_t xsdt)
{
	uint8_t *t = b->t;

	memset(t, 0, RSDP_LEN);
	memcpy(t, "RSD PTR ", 8);
	memcpy(t + 9, "DOPPEL", 6);
	t[15] = 2; /* revision */
	put_le32(t + 20, RSDP_LEN);
	put_le64(t + 24, xsdt);
	set_checksum(t, 20, 8);
	set_checksum(t, RSDP_LEN, 32);
	b->full |= !ram_write(b->ram, at, t, RSDP_LEN);
}

bool acpi_build(struct ram *ram, const struct acpi_config *cfg, gpa_t base, uint64_t size, gpa_t *rsdp,
		struct error *err)
{
	struct builder b = {.ram = ram, .cfg = cfg, .next = base + RSDP_LEN, .end = base + size};
	gpa_t facs, dsdt;

	b.t = malloc(TABLE_MAX);
	if (!b.t)
		return error_set(err, "out of memory");
	facs = build_facs(&b);
	dsdt = build_dsdt(&b);
	build_fadt(&b, facs, dsdt);
	build_madt(&b);
	build_mcfg(&b);
	write_rsdp(&b, base, build_xsdt(&b));
	free(b.t);
	if (b.full)
		return error_set(err, "the ACPI tables do not fit into %llu bytes at 0x%llx", (unsigned long long)size,
				 (unsigned long long)base);
	*rsdp = base;
	return true;
}
