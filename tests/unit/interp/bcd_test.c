/*
 * DAA, DAS, AAA, AAS, AAM, AAD: every AL, AF, CF. Authority: the CPU in compatibility mode where the host allows it
 * (far jump to Linux's 32-bit code selector), and a table computed from what the instructions are for (decimal digits).
 */
#include "fixture.h"

#include <signal.h>
#include <sys/mman.h>

#define USER32_CS 0x23
#define USER_CS 0x33

static sigjmp_buf no_compat;

static void on_fault(int sig) { siglongjmp(no_compat, 1); }

/*
 * A page below 4 GiB: 64-bit entry at 0 (far-jumps to 0x40), 32-bit code at 0x40 (the instruction, far jump back to
 * 0x80), 64-bit exit at 0x80. Upper register halves may be lost on the way: RSP is kept at 0x100.
 */
static uint8_t *compat_page(const uint8_t *op, unsigned len)
{
	uint8_t *page = mmap(NULL, PAGE_SIZE, PROT_READ | PROT_WRITE | PROT_EXEC,
			     MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
	uint32_t base;

	assert_ptr_not_equal(page, MAP_FAILED);
	base = (uint32_t)(uintptr_t)page;
	memcpy(page, "\x48\x89\x25\xf9\x00\x00\x00", 7); /* mov [rip + 0xf9], rsp */
	memcpy(page + 7, "\xff\x2d\x13\x00\x00\x00", 6); /* jmp far [rip + 0x13] */
	put_le32(page + 0x20, base + 0x40);
	put_le16(page + 0x24, USER32_CS);
	memcpy(page + 0x40, op, len);
	page[0x40 + len] = 0xea; /* jmp far ptr16:32 */
	put_le32(page + 0x41 + len, base + 0x80);
	put_le16(page + 0x45 + len, USER_CS);
	memcpy(page + 0x80, "\x48\x8b\x25\x79\x00\x00\x00\xc3", 8); /* mov rsp, [rip + 0x79]; ret */
	return page;
}

static void compat_run(const uint8_t *page, uint64_t *rax, uint64_t *flags)
{
	uint64_t f = *flags | FL_FIXED | FL_IF;

	__asm__ volatile("sub $128, %%rsp; push %%rbp; push %%rcx; popf; call *%%rdx; pushf; pop %%rcx; pop %%rbp; add "
			 "$128, %%rsp"
			 : "+a"(*rax), "+c"(f), "+d"(page)
			 :
			 : "memory", "cc", "rbx", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15");
	*flags = f;
}

static bool compat_works(void)
{
	uint8_t *page = compat_page((const uint8_t *)"\x90", 1);
	struct sigaction sa = {.sa_handler = on_fault}, old_segv, old_ill;
	uint64_t rax = 0, flags = 0;
	bool ok = false;

	sigaction(SIGSEGV, &sa, &old_segv);
	sigaction(SIGILL, &sa, &old_ill);
	if (!sigsetjmp(no_compat, 1)) {
		compat_run(page, &rax, &flags);
		ok = true;
	}
	sigaction(SIGSEGV, &old_segv, NULL);
	sigaction(SIGILL, &old_ill, NULL);
	munmap(page, PAGE_SIZE);
	return ok;
}

/* Flags that the manual defines for each; the others are compared too where the CPU is the authority. */
static const struct {
	uint8_t bytes[2];
	unsigned len;
	uint64_t defined;
} ops[] = {
	{{0x27}, 1, FL_CF | FL_AF | FL_SF | FL_ZF | FL_PF}, /* DAA */
	{{0x2f}, 1, FL_CF | FL_AF | FL_SF | FL_ZF | FL_PF}, /* DAS */
	{{0x37}, 1, FL_CF | FL_AF},			    /* AAA */
	{{0x3f}, 1, FL_CF | FL_AF},			    /* AAS */
	{{0xd4, 10}, 2, FL_SF | FL_ZF | FL_PF},		    /* AAM */
	{{0xd5, 10}, 2, FL_SF | FL_ZF | FL_PF},		    /* AAD */
	{{0xd4, 7}, 2, FL_SF | FL_ZF | FL_PF},
	{{0xd5, 0xf3}, 2, FL_SF | FL_ZF | FL_PF},
	{{0xd6}, 1, FL_ARITH}, /* SALC */
};

static void against_cpu(void **state)
{
	struct rig *r = *state;

	if (!compat_works())
		skip();
	for (unsigned o = 0; o < ARRAY_LEN(ops); o++) {
		uint8_t *page = compat_page(ops[o].bytes, ops[o].len);

		for (unsigned n = 0; n < 256 * 4 * 8; n++) {
			uint64_t rax = (rnd() & 0xffff0000) | (n & 0xff) | ((n >> 10) * 0x2500 & 0xff00), flags = 0;

			flags |= (n & 0x100) ? FL_CF : 0;
			flags |= (n & 0x200) ? FL_AF : 0;
			rig_prot(r, 3);
			r->v.s.gpr[R_AX] = rax;
			r->v.s.rflags = FL_FIXED | flags;
			compat_run(page, &rax, &flags);
			assert_true(rig_run(r, ops[o].bytes, ops[o].len));
			assert_int_equal(r->v.s.gpr[R_AX], rax);
			assert_int_equal(r->v.s.rflags & ops[o].defined, flags & ops[o].defined);
		}
		munmap(page, PAGE_SIZE);
	}
}

static unsigned to_bcd(unsigned n) { return n / 10 % 10 * 16 + n % 10; }

/* Adding and subtracting packed decimals, as a program would. */
static void decimal_arithmetic(void **state)
{
	struct rig *r = *state;

	rig_prot(r, 3);
	for (unsigned a = 0; a < 100; a++) {
		for (unsigned b = 0; b < 100; b++) {
			unsigned x = to_bcd(a), y = to_bcd(b);

			r->v.s.gpr[R_AX] = (x + y) & 0xff;
			r->v.s.rflags = FL_FIXED | (x + y > 0xff ? FL_CF : 0) | ((x & 15) + (y & 15) > 15 ? FL_AF : 0);
			assert_true(RUN(r, 0x27));
			assert_int_equal(r->v.s.gpr[R_AX] & 0xff, to_bcd((a + b) % 100));
			assert_int_equal(!!(r->v.s.rflags & FL_CF), a + b > 99);
			r->v.s.gpr[R_AX] = (x - y) & 0xff;
			r->v.s.rflags = FL_FIXED | (x < y ? FL_CF : 0) | ((x & 15) < (y & 15) ? FL_AF : 0);
			assert_true(RUN(r, 0x2f));
			assert_int_equal(r->v.s.gpr[R_AX] & 0xff, to_bcd((100 + a - b) % 100));
			assert_int_equal(!!(r->v.s.rflags & FL_CF), a < b);
		}
	}
}

static void unpacked(void **state)
{
	struct rig *r = *state;

	rig_prot(r, 3);
	for (unsigned a = 0; a < 10; a++) {
		for (unsigned b = 0; b < 10; b++) {
			r->v.s.gpr[R_AX] = a + b;
			r->v.s.rflags = FL_FIXED | (a + b > 15 ? FL_AF : 0);
			assert_true(RUN(r, 0x37));
			assert_int_equal(r->v.s.gpr[R_AX], (a + b) / 10 << 8 | (a + b) % 10);
			r->v.s.gpr[R_AX] = a * b;
			assert_true(RUN(r, 0xd4, 10));
			assert_int_equal(r->v.s.gpr[R_AX], a * b / 10 << 8 | a * b % 10);
			r->v.s.gpr[R_AX] = a << 8 | b;
			assert_true(RUN(r, 0xd5, 10));
			assert_int_equal(r->v.s.gpr[R_AX], a * 10 + b);
		}
	}
	assert_false(RUN(r, 0xd4, 0));
	assert_fault_noerr(r, EXC_DE);
}

int main(void)
{
	const struct CMUnitTest tests[] = {TEST(against_cpu), TEST(decimal_arithmetic), TEST(unpacked)};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
