/*
 * PVH: an ELF kernel whose Xen note names a 32-bit entry (Xen docs/misc/pvh.pandoc, public/arch-x86/hvm/start_info.h).
 */
#include <string.h>

#include "boot/boot_int.h"

#define NOTE_PHYS32_ENTRY 18
#define START_MAGIC 0x336ec578
#define START_VERSION 1

struct start_info {
	uint32_t magic, version, flags, nr_modules;
	uint64_t modlist, cmdline, rsdp, memmap;
	uint32_t memmap_entries, reserved;
};

struct modlist_entry {
	uint64_t paddr, size, cmdline, reserved;
};

struct memmap_entry {
	uint64_t addr, size;
	uint32_t type, reserved;
};

/* The entry in one PT_NOTE segment: notes of {namesz, descsz, type, name, desc}, each part padded. */
static bool find_entry(const uint8_t *p, uint64_t size, uint64_t align, uint32_t *entry)
{
	uint64_t at = 0;

	while (range_ok(at, 12, size)) {
		uint64_t namesz = get_le32(p + at), descsz = get_le32(p + at + 4);
		uint64_t name = at + 12, desc = align_up(name + namesz, align);

		if (!range_ok(name, namesz, size) || !range_ok(desc, descsz, size))
			return false;
		if (get_le32(p + at + 8) == NOTE_PHYS32_ENTRY && namesz == 4 && !memcmp(p + name, "Xen", 4) &&
		    descsz >= 4) {
			*entry = get_le32(p + desc);
			return true;
		}
		at = align_up(desc + descsz, align);
	}
	return false;
}

static bool pvh_entry(const struct elf *e, uint32_t *entry)
{
	for (unsigned i = 0; i < e->phnum; i++) {
		struct elf_segment s = elf_segment(e, i);

		if (s.type == ELF_NOTE && range_ok(s.offset, s.filesz, e->file->size) &&
		    find_entry(e->file->data + s.offset, s.filesz, s.align == 8 ? 8 : 4, entry))
			return true;
	}
	return false;
}

static bool put_modules(struct boot *b, gpa_t from, struct start_info *info, struct error *err)
{
	struct boot_placed placed[BOOT_MODULES_MAX + 1];
	struct modlist_entry list[BOOT_MODULES_MAX + 1];
	unsigned n;

	if (!boot_place_modules(b, from, placed, &n, err))
		return false;
	for (unsigned i = 0; i < n; i++)
		list[i] = (struct modlist_entry){placed[i].base, placed[i].end - placed[i].base, placed[i].string, 0};
	info->nr_modules = n;
	return n == 0 || boot_put_low(b, list, n * sizeof(list[0]), &info->modlist, err);
}

static bool put_memmap(struct boot *b, struct start_info *info, struct error *err)
{
	struct memmap_entry map[E820_MAX];

	for (unsigned i = 0; i < b->map.count; i++)
		map[i] = (struct memmap_entry){b->map.e[i].base, b->map.e[i].size, b->map.e[i].type, 0};
	info->memmap_entries = b->map.count;
	return boot_put_low(b, map, b->map.count * sizeof(map[0]), &info->memmap, err);
}

bool pvh_load(struct boot *b, struct error *err)
{
	struct start_info info = {.magic = START_MAGIC, .version = START_VERSION, .rsdp = b->p->rsdp};
	struct elf e;
	uint32_t entry;
	gpa_t end, at;

	if (!elf_open(b, &e, err))
		return false;
	if (!pvh_entry(&e, &entry))
		return boot_refuse(b, err, "build it with CONFIG_PVH=y, or give the bzImage (vmlinuz)",
				   "an ELF file without a PVH entry or a Multiboot header");
	if (!elf_load(b, &e, &end, err) || !put_modules(b, max_u64(end, BOOT_HIGH_START), &info, err) ||
	    !boot_put_string(b, b->cmdline, &info.cmdline, err) || !put_memmap(b, &info, err) ||
	    !boot_put_low(b, &info, sizeof(info), &at, err) || !boot_enter_flat32(b, entry, err))
		return false;
	b->cpu->gpr[R_BX] = at;
	return true;
}
