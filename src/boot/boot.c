#include "boot/boot.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "boot/boot_int.h"

#define KERNEL_FILE_MAX GIB

bool boot_refuse(const struct boot *b, struct error *err, const char *hint, const char *fmt, ...)
{
	char why[256];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(why, sizeof(why), fmt, ap);
	va_end(ap);
	error_set(err, "kernel %s: %s", b->kernel->name, why);
	return error_hint(err, "%s", hint);
}

bool boot_no_room(const char *what, const char *name, uint64_t size, struct error *err)
{
	error_set(err, "%s %s: no room for its %llu KiB in the guest's memory", what, name,
		  (unsigned long long)(size + KIB - 1) / KIB);
	return error_hint(err, "give the guest more memory with -m");
}

static const struct boot_range *taken_by(const struct boot *b, gpa_t base, gpa_t end)
{
	for (unsigned i = 0; i < b->ntaken; i++)
		if (base < b->taken[i].end && b->taken[i].base < end)
			return &b->taken[i];
	return NULL;
}

bool boot_claim(struct boot *b, gpa_t base, uint64_t size)
{
	if (!e820_is_ram(&b->map, base, size) || taken_by(b, base, base + size) || b->ntaken == BOOT_TAKEN_MAX)
		return false;
	b->taken[b->ntaken++] = (struct boot_range){base, base + size};
	return true;
}

bool boot_place(struct boot *b, gpa_t from, gpa_t limit, uint64_t size, uint64_t align, gpa_t *base)
{
	for (unsigned i = 0; i < b->map.count; i++) {
		const struct e820_entry *e = &b->map.e[i];
		gpa_t end = min_u64(e->base + e->size, limit), at = align_up(max_u64(e->base, from), align);

		while (e->type == E820_RAM && range_ok(at, size, end)) {
			const struct boot_range *t = taken_by(b, at, at + size);

			if (!t) {
				*base = at;
				return boot_claim(b, at, size);
			}
			at = align_up(t->end, align);
		}
	}
	return false;
}

bool boot_place_top(struct boot *b, gpa_t limit, uint64_t size, uint64_t align, gpa_t *base)
{
	for (unsigned i = b->map.count; i-- > 0;) {
		const struct e820_entry *e = &b->map.e[i];
		gpa_t end = min_u64(e->base + e->size, limit);

		while (e->type == E820_RAM && end >= size && align_down(end - size, align) >= e->base) {
			gpa_t at = align_down(end - size, align);
			const struct boot_range *t = taken_by(b, at, at + size);

			if (!t) {
				*base = at;
				return boot_claim(b, at, size);
			}
			end = t->base;
		}
	}
	return false;
}

bool boot_put_low(struct boot *b, const void *data, uint64_t size, gpa_t *base, struct error *err)
{
	if (!boot_place(b, BOOT_LOW_START, BOOT_LOW_END, size, 16, base))
		return boot_refuse(b, err, "shorten the command line or the module strings",
				   "its parameters do not fit below 640 KiB");
	ram_write(b->p->ram, *base, data, size);
	return true;
}

bool boot_put_string(struct boot *b, const char *s, gpa_t *base, struct error *err)
{
	return boot_put_low(b, s, strlen(s) + 1, base, err);
}

static bool place_module(struct boot *b, gpa_t from, const struct boot_module *m, const char *what,
			 struct boot_placed *out, struct error *err)
{
	if (!boot_place(b, from, 4 * GIB, m->file.size, PAGE_SIZE, &out->base))
		return boot_no_room(what, m->file.name, m->file.size, err);
	out->end = out->base + m->file.size;
	ram_write(b->p->ram, out->base, m->file.data, m->file.size);
	return boot_put_string(b, m->string, &out->string, err);
}

bool boot_place_modules(struct boot *b, gpa_t from, struct boot_placed *out, unsigned *count, struct error *err)
{
	unsigned n = 0;

	if (b->initrd) {
		struct boot_module m = {.file = *b->initrd, .string = ""};

		if (!place_module(b, from, &m, "initrd", &out[n++], err))
			return false;
	}
	for (unsigned i = 0; i < b->nmodules; i++)
		if (!place_module(b, n ? out[n - 1].end : from, &b->modules[i], "module", &out[n], err))
			return false;
		else
			n++;
	*count = n;
	return true;
}

/* Files that people try to boot, and what would help. */
static bool refuse_unknown(const struct boot *b, struct error *err)
{
	static const struct {
		unsigned offset, len;
		const char *magic, *what, *hint;
	} known[] = {
		{0, 2, "\x1f\x8b", "compressed with gzip", "unpack it first: zcat FILE >kernel"},
		{0, 4, "\x28\xb5\x2f\xfd", "compressed with zstd", "unpack it first: zstd -dc FILE >kernel"},
		{1, 5, "7zXZ\0", "compressed with xz", "unpack it first: xzcat FILE >kernel"},
		{0, 3, "BZh", "compressed with bzip2", "unpack it first: bzcat FILE >kernel"},
		{0, 4, "\x02\x21\x4c\x18", "compressed with lz4", "unpack it first: lz4 -dc FILE >kernel"},
		{0, 4, "\x04\x22\x4d\x18", "compressed with lz4", "unpack it first: lz4 -dc FILE >kernel"},
		{0x38, 4, "ARM\x64", "a kernel for ARM64", "take the one for x86-64 (amd64)"},
		{0, 6, "070701", "a cpio archive, not a kernel", "give it as --initrd"},
		{0x8001, 5, "CD001", "a CD image, not a kernel", "take the kernel out of it"},
		{0, 2, "#!", "a script, not a kernel", "give a bzImage, or an ELF kernel with PVH or Multiboot"},
	};

	for (unsigned i = 0; i < ARRAY_LEN(known); i++)
		if (range_ok(known[i].offset, known[i].len, b->kernel->size) &&
		    !memcmp(b->kernel->data + known[i].offset, known[i].magic, known[i].len))
			return boot_refuse(b, err, known[i].hint, "%s", known[i].what);
	return boot_refuse(b, err, "give a Linux bzImage (vmlinuz), or an ELF kernel with PVH or Multiboot",
			   "not a kernel that doppel can boot");
}

bool boot_load_blobs(const struct boot_params *p, const struct boot_blob *kernel, const struct boot_blob *initrd,
		     const struct boot_module *modules, unsigned nmodules, struct cpu_state *bsp, struct error *err)
{
	struct boot b = {
		.p = p,
		.cmdline = p->cmdline ? p->cmdline : "",
		.kernel = kernel,
		.initrd = initrd,
		.modules = modules,
		.nmodules = nmodules,
		.cpu = bsp,
	};

	if (nmodules > BOOT_MODULES_MAX)
		return error_set(err, "%u modules are more than the %u that can be", nmodules, BOOT_MODULES_MAX);
	if (!e820_build(&b.map, p->ram, p->extra, p->nextra, err))
		return false;
	if (linux_probe(kernel))
		return linux_load(&b, err);
	if (multiboot_probe(kernel))
		return multiboot_load(&b, err);
	if (elf_probe(kernel))
		return pvh_load(&b, err);
	return refuse_unknown(&b, err);
}

struct files {
	struct file_data kernel, initrd, module[BOOT_MODULES_MAX];
	char *path[BOOT_MODULES_MAX]; /* cut from "FILE=string" */
};

static bool read_module(struct files *f, struct boot_module *m, unsigned i, const struct boot_params *p,
			struct error *err)
{
	const char *equals = strchr(p->modules[i], '=');

	f->path[i] = equals ? strndup(p->modules[i], (size_t)(equals - p->modules[i])) : strdup(p->modules[i]);
	if (!f->path[i])
		return error_set(err, "out of memory");
	if (!file_read(&f->module[i], f->path[i], "module", ram_size(p->ram), err))
		return false;
	m->file = (struct boot_blob){f->path[i], f->module[i].data, f->module[i].size};
	m->string = equals ? equals + 1 : f->path[i];
	return true;
}

static bool load_files(const struct boot_params *p, struct files *f, struct cpu_state *bsp, struct error *err)
{
	struct boot_module modules[BOOT_MODULES_MAX] = {{.string = NULL}};
	struct boot_blob kernel, initrd;

	if (p->nmodules > BOOT_MODULES_MAX)
		return error_set(err, "%u modules are more than the %u that can be", p->nmodules, BOOT_MODULES_MAX);
	if (!file_read(&f->kernel, p->kernel, "kernel", KERNEL_FILE_MAX, err) ||
	    (p->initrd && !file_read(&f->initrd, p->initrd, "initrd", ram_size(p->ram), err)))
		return false;
	for (unsigned i = 0; i < p->nmodules; i++)
		if (!read_module(f, &modules[i], i, p, err))
			return false;
	kernel = (struct boot_blob){p->kernel, f->kernel.data, f->kernel.size};
	initrd = (struct boot_blob){p->initrd, f->initrd.data, f->initrd.size};
	return boot_load_blobs(p, &kernel, p->initrd ? &initrd : NULL, modules, p->nmodules, bsp, err);
}

bool boot_load(const struct boot_params *p, struct cpu_state *bsp, struct error *err)
{
	struct files f = {.path = {NULL}};
	bool ok = load_files(p, &f, bsp, err);

	file_free(&f.kernel);
	file_free(&f.initrd);
	for (unsigned i = 0; i < p->nmodules && i < BOOT_MODULES_MAX; i++) {
		file_free(&f.module[i]);
		free(f.path[i]);
	}
	return ok;
}
