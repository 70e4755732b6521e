/*
 * The memory map of a PC (ACPI 6.5, 15): sorted, disjoint ranges of RAM and of what must not be used.
 */
#ifndef BOOT_E820_H
#define BOOT_E820_H

#include "mem/ram.h"

/* Types of ACPI 6.5, table 15.9; Multiboot and PVH use the same numbers. */
enum e820_type { E820_NONE /* no entry: a hole */, E820_RAM, E820_RESERVED, E820_ACPI, E820_NVS };

struct e820_entry {
	gpa_t base;
	uint64_t size;
	enum e820_type type;
};

#define E820_MAX 64

struct e820_map {
	unsigned count;
	struct e820_entry e[E820_MAX];
};

/* Where a PC keeps firmware data: the extended BIOS data area, and the ROM area, in which the ACPI tables lie. */
#define E820_EBDA 0x9fc00
#define E820_VGA 0xa0000
#define E820_ROM 0xe0000
#define E820_ROM_END 0x100000

/*
 * RAM as it is, less the holes below 1 MiB, then `extra` in turn, a later range over an earlier one (ECAM,
 * framebuffer...). False when there are too many ranges or one wraps around.
 */
bool e820_build(struct e820_map *m, const struct ram *ram, const struct e820_entry *extra, unsigned nextra,
		struct error *err);
/* Lay one range over what is there. E820_NONE cuts a hole. */
bool e820_set(struct e820_map *m, gpa_t base, uint64_t size, enum e820_type type);
/* [gpa, gpa + len) is RAM throughout. */
bool e820_is_ram(const struct e820_map *m, gpa_t gpa, uint64_t len);

#endif
