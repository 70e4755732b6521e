/*
 * Random instructions on random, often impossible states: nothing crashes or hangs (run it with the sanitizers), and a
 * fault leaves the registers as they were, but for the progress of REP and gathers.
 */
#include "fixture.h"

#define ROUNDS 200000

/* One byte sequence for each kind at least turns up often enough: prefixes, then an opcode of the interpreter's. */
static unsigned random_bytes(uint8_t *b)
{
	static const uint8_t prefixes[] = {0x66, 0x67, 0xf0, 0xf2, 0xf3, 0x2e, 0x36,
					   0x3e, 0x26, 0x64, 0x65, 0x48, 0x41};
	static const uint8_t one[] = {0x06, 0x07, 0x0e, 0x16, 0x17, 0x1e, 0x1f, 0x27, 0x2f, 0x37, 0x3f, 0x50, 0x54,
				      0x5c, 0x60, 0x61, 0x62, 0x63, 0x68, 0x6a, 0x6c, 0x6d, 0x6e, 0x6f, 0x70, 0x7f,
				      0x8c, 0x8e, 0x8f, 0x9a, 0x9c, 0x9d, 0xa4, 0xa5, 0xa6, 0xa7, 0xaa, 0xab, 0xac,
				      0xad, 0xae, 0xaf, 0xc2, 0xc3, 0xc4, 0xc5, 0xc8, 0xc9, 0xca, 0xcb, 0xcc, 0xcd,
				      0xce, 0xcf, 0xd4, 0xd5, 0xd6, 0xd7, 0xd9, 0xdd, 0xe0, 0xe2, 0xe3, 0xe4, 0xe5,
				      0xe8, 0xe9, 0xea, 0xeb, 0xec, 0xed, 0xee, 0xef, 0xf1, 0xf4, 0xfa, 0xfb, 0xff};
	static const uint8_t two[] = {0x00, 0x01, 0x02, 0x03, 0x05, 0x06, 0x07, 0x08, 0x09, 0x20, 0x21, 0x22,
				      0x23, 0x30, 0x31, 0x32, 0x33, 0x34, 0x35, 0x84, 0xa0, 0xa1, 0xa2, 0xa3,
				      0xa8, 0xa9, 0xaa, 0xab, 0xae, 0xb2, 0xb3, 0xb4, 0xb5, 0xbb, 0xc7, 0xf7};
	unsigned n = 0;

	while (rnd() % 3 == 0)
		b[n++] = prefixes[rnd() % ARRAY_LEN(prefixes)];
	switch (rnd() % 8) {
	case 0:
	case 1:
	case 2:
		b[n++] = one[rnd() % ARRAY_LEN(one)];
		break;
	case 3:
	case 4:
	case 5:
		b[n++] = 0x0f;
		b[n++] = two[rnd() % ARRAY_LEN(two)];
		break;
	case 6: /* VEX gathers */
		b[n++] = 0xc4;
		b[n++] = (rnd() & 0xe0) | 2;
		b[n++] = (rnd() & 0xfc) | 1;
		b[n++] = 0x90 + rnd() % 4;
		break;
	case 7: /* EVEX gathers, scatters */
		b[n++] = 0x62;
		b[n++] = (rnd() & 0xf0) | 2;
		b[n++] = (rnd() & 0x80) | 0x7d;
		b[n++] = rnd() & 0x6f;
		b[n++] = (rnd() & 1 ? 0x90 : 0xa0) + rnd() % 4;
		break;
	}
	while (n < 24)
		b[n++] = (uint8_t)rnd();
	return n;
}

static uint64_t odd_value(void)
{
	static const uint64_t edges[] = {0,
					 1,
					 0xfff,
					 0x1000,
					 0x7fff,
					 0xfffe,
					 0xffff,
					 0x10000,
					 0x3ffff8,
					 0x400000,
					 0x7fffffff,
					 0xfffffffc,
					 0xffffffff,
					 0x7fffffffffff,
					 0x800000000000,
					 0xffff7fffffffffff,
					 0xffff800000000000,
					 UINT64_MAX};

	switch (rnd() % 4) {
	case 0:
		return edges[rnd() % ARRAY_LEN(edges)] + rnd() % 5 - 2;
	case 1:
		return rnd();
	default:
		return rnd() % RIG_RAM;
	}
}

static struct cpu_seg odd_seg(unsigned dpl)
{
	struct cpu_seg sg = {.base = odd_value(),
			     .limit = (uint32_t)odd_value(),
			     .sel = rnd() % 0x100,
			     .attr = (uint32_t)(rnd() & (SEG_TYPE | SEG_P | SEG_DB | SEG_G)) | SEG_S | SEG_P |
				     A_DPL(dpl)};

	if (rnd() % 8 == 0)
		sg.attr |= SEG_UNUSABLE;
	return sg;
}

static void random_mode(struct rig *r)
{
	switch (rnd() % 5) {
	case 0:
		rig_real(r);
		break;
	case 1:
		rig_prot(r, rnd() % 4);
		break;
	case 2:
		rig_v86(r, rnd() % 4);
		break;
	default:
		rig_long(r, rnd() & 1 ? 3 : 0);
		break;
	}
	if (rnd() % 4 == 0 && cpu_long_mode(&r->v.s))
		r->v.s.seg[SEG_CS].attr = (r->v.s.seg[SEG_CS].attr & ~SEG_L) | SEG_DB;
}

static void random_state(struct rig *r)
{
	struct cpu_state *s = &r->v.s;

	random_mode(r);
	for (unsigned i = 0; i < 16; i++) {
		if (i != R_SP || rnd() % 4 == 0)
			s->gpr[i] = odd_value();
	}
	s->gpr[R_CX] %= rnd() & 1 ? 50 : UINT64_MAX;
	s->rflags ^= rnd() & (FL_ARITH | FL_IF | FL_DF | FL_TF | FL_IOPL | FL_AC | FL_ID);
	s->cr4 |= rnd() & r->policy.cr4_allowed & ~CR4_PCIDE;
	s->xcr0 = r->policy.xcr0_allowed;
	if (rnd() % 8 == 0)
		s->cr0 |= rnd() & (CR0_TS | CR0_EM | CR0_MP);
	for (unsigned i = 0; i < SEG_COUNT; i++) {
		if (i != SEG_CS && i != SEG_SS && rnd() % 4 == 0 && !cpu_is_v86(s))
			s->seg[i] = odd_seg(cpu_cpl(s));
	}
	if (rnd() % 8 == 0)
		s->tr.limit = (uint32_t)odd_value() % 0x200;
	if (rnd() % 8 == 0)
		s->idt.base = odd_value();
	if (rnd() % 16 == 0)
		s->gdt.base = odd_value();
	put_le64(s->xsave + 512, rnd() & s->xcr0);
	s->star = rnd();
	s->lstar = odd_value();
	s->sysenter_cs = rnd() & 0xffff;
	for (unsigned i = 0; i < 64; i++) {
		put_le64(rig_mem(r, GDT + 0x80 + 8 * i), rnd() | (rnd() & 1 ? BIT(47) : 0));
		put_le64(rig_mem(r, IDT + 8 * (rnd() % 512)), rnd() | (rnd() & 1 ? UINT64_C(0x8e) << 40 : 0));
		r->mmu.page[rnd() % ARRAY_LEN(r->mmu.page)] = rnd() % 3;
	}
	if (!cpu_long_mode(s)) {
		for (unsigned i = 0; i < 16; i++)
			s->gpr[i] &= UINT32_MAX;
	}
}

/* What a fault may have changed. */
static void forgive(struct rig *r, struct cpu_state *before)
{
	struct cpu_state *s = &r->v.s;

	before->cr2 = s->cr2;
	before->nmi_masked = s->nmi_masked;
	before->dr[6] = s->dr[6];
	memcpy(before->xsave, s->xsave,
	       sizeof(s->xsave)); /* initial bytes may have been filled in; gathers have their own test */
	if (r->in.rep) {
		before->gpr[R_CX] = s->gpr[R_CX];
		before->gpr[R_SI] = s->gpr[R_SI];
		before->gpr[R_DI] = s->gpr[R_DI];
		before->gpr[R_AX] = s->gpr[R_AX]; /* LODS */
		before->rflags = s->rflags;
	}
}

static void random_instructions(void **state)
{
	struct rig *r = *state;
	unsigned done = 0, faults = 0, kinds[INSN_KIND_COUNT] = {0}, seen = 0;

	for (unsigned i = 0; i < ROUNDS; i++) {
		struct cpu_state before;
		uint8_t bytes[32];
		bool ok;

		random_bytes(bytes);
		if (i % 4 == 0)
			random_state(r);
		if (insn_decode(bytes, 15, vcpu_mode(&r->v), &r->in) != DECODE_OK || r->in.kind == INSN_NATIVE)
			continue;
		before = r->v.s;
		r->v.fatal = NULL;
		ok = interp_exec(&r->v, &r->in);
		kinds[r->in.kind]++;
		done++;
		if (ok)
			continue;
		faults++;
		if (!r->v.fatal) {
			assert_true(r->v.exc.vector < 32);
			forgive(r, &before);
			if (memcmp(&before, &r->v.s, sizeof(before)))
				print_error("%s changed state before its fault\n", insn_kind_name(r->in.kind));
			assert_memory_equal(&before, &r->v.s, sizeof(before));
		}
		if (rnd() & 1)
			(void)interp_deliver(&r->v, EVENT_EXCEPTION, r->v.exc.vector);
	}
	for (unsigned k = 0; k < INSN_KIND_COUNT; k++)
		seen += kinds[k] > 0;
	assert_true(done > ROUNDS / 4);
	assert_true(faults > done / 10 && faults < done * 9 / 10);
	assert_true(seen > INSN_KIND_COUNT * 9 / 10);
}

int main(void)
{
	const struct CMUnitTest tests[] = {TEST(random_instructions)};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
