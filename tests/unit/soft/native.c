#include "native.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>
#include <unistd.h>

#include "engine/soft/cache/cache_int.h"

struct regs native;
struct outcome native_out;
uint64_t native_xmask;
uint32_t ymm_off, k_off, zmmh_off, zmm16_off;
int native_mode = MODE_64;
uint64_t rng_state;

static volatile sig_atomic_t native_running;
extern uint64_t saved_rsp; /* used by native_enter's text */
uint64_t saved_rsp;
static struct sigaction engine_action[NSIG];
static struct soft_vcpu *sv;
static void (*describe)(void);

uint64_t rnd(void)
{
	uint64_t z = (rng_state += UINT64_C(0x9e3779b97f4a7c15));

	z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
	z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
	return z ^ (z >> 31);
}
unsigned below(unsigned n) { return (unsigned)(rnd() % n); }


/* The offsets in the text are those of struct regs, asserted below. Ends in on_signal, which comes back to native_return. */
__attribute__((naked)) void native_enter(struct regs *r, uint64_t xsave_mask, uint64_t cs);
__attribute__((naked)) void native_enter(struct regs *r __attribute__((unused)), uint64_t xsave_mask __attribute__((unused)),
					 uint64_t cs __attribute__((unused)))
{
	__asm__ volatile("push %rbx; push %rbp; push %r12; push %r13; push %r14; push %r15; sub $8, %rsp\n"
			 "mov %rsp, saved_rsp(%rip)\n"
			 "mov %rdx, %r15\n"
			 "mov %rsi, %rax; mov %rsi, %rdx; shr $32, %rdx\n"
			 "xrstor64 192(%rdi)\n"
			 /* iretq frame: ss, rsp, rflags, cs, rip */
			 "pushq $0x2b; pushq 32(%rdi); pushq 136(%rdi); push %r15; pushq 128(%rdi)\n"
			 "mov 0(%rdi), %rax; mov 8(%rdi), %rcx; mov 16(%rdi), %rdx; mov 24(%rdi), %rbx; mov 40(%rdi), %rbp; mov 48(%rdi), %rsi\n"
			 "mov 64(%rdi), %r8; mov 72(%rdi), %r9; mov 80(%rdi), %r10; mov 88(%rdi), %r11; mov 96(%rdi), %r12; mov 104(%rdi), %r13\n"
			 "mov 112(%rdi), %r14; mov 120(%rdi), %r15; mov 56(%rdi), %rdi\n"
			 "iretq\n"
			 ".globl native_return\n native_return:\n"
			 "mov saved_rsp(%rip), %rsp\n"
			 "cld\n add $8, %rsp; pop %r15; pop %r14; pop %r13; pop %r12; pop %rbp; pop %rbx; ret\n");
}
_Static_assert(offsetof(struct regs, rip) == 128 && offsetof(struct regs, rflags) == 136 && offsetof(struct regs, xsave) == 192, "");
extern char native_return[];

static const int greg[16] = {
	REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI, REG_R8, REG_R9, REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15,
};

static void on_signal(int sig, siginfo_t *si, void *context)
{
	ucontext_t *uc = context;
	greg_t *g = uc->uc_mcontext.gregs;

	if (!native_running && !cache_contains(sv->cache, (uint64_t)g[REG_RIP])) {
		fprintf(stderr, "signal %d at %#llx outside guest code, guest rip %#lx, ", sig, (unsigned long long)g[REG_RIP],
			(unsigned long)sv->v.s.rip);
		describe();
		_exit(3);
	}
	if (!native_running) {
		engine_action[sig].sa_sigaction(sig, si, context);
		return;
	}
	native_running = 0;
	for (unsigned i = 0; i < 16; i++)
		native.gpr[i] = (uint64_t)g[greg[i]];
	native.rip = (uint64_t)g[REG_RIP];
	native.rflags = (uint64_t)g[REG_EFL];
	/* its size is in the software-reserved bytes (struct _fpx_sw_bytes) */
	memcpy(native.xsave, uc->uc_mcontext.fpregs, min_u64(get_le32((uint8_t *)uc->uc_mcontext.fpregs + 464 + 16), XSAVE_AREA_SIZE));
	native_out.vector = (uint8_t)g[REG_TRAPNO];
	native_out.error = (uint32_t)g[REG_ERR];
	native_out.cr2 = native_out.vector == EXC_PF ? (uint64_t)g[REG_CR2] : 0;
	g[REG_RIP] = (greg_t)(uintptr_t)native_return;
	g[REG_CSGSFS] = (g[REG_CSGSFS] & ~0xffffl) | 0x33;
	g[REG_EFL] &= ~(greg_t)(FL_DF | FL_TF | FL_AC);
	put_le32((uint8_t *)uc->uc_mcontext.fpregs + 24, 0x1f80);
}

static void install_handlers(void)
{
	static const int sigs[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP};
	struct sigaction sa = {.sa_sigaction = on_signal, .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER};

	for (unsigned i = 0; i < ARRAY_LEN(sigs); i++)
		sigaction(sigs[i], &sa, &engine_action[sigs[i]]);
}

void native_run(uint64_t gs_base)
{
	uint64_t gs = read_gs();

	/* the header as XRSTOR wants it */
	memset(native.xsave + 520, 0, 56);
	put_le64(native.xsave + 512, get_le64(native.xsave + 512) & native_xmask);
	write_gs(gs_base);
	if (native_mode != MODE_64) /* null in 64-bit processes, but compatibility mode looks at them */
		__asm__ volatile("mov %0, %%ds\n mov %0, %%es" : : "r"(0x2b));
	native_running = 1;
	native_enter(&native, native_xmask, native_mode == MODE_64 ? 0x33 : 0x23);
	write_gs(gs);
}

void native_random_vectors(uint8_t *x)
{
	static const uint64_t f[] = {0x3ff0000000000000, 0x7ff0000000000000, 0x7ff8000000000001, 0x7ff0000000000001, 0x0000000000000001,
				     0x8000000000000000, 0x400921fb54442d18, 0x3f8000003f800000, 0x7f8000007f800001, 0x0000000100000001};

	memset(x, 0, XSAVE_AREA_SIZE);
	put_le16(x, 0x37f);
	if (!below(8))
		put_le16(x, (uint16_t)(0x340 | (rnd() & 0xc3f)));
	put_le32(x + 24, (uint32_t)(0x1f80 | (below(4) ? 0 : rnd() & 0xe040)));
	if (!below(16))
		put_le32(x + 24, get_le32(x + 24) & ~(uint32_t)(rnd() & 0x1f80));
	put_le64(x + 512, native_xmask);
	for (unsigned i = 160; i < 416; i += 8)
		put_le64(x + i, below(3) ? rnd() : f[below(ARRAY_LEN(f))]);
	for (unsigned i = 0; i < 256; i += 8)
		put_le64(x + ymm_off + i, below(3) ? rnd() : f[below(ARRAY_LEN(f))]);
	if (native_xmask & 0xe0) {
		for (unsigned i = 0; i < 64; i += 8)
			put_le64(x + k_off + i, below(2) ? rnd() : ~UINT64_C(0));
		for (unsigned i = 0; i < 512; i += 8)
			put_le64(x + zmmh_off + i, rnd());
		for (unsigned i = 0; i < 1024; i += 8)
			put_le64(x + zmm16_off + i, below(3) ? rnd() : f[below(ARRAY_LEN(f))]);
	}
	if (below(2)) { /* a few x87 values on the stack */
		x[4] = 0xf0;
		put_le16(x + 2, 4 << 11);
		for (unsigned i = 0; i < 4; i++) {
			put_le64(x + 32 + 16 * i, rnd() | BIT(63));
			put_le16(x + 40 + 16 * i, (uint16_t)(0x3fff + below(64) - 32));
		}
	}
}

/* Components in their initial state may be stored as anything: write that state out. */
static void normalize(uint8_t *x)
{
	uint64_t bv = get_le64(x + 512);

	if (!(bv & 1)) {
		memset(x, 0, 24);
		put_le16(x, 0x37f);
		memset(x + 32, 0, 128);
	}
	if (!(bv & 2))
		memset(x + 160, 0, 256);
	if (!(bv & 4))
		memset(x + ymm_off, 0, 256);
	if (native_xmask & 0xe0) {
		if (!(bv & 0x20))
			memset(x + k_off, 0, 64);
		if (!(bv & 0x40))
			memset(x + zmmh_off, 0, 512);
		if (!(bv & 0x80))
			memset(x + zmm16_off, 0, 1024);
	}
}

bool native_differs(const struct cpu_state *s, const struct rig_result *res)
{
	uint8_t nx[XSAVE_AREA_SIZE], sx[XSAVE_AREA_SIZE];
	uint64_t width = native_mode == MODE_64 ? ~UINT64_C(0) : UINT32_MAX;
	bool bad = false;
	uint32_t err_mask = native_out.vector == EXC_PF ? 7 : native_out.vector == EXC_GP || native_out.vector == EXC_SS ? 0xffff : 0;

#define CHECK(what, a, b) \
	do { \
		if ((a) != (b)) { \
			printf("%s: native %lx, engine %lx\n", what, (unsigned long)(a), (unsigned long)(b)); \
			bad = true; \
		} \
	} while (0)
	CHECK("vector", native_out.vector, res->vector);
	CHECK("rip", native.rip, res->rip);
	CHECK("error code", native_out.error & err_mask, res->error & err_mask);
	if (native_out.vector == EXC_PF)
		CHECK("cr2", native_out.cr2, res->cr2);
	for (unsigned i = 0; i < (native_mode == MODE_64 ? 16 : 8); i++) {
		char name[8];

		snprintf(name, sizeof(name), "r%u", i);
		CHECK(name, native.gpr[i] & width, s->gpr[i] & width); /* upper halves cannot be seen in 32-bit mode */
	}
	CHECK("flags", native.rflags & (FL_ARITH | FL_DF), s->rflags & (FL_ARITH | FL_DF));
	memcpy(nx, native.xsave, sizeof(nx));
	memcpy(sx, s->xsave, sizeof(sx));
	normalize(nx);
	normalize(sx);
	CHECK("fcw", get_le16(nx), get_le16(sx));
	CHECK("fsw", get_le16(nx + 2), get_le16(sx + 2));
	CHECK("ftw", nx[4], sx[4]);
	CHECK("mxcsr", get_le32(nx + 24), get_le32(sx + 24));
	for (unsigned i = 0; i < 8; i++)
		if (memcmp(nx + 32 + 16 * i, sx + 32 + 16 * i, 10))
			CHECK("st", get_le64(nx + 32 + 16 * i), get_le64(sx + 32 + 16 * i) ^ (get_le64(nx + 32 + 16 * i) == get_le64(sx + 32 + 16 * i)));
	for (unsigned i = 160; i < 416; i += 8) {
		char name[16];

		snprintf(name, sizeof(name), "xmm%u.%u", (i - 160) / 16, (i / 8) & 1);
		CHECK(name, get_le64(nx + i), get_le64(sx + i));
	}
	for (unsigned i = ymm_off; i < ymm_off + 256; i += 8)
		CHECK("ymm", get_le64(nx + i), get_le64(sx + i));
	if (native_xmask & 0xe0) {
		for (unsigned i = k_off; i < k_off + 64; i += 8)
			CHECK("k", get_le64(nx + i), get_le64(sx + i));
		for (unsigned i = zmmh_off; i < zmmh_off + 512; i += 8)
			CHECK("zmm", get_le64(nx + i), get_le64(sx + i));
		for (unsigned i = zmm16_off; i < zmm16_off + 1024; i += 8)
			CHECK("zmm16-31", get_le64(nx + i), get_le64(sx + i));
	}
#undef CHECK
	return bad;
}

static uint32_t xstate_offset(unsigned component)
{
	uint32_t a = 0xd, b, c = component, d;

	__asm__("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
	return b;
}

void native_init(struct soft_vcpu *vcpu, void (*describe_case)(void))
{
	sv = vcpu;
	describe = describe_case;
	native_xmask = sv->xsave_mask;
	ymm_off = xstate_offset(2);
	k_off = xstate_offset(5);
	zmmh_off = xstate_offset(6);
	zmm16_off = xstate_offset(7);
	install_handlers();
}
