/*
 * Linux bzImage by the 64-bit boot protocol (Documentation/arch/x86/boot.rst and zero-page.rst).
 */
#include <string.h>

#include "boot/boot_int.h"

/* Offsets of the setup header, in the file and in the zero page alike. */
enum {
	HDR_START = 0x1f1,
	HDR_SETUP_SECTS = 0x1f1,
	HDR_SYSSIZE = 0x1f4,
	HDR_BOOT_FLAG = 0x1fe,
	HDR_JUMP = 0x201,
	HDR_MAGIC = 0x202,
	HDR_VERSION = 0x206,
	HDR_TYPE_OF_LOADER = 0x210,
	HDR_LOADFLAGS = 0x211,
	HDR_CODE32_START = 0x214,
	HDR_RAMDISK_IMAGE = 0x218,
	HDR_RAMDISK_SIZE = 0x21c,
	HDR_CMD_LINE_PTR = 0x228,
	HDR_INITRD_ADDR_MAX = 0x22c,
	HDR_KERNEL_ALIGNMENT = 0x230,
	HDR_RELOCATABLE = 0x234,
	HDR_XLOADFLAGS = 0x236,
	HDR_CMDLINE_SIZE = 0x238,
	HDR_PREF_ADDRESS = 0x258,
	HDR_INIT_SIZE = 0x260,
	HDR_END = 0x290,
};

/* More of the zero page. */
enum { ZP_ACPI_RSDP = 0x070, ZP_E820_ENTRIES = 0x1e8, ZP_E820 = 0x2d0, ZP_E820_SIZE = 20, ZP_SIZE = 4096 };

#define MAGIC 0x53726448  /* "HdrS" */
#define VERSION_64 0x020c /* the first with xloadflags */
#define LOADED_HIGH BIT(0)
#define XLF_KERNEL_64 BIT(0)
#define ENTRY_64 0x200
#define LOADER_UNDEFINED 0xff
#define ALIGNMENT_MIN PAGE_SIZE
#define ALIGNMENT_MAX GIB

struct header {
	uint64_t setup_size, payload_size; /* of the file */
	uint32_t initrd_max, alignment, cmdline_max, init_size;
	uint64_t pref_address;
	bool relocatable;
};

bool linux_probe(const struct boot_blob *k)
{
	return k->size >= HDR_MAGIC + 4 && get_le16(k->data + HDR_BOOT_FLAG) == 0xaa55 &&
	       get_le32(k->data + HDR_MAGIC) == MAGIC;
}

static bool parse(const struct boot *b, struct header *h, struct error *err)
{
	const struct boot_blob *k = b->kernel;
	const uint8_t *d = k->data;
	unsigned version;

	if (k->size < HDR_END)
		return boot_refuse(b, err, "was it copied completely?", "the file ends inside its header");
	version = get_le16(d + HDR_VERSION);
	if (version < VERSION_64 || !(get_le16(d + HDR_XLOADFLAGS) & XLF_KERNEL_64) ||
	    !(d[HDR_LOADFLAGS] & LOADED_HIGH))
		return boot_refuse(b, err, "take a 64-bit kernel, version 3.8 or later",
				   "it has no 64-bit entry (boot protocol %u.%02u)", version >> 8, version & 0xff);
	*h = (struct header){
		.setup_size = ((d[HDR_SETUP_SECTS] ? d[HDR_SETUP_SECTS] : 4) + 1) * UINT64_C(512),
		.payload_size = get_le32(d + HDR_SYSSIZE) * UINT64_C(16),
		.initrd_max = get_le32(d + HDR_INITRD_ADDR_MAX),
		.alignment = get_le32(d + HDR_KERNEL_ALIGNMENT),
		.cmdline_max = get_le32(d + HDR_CMDLINE_SIZE),
		.init_size = get_le32(d + HDR_INIT_SIZE),
		.pref_address = get_le64(d + HDR_PREF_ADDRESS),
		.relocatable = d[HDR_RELOCATABLE],
	};
	if (h->setup_size >= k->size || h->payload_size > align_up(k->size - h->setup_size, 16) || !h->payload_size)
		return boot_refuse(b, err, "was it copied completely?", "truncated: %llu bytes of %llu are there",
				   (unsigned long long)k->size, (unsigned long long)(h->setup_size + h->payload_size));
	h->payload_size = min_u64(h->payload_size, k->size - h->setup_size);
	if (h->init_size < h->payload_size || h->payload_size <= ENTRY_64 || h->alignment < ALIGNMENT_MIN ||
	    h->alignment > ALIGNMENT_MAX || (h->alignment & (h->alignment - 1)))
		return boot_refuse(b, err, "is it damaged?", "its header contradicts itself");
	return true;
}

/* Where it wants to be, else, for a relocatable one, the lowest place that is aligned to its taste. */
static bool place_kernel(struct boot *b, const struct header *h, gpa_t *base, struct error *err)
{
	*base = h->pref_address;
	if (range_ok(*base, h->init_size, 4 * GIB) && *base >= BOOT_HIGH_START && boot_claim(b, *base, h->init_size))
		return true;
	if (h->relocatable && boot_place(b, BOOT_HIGH_START, 4 * GIB, h->init_size, h->alignment, base))
		return true;
	return boot_no_room("kernel", b->kernel->name, h->init_size, err);
}

static bool place_initrd(struct boot *b, const struct header *h, uint8_t *zp, struct error *err)
{
	gpa_t base;

	if (!b->initrd)
		return true;
	if (!boot_place_top(b, (gpa_t)h->initrd_max + 1, b->initrd->size, PAGE_SIZE, &base) || base < BOOT_HIGH_START)
		return boot_no_room("initrd", b->initrd->name, b->initrd->size, err);
	ram_write(b->p->ram, base, b->initrd->data, b->initrd->size);
	put_le32(zp + HDR_RAMDISK_IMAGE, (uint32_t)base);
	put_le32(zp + HDR_RAMDISK_SIZE, (uint32_t)b->initrd->size);
	return true;
}

static bool put_cmdline(struct boot *b, const struct header *h, uint8_t *zp, struct error *err)
{
	size_t len = strlen(b->cmdline);
	gpa_t base;

	if (len > h->cmdline_max)
		return boot_refuse(b, err, "shorten what --append gives",
				   "it takes a command line of %u characters, this one has %zu", h->cmdline_max, len);
	if (!boot_put_string(b, b->cmdline, &base, err))
		return false;
	put_le32(zp + HDR_CMD_LINE_PTR, (uint32_t)base);
	return true;
}

static void put_memory_map(const struct boot *b, uint8_t *zp)
{
	zp[ZP_E820_ENTRIES] = (uint8_t)b->map.count;
	for (unsigned i = 0; i < b->map.count; i++) {
		uint8_t *e = zp + ZP_E820 + i * ZP_E820_SIZE;

		put_le64(e, b->map.e[i].base);
		put_le64(e + 8, b->map.e[i].size);
		put_le32(e + 16, b->map.e[i].type);
	}
}

bool linux_load(struct boot *b, struct error *err)
{
	const uint8_t *file = b->kernel->data;
	uint8_t zp[ZP_SIZE] = {0};
	size_t header_end = min_u64(HDR_MAGIC + file[HDR_JUMP], HDR_END);
	struct header h = {0};
	gpa_t base, zp_base;

	if (b->nmodules)
		return boot_refuse(b, err, "give one --initrd", "Linux takes an initrd, not modules");
	if (!parse(b, &h, err))
		return false;
	memcpy(zp + HDR_START, file + HDR_START, header_end - HDR_START);
	if (!place_kernel(b, &h, &base, err) || !place_initrd(b, &h, zp, err) || !put_cmdline(b, &h, zp, err))
		return false;
	ram_write(b->p->ram, base, file + h.setup_size, h.payload_size);
	zp[HDR_TYPE_OF_LOADER] = LOADER_UNDEFINED;
	put_le32(zp + HDR_CODE32_START, (uint32_t)base);
	put_le64(zp + ZP_ACPI_RSDP, b->p->rsdp);
	put_memory_map(b, zp);
	if (!boot_place(b, BOOT_LOW_START, BOOT_LOW_END, ZP_SIZE, PAGE_SIZE, &zp_base))
		return boot_no_room("kernel", b->kernel->name, ZP_SIZE, err);
	ram_write(b->p->ram, zp_base, zp, ZP_SIZE);
	if (!boot_enter_long(b, base + ENTRY_64, err))
		return false;
	b->cpu->gpr[R_SI] = zp_base;
	return true;
}
