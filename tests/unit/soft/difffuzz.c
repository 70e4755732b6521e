/*
 * Differential fuzzing against the physical CPU.
 *
 * Random instruction sequences over the whole decode space that user mode may run are executed twice: natively, one
 * instruction at a time in this process, and by the soft engine in one go. Registers, flags, vector and x87 state,
 * memory, and the fault that ends the sequence (vector, error code, address) must be equal.
 *
 * Both sides use the same linear addresses: a code arena and a data arena of few pages, not contiguous in guest-physical
 * memory, one read-only and one unmapped. An instruction is only run natively when its operands are known to lie
 * in the arena or where nothing is mapped.
 *
 * usage: difffuzz [CASES [SEED [32|64 [FIRST]]]]       cases FIRST to CASES - 1
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "native.h"
#include "engine/soft/cache/cache_int.h"

#define CODE UINT64_C(0x10000000)
#define CODE_PAGES 2
#define DATA UINT64_C(0x20000000)
#define DATA_PAGES 4 /* 0, 1, 2 writable, 3 read-only; then unmapped */
#define DATA_SIZE (DATA_PAGES * PAGE_SIZE)
#define VOID UINT64_C(0x1000000) /* around the data arena nothing is mapped, on either side */
#define MAX_SEQ 8
#define NO_VECTOR 0xff

static struct rig rig;
static unsigned long case_no;
static uint64_t case_seed;

/* ---- state ---- */

static uint64_t interesting(void)
{
	static const uint64_t v[] = {0, 1, 2, 0x7f, 0x80, 0xff, 0x7fff, 0x8000, 0xffff, 0x7fffffff, 0x80000000, 0xffffffff,
				     0x7fffffffffffffff, 0x8000000000000000, 0xffffffffffffffff, 63, 64, 31, 32};

	switch (below(4)) {
	case 0:
		return v[below(ARRAY_LEN(v))];
	case 1:
		return rnd();
	case 2:
		return rnd() & 0xff;
	default:
		return DATA + below(DATA_SIZE);
	}
}

static uint64_t pointer(void)
{
	switch (below(8)) {
	case 0: /* page ends */
		return DATA + PAGE_SIZE * (1 + below(4)) - below(72);
	case 1:
		return DATA + below(DATA_SIZE);
	case 2:
		return native_mode == MODE_64 && !below(4) ? rnd() | BIT(63) : DATA + DATA_SIZE + below(4096);
	default:
		return DATA + 64 * below(DATA_SIZE / 64);
	}
}

static void random_regs(struct regs *r)
{
	for (unsigned i = 0; i < 16; i++)
		r->gpr[i] = below(2) ? interesting() : pointer();
	r->gpr[R_SP] = DATA + 0x800 + (below(4) ? 8 * below(600) : below(0x1800));
	r->gpr[R_CX] = below(3) ? below(40) : interesting();
	if (native_mode != MODE_64)
		for (unsigned i = 0; i < 16; i++)
			r->gpr[i] = i < 8 ? (uint32_t)r->gpr[i] : 0;
	r->rflags = (rnd() & FL_ARITH) | FL_FIXED | FL_IF | (below(16) ? 0 : FL_DF);
	native_random_vectors(r->xsave);
}

/* ---- generator ---- */

static unsigned random_insn(uint8_t *b)
{
	unsigned n = 0, kind = below(10);

	while (!below(4) && n < 3) {
		static const uint8_t prefix[] = {0x66, 0xf2, 0xf3, 0xf0, 0x67, 0x65, 0x2e, 0x66, 0x66, 0xf3};

		b[n++] = prefix[below(ARRAY_LEN(prefix))];
	}
	if (kind < 3 || (kind < 7 && below(2))) { /* legacy */
		if (native_mode == MODE_64 && below(3))
			b[n++] = (uint8_t)(0x40 | below(16));
		switch (below(8)) {
		case 0: case 1: case 2: case 3:
			break;
		case 4: case 5: case 6:
			b[n++] = 0x0f;
			break;
		default:
			b[n++] = 0x0f;
			b[n++] = below(2) ? 0x38 : 0x3a;
		}
	} else if (kind < 8) { /* VEX */
		if (below(2)) {
			b[n++] = 0xc5;
			b[n++] = (uint8_t)rnd();
		} else {
			b[n++] = 0xc4;
			b[n++] = (uint8_t)((rnd() & 0xe0) | (1 + below(3)));
			b[n++] = (uint8_t)rnd();
		}
	} else { /* EVEX */
		static const uint8_t maps[] = {1, 2, 3, 1, 2, 3, 5, 6};

		b[n++] = 0x62;
		b[n++] = (uint8_t)((rnd() & 0xf0) | maps[below(8)]);
		b[n++] = (uint8_t)(rnd() | 4);
		b[n++] = (uint8_t)rnd();
	}
	for (unsigned i = n; i < 16; i++)
		b[i] = (uint8_t)rnd();
	if (below(2)) /* a memory form more often than one in four */
		b[n + 1] &= below(2) ? 0x7f : 0x3f;
	if (below(4)) { /* small displacements */
		b[n + 3] = 0;
		b[n + 4] = 0;
		b[n + 5] = 0;
	}
	return 16;
}

static bool kind_ok(const struct insn *in)
{
	switch (in->kind) {
	case INSN_NATIVE:
		/* not deterministic, or about the host itself */
		if (in->map == 1 && in->op == 0xc7 && in->mod == 3) /* RDRAND, RDSEED */
			return false;
		if (native_mode != MODE_64 && in->enc != ENC_LEGACY && in->map == 1 && in->op == 0x77) /* VZERO*: registers 8-15, unseen there, go too */
			return false;
		if (native_mode != MODE_64 && in->map == 3 && (in->op == 0x16 || in->op == 0x22) && in->vex_w) /* #UD or ignored, by CPU */
			return false;
		return true;
	case INSN_NOP: case INSN_LEA:
	case INSN_JMP_REL: case INSN_JCC: case INSN_CALL_REL: case INSN_RET: case INSN_RET_IMM: case INSN_JMP_IND: case INSN_CALL_IND:
	case INSN_JCXZ: case INSN_LOOP: case INSN_LOOPE: case INSN_LOOPNE:
	case INSN_PUSH_R: case INSN_PUSH_IMM: case INSN_PUSH_M: case INSN_POP_R: case INSN_POP_M: case INSN_PUSHF:
	case INSN_ENTER: case INSN_LEAVE: case INSN_PUSHA: case INSN_POPA:
	case INSN_MOVS: case INSN_STOS: case INSN_LODS: case INSN_SCAS: case INSN_CMPS: case INSN_XLAT: case INSN_MASKMOV: case INSN_CLZERO:
	case INSN_BT_MEM: case INSN_VSIB:
	case INSN_UD:
		return in->op != 0x01; /* SVM: what ring 3 gets depends on the hypervisor below */
	case INSN_HLT: case INSN_CLTS: case INSN_RDMSR: case INSN_INVD: case INSN_LLDT:
	case INSN_SALC: /* the BCD instructions leave flags undefined, and done in C they leave others than the CPU: tests/unit/interp */
		return true;
	default:
		return false;
	}
}

/* An address range where a native access is harmless: the arena, or nothing at all. */
static bool range_safe(uint64_t a, uint64_t len)
{
	if (!cpu_canonical(a) || !cpu_canonical(a + len))
		return true;
	if (a >= BIT(63)) /* the kernel's half: a fault with the P bit unknown; only non-canonical ones are comparable */
		return false;
	return a >= DATA - VOID && a + len <= DATA + DATA_SIZE + VOID && a + len > a;
}

static uint64_t width(uint64_t v) { return native_mode == MODE_64 ? v : (uint32_t)v; }

static uint64_t seq_start, seq_end; /* of the sequence in the code arena; the rest of it is HLT */

static bool target_safe(uint64_t t)
{
	return (t >= CODE && t < CODE + CODE_PAGES * PAGE_SIZE && (t < seq_start || t >= seq_end)) || (t >= DATA + DATA_SIZE && t < DATA + DATA_SIZE + VOID);
}

static bool operands_safe(const struct insn *in, const struct regs *r)
{
	uint64_t sp = width(r->gpr[R_SP]), si = r->gpr[R_SI], di = r->gpr[R_DI], off = 0, n;
	uint8_t *data = (uint8_t *)(uintptr_t)DATA;

	if (in->mem != MEM_NONE && in->mem != MEM_ADDR && in->kind != INSN_VSIB) {
		if (in->seg == SEG_FS || (in->seg == SEG_GS && native_mode != MODE_64))
			return false;
		off = insn_mem_offset(in, r->gpr, r->rip + in->len);
		if (in->seg == SEG_GS)
			off += DATA + 0x100;
		if (!range_safe(off, in->mem_size ? in->mem_size : 16))
			return false;
	}
	switch (in->kind) {
	case INSN_JMP_IND: case INSN_CALL_IND: {
		uint64_t t = 0;

		if (in->osz == 2 || in->opsize66)
			return false;
		if (in->mem == MEM_NONE)
			t = r->gpr[in->rm];
		else if (off >= DATA && off <= DATA + DATA_SIZE - 8)
			memcpy(&t, (void *)(uintptr_t)off, 8);
		else
			return range_safe(sp - 16, 32);
		if (!target_safe(width(t)))
			return false;
		break;
	}
	case INSN_RET: case INSN_RET_IMM: {
		uint64_t t = 0;

		if (in->osz == 2 || in->opsize66 || sp < DATA || sp > DATA + DATA_SIZE - 8)
			return false;
		memcpy(&t, data + (sp - DATA), native_mode == MODE_64 ? 8 : 4);
		if (!target_safe(t))
			return false;
		break;
	}
	case INSN_JMP_REL: case INSN_JCC: case INSN_CALL_REL: case INSN_LOOP: case INSN_LOOPE: case INSN_LOOPNE: case INSN_JCXZ:
		if (in->rep && in->kind != INSN_JMP_REL) /* F3 LOOPNE acts as LOOPE on some CPUs: reserved */
			return false;
		if (in->osz == 2 || in->opsize66 /* in 64-bit mode ignored by Intel, 16-bit on AMD */ || !target_safe(width(r->rip + in->len + (uint64_t)in->imm)))
			return false;
		break;
	case INSN_MOVS: case INSN_CMPS: case INSN_STOS: case INSN_LODS: case INSN_SCAS:
		n = 512;
		if (in->seg == SEG_FS || in->seg == SEG_GS || (in->rep && r->gpr[R_CX] > 64))
			return false;
		if (in->asz == 4) {
			si = (uint32_t)si;
			di = (uint32_t)di;
		}
		if (in->asz == 2 || !range_safe(si - n, 2 * n) || !range_safe(di - n, 2 * n))
			return false;
		break;
	case INSN_XLAT:
		if (in->seg == SEG_FS || in->seg == SEG_GS || in->asz == 2 ||
		    !range_safe(in->asz == 8 ? r->gpr[R_BX] : (uint32_t)r->gpr[R_BX], 256))
			return false;
		break;
	case INSN_MASKMOV: case INSN_CLZERO:
		off = in->kind == INSN_MASKMOV ? di : r->gpr[R_AX];
		if (in->asz == 4)
			off = (uint32_t)off;
		if (in->asz == 2 || in->seg == SEG_FS || in->seg == SEG_GS || !range_safe(off & ~63ul, 128))
			return false;
		if (in->kind == INSN_MASKMOV && in->seg != SEG_DS)
			return false;
		if (in->kind == INSN_MASKMOV && (off < DATA || off + 16 > DATA + 3 * PAGE_SIZE)) /* tags after a fault of MASKMOVQ are not defined */
			return false;
		break;
	case INSN_BT_MEM: {
		int64_t bit = in->osz == 8 ? (int64_t)r->gpr[in->reg] : in->osz == 4 ? (int32_t)r->gpr[in->reg] : (int16_t)r->gpr[in->reg];

		off += (uint64_t)(bit >> 3);
		if (in->asz == 4)
			off = (uint32_t)off;
		if (in->asz == 2 || !range_safe(off - 8, 24))
			return false;
		break;
	}
	case INSN_VSIB: { /* every element's address, whatever the mask says */
		unsigned idx = (unsigned)in->index;
		uint64_t base = in->base >= 0 ? r->gpr[in->base] : 0;

		if (in->asz != 8 || in->seg == SEG_FS || in->seg == SEG_GS)
			return false;
		for (unsigned i = 0; i < 16; i++) {
			uint32_t e32;
			uint64_t e64;
			const uint8_t *x = r->xsave;
			uint8_t v[64] = {0};

			if (idx >= 16) {
				memcpy(v, x + zmm16_off + 64 * (idx - 16), 64);
			} else {
				memcpy(v, x + 160 + 16 * idx, 16);
				memcpy(v + 16, x + ymm_off + 16 * idx, 16);
				memcpy(v + 32, x + zmmh_off + 32 * idx, 32);
			}
			memcpy(&e32, v + 4 * i, 4);
			memcpy(&e64, v + 8 * (i & 7), 8);
			if (!range_safe(base + (uint64_t)((int64_t)(int32_t)e32 * in->scale) + (uint64_t)in->disp, 8) ||
			    !range_safe(base + e64 * in->scale + (uint64_t)in->disp, 8))
				return false;
		}
		break;
	}
	default:
		break;
	}
	if (in->kind >= INSN_PUSH_R && in->kind <= INSN_LEAVE) {
		/* the pushes of ENTER before one that faults may have happened or not */
		if (in->kind == INSN_ENTER && ((in->imm2 & 31) > 3 || r->gpr[R_BP] < DATA + 64 || r->gpr[R_BP] > DATA + 2 * PAGE_SIZE ||
					       sp < DATA + 128 || sp - (uint16_t)in->imm < DATA || sp > DATA + 3 * PAGE_SIZE))
			return false;
		if (!range_safe(sp - 128, 256) || !range_safe(width(r->gpr[R_BP]) - 64, 128))
			return false;
	}
	if (in->kind == INSN_PUSHA || in->kind == INSN_POPA) /* which of its accesses faults first differs */
		return sp >= DATA + 64 && sp + 64 < DATA + 3 * PAGE_SIZE;
	return range_safe(sp - 16, 32);
}

/* ---- comparison ---- */

static uint8_t data_initial[DATA_SIZE], data_native[DATA_SIZE];
static const gpa_t data_gpa[DATA_PAGES] = {0x400000, 0x480000, 0x410000, 0x4f0000};
static const gpa_t code_gpa[CODE_PAGES] = {0x500000, 0x580000};

struct test_case {
	uint8_t code[MAX_SEQ * 16];
	unsigned len, at, n;
	struct regs start;
};

static void print_case(const struct test_case *t)
{
	unsigned off = 0;

	printf("code at %#lx:\n", (unsigned long)(CODE + t->at));
	while (off < t->len) {
		struct insn in;

		if (insn_decode(t->code + off, t->len - off, (enum insn_cpu_mode)native_mode, &in) != DECODE_OK)
			break;
		printf("  ");
		for (unsigned i = 0; i < in.len; i++)
			printf("%02x", t->code[off + i]);
		printf("  kind %s mem %u size %u\n", insn_kind_name((enum insn_kind)in.kind), in.mem, in.mem_size);
		off += in.len;
	}
	for (unsigned i = 0; i < 16; i++)
		printf("  r%-2u %016lx%s", i, (unsigned long)t->start.gpr[i], i % 4 == 3 ? "\n" : "");
	printf("  rflags %lx mxcsr %x fcw %x\n", (unsigned long)t->start.rflags, get_le32(t->start.xsave + 24), get_le16(t->start.xsave));
}

static bool differs(const struct cpu_state *s, const struct rig_result *res)
{
	bool bad = native_differs(s, res);

	for (unsigned p = 0; p < DATA_PAGES; p++) {
		const uint8_t *m = ram_ptr(rig.ram, data_gpa[p], PAGE_SIZE);

		if (!memcmp(m, data_native + p * PAGE_SIZE, PAGE_SIZE))
			continue;
		for (unsigned i = 0; i < PAGE_SIZE; i++)
			if (m[i] != data_native[p * PAGE_SIZE + i]) {
				printf("memory %#lx: native %02x, engine %02x\n", (unsigned long)(DATA + p * PAGE_SIZE + i), data_native[p * PAGE_SIZE + i], m[i]);
				break;
			}
		bad = true;
	}
	return bad;
}

static void set_native_data(const uint8_t *from)
{
	mprotect((void *)(uintptr_t)(DATA + 3 * PAGE_SIZE), PAGE_SIZE, PROT_READ | PROT_WRITE);
	memcpy((void *)(uintptr_t)DATA, from, DATA_SIZE);
	mprotect((void *)(uintptr_t)(DATA + 3 * PAGE_SIZE), PAGE_SIZE, PROT_READ);
}

static void put_code(uint64_t at, const uint8_t *bytes, unsigned len)
{
	memcpy((void *)(uintptr_t)(CODE + at), bytes, len);
}

/* Build a sequence by running it natively as it grows. False: nothing could be built. */
static bool build(struct test_case *t)
{
	unsigned want = 1 + below(MAX_SEQ);
	static const uint8_t hlt[16] = {0xf4, 0xf4, 0xf4, 0xf4, 0xf4, 0xf4, 0xf4, 0xf4, 0xf4, 0xf4, 0xf4, 0xf4, 0xf4, 0xf4, 0xf4, 0xf4};

	t->len = t->n = 0;
	t->at = below(3) ? 64 * below(32) : (unsigned)PAGE_SIZE - below(40);
	native = t->start;
	native.rip = CODE + t->at;
	for (unsigned tries = 0; t->n < want && tries < 200; tries++) {
		uint8_t b[32];
		struct insn in;
		uint64_t rip = native.rip;

		random_insn(b);
		seq_start = CODE + t->at;
		seq_end = rip + 16;
		if (insn_decode(b, 15, (enum insn_cpu_mode)native_mode, &in) != DECODE_OK || !kind_ok(&in) || !operands_safe(&in, &native))
			continue;
		put_code(rip - CODE, b, in.len);
		memcpy(t->code + t->len, b, in.len);
		t->len += in.len;
		t->n++;
		native_run(DATA + 0x100);
		if (!(native_out.vector == EXC_GP && native.rip == rip + in.len)) /* a fault or a branch ends the sequence */
			break;
		put_code(rip - CODE + in.len, hlt, 15);
		native_out.vector = NO_VECTOR;
		native.rflags &= ~FL_RF;
	}
	/* the final run's fault stays: the HLT after the last instruction when nothing else stopped it */
	if (native_out.vector == NO_VECTOR)
		native_out = (struct outcome){.vector = EXC_GP};
	return t->n != 0;
}

static unsigned long hist[INSN_KIND_COUNT];

static bool one_case(void)
{
	static struct cpu_state s;
	struct test_case t;
	struct rig_result res;
	bool bad;

	random_regs(&t.start);
	if (!below(16)) {
		for (unsigned i = 0; i < DATA_SIZE; i += 8)
			put_le64(data_initial + i, below(4) ? rnd() : CODE + below(2 * 4096));
	}
	set_native_data(data_initial);
	memset((void *)(uintptr_t)CODE, 0xf4, CODE_PAGES * PAGE_SIZE);
	if (!build(&t))
		return true;
	memcpy(data_native, (void *)(uintptr_t)DATA, DATA_SIZE);
	rig.sv->cache->all_hot = case_no & 1; /* a region, or a plain block */
	for (unsigned p = 0; p < CODE_PAGES; p++) {
		memcpy(ram_ptr(rig.ram, code_gpa[p], PAGE_SIZE), (void *)(uintptr_t)(CODE + p * PAGE_SIZE), PAGE_SIZE);
		cache_invalidate_page(rig.sv->cache, code_gpa[p]);
	}
	for (unsigned p = 0; p < DATA_PAGES; p++)
		memcpy(ram_ptr(rig.ram, data_gpa[p], PAGE_SIZE), data_initial + p * PAGE_SIZE, PAGE_SIZE);
	rig_state(&rig, &s, 3);
	if (native_mode != MODE_64)
		s.seg[SEG_CS].attr = (s.seg[SEG_CS].attr & ~(uint32_t)SEG_L) | SEG_DB;
	s.seg[SEG_GS].base = DATA + 0x100;
	memcpy(s.gpr, t.start.gpr, sizeof(s.gpr));
	s.rip = CODE + t.at;
	s.rflags = t.start.rflags;
	memcpy(s.xsave, t.start.xsave, XSAVE_AREA_SIZE);
	res = rig_run(&rig, &s);
	bad = differs(&s, &res);
	if (bad) {
		print_case(&t);
		printf("  ends with vector %u error %x cr2 %lx\n", native_out.vector, native_out.error, (unsigned long)native_out.cr2);
	}
	for (unsigned off = 0, i = 0; i < t.n; i++) {
		struct insn in;

		if (insn_decode(t.code + off, t.len - off, (enum insn_cpu_mode)native_mode, &in) != DECODE_OK)
			break;
		hist[in.kind]++;
		off += in.len;
	}
	return !bad;
}

static void describe(void) { fprintf(stderr, "case %lu of seed %lu\n", case_no, (unsigned long)case_seed); }

int main(int argc, char **argv)
{
	unsigned long cases = argc > 1 ? strtoul(argv[1], NULL, 0) : 100000, done, bad = 0;
	uint64_t seed = argc > 2 ? strtoull(argv[2], NULL, 0) : 1;

	native_mode = argc > 3 && !strcmp(argv[3], "32") ? MODE_32 : MODE_64;
	rig_init(&rig, 16 * MIB);
	for (unsigned p = 0; p < CODE_PAGES; p++)
		rig_map(&rig, CODE + p * PAGE_SIZE, code_gpa[p], RIG_U);
	for (unsigned p = 0; p < DATA_PAGES; p++)
		rig_map(&rig, DATA + p * PAGE_SIZE, data_gpa[p], RIG_U | (p == 3 ? 0 : RIG_W) | RIG_NX);
	if (mmap((void *)(uintptr_t)CODE, CODE_PAGES * PAGE_SIZE, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) == MAP_FAILED ||
	    mmap((void *)(uintptr_t)(DATA - VOID), DATA_SIZE + 2 * VOID, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) == MAP_FAILED ||
	    mprotect((void *)(uintptr_t)DATA, DATA_SIZE, PROT_READ | PROT_WRITE)) {
		perror("difffuzz: arenas");
		return 1;
	}
	{ /* the engine's thread set-up (signal stack), then our handlers in front of its */
		static struct cpu_state s;

		rig_state(&rig, &s, 3);
		s.rip = CODE;
		rig_run(&rig, &s);
	}
	native_init(rig.sv, describe);
	for (done = argc > 4 ? strtoul(argv[4], NULL, 0) : 0; done < cases && bad < 10; done++) {
		case_no = done;
		case_seed = seed;
		rng_state = seed * UINT64_C(0x100000001b3) + done;
		rnd();
		if (!one_case()) {
			bad++;
			printf("case %lu of seed %lu differs\n\n", done, (unsigned long)seed);
		}
		if (isatty(2) && done % 65536 == 0)
			fprintf(stderr, "\r%lu cases", done);
	}
	printf("%lu cases of seed %lu in %d-bit mode, %lu differ\n", done, (unsigned long)seed, native_mode == MODE_64 ? 64 : 32, bad);
	for (unsigned k = 0; k < INSN_KIND_COUNT && cases > 1000000; k++)
		if (hist[k])
			printf("  %-12s %lu\n", k == INSN_NATIVE ? "NATIVE" : insn_kind_name((enum insn_kind)k), hist[k]);
	return bad != 0;
}
