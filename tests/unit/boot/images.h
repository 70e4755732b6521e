/* Kernel images made in memory, for the tests and the fuzzer of the loaders. */
#ifndef TESTS_BOOT_IMAGES_H
#define TESTS_BOOT_IMAGES_H

#include <stdlib.h>
#include <string.h>

#include "boot/boot.h"

struct image {
	uint8_t data[64 * 1024];
	uint64_t size;
};

/* The payload: distinct bytes, so that a test sees where they went. */
static inline void image_fill(uint8_t *p, size_t len)
{
	for (size_t i = 0; i < len; i++)
		p[i] = (uint8_t)(i * 7 + (i >> 8) + 1);
}

/* bzImage: 2 setup sectors, a payload of 16 KiB, wants to be at 16 MiB. */
#define BZ_SETUP 1536
#define BZ_PAYLOAD 16384
#define BZ_INIT_SIZE (1 * MIB)
static inline void image_bzimage(struct image *m)
{
	uint8_t *d = m->data;

	memset(d, 0, sizeof(m->data));
	m->size = BZ_SETUP + BZ_PAYLOAD;
	image_fill(d + BZ_SETUP, BZ_PAYLOAD);
	d[0x1f1] = BZ_SETUP / 512 - 1;
	put_le32(d + 0x1f4, BZ_PAYLOAD / 16);
	put_le16(d + 0x1fe, 0xaa55);
	d[0x200] = 0xeb;
	d[0x201] = 0x6a; /* the header ends at 0x26c */
	memcpy(d + 0x202, "HdrS", 4);
	put_le16(d + 0x206, 0x20f);
	d[0x211] = 1;
	put_le32(d + 0x22c, 0x7fffffff);
	put_le32(d + 0x230, 0x200000);
	d[0x234] = 1;
	put_le16(d + 0x236, 1);
	put_le32(d + 0x238, 2047);
	put_le64(d + 0x258, 0x1000000);
	put_le32(d + 0x260, BZ_INIT_SIZE);
}

/* ELF of 32 or 64 bits with two PT_LOADs (text at `paddr`, then bss of 8 KiB behind 4 KiB of data) and room for a note.
 */
#define ELF_TEXT 0x1000 /* file offset */
#define ELF_TEXT_SIZE 0x2000
#define ELF_DATA 0x3000
#define ELF_DATA_SIZE 0x1000
#define ELF_DATA_MEM 0x3000
#define ELF_NOTES 0x800
static inline uint8_t *image_phdr(struct image *m, bool is64, unsigned i)
{
	return m->data + (is64 ? 64 + 56 * i : 52 + 32 * i);
}

static inline void image_set_phdr(struct image *m, bool is64, unsigned i, uint32_t type, uint64_t offset,
				  uint64_t vaddr, uint64_t paddr, uint64_t filesz, uint64_t memsz)
{
	uint8_t *p = image_phdr(m, is64, i);

	put_le32(p, type);
	if (is64) {
		const uint64_t v[] = {offset, vaddr, paddr, filesz, memsz, type == 4 ? 4 : 0x1000};

		memcpy(p + 8, v, sizeof(v));
	} else {
		const uint32_t v[] = {(uint32_t)offset, (uint32_t)vaddr, (uint32_t)paddr, (uint32_t)filesz,
				      (uint32_t)memsz};

		memcpy(p + 4, v, sizeof(v));
		put_le32(p + 28, type == 4 ? 4 : 0x1000);
	}
}

static inline void image_elf(struct image *m, bool is64, uint64_t paddr, uint64_t virt)
{
	uint8_t *d = m->data;

	memset(d, 0, sizeof(m->data));
	m->size = ELF_DATA + ELF_DATA_SIZE;
	image_fill(d + ELF_TEXT, m->size - ELF_TEXT);
	memcpy(d, "\177ELF", 4);
	d[4] = is64 ? 2 : 1;
	d[5] = d[6] = 1;
	put_le16(d + 16, 2);
	put_le16(d + 18, is64 ? 62 : 3);
	put_le32(d + 20, 1);
	if (is64) {
		put_le64(d + 24, virt + paddr + 0x40);
		put_le64(d + 32, 64);
		put_le16(d + 52, 64);
		put_le16(d + 54, 56);
		put_le16(d + 56, 3);
	} else {
		put_le32(d + 24, (uint32_t)(virt + paddr + 0x40));
		put_le32(d + 28, 52);
		put_le16(d + 40, 52);
		put_le16(d + 42, 32);
		put_le16(d + 44, 3);
	}
	image_set_phdr(m, is64, 0, 1, ELF_TEXT, virt + paddr, paddr, ELF_TEXT_SIZE, ELF_TEXT_SIZE);
	image_set_phdr(m, is64, 1, 1, ELF_DATA, virt + paddr + ELF_TEXT_SIZE, paddr + ELF_TEXT_SIZE, ELF_DATA_SIZE,
		       ELF_DATA_MEM);
}

/* A note of somebody else, then Xen's with the 32-bit entry. */
static inline void image_pvh_note(struct image *m, bool is64, uint32_t entry)
{
	uint8_t *n = m->data + ELF_NOTES;

	put_le32(n, 5);
	put_le32(n + 4, 3);
	put_le32(n + 8, 1);
	memcpy(n + 12, "Else", 5);
	n += 12 + 8 + 4;
	put_le32(n, 4);
	put_le32(n + 4, is64 ? 8 : 4);
	put_le32(n + 8, 18);
	memcpy(n + 12, "Xen", 4);
	put_le32(n + 16, entry);
	image_set_phdr(m, is64, 2, 4, ELF_NOTES, 0, 0, 24 + (is64 ? 24 : 20), 24 + (is64 ? 24 : 20));
}

#define MB_HEADER ELF_TEXT /* the first words of the text */
static inline void image_multiboot(struct image *m, uint64_t at, uint32_t flags)
{
	put_le32(m->data + at, 0x1badb002);
	put_le32(m->data + at + 4, flags);
	put_le32(m->data + at + 8, -(0x1badb002 + flags));
}

/* A flat binary that loads at 1 MiB: header at 0x40, 4 KiB of file, 4 KiB of bss. */
static inline void image_kludge(struct image *m)
{
	const uint32_t v[] = {0x100040, 0x100000, 0x101000, 0x102000, 0x100080};

	memset(m->data, 0, sizeof(m->data));
	m->size = 0x1000;
	image_fill(m->data, m->size);
	image_multiboot(m, 0x40, 0x10003);
	memcpy(m->data + 0x40 + 12, v, sizeof(v));
}

#endif
