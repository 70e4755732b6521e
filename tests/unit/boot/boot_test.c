#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include "images.h"

#define RSDP 0xe0000

static struct image img;

struct fixture {
	struct ram *ram;
	struct boot_params p;
	struct cpu_state cpu;
	struct error err;
};

static struct fixture fx;

static void start(uint64_t mib)
{
	static const struct e820_entry ecam = {0xe0000000, 0x10000000, E820_RESERVED};

	memset(&fx, 0, sizeof(fx));
	fx.ram = ram_new(mib * MIB, &fx.err);
	assert_non_null(fx.ram);
	fx.p = (struct boot_params){.ram = fx.ram, .rsdp = RSDP, .extra = &ecam, .nextra = 1};
	cpu_state_reset(&fx.cpu, 0);
}

static void stop(void) { ram_free(fx.ram); }

static bool load(const struct boot_blob *initrd, const struct boot_module *modules, unsigned n)
{
	struct boot_blob k = {"test.img", img.data, img.size};
	uint8_t *exact = malloc(img.size ? img.size : 1); /* so that a sanitizer sees what is read beyond the end */
	bool ok;

	memcpy(exact, img.data, img.size);
	k.data = exact;
	ok = boot_load_blobs(&fx.p, &k, initrd, modules, n, &fx.cpu, &fx.err);
	free(exact);
	return ok;
}

static void must_load(void)
{
	if (!load(NULL, NULL, 0))
		fail_msg("%s", fx.err.msg);
}

static void check_error(const char *part)
{
	if (!strstr(fx.err.msg, part))
		fail_msg("'%s' is not in '%s'", part, fx.err.msg);
	assert_true(fx.err.hint[0]);
	assert_null(strchr(fx.err.msg, '\n'));
	assert_null(strchr(fx.err.hint, '\n'));
}

/* Load img in a fresh machine: refused, with this in the message. */
static void must_refuse(const char *part)
{
	start(64);
	assert_false(load(NULL, NULL, 0));
	check_error(part);
	stop();
}

static const void *at(gpa_t gpa, uint64_t len)
{
	const void *p = ram_ptr(fx.ram, gpa, len);

	assert_non_null(p);
	return p;
}

static void check_flat32(void)
{
	const struct cpu_state *s = &fx.cpu;

	assert_int_equal(s->cr0, CR0_PE | CR0_ET);
	assert_true(s->cr4 == 0 && s->efer == 0 && s->rflags == 2);
	assert_true(s->seg[SEG_CS].base == 0 && s->seg[SEG_CS].limit == 0xffffffff && s->seg[SEG_CS].attr == 0xc09b);
	for (unsigned i = 0; i < SEG_COUNT; i++)
		if (i != SEG_CS)
			assert_true(s->seg[i].base == 0 && s->seg[i].limit == 0xffffffff && s->seg[i].attr == 0xc093);
	assert_int_equal(s->tr.attr, 0x8b);
	assert_int_equal(get_le64((const uint8_t *)at(s->gdt.base, 32) + 0x10), 0x00cf9b000000ffff);
	assert_int_equal(get_le64((const uint8_t *)at(s->gdt.base, 32) + 0x18), 0x00cf93000000ffff);
	assert_int_equal(s->run_state, CPU_RUNNING);
	assert_int_equal(s->mtrr_def_type, 0x806);
	assert_int_equal(get_le16(s->xsave), 0x37f);
}

/* Four-level walk through the boot page tables: every address is itself. */
static void check_identity(gpa_t cr3, gva_t va)
{
	uint64_t e = cr3 | 1;

	for (unsigned shift = 39; shift >= 21; shift -= 9) {
		e = get_le64((const uint8_t *)at(e & ~UINT64_C(0xfff), 4096) + ((va >> shift) & 511) * 8);
		assert_int_equal(e & 3, 3);
	}
	assert_true(e & 0x80);
	assert_int_equal((e & ~UINT64_C(0x1fffff)) + (va & 0x1fffff), va);
}

static void test_bzimage(void **state)
{
	const struct cpu_state *s = &fx.cpu;
	const uint8_t *zp;

	(void)state;
	start(512);
	image_bzimage(&img);
	fx.p.cmdline = "console=ttyS0 x=y";
	must_load();
	assert_int_equal(s->rip, 0x1000200);
	assert_int_equal(s->cr0, CR0_PE | CR0_ET | CR0_NE | CR0_PG);
	assert_true(s->cr4 == CR4_PAE && s->efer == (EFER_LME | EFER_LMA) && s->rflags == 2);
	assert_true(s->seg[SEG_CS].sel == 0x10 && s->seg[SEG_CS].attr == 0xa09b && cpu_is_64bit(s));
	assert_true(s->seg[SEG_DS].sel == 0x18 && s->seg[SEG_SS].sel == 0x18);
	assert_int_equal(get_le64((const uint8_t *)at(s->gdt.base, 32) + 0x10), 0x00af9b000000ffff);
	check_identity(s->cr3, 0);
	check_identity(s->cr3, s->rip);
	check_identity(s->cr3, s->gpr[R_SI]);
	check_identity(s->cr3, 4 * GIB - 1);
	assert_memory_equal(at(0x1000000, BZ_PAYLOAD), img.data + BZ_SETUP, BZ_PAYLOAD);

	zp = at(s->gpr[R_SI], 4096);
	assert_int_equal(s->gpr[R_SI] & 0xfff, 0);
	assert_memory_equal(zp + 0x202, "HdrS", 4);
	assert_int_equal(zp[0x210], 0xff);
	assert_int_equal(get_le32(zp + 0x214), 0x1000000);
	assert_int_equal(get_le32(zp + 0x260), BZ_INIT_SIZE); /* inside the header: it was copied to its end */
	assert_int_equal(get_le64(zp + 0x070), RSDP);
	assert_int_equal(get_le32(zp + 0x218) | get_le32(zp + 0x21c), 0);
	assert_string_equal(at(get_le32(zp + 0x228), 64), "console=ttyS0 x=y");
	assert_int_equal(zp[0x1e8], 5);
	assert_int_equal(get_le64(zp + 0x2d0), 0);
	assert_int_equal(get_le64(zp + 0x2d8), 0x9fc00);
	assert_int_equal(get_le32(zp + 0x2e0), 1);
	assert_int_equal(get_le64(zp + 0x2d0 + 4 * 20), 0xe0000000);
	stop();
}

static void test_bzimage_places(void **state)
{
	(void)state;
	image_bzimage(&img);
	put_le64(img.data + 0x258, 0x4000000);
	start(32); /* less than where it wants to be: the lowest aligned place */
	must_load();
	assert_int_equal(fx.cpu.rip, 0x200200);
	stop();
	put_le64(img.data + 0x258, UINT64_MAX - 0xfff);
	start(32);
	must_load();
	stop();
	img.data[0x234] = 0;
	must_refuse("no room");
	put_le32(img.data + 0x260, 0xffffffff);
	img.data[0x234] = 1;
	must_refuse("no room");
}

static void test_bzimage_initrd(void **state)
{
	static uint8_t data[100000];
	struct boot_blob rd = {"rd.img", data, sizeof(data)};
	const uint8_t *zp;
	uint32_t base;

	(void)state;
	image_fill(data, sizeof(data));
	image_bzimage(&img);
	for (unsigned big = 0; big < 2; big++) {
		start(big ? 5120 : 64);
		assert_true(load(&rd, NULL, 0));
		zp = at(fx.cpu.gpr[R_SI], 4096);
		base = get_le32(zp + 0x218);
		assert_int_equal(get_le32(zp + 0x21c), sizeof(data));
		assert_int_equal(base, align_down((big ? 2048 * MIB : 64 * MIB) - sizeof(data),
						  PAGE_SIZE)); /* initrd_addr_max */
		assert_memory_equal(at(base, sizeof(data)), data, sizeof(data));
		stop();
	}
	start(64);
	rd.size = 60 * MIB;
	rd.data = calloc(1, rd.size);
	assert_false(load(&rd, NULL, 0));
	check_error("initrd rd.img: no room");
	stop();
	start(64);
	rd.size = 40 * MIB; /* does not fit above the kernel and not below */
	put_le64(img.data + 0x258, 32 * MIB);
	assert_false(load(&rd, NULL, 0));
	check_error("no room");
	stop();
	free((void *)rd.data);
}

static void test_bzimage_errors(void **state)
{
	char cmdline[3000];

	(void)state;
	image_bzimage(&img);
	img.size = 0x230;
	must_refuse("ends inside its header");
	image_bzimage(&img);
	img.size -= 4096;
	must_refuse("truncated");
	img.size = BZ_SETUP;
	must_refuse("truncated");
	image_bzimage(&img);
	img.data[0x1f1] = 255;
	must_refuse("truncated");
	image_bzimage(&img);
	put_le32(img.data + 0x1f4, 0xffffffff);
	must_refuse("truncated");
	put_le32(img.data + 0x1f4, 0);
	must_refuse("truncated");
	image_bzimage(&img);
	put_le16(img.data + 0x236, 0);
	must_refuse("no 64-bit entry");
	image_bzimage(&img);
	put_le16(img.data + 0x206, 0x20a);
	must_refuse("2.10");
	for (uint32_t alignment = 0; alignment <= 4095; alignment += 1365) {
		image_bzimage(&img);
		put_le32(img.data + 0x230, alignment);
		must_refuse("contradicts");
	}
	put_le32(img.data + 0x230, 0x80000000);
	must_refuse("contradicts");
	image_bzimage(&img);
	put_le32(img.data + 0x260, 0x1000);
	must_refuse("contradicts");

	image_bzimage(&img);
	memset(cmdline, 'a', sizeof(cmdline));
	cmdline[2048] = 0;
	start(64);
	fx.p.cmdline = cmdline;
	assert_false(load(NULL, NULL, 0));
	check_error("2047 characters, this one has 2048");
	cmdline[2047] = 0;
	must_load();
	stop();
	start(64);
	assert_false(load(NULL, (struct boot_module[]){{{"m", img.data, 10}, ""}}, 1));
	check_error("initrd, not modules");
	stop();
	start(1);
	assert_false(load(NULL, NULL, 0));
	check_error("no room");
	stop();
}

static void check_elf_loaded(uint64_t paddr)
{
	assert_memory_equal(at(paddr, ELF_TEXT_SIZE), img.data + ELF_TEXT, ELF_TEXT_SIZE);
	assert_memory_equal(at(paddr + ELF_TEXT_SIZE, ELF_DATA_SIZE), img.data + ELF_DATA, ELF_DATA_SIZE);
	for (unsigned i = ELF_DATA_SIZE; i < ELF_DATA_MEM; i++)
		assert_int_equal(*(const uint8_t *)at(paddr + ELF_TEXT_SIZE + i, 1), 0);
}

static void test_pvh(void **state)
{
	static const uint8_t rd_data[5000] = {1, 2, 3}, mod_data[] = "module";
	const struct boot_blob rd = {"rd", rd_data, sizeof(rd_data)};
	const struct boot_module mod = {{"mod", mod_data, sizeof(mod_data)}, "its string"};
	const uint8_t *si, *list;

	(void)state;
	for (unsigned is64 = 0; is64 < 2; is64++) {
		image_elf(&img, is64, 0x200000, is64 ? 0xffffffff80000000 : 0xc0000000);
		image_pvh_note(&img, is64, 0x200123);
		start(64);
		fx.p.cmdline = "pvh=1";
		memset((void *)at(0x200000, 0x10000), 0xff, 0x10000); /* what a reboot leaves there */
		assert_true(load(&rd, &mod, 1));
		check_elf_loaded(0x200000);
		check_flat32();
		assert_int_equal(fx.cpu.rip, 0x200123);
		si = at(fx.cpu.gpr[R_BX], 56);
		assert_int_equal(get_le32(si), 0x336ec578);
		assert_int_equal(get_le32(si + 4), 1);
		assert_int_equal(get_le32(si + 12), 2);
		assert_string_equal(at(get_le64(si + 24), 8), "pvh=1");
		assert_int_equal(get_le64(si + 32), RSDP);
		assert_int_equal(get_le32(si + 48), 5);
		assert_int_equal(get_le64((const uint8_t *)at(get_le64(si + 40), 120) + 8), 0x9fc00);
		list = at(get_le64(si + 16), 64);
		assert_int_equal(get_le64(list + 8), sizeof(rd_data));
		assert_memory_equal(at(get_le64(list), sizeof(rd_data)), rd_data, sizeof(rd_data));
		assert_memory_equal(at(get_le64(list + 32), sizeof(mod_data)), mod_data, sizeof(mod_data));
		assert_string_equal(at(get_le64(list + 48), 16), "its string");
		stop();
	}
}

static void test_elf_errors(void **state)
{
	const uint64_t bad_paddr[] = {0xa0000 - 0x1000, 0xffff0000, 64 * MIB - 0x1000, 4 * GIB, UINT64_MAX - 0xfff};

	(void)state;
	image_elf(&img, true, 0x200000, 0);
	must_refuse("without a PVH entry");
	image_pvh_note(&img, true, 0x200000);
	put_le32(img.data + ELF_NOTES + 24, 0xfffffff0); /* namesz */
	must_refuse("without a PVH entry");
	for (unsigned i = 0; i < ARRAY_LEN(bad_paddr); i++) {
		image_elf(&img, true, 0x200000, 0);
		image_pvh_note(&img, true, 0x200000);
		image_set_phdr(&img, true, 0, 1, ELF_TEXT, 0, bad_paddr[i], ELF_TEXT_SIZE, ELF_TEXT_SIZE);
		must_refuse("not in free memory");
	}
	image_elf(&img, true, 0x200000, 0);
	image_pvh_note(&img, true, 0x200000);
	image_set_phdr(&img, true, 0, 1, ELF_TEXT, 0, 0x201000, ELF_TEXT_SIZE, ELF_TEXT_SIZE); /* over the other */
	must_refuse("not in free memory");
	image_set_phdr(&img, true, 0, 1, ELF_TEXT, 0, 0x100000, ELF_TEXT_SIZE, UINT64_MAX);
	must_refuse("not in free memory");
	image_set_phdr(&img, true, 0, 1, ELF_TEXT, 0, 0x100000, ELF_TEXT_SIZE, 1);
	must_refuse("reaches beyond the file");
	image_set_phdr(&img, true, 0, 1, img.size - 1, 0, 0x100000, 2, 2);
	must_refuse("reaches beyond the file");
	image_set_phdr(&img, true, 0, 1, UINT64_MAX, 0, 0x100000, 2, 2);
	must_refuse("reaches beyond the file");
	image_set_phdr(&img, true, 0, 7, 0, 0, 0, 0, 0);
	image_set_phdr(&img, true, 1, 7, 0, 0, 0, 0, 0);
	must_refuse("nothing to load");
	put_le64(img.data + 32, UINT64_MAX - 8);
	must_refuse("program headers");
	put_le64(img.data + 32, 64);
	put_le16(img.data + 56, 0xffff);
	must_refuse("program headers");
	put_le16(img.data + 56, 0);
	must_refuse("program headers");
	put_le16(img.data + 18, 183);
	must_refuse("another machine");
	img.data[5] = 2;
	must_refuse("another machine");
	image_elf(&img, true, 0x200000, 0);
	put_le16(img.data + 16, 1);
	must_refuse("no executable");
	image_elf(&img, true, 0x200000, 0);
	img.size = 56;
	must_refuse("ends inside its ELF header");
	img.size = 51;
	must_refuse("not a kernel");
}

static void check_multiboot_info(bool modules)
{
	const uint8_t *mbi, *mods, *map;

	check_flat32();
	assert_int_equal(fx.cpu.gpr[R_AX], 0x2badb002);
	mbi = at(fx.cpu.gpr[R_BX], 116);
	assert_int_equal(fx.cpu.gpr[R_BX] & 3, 0);
	assert_int_equal(get_le32(mbi),
			 0x24d); /* memory, command line, modules, map, name; not boot device, not video */
	assert_int_equal(get_le32(mbi + 4), 639);
	assert_int_equal(get_le32(mbi + 8), 63 * 1024);
	assert_string_equal(at(get_le32(mbi + 16), 8), "a b=c");
	assert_string_equal(at(get_le32(mbi + 64), 8), "doppel");
	assert_int_equal(get_le32(mbi + 44), 5 * 24);
	map = at(get_le32(mbi + 48), 5 * 24);
	assert_int_equal(get_le32(map), 20);
	assert_int_equal(get_le64(map + 4), 0);
	assert_int_equal(get_le64(map + 12), 0x9fc00);
	assert_int_equal(get_le32(map + 20), 1);
	assert_int_equal(get_le64(map + 3 * 24 + 4), MIB);
	assert_int_equal(get_le32(mbi + 20), modules ? 2 : 0);
	if (!modules)
		return;
	mods = at(get_le32(mbi + 24), 32);
	for (unsigned i = 0; i < 2; i++) {
		uint32_t from = get_le32(mods + 16 * i), to = get_le32(mods + 16 * i + 4);

		assert_int_equal(from & 0xfff, 0);
		assert_true(from >= 0x205000); /* behind the kernel's bss */
		assert_int_equal(to - from, i ? 3 : 5000);
		assert_int_equal(*(const uint8_t *)at(from, 1), 'A' + i);
	}
	assert_string_equal(at(get_le32(mods + 8), 8), "one");
	assert_string_equal(at(get_le32(mods + 24), 8), "");
}

static void test_multiboot_elf(void **state)
{
	static const uint8_t a[5000] = {'A'}, b[3] = {'B'};
	const struct boot_module mods[] = {{{"a", a, sizeof(a)}, "one"}, {{"b", b, sizeof(b)}, ""}};

	(void)state;
	for (unsigned is64 = 0; is64 < 2; is64++)
		for (unsigned higher_half = 0; higher_half < 2; higher_half++) {
			image_elf(&img, is64, 0x200000, higher_half ? 0xc0000000 : 0);
			image_multiboot(&img, MB_HEADER, 3);
			start(64);
			fx.p.cmdline = "a b=c";
			if (!load(NULL, mods, 2))
				fail_msg("%s", fx.err.msg);
			assert_int_equal(fx.cpu.rip, 0x200040);
			check_elf_loaded(0x200000);
			check_multiboot_info(true);
			stop();
		}
}

static void test_multiboot_kludge(void **state)
{
	(void)state;
	image_kludge(&img);
	start(64);
	fx.p.cmdline = "a b=c";
	memset((void *)at(0x100000, 0x4000), 0xff, 0x4000);
	must_load();
	assert_int_equal(fx.cpu.rip, 0x100080);
	assert_memory_equal(at(0x100000, 0x1000), img.data, 0x1000);
	assert_int_equal(*(const uint8_t *)at(0x101fff, 1), 0);
	assert_int_equal(*(const uint8_t *)at(0x102000, 1), 0xff);
	check_multiboot_info(false);
	stop();
	put_le32(img.data + 0x40 + 20, 0); /* load_end 0: to the end of the file; bss_end 0: none */
	put_le32(img.data + 0x40 + 24, 0);
	start(64);
	fx.p.cmdline = "a b=c";
	must_load();
	assert_memory_equal(at(0x100000, 0x1000), img.data, 0x1000);
	stop();
}

static void test_multiboot_errors(void **state)
{
	static const struct {
		uint32_t v[5];
		const char *part;
	} bad[] = {
		{{0x100040, 0x100080, 0x101000, 0x102000, 0}, "contradict"},
		{{0x200040, 0x100000, 0x101000, 0x102000, 0}, "contradict"},
		{{0x100040, 0x100000, 0x102000, 0x103000, 0}, "beyond the file"},
		{{0x100040, 0x100000, 0x0ff000, 0x103000, 0}, "beyond the file"},
		{{0x100040, 0x100000, 0x101000, 0xffffffff, 0}, "not free memory"},
		{{0x0a0040, 0x0a0000, 0x0a1000, 0x0a1000, 0}, "not free memory"},
		{{0x100040, 0x100000, 0x100000, 0x100000, 0}, "not free memory"},
	};

	(void)state;
	for (unsigned i = 0; i < ARRAY_LEN(bad); i++) {
		image_kludge(&img);
		memcpy(img.data + 0x40 + 12, bad[i].v, sizeof(bad[i].v));
		must_refuse(bad[i].part);
	}
	image_kludge(&img);
	img.size = 0x40 + 20;
	must_refuse("ends inside its Multiboot header");
	image_kludge(&img);
	image_multiboot(&img, 0x40, 0x10008);
	must_refuse("unknown features");
	image_kludge(&img);
	image_multiboot(&img, 0x40, 3);
	must_refuse("neither ELF nor");
	image_kludge(&img);
	put_le32(img.data + 0x48, 0); /* checksum */
	must_refuse("not a kernel");
	image_kludge(&img);
	image_multiboot(&img, 0x42, 0x10003); /* not aligned */
	must_refuse("not a kernel");
	image_elf(&img, true, 0x200000, 0);
	image_multiboot(&img, MB_HEADER, 3);
	put_le64(img.data + 24, 0x100000000);
	must_refuse("out of 32 bits");
}

static void test_unknown(void **state)
{
	static const struct {
		const char *magic;
		size_t len;
		const char *part;
	} files[] = {
		{"\x1f\x8b\x08", 3, "gzip"},
		{"\xfd"
		 "7zXZ",
		 6, "xz"},
		{"\x28\xb5\x2f\xfd", 4, "zstd"},
		{"070701", 6, "cpio"},
		{"#!/bin/sh\n", 10, "script"},
		{"hello", 5, "not a kernel"},
		{"", 0, "not a kernel"},
	};

	(void)state;
	for (unsigned i = 0; i < ARRAY_LEN(files); i++) {
		memset(img.data, 0, sizeof(img.data));
		memcpy(img.data, files[i].magic, files[i].len);
		img.size = files[i].len;
		must_refuse(files[i].part);
	}
}

static void write_file(const char *path, const void *data, size_t len)
{
	FILE *f = fopen(path, "wb");

	assert_non_null(f);
	assert_int_equal(fwrite(data, 1, len, f), len);
	assert_int_equal(fclose(f), 0);
}

static void refuse_files(const char *part)
{
	assert_false(boot_load(&fx.p, &fx.cpu, &fx.err));
	check_error(part);
}

/* boot_load itself: paths, "FILE=string", what cannot be read. */
static void test_files(void **state)
{
	char dir[] = "/tmp/boot_test_XXXXXX", kernel[64], module[80], empty[64], fifo[64];
	const char *modules[40];
	const uint8_t *mbi, *mods;

	(void)state;
	assert_non_null(mkdtemp(dir));
	snprintf(kernel, sizeof(kernel), "%s/kernel", dir);
	snprintf(empty, sizeof(empty), "%s/empty", dir);
	snprintf(fifo, sizeof(fifo), "%s/fifo", dir);
	snprintf(module, sizeof(module), "%s/kernel=a string = b", dir);
	image_kludge(&img);
	write_file(kernel, img.data, img.size);
	write_file(empty, "", 0);
	assert_int_equal(mkfifo(fifo, 0600), 0);
	start(64);
	fx.p.kernel = fx.p.initrd = kernel;
	fx.p.modules = modules;
	modules[0] = module;
	modules[1] = kernel;
	fx.p.nmodules = 2;
	if (!boot_load(&fx.p, &fx.cpu, &fx.err))
		fail_msg("%s", fx.err.msg);
	mbi = at(fx.cpu.gpr[R_BX], 116);
	assert_int_equal(get_le32(mbi + 20), 3);
	mods = at(get_le32(mbi + 24), 48);
	assert_string_equal(at(get_le32(mods + 16 + 8), 16), "a string = b");
	assert_string_equal(at(get_le32(mods + 32 + 8), 16), kernel);
	assert_memory_equal(at(get_le32(mods + 16), 0x1000), img.data, 0x1000);

	modules[1] = "/nonexistent/file=x";
	refuse_files("module /nonexistent/file: No such file");
	modules[1] = dir;
	refuse_files("not a regular file");
	modules[1] = fifo;
	refuse_files("not a regular file");
	for (unsigned i = 0; i < ARRAY_LEN(modules); i++)
		modules[i] = kernel;
	fx.p.nmodules = ARRAY_LEN(modules);
	assert_false(boot_load(&fx.p, &fx.cpu, &fx.err));
	assert_non_null(strstr(fx.err.msg, "40 modules"));
	fx.p.nmodules = 0;
	fx.p.initrd = empty;
	refuse_files("initrd");
	fx.p.initrd = NULL;
	fx.p.kernel = empty;
	refuse_files("the file is empty");
	fx.p.kernel = "/nonexistent";
	refuse_files("kernel /nonexistent: No such file");
	assert_int_equal(truncate(empty, (off_t)(65 * MIB)), 0);
	fx.p.kernel = kernel;
	fx.p.initrd = empty;
	refuse_files("65 MiB are more than the 64 MiB");
	stop();
	unlink(kernel);
	unlink(empty);
	unlink(fifo);
	rmdir(dir);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_bzimage),
		cmocka_unit_test(test_bzimage_places),
		cmocka_unit_test(test_bzimage_initrd),
		cmocka_unit_test(test_bzimage_errors),
		cmocka_unit_test(test_pvh),
		cmocka_unit_test(test_elf_errors),
		cmocka_unit_test(test_multiboot_elf),
		cmocka_unit_test(test_multiboot_kludge),
		cmocka_unit_test(test_multiboot_errors),
		cmocka_unit_test(test_unknown),
		cmocka_unit_test(test_files),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
