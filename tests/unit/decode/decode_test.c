/*
 * What Zydis does not tell (alignment, masking, x87 waits, high bytes, segment numbers ...), the limits of a fetch, and
 * that every kind of instruction exists.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include <cmocka.h>

#include "engine/soft/translate/decode.h"

static unsigned parse_hex(const char *hex, uint8_t *out)
{
	unsigned n = 0;

	for (; *hex; hex++)
		if (*hex != ' ') {
			char digits[3] = {hex[0], hex[1], 0};

			out[n++] = (uint8_t)strtoul(digits, NULL, 16);
			hex++;
		}
	return n;
}

static enum decode_result decode_hex(const char *hex, enum insn_cpu_mode mode, struct insn *in)
{
	uint8_t b[32];
	unsigned n = parse_hex(hex, b);

	return insn_decode(b, n, mode, in);
}

static struct insn decoded(const char *hex, enum insn_cpu_mode mode)
{
	struct insn in;
	enum decode_result r = decode_hex(hex, mode, &in);

	if (r != DECODE_OK)
		fail_msg("%s: %d", hex, r);
	return in;
}

static void test_alignment(void **state)
{
	static const struct {
		const char *hex;
		bool aligned;
		unsigned size;
	} cases[] = {
		{"0f 28 00", true, 16},           /* movaps */
		{"0f 10 00", false, 16},          /* movups */
		{"66 0f 6f 00", true, 16},        /* movdqa */
		{"f3 0f 6f 00", false, 16},       /* movdqu */
		{"f2 0f f0 00", false, 16},       /* lddqu */
		{"0f 58 00", true, 16},           /* addps */
		{"f3 0f 58 00", false, 4},        /* addss */
		{"66 0f fe 00", true, 16},        /* paddd xmm */
		{"0f fe 00", false, 8},           /* paddd mm */
		{"66 0f e7 00", true, 16},        /* movntdq */
		{"66 0f 38 2a 00", true, 16},     /* movntdqa */
		{"66 0f 3a 63 00 00", false, 16}, /* pcmpistri */
		{"66 0f 38 dc 00", true, 16},     /* aesenc */
		{"66 0f 3a 44 00 00", true, 16},  /* pclmulqdq */
		{"0f 5a 00", false, 8},           /* cvtps2pd */
		{"66 0f d1 00", true, 16},        /* psrlw xmm, m128 */
		{"48 0f c7 08", true, 16},        /* cmpxchg16b */
		{"0f c7 08", false, 8},           /* cmpxchg8b */
		{"c5 fc 28 00", true, 32},        /* vmovaps */
		{"c5 fc 10 00", false, 32},       /* vmovups */
		{"c5 fc 58 00", false, 32},       /* vaddps */
		{"c5 fd e7 00", true, 32},        /* vmovntdq */
		{"62 f1 fd 48 6f 00", true, 64},  /* vmovdqa64 */
		{"62 f1 fe 48 6f 00", false, 64}, /* vmovdqu64 */
		{"62 f1 7c 48 2b 00", true, 64},  /* vmovntps */
	};

	for (unsigned i = 0; i < ARRAY_LEN(cases); i++) {
		struct insn in = decoded(cases[i].hex, MODE_64);

		if (in.mem_aligned != cases[i].aligned || in.mem_size != cases[i].size)
			fail_msg("%s: aligned %d size %u", cases[i].hex, in.mem_aligned, in.mem_size);
	}
}

static void test_masking(void **state)
{
	static const struct {
		const char *hex;
		bool masked;
		unsigned mem, size;
		int64_t disp;
	} cases[] = {
		{"c4 e2 75 2c 40 01", true, MEM_READ, 32, 1},           /* vmaskmovps ymm, [rax+1] */
		{"c4 e2 75 8e 40 01", true, MEM_WRITE, 32, 1},          /* vpmaskmovd [rax+1], ymm */
		{"62 f1 7c 48 58 40 01", false, MEM_READ, 64, 64},      /* vaddps zmm */
		{"62 f1 7c 49 58 40 01", true, MEM_READ, 64, 64},       /* {k1} */
		{"62 f1 7c 59 58 40 01", true, MEM_READ, 4, 4},         /* {k1} {1to16} */
		{"62 f1 fd 59 58 40 01", true, MEM_READ, 8, 8},         /* vaddpd {k1} {1to8} */
		{"62 f1 7e 09 58 40 01", true, MEM_READ, 4, 4},         /* vaddss {k1} */
		{"62 f1 7c 49 14 40 01", false, MEM_READ, 64, 64},      /* vunpcklps {k1}: no suppression */
		{"62 f2 7d 49 8a 40 01", true, MEM_WRITE, 64, 4},       /* vcompressps {k1} */
		{"62 f2 7d 49 63 40 01", true, MEM_WRITE, 64, 1},       /* vpcompressb {k1} */
		{"62 f2 7e 49 32 40 01", true, MEM_WRITE, 8, 8},        /* vpmovqb {k1} */
		{"62 f3 7d 49 1d 40 01 00", true, MEM_WRITE, 32, 32},   /* vcvtps2ph {k1} */
		{"62 f3 7d 48 39 40 01 00", false, MEM_WRITE, 16, 16},  /* vextracti32x4 */
		{"62 f3 7d 49 39 40 01 00", false, MEM_RMW, 16, 16},    /* {k1}: no suppression */
		{"62 f5 7c 59 58 40 01", true, MEM_READ, 2, 2},         /* vaddph {k1} {1to32} */
		{"62 f5 7c 48 5a 40 01", false, MEM_READ, 16, 16},      /* vcvtph2pd: a quarter */
	};

	for (unsigned i = 0; i < ARRAY_LEN(cases); i++) {
		struct insn in = decoded(cases[i].hex, MODE_64);

		if (in.mem_masked != cases[i].masked || in.mem != cases[i].mem || in.mem_size != cases[i].size ||
		    in.disp != cases[i].disp)
			fail_msg("%s: masked %d mem %u size %u disp %ld", cases[i].hex, in.mem_masked, in.mem,
				 in.mem_size, (long)in.disp);
	}
}

static void test_x87_wait(void **state)
{
	static const struct {
		const char *hex;
		bool wait;
		unsigned unit;
	} cases[] = {
		{"d9 00", true, UNIT_X87},	     {"9b", true, UNIT_X87},
		{"d9 28", true, UNIT_X87}, /* fld, fwait, fldcw */
		{"d9 38", false, UNIT_X87},	     {"dd 38", false, UNIT_X87},
		{"df e0", false, UNIT_X87}, /* fnstcw, fnstsw */
		{"db e2", false, UNIT_X87},	     {"db e3", false, UNIT_X87},
		{"d9 30", false, UNIT_X87}, /* fnclex, fninit, fnstenv */
		{"dd 30", false, UNIT_X87},	     {"dd 20", true, UNIT_X87},
		{"0f ae 00", false, UNIT_X87}, /* fnsave, frstor, fxsave */
		{"0f 77", true, UNIT_MMX},	     {"0f fe c1", true, UNIT_MMX},
		{"66 0f fe c1", false, UNIT_SSE},    {"0f 2a 00", true, UNIT_SSE},
		{"0f c4 c0 00", true, UNIT_MMX},     {"f3 0f d6 c0", true, UNIT_SSE},
		{"c5 f0 58 00", false, UNIT_AVX},    {"c5 fc 4a c0", false, UNIT_AVX512},
		{"c4 e2 70 f2 c0", false, UNIT_INT},
	};

	for (unsigned i = 0; i < ARRAY_LEN(cases); i++) {
		struct insn in = decoded(cases[i].hex, MODE_64);

		if (in.x87_wait != cases[i].wait || in.unit != cases[i].unit)
			fail_msg("%s: wait %d unit %u", cases[i].hex, in.x87_wait, in.unit);
	}
	assert_true(decoded("c4 e2 70 f2 c0", MODE_64).vex_gpr);
	assert_false(decoded("c5 f0 58 00", MODE_64).vex_gpr);
}

static void test_registers(void **state)
{
	struct insn in = decoded("88 e0", MODE_64); /* mov al, ah */

	assert_true(in.byte_reg && in.reg_high8 && !in.rm_high8);
	assert_int_equal(in.reg_gpr, REG_READ);
	assert_int_equal(in.rm_gpr, REG_WRITE);
	in = decoded("40 88 e0", MODE_64); /* mov al, spl */
	assert_true(in.byte_reg && !in.reg_high8 && in.reg == 4);
	in = decoded("0f b6 c7", MODE_64); /* movzx eax, bh */
	assert_true(in.byte_reg && !in.reg_high8 && in.rm_high8);
	in = decoded("0f b6 f8", MODE_64); /* movzx edi, al: reg is no byte */
	assert_true(!in.reg_high8 && !in.rm_high8);
	in = decoded("41 b4 01", MODE_64);
	assert_true(in.byte_reg && in.opreg == 12 && in.opreg_gpr == REG_WRITE);
	in = decoded("66 48 0f 6e c7", MODE_64); /* movq xmm0, rdi */
	assert_true(in.reg_gpr == REG_NONE && in.rm_gpr == REG_READ && in.rm == 7 && in.osz == 8 && in.pp == 1);
	in = decoded("c4 42 30 f2 c2", MODE_64); /* andn r8d, r9d, r10d */
	assert_true(in.reg == 8 && in.vvvv == 9 && in.rm == 10 && in.has_vvvv);
	assert_true(in.reg_gpr == REG_WRITE && in.vvvv_gpr == REG_READ && in.rm_gpr == REG_READ);
	in = decoded("c4 e2 7b f6 c1", MODE_64); /* mulx */
	assert_int_equal(in.vvvv_gpr, REG_WRITE);
	in = decoded("62 02 7d 48 7c c1", MODE_64); /* vpbroadcastd zmm24, r9d */
	assert_true(in.reg == 24 && in.rm == 9 && in.rm_gpr == REG_READ);
	in = decoded("62 01 04 40 58 c1", MODE_64); /* vaddps zmm24, zmm31, zmm25 */
	assert_true(in.reg == 24 && in.vvvv == 31 && in.rm == 25);
	in = decoded("8e d8", MODE_64);
	assert_true(in.kind == INSN_MOV_SEG_RM && in.seg_reg == SEG_DS && in.rm_gpr == REG_READ);
	assert_int_equal(decode_hex("8e c8", MODE_64, &in), DECODE_INVALID); /* mov cs, ax */
	assert_int_equal(decoded("0f b4 00", MODE_64).seg_reg, SEG_FS);
	assert_int_equal(decoded("c5 00", MODE_32).seg_reg, SEG_DS);
	assert_int_equal(decoded("0f a9", MODE_64).seg_reg, SEG_GS);
	assert_int_equal(decoded("16", MODE_32).seg_reg, SEG_SS);
}

static void test_prefixes(void **state)
{
	struct insn in = decoded("48 66 90", MODE_64); /* REX counts right before the opcode only */

	assert_true(in.rex == 0 && in.opsize66);
	in = decoded("f3 0f bd c0", MODE_64);
	assert_true(in.pp == 2 && in.rep == 0xf3 && in.kind == INSN_NATIVE);
	in = decoded("66 f2 0f 38 f1 c0", MODE_64); /* crc32 eax, ax */
	assert_true(in.pp == 3 && in.osz == 2);
	in = decoded("66 e9 00 00 00 80", MODE_64); /* 66 ignored */
	assert_true(in.kind == INSN_JMP_REL && in.osz == 8 && in.len == 6 && in.imm == INT32_MIN);
	in = decoded("66 e9 00 80", MODE_32);
	assert_true(in.osz == 2 && in.imm == INT16_MIN);
	assert_int_equal(decoded("66 50", MODE_64).osz, 2);
	assert_int_equal(decoded("50", MODE_64).osz, 8);
	in = decoded("64 8b 04 25 28 00 00 00", MODE_64);
	assert_true(in.seg == SEG_FS && in.seg_override && in.base == -1 && in.index == -1 && !in.rip_rel &&
		    in.disp == 0x28);
	in = decoded("2e 8b 45 00", MODE_64);
	assert_true(in.seg == SEG_SS && !in.seg_override);
	assert_int_equal(decode_hex("f0 89 00", MODE_64, &in), DECODE_INVALID);
	assert_int_equal(decode_hex("f0 01 c0", MODE_64, &in), DECODE_INVALID);
	assert_true(decoded("f0 01 00", MODE_64).lock);
	assert_true(decoded("f0 48 0f c7 08", MODE_64).lock);
	assert_int_equal(decode_hex("66 c5 f8 58 c0", MODE_64, &in), DECODE_INVALID);
	assert_int_equal(decode_hex("66 66 66 66 66 66 66 66 66 66 66 66 66 66 66 90", MODE_64, &in), DECODE_TOO_LONG);
	assert_int_equal(decode_hex("66 66 66 66 66 66 66 66 66 66 66 66 66 66 90", MODE_64, &in), DECODE_OK);
	assert_int_equal(decode_hex("2e 2e 2e 2e 2e 48 81 84 88 78 56 34 12 21 43 65 07", MODE_64, &in),
			 DECODE_TOO_LONG);
}

static void test_immediates(void **state)
{
	struct insn in = decoded("c8 34 12 05", MODE_64);

	assert_true(in.kind == INSN_ENTER && in.imm == 0x1234 && in.imm2 == 5 && in.imm_len == 3);
	in = decoded("ea 78 56 34 12 08 00", MODE_32);
	assert_true(in.kind == INSN_JMP_FAR_PTR && in.imm == 0x12345678 && in.imm2 == 8);
	in = decoded("48 a1 88 77 66 55 44 33 22 11", MODE_64);
	assert_true(in.kind == INSN_NATIVE && in.mem == MEM_READ && in.mem_size == 8 && in.disp == 0x1122334455667788 &&
		    in.disp_len == 8);
	assert_true(in.base == -1 && in.index == -1 && in.disp_off == 2 && in.imm_len == 0);
	in = decoded("67 a2 f0 ff ff ff", MODE_64);
	assert_true(in.mem == MEM_WRITE && in.mem_size == 1 && in.disp == 0xfffffff0);
	in = decoded("48 b8 ff ff ff ff ff ff ff ff", MODE_64);
	assert_true(in.imm == -1 && in.imm_len == 8);
	in = decoded("83 c0 80", MODE_64);
	assert_true(in.imm == -128);
	in = decoded("c1 e0 20", MODE_64); /* a count of 0 */
	assert_true(in.flags_written == 0 && in.flags_read == 0);
	in = decoded("48 c1 e0 20", MODE_64);
	assert_int_equal(in.flags_written, FL_ARITH);
	in = decoded("d3 e0", MODE_64);
	assert_true(in.flags_written == FL_ARITH && in.flags_read == FL_ARITH);
	in = decoded("0f 9f c0", MODE_64);
	assert_true(in.cc == 15 && in.flags_read == (FL_SF | FL_OF | FL_ZF));
}

static void test_mem_offset(void **state)
{
	uint64_t gpr[16];

	for (unsigned i = 0; i < 16; i++)
		gpr[i] = UINT64_C(0x1000000000) * (i + 1) + i;
	struct insn in = decoded("8b 44 8b fc", MODE_64); /* mov eax, [rbx + rcx*4 - 4] */

	assert_true(insn_mem_offset(&in, gpr, 0) == gpr[3] + gpr[1] * 4 - 4);
	in = decoded("67 8b 44 8b fc", MODE_64);
	assert_true(insn_mem_offset(&in, gpr, 0) == (uint32_t)(3 + 4 - 4));
	in = decoded("8b 05 f0 ff ff ff", MODE_64);
	assert_true(in.rip_rel && insn_mem_offset(&in, gpr, 0x400006) == 0x3ffff6);
	in = decoded("67 8b 05 f0 ff ff ff", MODE_64);
	assert_true(insn_mem_offset(&in, gpr, 8) == 0xfffffff8);
	in = decoded("8b 40 ff", MODE_16); /* mov ax, [bx + si - 1] */
	assert_true(insn_mem_offset(&in, gpr, 0) == ((3 + 6 - 1) & 0xffff));
	in = decoded("8b 06 00 80", MODE_16);
	assert_true(insn_mem_offset(&in, gpr, 0) == 0x8000);
}

/* Cases between them that Zydis judges as this decoder does not, or not at all. */
static void test_invalid(void **state)
{
	static const char *const cases[] = {
		"0f 0f c0 9e",	     /* 3DNow! */
		"8f e8 78 c2 c0 00", /* XOP */
		"0f 01 d5",
		"0f 01 d6", /* XEND, XTEST */
		"c6 f8 00",
		"c7 f8 00 00 00 00", /* XABORT, XBEGIN */
		"66 0f 38 f8 00",    /* MOVDIR64B */
		"0f 01 e8",	     /* SERIALIZE */
		"0f 22 c8",	     /* MOV CR1 */
		"44 0f 23 c0",	     /* MOV DR8 */
		"62 f1 7c c8 58 c0", /* z without a mask */
		"62 f1 7d 58 fe c0", /* rounding where there is none */
		"c4 e2 71 92 04 08", /* gather: mask and destination differ, index is the mask */
		"06",
		"27",
		"37",
		"60",
		"62 00",
		"82 c0 00",
		"9a",
		"c4 00",
		"ce",
		"d4",
		"d6",
		"ea", /* not in 64-bit mode */
	};
	struct insn in;

	for (unsigned i = 0; i < ARRAY_LEN(cases); i++) {
		uint8_t b[32] = {0};

		parse_hex(cases[i], b);
		if (insn_decode(b, sizeof(b), MODE_64, &in) != DECODE_INVALID)
			fail_msg("%s is valid", cases[i]);
	}
}

static uint64_t next_random(uint64_t *s)
{
	*s ^= *s << 13;
	*s ^= *s >> 7;
	*s ^= *s << 17;
	return *s;
}

/* Bytes that end at a page nobody may read: every count of available bytes gives the same instruction, MORE, or #UD. */
static void test_bounds(void **state)
{
	uint8_t *page = mmap(NULL, 2 * PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	uint64_t rng = 0x1234567;

	assert_ptr_not_equal(page, MAP_FAILED);
	assert_int_equal(mprotect(page + PAGE_SIZE, PAGE_SIZE, PROT_NONE), 0);
	for (unsigned i = 0; i < 200000; i++) {
		static const uint8_t starts[] = {0x0f, 0x62, 0xc4, 0xc5, 0x66, 0xf3,
						 0x48, 0x67, 0xf0, 0xc8, 0xa1, 0xf6};
		enum insn_cpu_mode mode = i % 3;
		uint8_t bytes[64];
		struct insn full, in;

		for (unsigned j = 0; j < sizeof(bytes); j++)
			bytes[j] = (uint8_t)(next_random(&rng) >> 11);
		for (unsigned j = 0; j < 6 && (next_random(&rng) & 1); j++)
			bytes[j] = starts[next_random(&rng) % sizeof(starts)];
		enum decode_result want = insn_decode(bytes, sizeof(bytes), mode, &full);

		for (unsigned avail = 0; avail <= INSN_MAX_LEN; avail++) {
			uint8_t *at = page + PAGE_SIZE - avail;

			memcpy(at, bytes, avail);
			enum decode_result r = insn_decode(at, avail, mode, &in);

			if (avail < full.len)
				assert_true(r == DECODE_MORE || (want == DECODE_TOO_LONG && r != DECODE_OK));
			else if (avail == INSN_MAX_LEN || want != DECODE_TOO_LONG)
				assert_int_equal(r, want);
			if (r == DECODE_OK)
				assert_memory_equal(&in, &full, sizeof(in));
		}
	}
	munmap(page, 2 * PAGE_SIZE);
}

/* Every kind is produced by some bytes. */
static void test_kinds(void **state)
{
	static const uint8_t prefixes[] = {0, 0x66, 0xf3, 0xf2};
	bool seen[INSN_KIND_COUNT] = {false};
	struct insn in;

	for (unsigned i = 0; i < 3u * 4 * 4 * 256 * 256; i++) {
		enum insn_cpu_mode mode = i % 3;
		unsigned map = i / 3 % 4, prefix = i / 12 % 4, n = 0;
		uint8_t b[16] = {0};

		if (prefix)
			b[n++] = prefixes[prefix];
		if (map)
			b[n++] = 0x0f;
		if (map > 1)
			b[n++] = map == 2 ? 0x38 : 0x3a;
		b[n++] = (uint8_t)(i / 48);
		b[n++] = (uint8_t)(i / 48 / 256);
		if (insn_decode(b, sizeof(b), mode, &in) == DECODE_OK)
			seen[in.kind] = true;
	}
	seen[INSN_VSIB] = decoded("c4 e2 69 92 04 08", MODE_64).kind == INSN_VSIB;
	for (unsigned k = 0; k < INSN_KIND_COUNT; k++)
		if (!seen[k])
			fail_msg("no %s", insn_kind_name(k));
	assert_string_equal(insn_kind_name(INSN_JMP_REL), "JMP_REL");
	assert_string_equal(insn_kind_name(INSN_KIND_COUNT), "?");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_alignment), cmocka_unit_test(test_masking), cmocka_unit_test(test_x87_wait),
		cmocka_unit_test(test_registers), cmocka_unit_test(test_prefixes), cmocka_unit_test(test_immediates),
		cmocka_unit_test(test_mem_offset), cmocka_unit_test(test_invalid), cmocka_unit_test(test_bounds),
		cmocka_unit_test(test_kinds),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
