/*
 * What the loaders share: the memory map, which of it is taken, ELF, and the boot CPU's first state.
 */
#ifndef BOOT_BOOT_INT_H
#define BOOT_BOOT_INT_H

#include "boot/boot.h"

#define BOOT_LOW_START 0x1000 /* page 0 stays the guest's */
#define BOOT_LOW_END E820_EBDA
#define BOOT_HIGH_START E820_ROM_END
#define BOOT_TAKEN_MAX 128

struct boot {
	const struct boot_params *p;
	const char *cmdline; /* never NULL */
	const struct boot_blob *kernel, *initrd;
	const struct boot_module *modules;
	unsigned nmodules;
	struct cpu_state *cpu;
	struct e820_map map;
	struct boot_range {
		gpa_t base, end;
	} taken[BOOT_TAKEN_MAX];
	unsigned ntaken;
};

/* Each loader: is this file mine? (The bounds of its headers are good then.) And load it. */
bool linux_probe(const struct boot_blob *kernel);
bool linux_load(struct boot *b, struct error *err);
bool multiboot_probe(const struct boot_blob *kernel);
bool multiboot_load(struct boot *b, struct error *err);
bool elf_probe(const struct boot_blob *kernel);
bool pvh_load(struct boot *b, struct error *err);

/* Space. A range is given out only when all of it is RAM and nobody else has it. */
bool boot_claim(struct boot *b, gpa_t base, uint64_t size);
/* The lowest, or the highest, free range in [from, limit). size is not zero. */
bool boot_place(struct boot *b, gpa_t from, gpa_t limit, uint64_t size, uint64_t align, gpa_t *base);
bool boot_place_top(struct boot *b, gpa_t limit, uint64_t size, uint64_t align, gpa_t *base);
/* Place below 640 KiB and write. */
bool boot_put_low(struct boot *b, const void *data, uint64_t size, gpa_t *base, struct error *err);
bool boot_put_string(struct boot *b, const char *s, gpa_t *base, struct error *err);

/* "kernel FILE: why"; false. */
bool boot_refuse(const struct boot *b, struct error *err, const char *hint, const char *fmt, ...)
	__attribute__((format(printf, 4, 5)));
bool boot_no_room(const char *what, const char *name, uint64_t size, struct error *err);

/* ELF, 32 or 64 bits, little endian, i386 or x86-64, one segment at a time. */
struct elf_segment {
	uint32_t type;
	uint64_t offset, vaddr, paddr, filesz, memsz, align;
};
#define ELF_LOAD 1
#define ELF_NOTE 4

struct elf {
	const struct boot_blob *file;
	bool is64;
	uint64_t entry, phoff;
	uint16_t phentsize, phnum;
};

bool elf_open(const struct boot *b, struct elf *e, struct error *err);
struct elf_segment elf_segment(const struct elf *e, unsigned i);
/* Load the segments at their physical addresses below 4 GiB; *end: behind the highest. */
bool elf_load(struct boot *b, const struct elf *e, gpa_t *end, struct error *err);

/* Modules from `from` up, in order, each from a page on; initrd is the first. */
struct boot_placed {
	gpa_t base, end, string;
};
bool boot_place_modules(struct boot *b, gpa_t from, struct boot_placed *out, unsigned *count, struct error *err);

/* Entry states (interrupts off, FPU as FNINIT leaves it), with a GDT in low RAM: code at 0x10, data at 0x18. */
bool boot_enter_flat32(struct boot *b, uint64_t rip, struct error *err);
/* 64-bit mode on identity-mapped page tables for the first 4 GiB. */
bool boot_enter_long(struct boot *b, uint64_t rip, struct error *err);

#endif
