/*
 * boot_fuzz [SECONDS [SEED]]: damaged kernels of every kind into the loaders. A load succeeds or fails with one line;
 * it never touches the firmware area or what lies outside of RAM (run it with the sanitizers), and it ends.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "../unit/boot/images.h"

#define RAM_MIB 24
#define BLOB_MAX 70000

struct rng {
	uint64_t s;
};

static uint64_t next(struct rng *r)
{
	r->s ^= r->s << 13;
	r->s ^= r->s >> 7;
	r->s ^= r->s << 17;
	return r->s;
}

static unsigned below(struct rng *r, unsigned n) { return (unsigned)((next(r) >> 16) % n); }

static void make(struct image *m, struct rng *r)
{
	bool is64 = below(r, 2);
	uint64_t paddr = below(r, 4) ? 0x200000 : (uint64_t)below(r, RAM_MIB * 256 + 16) * PAGE_SIZE;

	switch (below(r, 5)) {
	case 0:
		image_bzimage(m);
		break;
	case 1:
		image_elf(m, is64, paddr, below(r, 2) ? 0xc0000000 : 0);
		image_pvh_note(m, is64, 0x200040);
		break;
	case 2:
		image_elf(m, is64, paddr, below(r, 2) ? 0xc0000000 : 0);
		image_multiboot(m, MB_HEADER, 3);
		break;
	case 3:
		image_kludge(m);
		break;
	default:
		m->size = below(r, sizeof(m->data));
		for (uint64_t i = 0; i < m->size; i += 8)
			put_le64(m->data + (i < sizeof(m->data) - 8 ? i : 0), next(r));
		break;
	}
}

/* Header fields are where it hurts: values at the borders of things, mostly in the first 1.5 KiB. */
static void damage(struct image *m, struct rng *r)
{
	static const uint64_t edges[] = {
		0,
		1,
		2,
		0x7f,
		0x80,
		0xff,
		0x1000,
		0xa0000,
		0xfffff,
		0x100000,
		0x7fffffff,
		0x80000000,
		0xfffff000,
		0xffffffff,
		0x100000000,
		0x7fffffffffffffff,
		0xffffffff00000000,
		0xfffffffffffff000,
		0xffffffffffffffff,
		RAM_MIB * MIB - 1,
		RAM_MIB * MIB,
		RAM_MIB * MIB + 1,
	};
	static const unsigned windows[][2] = {
		{0, 0x180}, {0x1f0, 0xa0}, {ELF_NOTES, 0x60}, {MB_HEADER, 0x20}, {0x40, 0x20}};

	for (unsigned n = below(r, 6); n > 0; n--) {
		const unsigned *w = windows[below(r, ARRAY_LEN(windows))];
		unsigned at = w[0] + below(r, w[1]), bytes = 1u << below(r, 4);
		uint64_t v = below(r, 3) ? edges[below(r, ARRAY_LEN(edges))] : next(r) >> below(r, 64);

		if (below(r, 2))
			at &= ~(bytes - 1);
		memcpy(m->data + at, &v, bytes);
	}
	if (!below(r, 4))
		m->size = below(r, (unsigned)m->size + 1);
}

struct target {
	struct ram *ram;
	uint8_t *rom;
	uint64_t loads, good;
};

static bool one_line(const char *s) { return s[0] && !strchr(s, '\n'); }

static bool rom_untouched(const struct target *t)
{
	for (unsigned i = 0; i < E820_ROM_END - E820_VGA; i++)
		if (t->rom[i] != 0xa5)
			return false;
	return true;
}

static bool load_one(struct target *t, const struct image *m, struct rng *r)
{
	static struct cpu_state cpu;
	static uint8_t blob[BLOB_MAX];
	uint8_t *exact = malloc(m->size ? m->size : 1);
	struct boot_blob kernel = {"kernel", exact, m->size}, initrd = {"initrd", blob, 1 + below(r, BLOB_MAX)};
	struct boot_module modules[2] = {{{"a", blob, 1 + below(r, BLOB_MAX)}, "a b"}, {{"b", blob, 1}, ""}};
	struct boot_params p = {.ram = t->ram, .cmdline = below(r, 2) ? "console=ttyS0" : NULL, .rsdp = E820_ROM};
	struct error err = {{0}, {0}};
	bool ok;

	memcpy(exact, m->data, m->size);
	cpu_state_reset(&cpu, 0);
	ok = boot_load_blobs(&p, &kernel, below(r, 2) ? &initrd : NULL, modules, below(r, 4) ? 0 : 2, &cpu, &err);
	free(exact);
	t->loads++;
	t->good += ok;
	return ok ? ram_ptr(t->ram, cpu.gdt.base, 48) != NULL : one_line(err.msg);
}

int main(int argc, char **argv)
{
	double seconds = argc > 1 ? atof(argv[1]) : 2;
	uint64_t seed = argc > 2 ? strtoull(argv[2], NULL, 0) : 1;
	struct target t = {.ram = ram_new(RAM_MIB * MIB, NULL)};
	clock_t end = clock() + (clock_t)(seconds * CLOCKS_PER_SEC);
	static struct image m;

	if (!t.ram)
		return 1;
	t.rom = ram_ptr(t.ram, E820_VGA, E820_ROM_END - E820_VGA);
	memset(t.rom, 0xa5, E820_ROM_END - E820_VGA);
	for (uint64_t i = 0; clock() < end; i++) {
		struct rng r = {(seed << 32 | (i + 1)) * UINT64_C(0x9e3779b97f4a7c15)};

		make(&m, &r);
		damage(&m, &r);
		if (!load_one(&t, &m, &r) || (i % 64 == 0 && !rom_untouched(&t))) {
			printf("seed %llu, case %llu: wrong\n", (unsigned long long)seed, (unsigned long long)i);
			return 1;
		}
	}
	printf("%llu loads, %llu good\n", (unsigned long long)t.loads, (unsigned long long)t.good);
	ram_free(t.ram);
	return t.good == 0 || t.good == t.loads; /* a run that only fails, or never, tests nothing */
}
