/*
 * Multiboot Specification 0.6.96. The command line is --append's text alone, as GRUB 2 passes it.
 */
#include <string.h>

#include "boot/boot_int.h"

#define SEARCH 8192
#define HEADER_MAGIC 0x1badb002
#define LOADER_MAGIC 0x2badb002
#define FLAG_ADDRESSES BIT(16)
#define FLAGS_KNOWN 0x0007 /* of bits 0-15, those a loader must know: page alignment, memory, video mode */
#define FLAGS_MUST 0xffff

/* Information structure, 3.3: bits of `flags`. */
enum { MBI_MEMORY = 1 << 0, MBI_CMDLINE = 1 << 2, MBI_MODS = 1 << 3, MBI_MMAP = 1 << 6, MBI_NAME = 1 << 9 };

struct info {
	uint32_t flags, mem_lower, mem_upper, boot_device, cmdline, mods_count, mods_addr, syms[4];
	uint32_t mmap_length, mmap_addr, drives_length, drives_addr, config_table, name, apm_table;
	uint8_t vbe[16], framebuffer[28];
};

struct module {
	uint32_t start, end, string, reserved;
};

struct __attribute__((packed)) mmap_entry {
	uint32_t size; /* of what follows */
	uint64_t base, length;
	uint32_t type;
};

static bool find_header(const struct boot_blob *k, uint64_t *at)
{
	for (uint64_t i = 0; range_ok(i, 12, min_u64(k->size, SEARCH)); i += 4) {
		const uint8_t *h = k->data + i;

		if (get_le32(h) == HEADER_MAGIC && get_le32(h) + get_le32(h + 4) + get_le32(h + 8) == 0) {
			*at = i;
			return true;
		}
	}
	return false;
}

bool multiboot_probe(const struct boot_blob *k)
{
	uint64_t at;

	return find_header(k, &at);
}

/* 3.1.3: the header says itself what of the file goes where. */
static bool load_kludge(struct boot *b, uint64_t at, uint64_t *entry, gpa_t *end, struct error *err)
{
	const uint8_t *h = b->kernel->data + at;
	uint64_t header, load, load_end, bss_end, offset, filesz;

	if (!range_ok(at, 32, b->kernel->size))
		return boot_refuse(b, err, "was it copied completely?", "the file ends inside its Multiboot header");
	header = get_le32(h + 12);
	load = get_le32(h + 16);
	load_end = get_le32(h + 20);
	bss_end = get_le32(h + 24);
	*entry = get_le32(h + 28);
	if (load > header || header - load > at)
		return boot_refuse(b, err, "is its linker script right?",
				   "its Multiboot addresses contradict each other");
	offset = at - (header - load);
	filesz = load_end ? load_end - load : b->kernel->size - offset;
	*end = max_u64(load + filesz, bss_end);
	if ((load_end && load_end < load) || !range_ok(offset, filesz, b->kernel->size))
		return boot_refuse(b, err, "was it copied completely?",
				   "its Multiboot addresses reach beyond the file");
	if (!filesz || *end > 4 * GIB || !boot_claim(b, load, *end - load))
		return boot_refuse(b, err, "give the guest more memory with -m, or link the kernel for another address",
				   "0x%llx to 0x%llx is not free memory", (unsigned long long)load,
				   (unsigned long long)*end);
	ram_write(b->p->ram, load, b->kernel->data + offset, filesz);
	ram_zero(b->p->ram, load + filesz, *end - (load + filesz));
	return true;
}

/* An entry that lies in a segment's virtual addresses is meant virtually; kernels for the higher half do that. */
static uint64_t physical_entry(const struct elf *e)
{
	for (unsigned i = 0; i < e->phnum; i++) {
		struct elf_segment s = elf_segment(e, i);

		if (s.type == ELF_LOAD && e->entry >= s.vaddr && e->entry - s.vaddr < s.memsz)
			return s.paddr + (e->entry - s.vaddr);
	}
	return e->entry;
}

static bool load_kernel(struct boot *b, uint64_t at, uint64_t *entry, gpa_t *end, struct error *err)
{
	uint32_t flags = get_le32(b->kernel->data + at + 4);
	struct elf e;

	if (flags & FLAGS_MUST & ~FLAGS_KNOWN)
		return boot_refuse(b, err, "doppel knows flags 0 to 2 and 16 of Multiboot 1",
				   "its Multiboot header asks for unknown features (flags 0x%x)", flags);
	if (flags & FLAG_ADDRESSES)
		return load_kludge(b, at, entry, end, err);
	if (!elf_probe(b->kernel))
		return boot_refuse(b, err, "set flag 16 and the addresses, or link it as ELF",
				   "a Multiboot kernel that is neither ELF nor says its addresses");
	if (!elf_open(b, &e, err) || !elf_load(b, &e, end, err))
		return false;
	*entry = physical_entry(&e);
	return *entry < 4 * GIB || boot_refuse(b, err, "link its entry for a physical address below 4 GiB",
					       "its entry 0x%llx is out of 32 bits", (unsigned long long)*entry);
}

static bool put_modules(struct boot *b, gpa_t from, struct info *info, struct error *err)
{
	struct boot_placed placed[BOOT_MODULES_MAX + 1];
	struct module list[BOOT_MODULES_MAX + 1];
	gpa_t at = 0;
	unsigned n;

	if (!boot_place_modules(b, from, placed, &n, err))
		return false;
	for (unsigned i = 0; i < n; i++)
		list[i] = (struct module){(uint32_t)placed[i].base, (uint32_t)placed[i].end, (uint32_t)placed[i].string,
					  0};
	if (n && !boot_put_low(b, list, n * sizeof(list[0]), &at, err))
		return false;
	info->mods_count = n;
	info->mods_addr = (uint32_t)at;
	return true;
}

static bool put_memory(struct boot *b, struct info *info, struct error *err)
{
	struct mmap_entry map[E820_MAX];
	gpa_t at;

	for (unsigned i = 0; i < b->map.count; i++) {
		const struct e820_entry *e = &b->map.e[i];

		map[i] = (struct mmap_entry){sizeof(map[i]) - 4, e->base, e->size, e->type};
		if (e->type == E820_RAM && e->base == 0)
			info->mem_lower = (uint32_t)(e->size / KIB);
		if (e->type == E820_RAM && e->base == MIB)
			info->mem_upper = (uint32_t)(e->size / KIB);
	}
	if (!boot_put_low(b, map, b->map.count * sizeof(map[0]), &at, err))
		return false;
	info->mmap_length = (uint32_t)(b->map.count * sizeof(map[0]));
	info->mmap_addr = (uint32_t)at;
	return true;
}

static bool put_info(struct boot *b, gpa_t end, gpa_t *at, struct error *err)
{
	struct info info = {.flags = MBI_MEMORY | MBI_CMDLINE | MBI_MODS | MBI_MMAP | MBI_NAME};
	gpa_t cmdline, name;

	if (!put_modules(b, max_u64(end, BOOT_HIGH_START), &info, err) || !put_memory(b, &info, err) ||
	    !boot_put_string(b, b->cmdline, &cmdline, err) || !boot_put_string(b, "doppel", &name, err))
		return false;
	info.cmdline = (uint32_t)cmdline;
	info.name = (uint32_t)name;
	return boot_put_low(b, &info, sizeof(info), at, err);
}

bool multiboot_load(struct boot *b, struct error *err)
{
	uint64_t at = 0, entry = 0;
	gpa_t end, info;

	find_header(b->kernel, &at);
	if (!load_kernel(b, at, &entry, &end, err) || !put_info(b, end, &info, err) ||
	    !boot_enter_flat32(b, entry, err))
		return false;
	b->cpu->gpr[R_AX] = LOADER_MAGIC;
	b->cpu->gpr[R_BX] = info;
	return true;
}
