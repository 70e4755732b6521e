/*
 * The decoder against the CPU that runs this: single instructions are stepped in a traced child.
 *
 *   decode-cpu [N [SEED]]
 *
 *   - what the CPU executes is valid, of the length that it took, and leaves alone the flags that it should;
 *   - memory operands have the size that the CPU accesses, need the alignment that it asks for, and faults on
 *     masked-off elements are suppressed where it suppresses them.
 *
 * Only native instructions, and bytes that the decoder calls invalid, are run: never a system call. What this CPU lacks
 * raises #UD and is passed over. Exit status 77 (skipped) where ptrace is not allowed.
 */
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

#undef PAGE_SIZE /* of sys/user.h */
#undef PAGE_SHIFT
#include "engine/soft/translate/decode.h"

#define CODE UINT64_C(0x10000000)
#define DATA UINT64_C(0x20000000)
#define DATA_SIZE UINT64_C(0x10000)
#define HOLE UINT64_C(0x1000) /* never mapped */

struct stepper {
	uint8_t *code; /* the child's code page, here writable */
	pid_t child;
	struct user_regs_struct start;
	struct user_fpregs_struct start_fp; /* all exceptions masked */
	uint64_t rng;
	unsigned long ran, bad;
};

enum outcome { RAN, FAULT, UNDEFINED, OTHER };

struct step {
	enum outcome outcome;
	unsigned len;
	uint64_t flags;
};

/* The child: opmasks are zero, and then it only ever runs what the parent puts before it. */
static void child_main(void)
{
	ptrace(PTRACE_TRACEME, 0, NULL, NULL);
	if (__builtin_cpu_supports("avx512f")) {
		long pid = getpid(), nr = SYS_kill;

		__asm__ volatile("kxorw %%k1,%%k1,%%k1; kxorw %%k2,%%k2,%%k2; syscall"
				 : "+a"(nr)
				 : "D"(pid), "S"((long)SIGSTOP)
				 : "rcx", "r11", "memory");
	} else {
		raise(SIGSTOP);
	}
	_exit(0);
}

static bool spawn(struct stepper *s)
{
	int status;

	s->child = fork();
	if (!s->child)
		child_main();
	if (s->child < 0 || waitpid(s->child, &status, 0) < 0 || !WIFSTOPPED(status))
		return false;
	return ptrace(PTRACE_GETREGS, s->child, NULL, &s->start) == 0 &&
	       ptrace(PTRACE_GETFPREGS, s->child, NULL, &s->start_fp) == 0;
}

static struct step step_once(struct stepper *s, const uint8_t *bytes, enum insn_cpu_mode mode, uint64_t flags)
{
	struct user_regs_struct r = s->start;
	int status;

	memset(s->code, 0x90, PAGE_SIZE);
	memcpy(s->code + 64, bytes, INSN_MAX_LEN);
	r.rip = CODE + 64;
	r.rax = r.rbx = r.rcx = r.rdx = r.rsi = r.rdi = r.rbp = DATA + 0x1000;
	r.rsp = DATA + 0x8000;
	r.r8 = r.r9 = r.r10 = r.r11 = r.r12 = r.r13 = r.r14 = r.r15 = DATA + 0x3000;
	r.eflags = flags | FL_FIXED | FL_IF;
	r.orig_rax = ~UINT64_C(0);
	r.cs = mode == MODE_64 ? 0x33 : 0x23;
	r.ss = 0x2b;
	r.ds = r.es = mode == MODE_64 ? 0 : 0x2b;
	ptrace(PTRACE_SETREGS, s->child, NULL, &r);
	ptrace(PTRACE_SETFPREGS, s->child, NULL, &s->start_fp);
	ptrace(PTRACE_SINGLESTEP, s->child, NULL, NULL);
	if (waitpid(s->child, &status, 0) < 0 || !WIFSTOPPED(status)) {
		fprintf(stderr, "the child is gone\n");
		exit(1);
	}
	uint64_t from = r.rip;

	ptrace(PTRACE_GETREGS, s->child, NULL, &r);
	struct step st = {.outcome = OTHER, .len = (unsigned)(r.rip - from), .flags = r.eflags};

	switch (WSTOPSIG(status)) {
	case SIGTRAP: st.outcome = RAN; break;
	case SIGSEGV: case SIGBUS: st.outcome = FAULT; break;
	case SIGILL: st.outcome = UNDEFINED; break;
	}
	s->ran++;
	return st;
}

__attribute__((format(printf, 3, 4))) static void report(struct stepper *s, const uint8_t *bytes, const char *fmt, ...)
{
	va_list ap;

	if (s->bad++ >= 20)
		return;
	for (unsigned i = 0; i < INSN_MAX_LEN; i++)
		printf("%02x", bytes[i]);
	printf(": ");
	va_start(ap, fmt);
	vprintf(fmt, ap);
	va_end(ap);
	printf("\n");
}

static uint64_t next_random(struct stepper *s)
{
	s->rng ^= s->rng << 13;
	s->rng ^= s->rng >> 7;
	s->rng ^= s->rng << 17;
	return s->rng;
}

static void random_bytes(struct stepper *s, uint8_t *b)
{
	static const uint8_t prefixes[] = {0x66, 0xf2, 0xf3, 0xf0, 0x67, 0x48, 0x41, 0x2e, 0x4f};
	static const uint8_t maps[] = {1, 2, 3, 5, 6};
	uint64_t r = next_random(s);
	unsigned n = 0;

	for (unsigned i = 0; i < INSN_MAX_LEN; i++)
		b[i] = (uint8_t)(next_random(s) >> 9);
	for (; (r & 3) == 0 && n < 3; r >>= 2)
		b[n++] = prefixes[next_random(s) % sizeof(prefixes)];
	r = next_random(s);
	switch (r % 7) {
	case 1: b[n++] = 0x0f; break;
	case 2: b[n++] = 0x0f; b[n++] = 0x38; break;
	case 3: b[n++] = 0x0f; b[n++] = 0x3a; break;
	case 4: b[n++] = 0xc5; b[n] |= r & 0x10000 ? 0xf8 : 0; break;
	case 5:
		b[n++] = 0xc4;
		b[n] = (b[n] & 0xe0) | maps[(r >> 16) % 3] | (r & 0x100000 ? 0xc0 : 0);
		b[n + 1] |= r & 0x200000 ? 0x78 : 0;
		break;
	case 6:
		b[n++] = 0x62;
		b[n] = (b[n] & 0xf0) | maps[(r >> 16) % 5] | (r & 0x100000 ? 0xf0 : 0);
		b[n + 1] |= r & 0x200000 ? 0x7c : 4;
		b[n + 2] = (b[n + 2] & (r & 0x400000 ? 0x68 : 0xff)) | (r & 0x800000 ? 8 : 0);
		break;
	}
}

/* Executed here, and called invalid on purpose. */
static bool hidden(const struct insn *in)
{
	if (in->enc != ENC_LEGACY)
		return false;
	if (in->map == 1 && in->op == 0x01) /* MONITORX, RDPRU, SERIALIZE, XTEST ..., and prefixes on CLZERO */
		return true;
	if (in->map == 1 && (in->op == 0xae || in->op == 0xc7)) /* WAITPKG, PTWRITE, INCSSP, SENDUIPI */
		return true;
	if (in->map == 0 && (in->op == 0xc6 || in->op == 0xc7)) /* RTM */
		return true;
	return in->map == 2 && in->op >= 0xf5 && in->op <= 0xfc; /* WRSS, ENQCMD, MOVDIR64B, RAO */
}

static void check_random(struct stepper *s, unsigned long n)
{
	while (n--) {
		uint8_t b[INSN_MAX_LEN];
		enum insn_cpu_mode mode = next_random(s) & 0x100 ? MODE_64 : MODE_32;
		struct insn in;

		random_bytes(s, b);
		enum decode_result d = insn_decode(b, sizeof(b), mode, &in);

		if (d == DECODE_TOO_LONG || (d == DECODE_OK && in.kind > INSN_LEA))
			continue;
		struct step zeros = step_once(s, b, mode, 0);

		if (zeros.outcome != RAN)
			continue;
		if (d != DECODE_OK) {
			if (!hidden(&in))
				report(s, b, "runs in %u bytes, called invalid", zeros.len);
			continue;
		}
		if (zeros.len != in.len)
			report(s, b, "length %u, CPU %u", in.len, zeros.len);
		if (zeros.flags & FL_ARITH & ~in.flags_written)
			report(s, b, "flags %#x written, CPU set %#lx", in.flags_written,
			       (long)(zeros.flags & FL_ARITH));
		struct step ones = step_once(s, b, mode, FL_ARITH);

		if (ones.outcome == RAN && (~ones.flags & FL_ARITH & ~in.flags_written))
			report(s, b, "flags %#x written, CPU cleared %#lx", in.flags_written,
			       (long)(~ones.flags & FL_ARITH));
	}
}

/* Opcode bytes with the memory operand [disp32]; the place of disp32. 0: no such encoding. */
static unsigned build(uint8_t *b, enum insn_enc enc, unsigned map, unsigned sel, unsigned op, unsigned reg)
{
	static const uint8_t pp_bytes[] = {0, 0x66, 0xf3, 0xf2};
	unsigned pp = sel & 3, w = sel >> 2 & 1, l = sel >> 3 & 3, vvvv = sel & 0x20 ? 0x70 : 0x78,
		 mask = sel & 0x40 ? 1 : 0, n = 0;
	bool bcast = sel & 0x80;

	memset(b, 0x90, INSN_MAX_LEN);
	switch (enc) {
	case ENC_LEGACY:
		if (pp)
			b[n++] = pp_bytes[pp];
		if (w)
			b[n++] = 0x48;
		if (map)
			b[n++] = 0x0f;
		if (map > 1)
			b[n++] = map == 2 ? 0x38 : 0x3a;
		break;
	case ENC_EVEX:
		b[n++] = 0x62;
		b[n++] = 0xf0 | map;
		b[n++] = (uint8_t)(w << 7 | vvvv | 4 | pp);
		b[n++] = (uint8_t)(l << 5 | bcast << 4 | 8 | mask);
		break;
	default:
		b[n++] = 0xc4;
		b[n++] = 0xe0 | map;
		b[n++] = (uint8_t)(w << 7 | vvvv | (l & 1) << 2 | pp);
		break;
	}
	b[n++] = (uint8_t)op;
	b[n++] = 0x04 | (uint8_t)(reg << 3);
	b[n++] = 0x25;
	return n;
}

static struct step step_at(struct stepper *s, uint8_t *b, unsigned at, uint64_t address)
{
	put_le32(b + at, (uint32_t)address);
	return step_once(s, b, MODE_64, 0);
}

static void check_operand(struct stepper *s, uint8_t *b, unsigned at, const struct insn *in)
{
	uint64_t end = DATA + DATA_SIZE;
	bool sha = in->enc == ENC_LEGACY &&
		   ((in->map == 2 && in->op >= 0xc8 && in->op <= 0xcd) || (in->map == 3 && in->op == 0xcc));
	bool mxcsr = in->map == 1 && in->op == 0xae && (in->modrm & 0x38) == 0x10; /* faults on what it reads */

	if (in->mem_masked) {
		struct step st = step_at(s, b, at, HOLE);

		/* With a zero mask; a VEX mask register holds anything. */
		if (in->enc == ENC_EVEX && st.outcome == FAULT)
			report(s, b, "masked-off elements fault");
		return;
	}
	if (in->enc == ENC_EVEX && in->evex_aaa && step_at(s, b, at, HOLE).outcome == RAN)
		report(s, b, "faults of masked-off elements are suppressed");
	struct step inside = step_at(s, b, at, end - in->mem_size);

	if (inside.outcome == UNDEFINED)
		return;
	if (inside.outcome == FAULT && !mxcsr)
		report(s, b, "reaches beyond %u bytes", in->mem_size);
	if (step_at(s, b, at, in->mem_aligned ? end : end - in->mem_size + 1).outcome == RAN && !in->evex_aaa)
		report(s, b, "less than %u bytes", in->mem_size);
	struct step odd = step_at(s, b, at, DATA + 0x801);

	if (in->mem_size >= 16 && !sha && !in->evex_aaa && (odd.outcome == FAULT) != in->mem_aligned)
		report(s, b, "aligned %d", in->mem_aligned);
}

/* Opcodes whose modrm.reg selects the instruction. */
static bool is_group(enum insn_enc enc, unsigned map, unsigned op)
{
	if (enc != ENC_LEGACY)
		return map == 1 ? (op >= 0x71 && op <= 0x73) || op == 0xae : map == 2 && op == 0xf3;
	if (map == 0)
		return (op >= 0x80 && op <= 0x83) || op == 0xc0 || op == 0xc1 || op == 0xc6 || op == 0xc7 ||
		       (op >= 0xd0 && op <= 0xdf) || op >= 0xf6;
	return map == 1 && (op == 0xae || op == 0xba || op == 0xc7);
}

static void check_operands(struct stepper *s)
{
	static const struct {
		enum insn_enc enc;
		unsigned first_map, last_map, selectors;
	} spaces[] = {{ENC_LEGACY, 0, 3, 0x08}, {ENC_VEX3, 1, 3, 0x40}, {ENC_EVEX, 1, 6, 0x100}};

	for (unsigned i = 0; i < ARRAY_LEN(spaces); i++)
		for (unsigned map = spaces[i].first_map; map <= spaces[i].last_map; map++)
			for (unsigned sel = 0; sel < spaces[i].selectors; sel++)
				for (unsigned op_reg = 0; op_reg < 256 * 8; op_reg++) {
					uint8_t b[INSN_MAX_LEN];
					unsigned op = op_reg >> 3, reg = op_reg & 7;
					struct insn in;

					/* 2 for all others: VP2INTERSECT must not write k1. */
					if (reg != 2 && !is_group(spaces[i].enc, map, op))
						continue;
					unsigned at = build(b, spaces[i].enc, map, sel, op, reg);

					if (insn_decode(b, sizeof(b), MODE_64, &in) != DECODE_OK ||
					    in.kind != INSN_NATIVE || !in.has_modrm)
						continue;
					if (in.mem == MEM_NONE || in.mem == MEM_ADDR || in.map != map || in.op != op)
						continue;
					check_operand(s, b, at, &in);
				}
}

int main(int argc, char **argv)
{
	struct stepper s = {.rng = UINT64_C(0x9e3779b97f4a7c15)};
	int fd = memfd_create("code", 0);

	if (argc > 2)
		s.rng ^= strtoull(argv[2], NULL, 0) * UINT64_C(0x2545f4914f6cdd1d);
	if (fd < 0 || ftruncate(fd, PAGE_SIZE) < 0)
		return 77;
	s.code = mmap(NULL, PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	void *code = mmap((void *)CODE, PAGE_SIZE, PROT_READ | PROT_EXEC, MAP_SHARED | MAP_FIXED_NOREPLACE, fd, 0);
	void *data = mmap((void *)DATA, DATA_SIZE, PROT_READ | PROT_WRITE,
			  MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);

	if (s.code == MAP_FAILED || code != (void *)CODE || data != (void *)DATA || !spawn(&s)) {
		printf("no memory there, or no ptrace\n");
		return 77;
	}
	check_operands(&s);
	check_random(&s, argc > 1 ? strtoul(argv[1], NULL, 0) : 20000);
	kill(s.child, SIGKILL);
	printf("%lu instructions stepped, %lu differences\n", s.ran, s.bad);
	return s.bad != 0;
}
