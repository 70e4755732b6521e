/*
 * Cross-check of the decoder with Zydis, and a benchmark.
 *
 *   decode-cross                      a seeded sample of the opcode space in all modes, and this program's own code
 * (the suite) decode-cross --full               every opcode x prefixes x modrm classes x modes decode-cross --random N
 * [--seed S] decode-cross --binary FILE...     linear sweep of the code of ELF files decode-cross --bench FILE
 * nanoseconds per instruction
 *
 * Exit status 1 when a difference was found that zydis_compare.c does not list with its reason.
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "engine/soft/translate/decode.h"
#include "zydis_compare.h"

#undef PF_W /* page fault error bit; elf.h means something else */
#include <elf.h>

#define MAX_REPORTS 20

struct check {
	uint64_t rng;
	unsigned keep; /* of the structured cases, one in so many */
	enum insn_cpu_mode mode;
	unsigned long count[CMP_DIFFERS + 1];
};

static uint64_t next_random(struct check *k)
{
	k->rng ^= k->rng << 13;
	k->rng ^= k->rng >> 7;
	k->rng ^= k->rng << 17;
	return k->rng;
}

static void check_one(struct check *k, const uint8_t *bytes)
{
	char why[1024];
	enum compare_result r = zydis_compare(bytes, INSN_MAX_LEN, k->mode, why, sizeof(why));

	k->count[r]++;
	if (r != CMP_DIFFERS || k->count[r] > MAX_REPORTS)
		return;
	printf("%d-bit ", 16 << k->mode);
	for (unsigned i = 0; i < INSN_MAX_LEN; i++)
		printf("%02x", bytes[i]);
	printf("%s\n", why);
}

/* bytes[0..n) fixed, the rest random; one in k->keep is checked. */
static void check_case(struct check *k, const uint8_t *bytes, unsigned n)
{
	uint8_t b[INSN_MAX_LEN];
	uint64_t r = next_random(k);

	if (k->keep > 1 && (r >> 20) % k->keep)
		return;
	memcpy(b, bytes, n);
	for (unsigned i = n; i < sizeof(b); i++)
		b[i] = (uint8_t)(next_random(k) >> 13);
	check_one(k, b);
}

/* The classes of addressing: mod, and rm or sib with and without base and index. */
static void check_modrm(struct check *k, uint8_t *b, unsigned n)
{
	static const uint8_t forms[] = {0x00, 0x04, 0x05, 0x06, 0x40, 0x44, 0x45,
					0x80, 0x84, 0xc0, 0xc1, 0xc4, 0xc5, 0xc7};

	for (unsigned reg = 0; reg < 8; reg++)
		for (unsigned i = 0; i < sizeof(forms); i++) {
			b[n] = forms[i] | (uint8_t)(reg << 3);
			check_case(k, b, n + 1);
		}
}

static void sweep_legacy(struct check *k)
{
	static const char *const prefixes[] = {
		"",	    "\x66",	"\xf3",	    "\xf2",	"\x67",	    "\xf0",	    "\x48",	"\x41",
		"\x45",	    "\x66\x48", "\xf3\x48", "\xf2\x48", "\x66\xf2", "\x66\xf3",	    "\xf2\x66", "\xf0\x66",
		"\xf0\x48", "\x64",	"\x36\x67", "\x4f\x66", "\x66\x67", "\xf3\x66\x44",
	};

	for (unsigned p = 0; p < ARRAY_LEN(prefixes); p++)
		for (unsigned map = 0; map < 4; map++)
			for (unsigned op = 0; op < 256; op++) {
				uint8_t b[INSN_MAX_LEN];
				unsigned n = (unsigned)strlen(prefixes[p]);

				memcpy(b, prefixes[p], n);
				if (map)
					b[n++] = 0x0f;
				if (map > 1)
					b[n++] = map == 2 ? 0x38 : 0x3a;
				b[n++] = (uint8_t)op;
				check_modrm(k, b, n);
			}
}

static void sweep_vex(struct check *k)
{
	static const uint8_t rxb[] = {0xe0, 0x60, 0xc0, 0xa0}, vvvv[] = {0x78, 0x70, 0x28, 0x00};

	for (unsigned map = 1; map < 4; map++)
		for (unsigned r = 0; r < 4; r++)
			for (unsigned v = 0; v < 4; v++)
				for (unsigned w_l_pp = 0; w_l_pp < 16; w_l_pp++)
					for (unsigned op = 0; op < 256; op++) {
						uint8_t b[INSN_MAX_LEN] = {0xc4, (uint8_t)(rxb[r] | map)};

						b[2] = (uint8_t)((w_l_pp & 8) << 4) | vvvv[v] | (w_l_pp & 7);
						b[3] = (uint8_t)op;
						check_modrm(k, b, 4);
					}
}

static void sweep_evex(struct check *k)
{
	static const uint8_t maps[] = {1, 2, 3, 5, 6}, rxbr[] = {0xf0, 0x70, 0xe0, 0x90}, vvvv[] = {0x7c, 0x74, 0x04};
	/* aaa and z; V' */
	static const uint8_t masks[] = {0x08, 0x0b, 0x8b, 0x88, 0x00, 0x03};

	for (unsigned m = 0; m < ARRAY_LEN(maps); m++)
		for (unsigned r = 0; r < 4 * 3 * 6; r++)
			for (unsigned w_pp = 0; w_pp < 8; w_pp++)
				for (unsigned ll_b = 0; ll_b < 8; ll_b++)
					for (unsigned op = 0; op < 256; op++) {
						uint8_t b[INSN_MAX_LEN] = {0x62, rxbr[r % 4] | maps[m]};

						b[2] = (uint8_t)((w_pp & 4) << 5) | vvvv[r / 4 % 3] | (w_pp & 3);
						b[3] = masks[r / 12] | (uint8_t)(ll_b << 4);
						b[4] = (uint8_t)op;
						check_modrm(k, b, 5);
					}
}

static void sweep_all(struct check *k, unsigned keep)
{
	for (unsigned mode = MODE_16; mode <= MODE_64; mode++) {
		k->mode = mode;
		k->keep = keep;
		sweep_legacy(k);
		sweep_vex(k);
		k->keep = keep * 8;
		sweep_evex(k);
	}
}

/* Random bytes behind random prefixes and escapes. */
static void sweep_random(struct check *k, unsigned long n)
{
	static const uint8_t prefixes[] = {0x66, 0xf2, 0xf3, 0xf0, 0x67, 0x48, 0x41, 0x2e, 0x64, 0x4f, 0x36};
	static const uint8_t maps[] = {1, 2, 3, 5, 6};

	k->keep = 1;
	while (n--) {
		uint8_t b[INSN_MAX_LEN];
		uint64_t r = next_random(k);
		unsigned p = 0;

		k->mode = r % 3;
		for (r >>= 8; (r & 3) == 0 && p < 4; r >>= 2)
			b[p++] = prefixes[next_random(k) % sizeof(prefixes)];
		r = next_random(k);
		switch (r % 7) {
		case 1: b[p++] = 0x0f; break;
		case 2: b[p++] = 0x0f; b[p++] = 0x38; break;
		case 3: b[p++] = 0x0f; b[p++] = 0x3a; break;
		case 4: b[p++] = 0xc5; b[p++] = (uint8_t)(r >> 8) | (r & 0x10000 ? 0xf8 : 0); break;
		case 5:
			b[p++] = 0xc4;
			b[p++] = ((r >> 8) & 0xe0) | maps[(r >> 16) % 3] | (r & 0x100000 ? 0xc0 : 0);
			b[p++] = (uint8_t)(r >> 24) | (r & 0x200000 ? 0x78 : 0);
			break;
		case 6:
			b[p++] = 0x62;
			b[p++] = ((r >> 8) & 0xf0) | maps[(r >> 16) % 5] | (r & 0x100000 ? 0xf0 : 0);
			b[p++] = (uint8_t)(r >> 24) | 4 | (r & 0x200000 ? 0x78 : 0);
			b[p++] = (uint8_t)((r >> 32) & (r & 0x400000 ? 0x68 : 0xff)) | (r & 0x800000 ? 8 : 0);
			break;
		}
		check_case(k, b, p);
	}
}

struct code {
	void *map;
	size_t map_size;
	const uint8_t *bytes;
	size_t size;
};

/* Map an ELF64 file and find .text, or else its executable segment. */
static bool open_code(const char *path, struct code *c)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	struct stat st;

	if (fd < 0 || fstat(fd, &st) < 0) {
		perror(path);
		return false;
	}
	c->map_size = (size_t)st.st_size;
	c->map = mmap(NULL, c->map_size, PROT_READ, MAP_PRIVATE, fd, 0);
	close(fd);
	const uint8_t *base = c->map;
	const Elf64_Ehdr *eh = c->map;

	if (c->map == MAP_FAILED || c->map_size < sizeof(*eh) || memcmp(eh->e_ident, ELFMAG, SELFMAG) != 0) {
		fprintf(stderr, "%s: no ELF file\n", path);
		return false;
	}
	const Elf64_Phdr *ph = (const void *)(base + eh->e_phoff);

	c->size = 0;
	for (unsigned i = 0; i < eh->e_phnum; i++)
		if (ph[i].p_type == PT_LOAD && (ph[i].p_flags & PF_X) &&
		    range_ok(ph[i].p_offset, ph[i].p_filesz, c->map_size)) {
			c->bytes = base + ph[i].p_offset;
			c->size = ph[i].p_filesz;
		}
	const Elf64_Shdr *sh = (const void *)(base + eh->e_shoff);

	if (!eh->e_shnum || !range_ok(eh->e_shoff, (uint64_t)eh->e_shnum * sizeof(*sh), c->map_size))
		return c->size != 0;
	const char *names = (const char *)base + sh[eh->e_shstrndx].sh_offset;

	for (unsigned i = 0; i < eh->e_shnum; i++)
		if (!strcmp(names + sh[i].sh_name, ".text")) {
			c->bytes = base + sh[i].sh_offset;
			c->size = sh[i].sh_size;
		}
	return c->size != 0;
}

static bool sweep_binary(struct check *k, const char *path)
{
	struct code c;
	struct insn in;

	if (!open_code(path, &c))
		return false;
	k->mode = MODE_64;
	for (size_t off = 0; off + INSN_MAX_LEN <= c.size;) {
		check_one(k, c.bytes + off);
		off += insn_decode(c.bytes + off, INSN_MAX_LEN, MODE_64, &in) == DECODE_OK ? in.len : 1;
	}
	munmap(c.map, c.map_size);
	return true;
}

static bool bench(const char *path)
{
	struct code c;
	struct insn in;
	struct timespec t0, t1;
	unsigned long n = 0, sum = 0;
	double best = 1e9;

	if (!open_code(path, &c))
		return false;
	for (unsigned round = 0; round < 20; round++) {
		n = 0;
		clock_gettime(CLOCK_MONOTONIC, &t0);
		for (size_t off = 0; off < c.size; n++) {
			size_t left = c.size - off;

			off += insn_decode(c.bytes + off, left < 64 ? (unsigned)left : 64, MODE_64, &in) == DECODE_OK
				       ? in.len
				       : 1;
			sum += in.mem_size;
		}
		clock_gettime(CLOCK_MONOTONIC, &t1);
		double ns = ((double)(t1.tv_sec - t0.tv_sec) * 1e9 + (double)(t1.tv_nsec - t0.tv_nsec)) / (double)n;

		best = ns < best ? ns : best;
	}
	printf("%s: %lu instructions, %.1f ns each (checksum %lu)\n", path, n, best, sum);
	munmap(c.map, c.map_size);
	return true;
}

int main(int argc, char **argv)
{
	struct check k = {.rng = UINT64_C(0x9e3779b97f4a7c15), .keep = 1};
	const char *what = argc > 1 ? argv[1] : "";

	if (!strcmp(what, "--bench") && argc == 3)
		return !bench(argv[2]);
	if (!strcmp(what, "--full")) {
		sweep_all(&k, 1);
	} else if (!strcmp(what, "--random") && argc >= 3) {
		if (argc == 5 && !strcmp(argv[3], "--seed"))
			k.rng ^= strtoull(argv[4], NULL, 0) * UINT64_C(0x2545f4914f6cdd1d);
		sweep_random(&k, strtoul(argv[2], NULL, 0));
	} else if (!strcmp(what, "--binary")) {
		for (int i = 2; i < argc; i++)
			if (!sweep_binary(&k, argv[i]))
				return 1;
	} else if (argc == 1) {
		sweep_all(&k, 40);
		sweep_random(&k, 300000);
		if (!sweep_binary(&k, "/proc/self/exe"))
			return 1;
	} else {
		fprintf(stderr,
			"usage: decode-cross [--full | --random N [--seed S] | --binary FILE... | --bench FILE]\n");
		return 2;
	}
	printf("%lu the same, %lu invalid in both, %lu allowed differences, %lu differences\n", k.count[CMP_SAME],
	       k.count[CMP_INVALID], k.count[CMP_ALLOWED], k.count[CMP_DIFFERS]);
	return k.count[CMP_DIFFERS] != 0;
}
