/*
 * Direct boot: put a kernel, its initrd or modules and its parameters into RAM and the boot CPU at the kernel's entry.
 *
 * Kinds, told apart by content: Multiboot 1 (ELF or a.out kludge, entered in 32-bit protected mode), PVH (ELF with the
 * Xen note, 32-bit protected mode), and Linux bzImage (64-bit entry). Files are hostile: each fault in one is an error
 * with one line and a hint. May be called again after a reset: what is loaded is loaded anew, other RAM stays.
 * Manuals: Linux Documentation/arch/x86/boot.rst; Xen docs/misc/pvh.pandoc; Multiboot Specification 0.6.96.
 */
#ifndef BOOT_BOOT_H
#define BOOT_BOOT_H

#include "boot/e820.h"
#include "cpu/state.h"

struct boot_params {
	struct ram *ram;
	const char *kernel;	    /* path */
	const char *initrd;	    /* path, or NULL; Multiboot: the first module */
	const char *cmdline;	    /* NULL: empty */
	const char *const *modules; /* "FILE" or "FILE=string"; Multiboot and PVH only */
	unsigned nmodules;
	gpa_t rsdp;			/* 0: no ACPI */
	const struct e820_entry *extra; /* what the board adds to the memory map, see e820_build */
	unsigned nextra;
};

/* Reads the files (blocks), writes p->ram. bsp: as cpu_state_reset leaves it; the entry state is set on top of that. */
bool boot_load(const struct boot_params *p, struct cpu_state *bsp, struct error *err);

/* What firmware leaves on every CPU, set by boot_load on the boot CPU: MTRRs on, all memory write-back. */
void boot_firmware_state(struct cpu_state *s);

#define BOOT_MODULES_MAX 32

struct boot_blob {
	const char *name; /* for messages */
	const uint8_t *data;
	uint64_t size;
};

struct boot_module {
	struct boot_blob file;
	const char *string; /* what the kernel gets to see as its name */
};

/* The same with the files in memory; p's paths are not looked at. initrd may be NULL. */
bool boot_load_blobs(const struct boot_params *p, const struct boot_blob *kernel, const struct boot_blob *initrd,
		     const struct boot_module *modules, unsigned nmodules, struct cpu_state *bsp, struct error *err);

#endif
