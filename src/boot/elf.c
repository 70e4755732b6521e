/*
 * ELF executables (System V gABI, chapters 4 and 5), as far as loading by physical address needs.
 */
#include <string.h>

#include "boot/boot_int.h"

#define EM_386 3
#define EM_X86_64 62
#define ET_EXEC 2
#define ET_DYN 3
#define EHDR32 52
#define EHDR64 64
#define PHDR32 32
#define PHDR64 56
#define SEGMENTS_MAX 512

bool elf_probe(const struct boot_blob *k) { return k->size >= EHDR32 && !memcmp(k->data, "\177ELF", 4); }

bool elf_open(const struct boot *b, struct elf *e, struct error *err)
{
	const uint8_t *d = b->kernel->data;
	uint16_t type = get_le16(d + 16), machine = get_le16(d + 18);

	*e = (struct elf){.file = b->kernel, .is64 = d[4] == 2};
	if (d[5] != 1 || (d[4] != 1 && d[4] != 2) || (machine != EM_386 && machine != EM_X86_64))
		return boot_refuse(b, err, "take one that was built for x86-64 or i386",
				   "an ELF file for another machine");
	if (type != ET_EXEC && type != ET_DYN)
		return boot_refuse(b, err, "link it first", "an ELF file that is no executable");
	if (e->is64 && b->kernel->size < EHDR64)
		return boot_refuse(b, err, "was it copied completely?", "the file ends inside its ELF header");
	e->entry = e->is64 ? get_le64(d + 24) : get_le32(d + 24);
	e->phoff = e->is64 ? get_le64(d + 32) : get_le32(d + 28);
	e->phentsize = get_le16(d + (e->is64 ? 54 : 42));
	e->phnum = get_le16(d + (e->is64 ? 56 : 44));
	if (!e->phnum || e->phnum > SEGMENTS_MAX || e->phentsize < (e->is64 ? PHDR64 : PHDR32) ||
	    !range_ok(e->phoff, (uint64_t)e->phnum * e->phentsize, b->kernel->size))
		return boot_refuse(b, err, "was it copied completely?", "its program headers are missing or damaged");
	return true;
}

struct elf_segment elf_segment(const struct elf *e, unsigned i)
{
	const uint8_t *p = e->file->data + e->phoff + (uint64_t)i * e->phentsize;

	if (e->is64)
		return (struct elf_segment){
			.type = get_le32(p),
			.offset = get_le64(p + 8),
			.vaddr = get_le64(p + 16),
			.paddr = get_le64(p + 24),
			.filesz = get_le64(p + 32),
			.memsz = get_le64(p + 40),
			.align = get_le64(p + 48),
		};
	return (struct elf_segment){
		.type = get_le32(p),
		.offset = get_le32(p + 4),
		.vaddr = get_le32(p + 8),
		.paddr = get_le32(p + 12),
		.filesz = get_le32(p + 16),
		.memsz = get_le32(p + 20),
		.align = get_le32(p + 28),
	};
}

static bool load_segment(struct boot *b, const struct elf_segment *s, unsigned i, struct error *err)
{
	if (s->filesz > s->memsz || !range_ok(s->offset, s->filesz, b->kernel->size))
		return boot_refuse(b, err, "was it copied completely?", "segment %u reaches beyond the file", i);
	if (!range_ok(s->paddr, s->memsz, 4 * GIB) || !boot_claim(b, s->paddr, s->memsz))
		return boot_refuse(b, err, "give the guest more memory with -m, or link the kernel for another address",
				   "segment %u at 0x%llx, 0x%llx bytes, is not in free memory", i,
				   (unsigned long long)s->paddr, (unsigned long long)s->memsz);
	ram_write(b->p->ram, s->paddr, b->kernel->data + s->offset, s->filesz);
	ram_zero(b->p->ram, s->paddr + s->filesz, s->memsz - s->filesz);
	return true;
}

bool elf_load(struct boot *b, const struct elf *e, gpa_t *end, struct error *err)
{
	*end = 0;
	for (unsigned i = 0; i < e->phnum; i++) {
		struct elf_segment s = elf_segment(e, i);

		if (s.type != ELF_LOAD || !s.memsz)
			continue;
		if (!load_segment(b, &s, i, err))
			return false;
		*end = max_u64(*end, s.paddr + s.memsz);
	}
	return *end || boot_refuse(b, err, "is it a kernel?", "it has nothing to load");
}
