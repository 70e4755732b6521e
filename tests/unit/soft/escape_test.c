/*
 * Attempts to get out of the translator: every host address that translated code forms must lie in the guest's RAM, at the
 * right place, or fault; whatever the guest's addresses, modes, jumps and writes to its own code.
 *
 * usage: escape_test                 the test cases
 *        escape_test SECONDS [SEED]  random programs in volume; prints how many ran a second
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <cmocka.h>

#include "engine/soft/cache/cache_int.h"
#include "engine/soft/mmu/mmu.h"
#include "rig.h"

#define CODE UINT64_C(0x10000000)
#define CODE_GPA 0x200000u
#define DATA UINT64_C(0x20000000)
#define DATA_GPA 0x300000u
#define HIGH UINT64_C(0xffffffff80000000) /* a page of the upper half */
#define HIGH_GPA 0x310000u
#define TOP UINT64_C(0xfffff000) /* the last page below 4 GiB */
#define TOP_GPA 0x320000u
#define ZERO_GPA 0x330000u
#define RAM_BYTES (16 * MIB)

static struct rig rig;
static struct cpu_state st;

static uint64_t rng_state;
static uint64_t rnd(void)
{
	uint64_t z = (rng_state += UINT64_C(0x9e3779b97f4a7c15));

	z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
	z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
	return z ^ (z >> 31);
}
static unsigned below(unsigned n) { return (unsigned)(rnd() % n); }

static struct soft_engine *engine(void) { return (struct soft_engine *)rig.engine; }
static uint8_t *guest(gpa_t gpa) { return ram_ptr(rig.ram, gpa, 1); }

/* In each test itself: the library of the tests puts its own signal handlers in place around fixtures. */
static void start(void)
{
	rig_init(&rig, RAM_BYTES);
	for (unsigned i = 0; i < 4; i++)
		rig_map(&rig, CODE + i * PAGE_SIZE, CODE_GPA + i * PAGE_SIZE, RIG_W | RIG_U);
	rig_map(&rig, DATA, DATA_GPA, RIG_W | RIG_U);
	rig_map(&rig, DATA + PAGE_SIZE, DATA_GPA + 0x8000, RIG_W | RIG_U);
	rig_map(&rig, HIGH, HIGH_GPA, RIG_W | RIG_U);
	rig_map(&rig, TOP, TOP_GPA, RIG_W | RIG_U);
	rig_map(&rig, 0, ZERO_GPA, RIG_W | RIG_U);
	rig_map(&rig, UINT64_C(0xfffffffffffff000), TOP_GPA, RIG_W | RIG_U);
	memset(&st, 0, sizeof(st));
}

static void finish(void) { rig_fini(&rig); }

static void code_at(gpa_t gpa, const void *bytes, size_t len)
{
	ram_write(rig.ram, gpa, bytes, len);
	cache_invalidate_page(rig.sv->cache, gpa);
}

/* Run `bytes`, then HLT (#GP at ring 3), from CODE in ring 3; registers are those in st. */
static struct rig_result run(const char *bytes, size_t len, bool compat)
{
	uint64_t gpr[16];
	uint8_t buf[64];

	memcpy(buf, bytes, len);
	buf[len] = 0xf4;
	code_at(CODE_GPA, buf, len + 1);
	memcpy(gpr, st.gpr, sizeof(gpr));
	rig_state(&rig, &st, 3);
	memcpy(st.gpr, gpr, sizeof(gpr));
	if (compat)
		st.seg[SEG_CS].attr = (st.seg[SEG_CS].attr & ~(uint32_t)SEG_L) | SEG_DB;
	st.rip = CODE;
	return rig_run(&rig, &st);
}
#define RUN64(bytes) run(bytes, sizeof(bytes) - 1, false)
#define RUN32(bytes) run(bytes, sizeof(bytes) - 1, true)

static bool ended_well(const struct rig_result *r, size_t len)
{
	return r->exit == EXIT_TRIPLE_FAULT && r->vector == EXC_GP && r->rip == CODE + len;
}

/* A page of this process at `at`, where a wrong address would land; NULL when something is mapped there already. */
static uint8_t *canary(uint64_t at)
{
	uint8_t *p = mmap((void *)(uintptr_t)(at & ~(PAGE_SIZE - 1)), PAGE_SIZE, PROT_READ | PROT_WRITE,
			  MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);

	if (p == MAP_FAILED)
		return NULL;
	memset(p, 0xa5, PAGE_SIZE);
	return p;
}

static void canary_check(uint8_t *p)
{
	if (!p)
		return;
	for (unsigned i = 0; i < PAGE_SIZE; i++)
		assert_int_equal(p[i], 0xa5);
	munmap(p, PAGE_SIZE);
}

/* ---- 32-bit stacks ---- */

static void stack32_wraps(void **state)
{
	struct rig_result r;
	uint8_t *c;

	start();
	c = canary((uintptr_t)engine()->ram_rw + TOP_GPA - BIT(32));

	/* filled first, so that the table holds the page */
	memset(st.gpr, 0, sizeof(st.gpr));
	st.gpr[R_AX] = 0x11223344;
	r = RUN32("\xc7\x05\x00\xf0\xff\xff\x01\x00\x00\x00\x50"); /* mov dword [0xfffff000], 1; push eax */
	assert_true(ended_well(&r, 11));
	assert_int_equal(st.gpr[R_SP], 0xfffffffc);
	assert_int_equal(get_le32(guest(TOP_GPA + 0xffc)), 0x11223344);
	canary_check(c);
	finish();
}

/* Upper halves of registers that 64-bit code left behind mean nothing to 32-bit code. */
static void stack32_upper_half(void **state)
{
	static const struct { const char *code; size_t len; } forms[] = {
		{"\x50", 1}, {"\x58", 1}, {"\x68\x44\x33\x22\x11", 5}, {"\xff\x34\x24", 3}, {"\xc9", 1}, {"\xe8\x00\x00\x00\x00", 5},
	};

	start();
	for (unsigned k = 0; k < 47; k++) {
		for (unsigned f = 0; f < ARRAY_LEN(forms); f++) {
			uint64_t up = k < 15 ? (uint64_t)k << 32 : BIT(32 + k - 15);
			uint8_t *c = k ? canary((uintptr_t)engine()->ram_rw + DATA_GPA + up) : NULL;
			char code[32] = "\xa1\x00\x00\x00\x20"; /* mov eax, [DATA] */
			struct rig_result r;

			memcpy(code + 5, forms[f].code, forms[f].len);
			memset(st.gpr, 0, sizeof(st.gpr));
			st.gpr[R_SP] = up | (DATA + 0x800);
			st.gpr[R_BP] = up | (DATA + 0x400);
			r = run(code, 5 + forms[f].len, true);
			assert_true(ended_well(&r, 5 + forms[f].len));
			assert_int_equal(st.gpr[R_SP] >> 32, 0);
			canary_check(c);
		}
	}
	finish();
}

/* ---- MXCSR.MM: AMD's misaligned exception mask makes legacy SSE loads cross page ends ---- */

static void misaligned_sse(void **state)
{
	struct rig_result r;

	start();
	memset(guest(DATA_GPA + PAGE_SIZE), 0x77, PAGE_SIZE); /* the next page of RAM, not of the guest's linear addresses */
	memset(guest(DATA_GPA), 0, PAGE_SIZE);
	memset(guest(DATA_GPA + 0x8000), 0, PAGE_SIZE);
	put_le32(guest(DATA_GPA), 0x1f80 | BIT(17));
	memset(st.gpr, 0, sizeof(st.gpr));
	st.gpr[R_BX] = DATA;
	st.gpr[R_SI] = DATA + PAGE_SIZE - 8;
	/* ldmxcsr [rbx]; pxor xmm0, xmm0; por xmm0, [rsi]; movhlps xmm1, xmm0; movq rax, xmm1 */
	r = RUN64("\x0f\xae\x13\x66\x0f\xef\xc0\x66\x0f\xeb\x06\x0f\x12\xc8\x66\x48\x0f\x7e\xc8");
	assert_int_equal(r.exit, EXIT_TRIPLE_FAULT);
	assert_int_not_equal(st.gpr[R_AX], UINT64_C(0x7777777777777777));
	finish();
}

/* ---- the addend table ---- */

#define UNMAPPED (DATA + 0x5000) /* in a table page that has been touched */
#define NEVER UINT64_C(0x345600000000)

static bool host_canonical(uint64_t a) { return cpu_canonical(a); }

/* Every sum of a present entry and of a gva with its index, by arithmetic: right, the guard page, or not canonical. */
static void table_arithmetic(void **state)
{
	static const gva_t pages[] = {DATA, HIGH, TOP, 0};
	struct soft_engine *e;

	start();
	st.gpr[R_BX] = DATA;
	st.gpr[R_CX] = HIGH;
	st.gpr[R_DX] = TOP;
	assert_true(ended_well(&(struct rig_result[]){RUN64("\x8b\x03\x89\x01\x8b\x02\x8b\x04\x25\x00\x00\x00\x00")}[0], 13));
	e = engine();
	for (unsigned p = 0; p < ARRAY_LEN(pages); p++) {
		uint64_t first = (pages[p] & (BIT(48) - 1)) >> 21 << 9;
		const int64_t *entry = (const int64_t *)rig.sv->ctx->gs + first;
		unsigned filled = 0;

		for (unsigned i = 0; i < 512; i++) {
			uint64_t low = (first + i) << 12;

			for (unsigned k = 0; k < 65536; k++) {
				gva_t gva = low | (uint64_t)k << 48;
				uint64_t sum = gva + (uint64_t)entry[i];
				bool in_ram = sum - (uintptr_t)e->ram_rw < RAM_BYTES || sum - (uintptr_t)e->ram_ro < RAM_BYTES;
				bool in_guard = sum == (uintptr_t)e->guard;

				if (cpu_canonical(gva) ? !(in_ram || in_guard) : host_canonical(sum) || host_canonical(sum + 0xfff))
					fail_msg("gva %#lx: host %#lx", (unsigned long)gva, (unsigned long)sum);
				filled += cpu_canonical(gva) && in_ram;
			}
		}
		assert_true(filled >= 1);
	}
	finish();
}

static void fill_neighbours(void)
{
	for (gpa_t p = DATA_GPA - 2 * PAGE_SIZE; p < DATA_GPA + 0xc000; p += PAGE_SIZE)
		memset(guest(p), 0xa5, PAGE_SIZE);
}

static void check_neighbours(void)
{
	for (gpa_t p = DATA_GPA - 2 * PAGE_SIZE; p < DATA_GPA + 0xc000; p += PAGE_SIZE) {
		if (p == DATA_GPA || p == DATA_GPA + 0x8000)
			continue;
		for (unsigned i = 0; i < PAGE_SIZE; i++)
			assert_int_equal(*guest(p + i), 0xa5);
	}
}

struct access {
	const char *load, *store; /* of [rbx], 5 bytes at most */
	uint8_t load_len, store_len, width;
};

static const struct access accesses[] = {
	{"\x8a\x03", "\x88\x03", 2, 2, 1},
	{"\x66\x8b\x03", "\x66\x89\x03", 3, 3, 2},
	{"\x8b\x03", "\x89\x03", 2, 2, 4},
	{"\x48\x8b\x03", "\x48\x89\x03", 3, 3, 8},
	{"\xdb\x2b", "\xdb\x3b", 2, 2, 10},
	{"\x0f\x10\x03", "\x0f\x11\x03", 3, 3, 16},
	{"\xc5\xfe\x6f\x03", "\xc5\xfe\x7f\x03", 4, 4, 32},
	{"\xf0\x48\x01\x03", "\x8f\x03", 4, 2, 8},
	{"\xff\x33", "\x48\xff\x03", 2, 3, 8},
};

/* One access at gva; expected by the rules alone. Returns false when it was wrong. */
static bool access_right(const struct access *a, bool store, gva_t gva, bool mapped, bool next_mapped)
{
	const char *b = store ? a->store : a->load;
	unsigned len = store ? a->store_len : a->load_len;
	bool crosses = (gva & (PAGE_SIZE - 1)) + a->width > PAGE_SIZE;
	struct rig_result r;

	memset(st.gpr, 0, sizeof(st.gpr));
	st.gpr[R_BX] = gva;
	st.gpr[R_AX] = UINT64_C(0x1122334455667788);
	st.gpr[R_SP] = HIGH + 0x800;
	r = run(b, len, false);
	if (r.exit != EXIT_TRIPLE_FAULT)
		return false;
	if (!cpu_canonical(gva) || !cpu_canonical(gva + a->width - 1))
		return r.vector == EXC_GP && r.rip == CODE;
	if (!mapped)
		return r.vector == EXC_PF && r.rip == CODE && r.cr2 == gva;
	if (crosses && !next_mapped)
		return r.vector == EXC_PF && r.rip == CODE && r.cr2 == (gva & ~(PAGE_SIZE - 1)) + PAGE_SIZE;
	return r.vector == EXC_GP && r.rip == CODE + len;
}

static void table_accesses(void **state)
{
	static const struct { gva_t gva; bool mapped, next; } pages[] = {
		{DATA, true, true}, {DATA + PAGE_SIZE, true, false}, {HIGH, true, false}, {UNMAPPED, false, false}, {NEVER, false, false},
	};

	start();
	fill_neighbours();
	for (unsigned k = 0; k < 65536; k += k < 4 || k > 0xfffa || (k > 0x7ffc && k < 0x8004) ? 1 : 3) {
		const struct access *a = &accesses[k % ARRAY_LEN(accesses)];
		gva_t low = pages[k / 7 % 4].gva & (BIT(48) - 1), gva = low | (uint64_t)k << 48;
		bool mapped = pages[k / 7 % 4].mapped && gva == pages[k / 7 % 4].gva;

		if (!access_right(a, k & 1, gva, mapped, pages[k / 7 % 4].next))
			fail_msg("access %u at %#lx", k, (unsigned long)gva);
	}
	for (unsigned i = 0; i < ARRAY_LEN(accesses); i++) {
		for (unsigned p = 0; p < ARRAY_LEN(pages); p++) {
			for (unsigned off = 0xfff - 2 * accesses[i].width; off < PAGE_SIZE; off++) {
				for (unsigned again = 0; again < 4; again++) { /* cold, warm, and as a known misaligned site */
					if (!access_right(&accesses[i], again & 1, pages[p].gva + off, pages[p].mapped, pages[p].next))
						fail_msg("form %u at %#lx", i, (unsigned long)(pages[p].gva + off));
				}
			}
		}
	}
	check_neighbours();
	finish();
}

/* ---- addresses of the VMM itself ---- */

static void vmm_addresses(void **state)
{
	static const char *const forms[] = {"\x48\x8b\x03", "\x48\x89\x03", "\xff\xe3\x90", "\xff\x13\x90", "\x48\x87\x1c\x24\xc3"};
	struct soft_engine *e;
	uint64_t at[12];
	unsigned n = 0;

	start();
	e = engine();
	at[n++] = (uintptr_t)e->cache->rx;
	at[n++] = (uintptr_t)e->cache->rw;
	at[n++] = (uintptr_t)rig.sv;
	at[n++] = (uintptr_t)e->ram_rw + DATA_GPA;
	at[n++] = (uintptr_t)e->ram_ro + DATA_GPA;
	at[n++] = (uintptr_t)ram_view(rig.ram) + DATA_GPA;
	at[n++] = (uintptr_t)rig.sv->ctx->gs;
	at[n++] = (uintptr_t)rig.sv->ctx->gs - VCPU_OFF;
	at[n++] = (uintptr_t)rig.sv->ctx->gs - CTX_OFF;
	at[n++] = (uintptr_t)e->guard;
	at[n++] = (uintptr_t)&rig & ~7ul;
	at[n++] = (uintptr_t)&n & ~7ul;
	for (unsigned i = 0; i < n; i++) {
		for (unsigned f = 0; f < ARRAY_LEN(forms); f++) {
			struct rig_result r;

			memset(st.gpr, 0, sizeof(st.gpr));
			st.gpr[R_BX] = at[i];
			st.gpr[R_SP] = HIGH + 0x800;
			r = run(forms[f], f == 4 ? 5 : 3, false);
			assert_int_equal(r.vector, EXC_PF);
			assert_int_equal(r.cr2, at[i]);
		}
	}
	/* what the guest maps there is its own; an addend of 0 is one like any other */
	memset(guest(DATA_GPA), 0x5a, 8);
	rig_map(&rig, ((uintptr_t)e->ram_rw + DATA_GPA), DATA_GPA, RIG_W | RIG_U);
	st.gpr[R_BX] = (uintptr_t)e->ram_rw + DATA_GPA;
	assert_true(ended_well(&(struct rig_result[]){RUN64("\x48\x8b\x03")}[0], 3));
	assert_int_equal(st.gpr[R_AX], UINT64_C(0x5a5a5a5a5a5a5a5a));
	finish();
}

/* No page is both writable and executable, and code pages are only of the code cache. */
static void w_xor_x(void **state)
{
	char line[512];
	unsigned executable = 0;
	FILE *f;

	start();
	RUN64("\x90");
	f = fopen("/proc/self/maps", "re");
	assert_non_null(f);
	while (fgets(line, sizeof(line), f)) {
		char perm[8];

		assert_int_equal(sscanf(line, "%*s %7s", perm), 1);
		assert_false(perm[1] == 'w' && perm[2] == 'x');
		if (strstr(line, "doppel-code"))
			executable += perm[2] == 'x';
		else if (perm[2] == 'x')
			assert_true(strstr(line, ".so") || strstr(line, "escape_test") || strstr(line, "[v"));
	}
	fclose(f);
	assert_int_equal(executable, 1);
	finish();
}

/* ---- code that is written ---- */

#define ALIAS (DATA + 0x10000) /* of the page at CODE + PAGE_SIZE */

/* F, in the second page of code, is `mov eax, 1; ret`, run by either address; the writer makes 2 of the 1 by the other one. */
static void aliased_code(void **state)
{
	static const struct { const char *b; uint8_t n; } writers[] = {
		{"\xc6\x47\x01\x02", 4},             /* mov byte [rdi + 1], 2 */
		{"\xc7\x47\x01\x02\x00\x00\x00", 7}, /* mov dword [rdi + 1], 2 */
		{"\x80\x47\x01\x01", 4},             /* add byte [rdi + 1], 1 */
		{"\xf0\xfe\x47\x01", 4},             /* lock inc byte [rdi + 1] */
		{"\x48\xff\xc7\xb0\x02\xaa", 6},     /* stosb */
		{"\x48\xff\xc7\xb0\x02\x6a\x01\x59\xf3\xaa", 10}, /* rep stosb */
		{"\xfd\x48\xff\xc7\xb0\x02\x6a\x01\x59\xf3\xaa\xfc", 12},
		{"\x48\x8d\x67\x08\x48\xb8\xb8\x02\x00\x00\x00\xc3\x00\x00\x50", 15}, /* a push */
		{"\xb8\x02\x00\x00\x00\x87\x47\x01", 8},                  /* xchg */
		{"\xb8\xb8\x02\x00\x00\x66\x0f\x6e\xc0\x66\x0f\x7e\x07", 13}, /* movd [rdi], xmm0 */
	};

	start();
	rig_map(&rig, ALIAS, CODE_GPA + PAGE_SIZE, RIG_W | RIG_U);
	for (unsigned i = 0; i < ARRAY_LEN(writers); i++) {
		for (unsigned by = 0; by < 4; by++) { /* which address runs, which one is written */
			uint64_t run_at = (by & 1 ? ALIAS : CODE + PAGE_SIZE) + 0x100, write_at = (by & 2 ? ALIAS : CODE + PAGE_SIZE) + 0x100;
			char code[96];
			unsigned n = 0;
			struct rig_result r;

			/* call rsi; mov ebx, eax; push rsp's copy in rbp; writer; call rsi; add ebx, eax * 16 */
			memcpy(code + n, "\xff\xd6\x89\xc3\x48\x89\xe5", 7);
			n += 7;
			memcpy(code + n, writers[i].b, writers[i].n);
			n += writers[i].n;
			memcpy(code + n, "\x48\x89\xec\xff\xd6\xc1\xe0\x04\x01\xc3", 10);
			n += 10;
			code_at(CODE_GPA + PAGE_SIZE + 0x100, "\xb8\x01\x00\x00\x00\xc3", 6);
			memset(st.gpr, 0, sizeof(st.gpr));
			st.gpr[R_SI] = run_at;
			st.gpr[R_DI] = write_at;
			st.gpr[R_SP] = HIGH + 0x800;
			r = run(code, n, false);
			if (!ended_well(&r, n) || st.gpr[R_BX] != 0x21)
				fail_msg("writer %u, addresses %u: %#lx, vector %u at %#lx", i, by, (unsigned long)st.gpr[R_BX], r.vector,
					 (unsigned long)r.rip);
		}
	}
	finish();
}

/* An instruction across a page end; its second half is written, by either address of that page, then mapped anew. */
static void crossing_code(void **state)
{
	static const char code[] = "\xff\xd6\x89\xc3\xc6\x07\x02\xff\xd6\xc1\xe0\x04\x01\xc3";

	start();
	rig_map(&rig, ALIAS, CODE_GPA + 2 * PAGE_SIZE, RIG_W | RIG_U);
	for (unsigned cut = 1; cut < 5; cut++) { /* bytes of mov eax, imm32 in the first page */
		for (unsigned by = 0; by < 2; by++) {
			struct rig_result r;

			code_at(CODE_GPA + 2 * PAGE_SIZE - cut, "\xb8\x01\x01\x01\x01\xc3", 6);
			cache_invalidate_page(rig.sv->cache, CODE_GPA + 2 * PAGE_SIZE);
			memset(st.gpr, 0, sizeof(st.gpr));
			st.gpr[R_SI] = CODE + 2 * PAGE_SIZE - cut;
			st.gpr[R_DI] = by ? ALIAS : CODE + 2 * PAGE_SIZE;
			st.gpr[R_SP] = HIGH + 0x800;
			r = run(code, sizeof(code) - 1, false);
			assert_true(ended_well(&r, sizeof(code) - 1));
			assert_int_equal((uint32_t)st.gpr[R_BX], 0x01010101 + 0x10101010 + (UINT32_C(0x10) << (8 * (cut - 1))));
		}
	}
	/* the second page becomes another one */
	code_at(CODE_GPA + 2 * PAGE_SIZE - 1, "\xb8", 1);
	code_at(CODE_GPA + 2 * PAGE_SIZE, "\x01\x00\x00\x00\xc3", 5);
	code_at(CODE_GPA + 3 * PAGE_SIZE, "\x07\x00\x00\x00\xc3", 5);
	for (unsigned i = 0; i < 2; i++) {
		st.gpr[R_SI] = CODE + 2 * PAGE_SIZE - 1;
		st.gpr[R_SP] = HIGH + 0x800;
		assert_true(ended_well(&(struct rig_result[]){RUN64("\xff\xd6")}[0], 2));
		assert_int_equal(st.gpr[R_AX], i ? 7 : 1);
		rig_map(&rig, CODE + 2 * PAGE_SIZE, CODE_GPA + 3 * PAGE_SIZE, RIG_W | RIG_U);
	}
	finish();
}

/* The largest blocks that can be made stay within what the cache reserves for one. */
static void largest_block(void **state)
{
	static const struct { const char *b; uint8_t n; } forms[] = {
		{"\xf3\xa4", 2}, {"\xf3\x48\xa5", 3}, {"\x67\x65\x43\xff\xb4\x11\x11\x11\x11\x11", 10}, {"\x9c", 1}, {"\x41\x53", 2},
		{"\x67\x65\xf0\x4f\x0f\xb1\x9c\x51\x11\x11\x11\x11", 12}, {"\x65\x67\x62\x93\xa5\x48\x25\x94\x51\x11\x11\x11\x11\x11", 14},
	};

	start();
	for (unsigned f = 0; f < ARRAY_LEN(forms); f++) {
		uint8_t code[16 * 128];
		struct block *b;

		for (unsigned again = 0; again < 2; again++) {
			for (unsigned i = 0; i < 128; i++)
				memcpy(code + i * forms[f].n, forms[f].b, forms[f].n);
			code_at(CODE_GPA, code, 128 * forms[f].n);
			for (unsigned i = 0; again && i < 128; i++) { /* as misaligned sites */
				gpa_t at = CODE_GPA + i * forms[f].n;

				*site_of(rig.sv, at) = (struct site){.gpa = at, .misaligned = true};
			}
			rig_state(&rig, &st, 3);
			st.rip = CODE;
			rig_run(&rig, &st);
			b = cache_lookup_locked(rig.sv->cache, CODE, CODE_GPA, rig.sv->hflags);
			if (b)
				assert_true(b->host_len < 60 * 1024);
		}
	}
	finish();
}

/* ---- jumps ---- */

static void wild_jumps(void **state)
{
	static const uint64_t targets[] = {
		UINT64_MAX, UINT64_MAX - 1, UINT64_MAX - 2047, 1, 0x7ffffffff000, BIT(47), BIT(47) - 1, BIT(63), UINT64_C(0xffff7fffffffffff),
		UINT64_C(0xffff800000000000), NEVER, UNMAPPED,
	};

	start();
	rig_map(&rig, 0, ZERO_GPA, 0); /* not for ring 3 */
	rig_map(&rig, UINT64_C(0xfffffffffffff000), TOP_GPA, 0);
	for (unsigned i = 0; i < ARRAY_LEN(targets); i++) {
		for (unsigned form = 0; form < 4; form++) {
			static const char *const forms[] = {"\xff\xe3", "\xff\xd3", "\x53\xc3", "\x53\xff\x24\x24"};
			struct rig_result r;

			memset(st.gpr, 0, sizeof(st.gpr));
			st.gpr[R_BX] = targets[i];
			st.gpr[R_SP] = HIGH + 0x800;
			r = run(forms[form], form == 3 ? 4 : 2, false);
			assert_int_equal(r.exit, EXIT_TRIPLE_FAULT);
			if (cpu_canonical(targets[i])) {
				assert_int_equal(r.vector, EXC_PF);
				assert_int_equal(r.cr2, targets[i]);
			} else {
				assert_int_equal(r.vector, EXC_GP);
			}
		}
	}
	finish();
}

static void *kick_soon(void *arg)
{
	struct timespec nap = {.tv_nsec = 30000000};

	clock_nanosleep(CLOCK_MONOTONIC, 0, &nap, NULL);
	rig.engine->ops->kick(rig.engine, 0);
	return NULL;
}

/* Loops that only engine_kick ends; among them those over the end of the address space, where no branch goes back. */
static void endless(void **state)
{
	static const struct { const char *b; uint8_t n; bool compat, over_end; } loops[] = {
		{"\xeb\xfe", 2, false, false}, {"\xff\xe3", 2, false, false}, {"\xf3\xaa\xeb\xfc", 4, false, false},
		{"\xe9\xfb\xef\xff\xff", 5, false, true}, {"\xe9\xfb\xef\xff\xff", 5, true, true},
		{"\x0f\x84\xfa\xef\xff\xff\xeb\xf8", 8, false, true},
	};

	start();
	for (unsigned i = 0; i < ARRAY_LEN(loops); i++) {
		enum engine_exit why;
		struct error err;
		pthread_t t;

		code_at(ZERO_GPA, loops[i].b, loops[i].n);
		memset(guest(TOP_GPA), 0x90, PAGE_SIZE);
		cache_invalidate_page(rig.sv->cache, TOP_GPA);
		code_at(CODE_GPA, loops[i].b, loops[i].n);
		rig_state(&rig, &st, 3);
		if (loops[i].compat)
			st.seg[SEG_CS].attr = (st.seg[SEG_CS].attr & ~(uint32_t)SEG_L) | SEG_DB;
		st.rip = loops[i].over_end ? 0 : CODE;
		st.rflags |= FL_ZF;
		st.gpr[R_BX] = CODE;
		st.gpr[R_DI] = DATA;
		st.gpr[R_CX] = i == 2 ? 1 : UINT64_MAX;
		assert_true(engine_soft.set_state(rig.engine, 0, &st, &err));
		assert_int_equal(pthread_create(&t, NULL, kick_soon, NULL), 0);
		why = engine_soft.run(rig.engine, 0);
		pthread_join(t, NULL);
		assert_int_equal(why, EXIT_KICKED);
	}
	finish();
}

/* More contexts and table pages than the host lets a process have mappings. */
static void many_tables(void **state)
{
	start();
	for (unsigned pcid = 0; pcid < 10; pcid++) {
		struct rig_result r;
		struct error err;

		/* loop: mov eax, [rbx] faults: only the table page is touched; the next address is 2 MiB on */
		for (unsigned i = 0; i < 5000; i++) {
			rig_state(&rig, &st, 3);
			st.cr4 |= CR4_PCIDE;
			st.cr3 |= pcid;
			st.rip = CODE;
			st.gpr[R_BX] = UINT64_C(0x100000000000) + ((uint64_t)pcid * 5000 + i) * 4 * MIB;
			if (!i)
				code_at(CODE_GPA, "\x8b\x03\xf4", 3);
			assert_true(engine_soft.set_state(rig.engine, 0, &st, &err));
			r.exit = engine_soft.run(rig.engine, 0);
			assert_int_equal(r.exit, EXIT_TRIPLE_FAULT);
		}
	}
	finish();
}

/* ---- random programs in volume ---- */

static _Atomic uint64_t programs;
static _Atomic bool volume_over;

/* Programs that loop are kicked out. */
static void *volume_kicker(void *arg)
{
	uint64_t last = 0;

	while (!volume_over) {
		struct timespec nap = {.tv_nsec = 2000000};

		clock_nanosleep(CLOCK_MONOTONIC, 0, &nap, NULL);
		if (last == programs)
			rig.engine->ops->kick(rig.engine, 0);
		last = programs;
	}
	return NULL;
}

static unsigned random_program(uint8_t *b, bool compat)
{
	unsigned n = 0, want = 4 + below(60);

	while (n < want) {
		uint8_t x[16];
		struct insn in;

		for (unsigned i = 0; i < sizeof(x); i++)
			x[i] = (uint8_t)rnd();
		switch (below(8)) {
		case 0: x[0] = 0x0f; break;
		case 1: x[0] = 0x48; break;
		case 2: x[0] = 0xc4; x[1] = (uint8_t)((x[1] & 0xe0) | (1 + below(3))); break;
		case 3: x[0] = (uint8_t)(0x50 + below(16)); break;
		case 4: x[0] = (uint8_t)(below(2) ? 0xff : 0x89); break;
		default: break;
		}
		/* mostly what runs, sometimes anything */
		if (below(8) && (insn_decode(x, 15, compat ? MODE_32 : MODE_64, &in) != DECODE_OK ||
				 (in.kind != INSN_NATIVE && in.kind > INSN_LEAVE)))
			continue;
		in.len = in.len ? in.len : 1;
		memcpy(b + n, x, in.len);
		n += in.len;
	}
	return n;
}

static uint64_t checksum(void)
{
	const uint64_t *p = ram_view(rig.ram);
	uint64_t sum = 0;

	for (gpa_t at = 0x400000; at < RAM_BYTES; at += 8)
		sum = (sum ^ p[at / 8]) * UINT64_C(0x100000001b3);
	return sum;
}

static bool volume_step(unsigned long i)
{
	static const uint64_t bases[] = {DATA, DATA + PAGE_SIZE, HIGH, CODE, TOP, 0, UINT64_C(0x800000000000), UINT64_C(0x7fffffffffff)};
	uint8_t code[128];
	bool compat = below(4) == 0;
	unsigned at = below(3) ? below(0x2000) : (unsigned)PAGE_SIZE - below(40), n = random_program(code, compat);
	struct error err;

	code_at(CODE_GPA + at, code, n);
	cache_invalidate_page(rig.sv->cache, CODE_GPA + PAGE_SIZE);
	rig_state(&rig, &st, 3);
	for (unsigned r = 0; r < 16; r++)
		st.gpr[r] = below(8) ? bases[below(ARRAY_LEN(bases))] + below(2) * (PAGE_SIZE - 80) + below(100) : rnd();
	if (!below(4))
		st.gpr[R_CX] = below(2000);
	if (compat)
		st.seg[SEG_CS].attr = (st.seg[SEG_CS].attr & ~(uint32_t)SEG_L) | SEG_DB;
	st.rip = CODE + at;
	st.rflags |= rnd() & (FL_ARITH | FL_DF | (below(16) ? 0 : FL_TF | FL_AC));
	if (!engine_soft.set_state(rig.engine, 0, &st, &err))
		return false;
	return engine_soft.run(rig.engine, 0) != EXIT_ERROR;
}

/* The RAM that no page table names stays as it was, and nothing crashes. */
static int volume(double seconds, uint64_t seed)
{
	uint64_t sum;
	struct timespec t0, t;
	double passed = 0;
	pthread_t kicker;
	int bad = 0;

	rng_state = seed;
	start();
	for (gpa_t at = 0x400000; at < RAM_BYTES; at += 8)
		*(uint64_t *)(void *)guest(at) = rnd();
	sum = checksum();
	pthread_create(&kicker, NULL, volume_kicker, NULL);
	clock_gettime(CLOCK_MONOTONIC, &t0);
	while (passed < seconds && !bad) {
		bad = !volume_step(programs);
		if (++programs % 4096 == 0) {
			bad |= checksum() != sum;
			clock_gettime(CLOCK_MONOTONIC, &t);
			passed = (double)(t.tv_sec - t0.tv_sec) + 1e-9 * (double)(t.tv_nsec - t0.tv_nsec);
		}
	}
	bad |= checksum() != sum;
	volume_over = true;
	pthread_join(kicker, NULL);
	printf("%lu programs of seed %lu in %.1f s, %.0f a second%s\n", (unsigned long)programs, (unsigned long)seed, passed, (double)programs / passed,
	       bad ? ": FAILED" : "");
	finish();
	return bad;
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(stack32_wraps),
		cmocka_unit_test(stack32_upper_half),
		cmocka_unit_test(misaligned_sse),
		cmocka_unit_test(table_arithmetic),
		cmocka_unit_test(table_accesses),
		cmocka_unit_test(vmm_addresses),
		cmocka_unit_test(w_xor_x),
		cmocka_unit_test(aliased_code),
		cmocka_unit_test(crossing_code),
		cmocka_unit_test(largest_block),
		cmocka_unit_test(wild_jumps),
		cmocka_unit_test(endless),
		cmocka_unit_test(many_tables),
	};

	if (argc > 1)
		return volume(strtod(argv[1], NULL), argc > 2 ? strtoull(argv[2], NULL, 0) : 1);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
