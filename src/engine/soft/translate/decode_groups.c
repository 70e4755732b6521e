/*
 * Opcode groups: rows chosen by modrm. Rows 0-7 are the memory forms, 8-15 those with mod == 3.
 * Numbers as in SDM vol. 2, appendix A.4; x87 escapes as in A.5.
 */
#include "engine/soft/translate/decode_int.h"

/* ADD OR ADC SBB AND SUB XOR (writing) and CMP. */
#define GROUP_1(size, imm, ...) { \
	BOTH(0, NAT, E_RW(size), imm, LOCKABLE, FW_ALL, __VA_ARGS__), \
	BOTH(1, NAT, E_RW(size), imm, LOCKABLE, FW_ALL, __VA_ARGS__), \
	BOTH(2, NAT, E_RW(size), imm, LOCKABLE, FR(FL_CF), FW_ALL, __VA_ARGS__), \
	BOTH(3, NAT, E_RW(size), imm, LOCKABLE, FR(FL_CF), FW_ALL, __VA_ARGS__), \
	BOTH(4, NAT, E_RW(size), imm, LOCKABLE, FW_ALL, __VA_ARGS__), \
	BOTH(5, NAT, E_RW(size), imm, LOCKABLE, FW_ALL, __VA_ARGS__), \
	BOTH(6, NAT, E_RW(size), imm, LOCKABLE, FW_ALL, __VA_ARGS__), \
	BOTH(7, NAT, E_R(size), imm, FW_ALL, __VA_ARGS__), \
}

/* ROL ROR RCL RCR SHL SHR SAL SAR; count is the immediate, 1 or CL. `keep`: flags may all stay (CL == 0). */
#define GROUP_2(size, imm, keep, ...) { \
	BOTH(0, NAT, E_RW(size), imm, FR((keep) & (FL_CF | FL_OF)), FW(FL_CF | FL_OF), __VA_ARGS__), \
	BOTH(1, NAT, E_RW(size), imm, FR((keep) & (FL_CF | FL_OF)), FW(FL_CF | FL_OF), __VA_ARGS__), \
	BOTH(2, NAT, E_RW(size), imm, FR(((keep) & FL_OF) | FL_CF), FW(FL_CF | FL_OF), __VA_ARGS__), \
	BOTH(3, NAT, E_RW(size), imm, FR(((keep) & FL_OF) | FL_CF), FW(FL_CF | FL_OF), __VA_ARGS__), \
	BOTH(4, NAT, E_RW(size), imm, FR((keep)), FW_ALL, __VA_ARGS__), \
	BOTH(5, NAT, E_RW(size), imm, FR((keep)), FW_ALL, __VA_ARGS__), \
	BOTH(6, NAT, E_RW(size), imm, FR((keep)), FW_ALL, __VA_ARGS__), \
	BOTH(7, NAT, E_RW(size), imm, FR((keep)), FW_ALL, __VA_ARGS__), \
}

/* TEST TEST NOT NEG MUL IMUL DIV IDIV */
#define GROUP_3(size, imm, ...) { \
	BOTH(0, NAT, E_R(size), imm, FW_ALL, __VA_ARGS__), \
	BOTH(1, NAT, E_R(size), imm, FW_ALL, __VA_ARGS__), \
	BOTH(2, NAT, E_RW(size), LOCKABLE, __VA_ARGS__), \
	BOTH(3, NAT, E_RW(size), LOCKABLE, FW_ALL, __VA_ARGS__), \
	BOTH(4, NAT, E_R(size), FW_ALL, __VA_ARGS__), \
	BOTH(5, NAT, E_R(size), FW_ALL, __VA_ARGS__), \
	BOTH(6, NAT, E_R(size), FW_ALL, __VA_ARGS__), \
	BOTH(7, NAT, E_R(size), FW_ALL, __VA_ARGS__), \
}

#define FW_INCDEC FW(FL_ARITH & ~FL_CF)
#define FW_BT FW(FL_ARITH & ~FL_ZF)
#define X87_REG NAT, U_, X87
#define X87_R(s) NAT, M_R(s), X87
#define X87_W(s) NAT, M_W(s), X87
#define SHIFT_MMX {NAT, U_, I(U8), MMX}
#define SHIFT_SSE {NAT, U_, I(U8), SSE}
#define SHIFT_AVX {NAT, U_, I(U8), .vvvv_used = 1, .unit = UNIT_AVX}
#define EVEX_SHIFT NAT, X_R(S_VL), I(U8), .vvvv_used = 1, .mask = MASK_ZERO, .unit = UNIT_AVX512

const struct opdesc decode_groups[GRP_COUNT][16] = {
	[GRP_1_EBIB] = GROUP_1(S_1, I(S8), BYTE_RM),
	[GRP_1_EVIZ] = GROUP_1(S_V, I(Z)),
	[GRP_1_EBIB82] = GROUP_1(S_1, I(S8), BYTE_RM, .not64 = 1),
	[GRP_1_EVIB] = GROUP_1(S_V, I(S8)),
	[GRP_1A] = {BOTH(0, K(POP_M), E_W(S_V), .def64 = 1)},
	[GRP_2_EBIB] = GROUP_2(S_1, I(U8), 0, BYTE_RM, .shift = 1),
	[GRP_2_EVIB] = GROUP_2(S_V, I(U8), 0, .shift = 1),
	[GRP_2_EB1] = GROUP_2(S_1, I(NONE), 0, BYTE_RM),
	[GRP_2_EV1] = GROUP_2(S_V, I(NONE), 0),
	[GRP_2_EBCL] = GROUP_2(S_1, I(NONE), FL_ARITH, BYTE_RM),
	[GRP_2_EVCL] = GROUP_2(S_V, I(NONE), FL_ARITH),
	[GRP_3_EB] = GROUP_3(S_1, I(S8), BYTE_RM),
	[GRP_3_EV] = GROUP_3(S_V, I(Z)),
	[GRP_4] = {
		BOTH(0, NAT, E_RW(S_1), BYTE_RM, LOCKABLE, FW_INCDEC),
		BOTH(1, NAT, E_RW(S_1), BYTE_RM, LOCKABLE, FW_INCDEC),
	},
	[GRP_5] = {
		BOTH(0, NAT, E_RW(S_V), LOCKABLE, FW_INCDEC),
		BOTH(1, NAT, E_RW(S_V), LOCKABLE, FW_INCDEC),
		BOTH(2, K(CALL_IND), E_R(S_V), .force64 = 1),
		[3] = {K(CALL_FAR_IND), M_R(S_FAR)},
		BOTH(4, K(JMP_IND), E_R(S_V), .force64 = 1),
		[5] = {K(JMP_FAR_IND), M_R(S_FAR)},
		BOTH(6, K(PUSH_M), E_R(S_V), .def64 = 1),
	},
	[GRP_6] = {
		BOTH(0, K(SLDT), E_W(S_2)),
		BOTH(1, K(STR), E_W(S_2)),
		BOTH(2, K(LLDT), E_R(S_2)),
		BOTH(3, K(LTR), E_R(S_2)),
		BOTH(4, K(VERR), E_R(S_2), FW(FL_ZF)),
		BOTH(5, K(VERW), E_R(S_2), FW(FL_ZF)),
	},
	[GRP_7_NP] = {
		[0] = {K(SGDT), M_W(S_DT), .force64 = 1}, [1] = {K(SIDT), M_W(S_DT), .force64 = 1},
		[2] = {K(LGDT), M_R(S_DT), .force64 = 1}, [3] = {K(LIDT), M_R(S_DT), .force64 = 1},
		BOTH(4, K(SMSW), E_W(S_2)), BOTH(6, K(LMSW), E_R(S_2)),
		[7] = {K(INVLPG), M_ADDR},
		REGFORM(0) = {GROUP_BY(GRP_7_VMX, SEL_RM)}, REGFORM(1) = {GROUP_BY(GRP_7_MON, SEL_RM)},
		REGFORM(2) = {GROUP_BY(GRP_7_XCR, SEL_RM)}, REGFORM(3) = {GROUP_BY(GRP_7_SVM, SEL_RM)},
		REGFORM(5) = {GROUP_BY(GRP_7_PKRU, SEL_RM)}, REGFORM(7) = {GROUP_BY(GRP_7_SWAPGS, SEL_RM)},
	},
	[GRP_7] = {
		[0] = {K(SGDT), M_W(S_DT), .force64 = 1, ANYPP}, [1] = {K(SIDT), M_W(S_DT), .force64 = 1, ANYPP},
		[2] = {K(LGDT), M_R(S_DT), .force64 = 1, ANYPP}, [3] = {K(LIDT), M_R(S_DT), .force64 = 1, ANYPP},
		BOTH(4, K(SMSW), E_W(S_2), ANYPP), BOTH(6, K(LMSW), E_R(S_2), ANYPP),
		[7] = {K(INVLPG), M_ADDR, ANYPP},
		REGFORM(3) = {GROUP_BY(GRP_7_SVM, SEL_RM), ANYPP}, REGFORM(7) = {GROUP_BY(GRP_7_ANYPP, SEL_RM), ANYPP},
	},
	[GRP_7_VMX] = {REGFORM(1) = {K(VMCALL), U_}, REGFORM(2) = {K(UD), U_}, REGFORM(3) = {K(UD), U_},
		REGFORM(4) = {K(UD), U_}},
	[GRP_7_MON] = {
		REGFORM(0) = {K(MONITOR), U_}, REGFORM(1) = {K(MWAIT), U_}, REGFORM(2) = {K(CLAC), U_},
		REGFORM(3) = {K(STAC), U_},
	},
	[GRP_7_XCR] = {REGFORM(0) = {K(XGETBV), U_}, REGFORM(1) = {K(XSETBV), U_}, REGFORM(4) = {K(UD), U_}},
	[GRP_7_SVM] = {
		REGFORM(0) = {K(UD), U_}, REGFORM(1) = {K(VMMCALL), U_}, REGFORM(2) = {K(UD), U_},
		REGFORM(3) = {K(UD), U_},
		REGFORM(4) = {K(UD), U_}, REGFORM(5) = {K(UD), U_}, REGFORM(6) = {K(UD), U_}, REGFORM(7) = {K(UD), U_},
	},
	[GRP_7_PKRU] = {REGFORM(6) = {K(RDPKRU), U_}, REGFORM(7) = {K(WRPKRU), U_}},
	[GRP_7_SWAPGS] = {REGFORM(0) = {K(SWAPGS), U_, .only64 = 1}, REGFORM(1) = {K(RDTSCP), U_},
		REGFORM(4) = {K(CLZERO), U_}},
	[GRP_7_ANYPP] = {REGFORM(0) = {K(SWAPGS), U_, .only64 = 1}, REGFORM(1) = {K(RDTSCP), U_}},
	[GRP_8] = {
		BOTH(4, NAT, E_R(S_V), I(U8), FW_BT),
		BOTH(5, NAT, E_RW(S_V), I(U8), LOCKABLE, FW_BT),
		BOTH(6, NAT, E_RW(S_V), I(U8), LOCKABLE, FW_BT),
		BOTH(7, NAT, E_RW(S_V), I(U8), LOCKABLE, FW_BT),
	},
	[GRP_9] = {
		/* CMPXCHG8B, CMPXCHG16B: only the latter aligned */
		[1] = {NAT, M_RW(S_Y2), LOCKABLE, ALIGNED, FW(FL_ZF)},
		[3] = {K(XRSTORS), M_R(S_0)}, [4] = {K(XSAVEC), M_RW(S_0)}, [5] = {K(XSAVES), M_RW(S_0)},
		[6] = {K(UD), M_R(S_8)}, [7] = {K(UD), M_R(S_8)},
		REGFORM(6) = {NAT, GU_W, FW_ALL}, REGFORM(7) = {NAT, GU_W, FW_ALL}, /* RDRAND, RDSEED */
	},
	[GRP_9_66] = {
		[1] = {NAT, M_RW(S_Y2), LOCKABLE, ALIGNED, FW(FL_ZF), ANYPP},
		[6] = {K(UD), M_R(S_8)},
		REGFORM(6) = {NAT, GU_W, FW_ALL, ANYPP}, REGFORM(7) = {NAT, GU_W, FW_ALL, ANYPP},
	},
	[GRP_9_F3] = {
		[1] = {NAT, M_RW(S_Y2), LOCKABLE, ALIGNED, FW(FL_ZF), ANYPP},
		[6] = {K(UD), M_R(S_8)},
		REGFORM(7) = {K(RDPID), GU_W, .force64 = 1, .by_w = 1},
	},
	[GRP_9_F2] = {[1] = {NAT, M_RW(S_Y2), LOCKABLE, ALIGNED, FW(FL_ZF), ANYPP}},
	[GRP_11_EB] = {BOTH(0, NAT, E_W(S_1), I(S8), BYTE_RM)},
	[GRP_11_EV] = {BOTH(0, NAT, E_W(S_V), I(Z))},
	[GRP_12] = {REGFORM(2) = SHIFT_MMX, REGFORM(4) = SHIFT_MMX, REGFORM(6) = SHIFT_MMX},
	[GRP_12_66] = {REGFORM(2) = SHIFT_SSE, REGFORM(4) = SHIFT_SSE, REGFORM(6) = SHIFT_SSE},
	[GRP_13] = {REGFORM(2) = SHIFT_MMX, REGFORM(4) = SHIFT_MMX, REGFORM(6) = SHIFT_MMX},
	[GRP_13_66] = {REGFORM(2) = SHIFT_SSE, REGFORM(4) = SHIFT_SSE, REGFORM(6) = SHIFT_SSE},
	[GRP_14] = {REGFORM(2) = SHIFT_MMX, REGFORM(6) = SHIFT_MMX},
	[GRP_14_66] = {REGFORM(2) = SHIFT_SSE, REGFORM(3) = SHIFT_SSE, REGFORM(6) = SHIFT_SSE, REGFORM(7) = SHIFT_SSE},
	[GRP_15] = {
		[0] = {K(FXSAVE), M_W(S_512), X87_NOWAIT}, [1] = {K(FXRSTOR), M_R(S_512), X87_NOWAIT},
		[2] = {NAT, M_R(S_4), SSE}, [3] = {NAT, M_W(S_4), SSE}, /* LDMXCSR, STMXCSR */
		[4] = {K(XSAVE), M_RW(S_0)}, [5] = {K(XRSTOR), M_R(S_0)}, [6] = {K(XSAVEOPT), M_RW(S_0)},
		[7] = {NAT, M_R(S_1)}, /* CLFLUSH */
		REGFORM(5) = {NAT, U_}, REGFORM(6) = {NAT, U_}, REGFORM(7) = {NAT, U_}, /* LFENCE, MFENCE, SFENCE */
	},
	[GRP_15_66] = {[6] = {NAT, M_R(S_1)}, [7] = {NAT, M_R(S_1)}}, /* CLWB, CLFLUSHOPT */
	[GRP_15_F3] = {
		REGFORM(0) = {K(RDFSBASE), GU_W, .only64 = 1, .by_w = 1},
		REGFORM(1) = {K(RDGSBASE), GU_W, .only64 = 1, .by_w = 1},
		REGFORM(2) = {K(WRFSBASE), GU_R, .only64 = 1, .by_w = 1},
		REGFORM(3) = {K(WRGSBASE), GU_R, .only64 = 1, .by_w = 1},
	},
	[GRP_P] = { /* AMD prefetches; with a register the host decides: #UD (AMD) or a no-op (Intel) */
		[0 ... 7] = {K(NOP), M_ADDR}, [8 ... 15] = {NAT, U_},
	},
	[GRP_EXTRQ] = {REGFORM(0) = {NAT, U_, I(U8U8), SSE}},

	[GRP_X87_D8] = {[0 ... 7] = {X87_R(S_4)}, [8 ... 15] = {X87_REG}},
	[GRP_X87_D9] = {
		[0] = {X87_R(S_4)}, [2] = {X87_W(S_4)}, [3] = {X87_W(S_4)},
		[4] = {K(FLDENV), M_R(S_ENV), X87}, [5] = {X87_R(S_2)},
		[6] = {K(FNSTENV), M_W(S_ENV), X87_NOWAIT}, [7] = {NAT, M_W(S_2), X87_NOWAIT}, /* FNSTCW */
		REGFORM(0) = {X87_REG}, REGFORM(1) = {X87_REG}, /* FLD, FXCH */
		REGFORM(2) = {GROUP_BY(GRP_X87_D9_2, SEL_RM)},
		REGFORM(3) = {X87_REG}, /* FSTP alias */
		REGFORM(4) = {GROUP_BY(GRP_X87_D9_4, SEL_RM)}, REGFORM(5) = {GROUP_BY(GRP_X87_D9_5, SEL_RM)},
		REGFORM(6) = {X87_REG}, REGFORM(7) = {X87_REG},
	},
	[GRP_X87_D9_2] = {REGFORM(0) = {X87_REG}}, /* FNOP */
	[GRP_X87_D9_4] = {REGFORM(0) = {X87_REG}, REGFORM(1) = {X87_REG}, REGFORM(4) = {X87_REG},
		REGFORM(5) = {X87_REG}},
	[GRP_X87_D9_5] = {[8 ... 14] = {X87_REG}}, /* constants */
	[GRP_X87_DA] = {
		[0 ... 7] = {X87_R(S_4)},
		REGFORM(0) = {X87_REG, FR(FL_CF)}, REGFORM(1) = {X87_REG, FR(FL_ZF)}, /* FCMOVB, FCMOVE */
		REGFORM(2) = {X87_REG, FR(FL_CF | FL_ZF)}, REGFORM(3) = {X87_REG, FR(FL_PF)}, /* FCMOVBE, FCMOVU */
		REGFORM(5) = {GROUP_BY(GRP_X87_DA_5, SEL_RM)},
	},
	[GRP_X87_DA_5] = {REGFORM(1) = {X87_REG}}, /* FUCOMPP */
	[GRP_X87_DB] = {
		[0] = {X87_R(S_4)}, [1] = {X87_W(S_4)}, [2] = {X87_W(S_4)}, [3] = {X87_W(S_4)}, [5] = {X87_R(S_10)},
		[7] = {X87_W(S_10)},
		REGFORM(0) = {X87_REG, FR(FL_CF)}, REGFORM(1) = {X87_REG, FR(FL_ZF)},
		REGFORM(2) = {X87_REG, FR(FL_CF | FL_ZF)}, REGFORM(3) = {X87_REG, FR(FL_PF)},
		REGFORM(4) = {GROUP_BY(GRP_X87_DB_4, SEL_RM)},
		REGFORM(5) = {X87_REG, FW_ALL}, REGFORM(6) = {X87_REG, FW_ALL}, /* FUCOMI, FCOMI */
	},
	/* FNENI, FNDISI (no-ops), FNCLEX, FNINIT, FNSETPM (no-op) */
	[GRP_X87_DB_4] = {[8 ... 12] = {NAT, U_, X87_NOWAIT}},
	[GRP_X87_DC] = {[0 ... 7] = {X87_R(S_8)}, [8 ... 15] = {X87_REG}}, /* registers 2, 3: FCOM, FCOMP aliases */
	[GRP_X87_DD] = {
		[0] = {X87_R(S_8)}, [1] = {X87_W(S_8)}, [2] = {X87_W(S_8)}, [3] = {X87_W(S_8)},
		[4] = {K(FRSTOR), M_R(S_X87), X87},
		[6] = {K(FNSAVE), M_W(S_X87), X87_NOWAIT}, [7] = {NAT, M_W(S_2), X87_NOWAIT}, /* FNSTSW */
		[8 ... 13] = {X87_REG}, /* FFREE, FXCH alias, FST, FSTP, FUCOM, FUCOMP */
	},
	[GRP_X87_DE] = {
		[0 ... 7] = {X87_R(S_2)}, [8 ... 10] = {X87_REG}, /* 2: FCOMP alias */
		REGFORM(3) = {GROUP_BY(GRP_X87_DE_3, SEL_RM)}, [12 ... 15] = {X87_REG},
	},
	[GRP_X87_DE_3] = {REGFORM(1) = {X87_REG}}, /* FCOMPP */
	[GRP_X87_DF] = {
		[0] = {X87_R(S_2)}, [1] = {X87_W(S_2)}, [2] = {X87_W(S_2)}, [3] = {X87_W(S_2)},
		[4] = {X87_R(S_10)}, [5] = {X87_R(S_8)}, [6] = {X87_W(S_10)}, [7] = {X87_W(S_8)},
		[8 ... 11] = {X87_REG}, /* FFREEP; FXCH, FSTP, FSTP aliases */
		REGFORM(4) = {GROUP_BY(GRP_X87_DF_4, SEL_RM)},
		REGFORM(5) = {X87_REG, FW_ALL}, REGFORM(6) = {X87_REG, FW_ALL}, /* FUCOMIP, FCOMIP */
	},
	[GRP_X87_DF_4] = {REGFORM(0) = {NAT, U_, X87_NOWAIT}}, /* FNSTSW AX */

	[GRP_V12] = {REGFORM(2) = SHIFT_AVX, REGFORM(4) = SHIFT_AVX, REGFORM(6) = SHIFT_AVX},
	[GRP_V13] = {REGFORM(2) = SHIFT_AVX, REGFORM(4) = SHIFT_AVX, REGFORM(6) = SHIFT_AVX},
	[GRP_V14] = {REGFORM(2) = SHIFT_AVX, REGFORM(3) = SHIFT_AVX, REGFORM(6) = SHIFT_AVX, REGFORM(7) = SHIFT_AVX},
	[GRP_V15] = {[2] = {NAT, M_R(S_4), .unit = UNIT_AVX, .lens = L128},
		[3] = {NAT, M_W(S_4), .unit = UNIT_AVX, .lens = L128}},
	[GRP_V17] = {BOTH(1, NAT, E_R(S_Y), B_W, FW_ALL, .lens = L128),
		BOTH(2, NAT, E_R(S_Y), B_W, FW_ALL, .lens = L128),
		BOTH(3, NAT, E_R(S_Y), B_W, FW_ALL, .lens = L128)}, /* BLSR, BLSMSK, BLSI */

	[GRP_E12] = {BOTH(2, EVEX_SHIFT), BOTH(4, EVEX_SHIFT), BOTH(6, EVEX_SHIFT)},
	[GRP_E13] = {
		BOTH(0, EVEX_SHIFT, .bcast = BC_W), BOTH(1, EVEX_SHIFT, .bcast = BC_W),
		BOTH(2, EVEX_SHIFT, .bcast = BC_W, .w0 = 1),
		BOTH(4, EVEX_SHIFT, .bcast = BC_W), BOTH(6, EVEX_SHIFT, .bcast = BC_W, .w0 = 1),
	},
	[GRP_E14] = {
		BOTH(2, EVEX_SHIFT, .bcast = BC_W, .w1 = 1),
		BOTH(3, NAT, X_R(S_VL), I(U8), .vvvv_used = 1, .unit = UNIT_AVX512),
		BOTH(6, EVEX_SHIFT, .bcast = BC_W, .w1 = 1),
		BOTH(7, NAT, X_R(S_VL), I(U8), .vvvv_used = 1, .unit = UNIT_AVX512),
	},
};
