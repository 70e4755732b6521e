/*
 * Legacy opcode maps: one byte, 0F, 0F 38, 0F 3A (SDM vol. 2, appendix A).
 */
#include "engine/soft/translate/decode_int.h"

/* The six forms of ADD, OR, ADC, SBB, AND, SUB, XOR at `op`; CMP writes nothing. */
#define ALU(op, ...) \
	[op] = {NAT, E_RW(S_1), G_R, BYTE2, LOCKABLE, FW_ALL, __VA_ARGS__}, \
	[(op) + 1] = {NAT, E_RW(S_V), G_R, LOCKABLE, FW_ALL, __VA_ARGS__}, \
	[(op) + 2] = {NAT, E_R(S_1), G_RW, BYTE2, FW_ALL, __VA_ARGS__}, \
	[(op) + 3] = {NAT, E_R(S_V), G_RW, FW_ALL, __VA_ARGS__}, \
	[(op) + 4] = {NAT, I(S8), BYTE, FW_ALL, __VA_ARGS__}, \
	[(op) + 5] = {NAT, I(Z), FW_ALL, __VA_ARGS__}

const struct opdesc decode_map0[256] = {
	ALU(0x00, FR(0)),
	[0x06] = {K(PUSH_SEG), .not64 = 1}, [0x07] = {K(POP_SEG), .not64 = 1},
	ALU(0x08, FR(0)),
	[0x0e] = {K(PUSH_SEG), .not64 = 1},
	ALU(0x10, FR(FL_CF)),
	[0x16] = {K(PUSH_SEG), .not64 = 1}, [0x17] = {K(POP_SEG), .not64 = 1},
	ALU(0x18, FR(FL_CF)),
	[0x1e] = {K(PUSH_SEG), .not64 = 1}, [0x1f] = {K(POP_SEG), .not64 = 1},
	ALU(0x20, FR(0)),
	[0x27] = {K(DAA), .not64 = 1, FR(FL_AF | FL_CF), FW_ALL},
	ALU(0x28, FR(0)),
	[0x2f] = {K(DAS), .not64 = 1, FR(FL_AF | FL_CF), FW_ALL},
	ALU(0x30, FR(0)),
	[0x37] = {K(AAA), .not64 = 1, FR(FL_AF), FW_ALL},
	[0x38] = {NAT, E_R(S_1), G_R, BYTE2, FW_ALL},
	[0x39] = {NAT, E_R(S_V), G_R, FW_ALL},
	[0x3a] = {NAT, E_R(S_1), G_R, BYTE2, FW_ALL},
	[0x3b] = {NAT, E_R(S_V), G_R, FW_ALL},
	[0x3c] = {NAT, I(S8), BYTE, FW_ALL},
	[0x3d] = {NAT, I(Z), FW_ALL},
	[0x3f] = {K(AAS), .not64 = 1, FR(FL_AF), FW_ALL},
	[0x40 ... 0x4f] = {NAT, O_RW, .not64 = 1, FW(FL_ARITH & ~FL_CF)}, /* INC, DEC; REX in 64-bit mode */
	[0x50 ... 0x57] = {K(PUSH_R), O_R, .def64 = 1},
	[0x58 ... 0x5f] = {K(POP_R), O_W, .def64 = 1},
	[0x60] = {K(PUSHA), .not64 = 1}, [0x61] = {K(POPA), .not64 = 1},
	[0x62] = {K(BOUND), M_R(S_V2), G_R, .not64 = 1}, /* or EVEX */
	[0x63] = {K(ARPL), E_RW(S_2), G_R, .not64 = 1, FW(FL_ZF)}, /* MOVSXD in 64-bit mode: decode.c */
	[0x68] = {K(PUSH_IMM), I(Z), .def64 = 1},
	[0x69] = {NAT, E_R(S_V), G_W, I(Z), FW_ALL},
	[0x6a] = {K(PUSH_IMM), I(S8), .def64 = 1},
	[0x6b] = {NAT, E_R(S_V), G_W, I(S8), FW_ALL},
	[0x6c ... 0x6d] = {K(INS)}, [0x6e ... 0x6f] = {K(OUTS)},
	[0x70 ... 0x7f] = {K(JCC), I(S8), .force64 = 1},
	[0x80] = {GROUP(GRP_1_EBIB)}, [0x81] = {GROUP(GRP_1_EVIZ)}, [0x82] = {GROUP(GRP_1_EBIB82)},
	[0x83] = {GROUP(GRP_1_EVIB)},
	[0x84] = {NAT, E_R(S_1), G_R, BYTE2, FW_ALL},
	[0x85] = {NAT, E_R(S_V), G_R, FW_ALL},
	[0x86] = {NAT, E_RW(S_1), G_RW, BYTE2, LOCKABLE},
	[0x87] = {NAT, E_RW(S_V), G_RW, LOCKABLE},
	[0x88] = {NAT, E_W(S_1), G_R, BYTE2},
	[0x89] = {NAT, E_W(S_V), G_R},
	[0x8a] = {NAT, E_R(S_1), G_W, BYTE2},
	[0x8b] = {NAT, E_R(S_V), G_W},
	[0x8c] = {K(MOV_RM_SEG), E_W(S_2)},
	[0x8d] = {K(LEA), M_ADDR, G_W},
	[0x8e] = {K(MOV_SEG_RM), E_R(S_2)},
	[0x8f] = {GROUP(GRP_1A)},
	[0x90 ... 0x97] = {NAT, O_RW}, /* XCHG; 90 alone: decode.c */
	[0x98] = {NAT}, [0x99] = {NAT}, /* CBW.., CWD.. */
	[0x9a] = {K(CALL_FAR_PTR), I(FAR), .not64 = 1},
	[0x9b] = {NAT, X87}, /* FWAIT */
	[0x9c] = {K(PUSHF), .def64 = 1, FR_ALL},
	[0x9d] = {K(POPF), .def64 = 1, FW_ALL},
	[0x9e] = {NAT, FW(FL_ARITH & ~FL_OF)}, /* SAHF */
	[0x9f] = {NAT, FR(FL_ARITH & ~FL_OF)}, /* LAHF */
	[0xa0] = {NAT, .mem = MEM_READ, .size = S_1, I(MOFFS), BYTE},
	[0xa1] = {NAT, .mem = MEM_READ, .size = S_V, I(MOFFS)},
	[0xa2] = {NAT, .mem = MEM_WRITE, .size = S_1, I(MOFFS), BYTE},
	[0xa3] = {NAT, .mem = MEM_WRITE, .size = S_V, I(MOFFS)},
	[0xa4 ... 0xa5] = {K(MOVS)},
	[0xa6 ... 0xa7] = {K(CMPS), FW_ALL},
	[0xa8] = {NAT, I(S8), BYTE, FW_ALL}, [0xa9] = {NAT, I(Z), FW_ALL},
	[0xaa ... 0xab] = {K(STOS)},
	[0xac ... 0xad] = {K(LODS)},
	[0xae ... 0xaf] = {K(SCAS), FW_ALL},
	[0xb0 ... 0xb7] = {NAT, O_W, BYTE, I(S8)},
	[0xb8 ... 0xbf] = {NAT, O_W, I(V)},
	[0xc0] = {GROUP(GRP_2_EBIB)}, [0xc1] = {GROUP(GRP_2_EVIB)},
	[0xc2] = {K(RET_IMM), I(U16), .force64 = 1}, [0xc3] = {K(RET), .force64 = 1},
	/* or VEX */
	[0xc4] = {K(LOAD_FAR), M_R(S_FAR), G_W, .not64 = 1}, [0xc5] = {K(LOAD_FAR), M_R(S_FAR), G_W, .not64 = 1},
	[0xc6] = {GROUP(GRP_11_EB)}, [0xc7] = {GROUP(GRP_11_EV)},
	[0xc8] = {K(ENTER), I(ENTER), .def64 = 1}, [0xc9] = {K(LEAVE), .def64 = 1},
	[0xca] = {K(RETF_IMM), I(U16)}, [0xcb] = {K(RETF)},
	[0xcc] = {K(INT3), FR_ALL}, [0xcd] = {K(INT), I(U8), FR_ALL}, [0xce] = {K(INTO), .not64 = 1, FR_ALL},
	[0xcf] = {K(IRET), FW_ALL},
	[0xd0] = {GROUP(GRP_2_EB1)}, [0xd1] = {GROUP(GRP_2_EV1)}, [0xd2] = {GROUP(GRP_2_EBCL)},
	[0xd3] = {GROUP(GRP_2_EVCL)},
	[0xd4] = {K(AAM), I(U8), .not64 = 1, FW_ALL}, [0xd5] = {K(AAD), I(U8), .not64 = 1, FW_ALL},
	[0xd6] = {K(SALC), .not64 = 1, FR(FL_CF)},
	[0xd7] = {K(XLAT)},
	[0xd8] = {GROUP(GRP_X87_D8)}, [0xd9] = {GROUP(GRP_X87_D9)}, [0xda] = {GROUP(GRP_X87_DA)},
	[0xdb] = {GROUP(GRP_X87_DB)},
	[0xdc] = {GROUP(GRP_X87_DC)}, [0xdd] = {GROUP(GRP_X87_DD)}, [0xde] = {GROUP(GRP_X87_DE)},
	[0xdf] = {GROUP(GRP_X87_DF)},
	[0xe0] = {K(LOOPNE), I(S8), .force64 = 1, FR(FL_ZF)}, [0xe1] = {K(LOOPE), I(S8), .force64 = 1, FR(FL_ZF)},
	[0xe2] = {K(LOOP), I(S8), .force64 = 1}, [0xe3] = {K(JCXZ), I(S8), .force64 = 1},
	[0xe4 ... 0xe5] = {K(IN_IMM), I(U8)}, [0xe6 ... 0xe7] = {K(OUT_IMM), I(U8)},
	[0xe8] = {K(CALL_REL), I(Z), .force64 = 1}, [0xe9] = {K(JMP_REL), I(Z), .force64 = 1},
	[0xea] = {K(JMP_FAR_PTR), I(FAR), .not64 = 1},
	[0xeb] = {K(JMP_REL), I(S8), .force64 = 1},
	[0xec ... 0xed] = {K(IN_DX)}, [0xee ... 0xef] = {K(OUT_DX)},
	[0xf1] = {K(INT1), FR_ALL},
	[0xf4] = {K(HLT)},
	[0xf5] = {NAT, FR(FL_CF), FW(FL_CF)}, /* CMC */
	[0xf6] = {GROUP(GRP_3_EB)}, [0xf7] = {GROUP(GRP_3_EV)},
	[0xf8] = {NAT, FW(FL_CF)}, [0xf9] = {NAT, FW(FL_CF)}, /* CLC, STC */
	[0xfa] = {K(CLI)}, [0xfb] = {K(STI)},
	[0xfc] = {NAT}, [0xfd] = {NAT}, /* CLD, STD */
	[0xfe] = {GROUP(GRP_4)}, [0xff] = {GROUP(GRP_5)},
};

/* MMX form and its SSE twin with 66; the latter needs alignment, as nearly all legacy 16-byte operands do. */
#define MMX_SSE NP(NAT, X_R(S_8), MMX), P66(NAT, X_R(S_16), ALIGNED, SSE)
#define SSE_X NAT, X_R(S_16), ALIGNED, SSE
#define PS_PD NP(SSE_X), P66(SSE_X)
#define SSE_FP4 NP(SSE_X), P66(SSE_X), PF3(NAT, X_R(S_4), SSE), PF2(NAT, X_R(S_8), SSE)

#define CR_DR .modrm = 1, .form = FORM_MOD_IGNORED, .force64 = 1, .by_w = 1

const struct opdesc decode_map_0f[256][4] = {
	[0x00] = ALLPP(GROUP(GRP_6)),
	[0x01] = {NP(GROUP(GRP_7_NP)), P66(GROUP(GRP_7)), PF3(GROUP(GRP_7)), PF2(GROUP(GRP_7))},
	[0x02] = ALLPP(K(LAR), E_R(S_2), G_RW, FW(FL_ZF)),
	[0x03] = ALLPP(K(LSL), E_R(S_2), G_RW, FW(FL_ZF)),
	[0x05] = ALLPP(K(SYSCALL), FR_ALL),
	[0x06] = ALLPP(K(CLTS)),
	[0x07] = ALLPP(K(SYSRET), FW_ALL),
	[0x08] = ALLPP(K(INVD)), [0x09] = ALLPP(K(WBINVD)),
	[0x0b] = ALLPP(K(UD)),
	[0x0d] = ALLPP(GROUP(GRP_P)),
	[0x10] = {NP(NAT, X_R(S_16), SSE), P66(NAT, X_R(S_16), SSE), PF3(NAT, X_R(S_4), SSE), PF2(NAT, X_R(S_8), SSE)},
	[0x11] = {NP(NAT, X_W(S_16), SSE), P66(NAT, X_W(S_16), SSE), PF3(NAT, X_W(S_4), SSE), PF2(NAT, X_W(S_8), SSE)},
	[0x12] = {NP(NAT, X_R(S_8), SSE), P66(NAT, M_R(S_8), SSE), PF3(SSE_X), PF2(NAT, X_R(S_8), SSE)},
	[0x13] = {NP(NAT, M_W(S_8), SSE), P66(NAT, M_W(S_8), SSE)},
	[0x14 ... 0x15] = {PS_PD},
	[0x16] = {NP(NAT, X_R(S_8), SSE), P66(NAT, M_R(S_8), SSE), PF3(SSE_X)},
	[0x17] = {NP(NAT, M_W(S_8), SSE), P66(NAT, M_W(S_8), SSE)},
	[0x18 ... 0x1f] = ALLPP(K(NOP), .modrm = 1, .mem = MEM_ADDR), /* prefetch, endbr, reserved NOPs */
	[0x20] = ALLPP(K(MOV_R_CR), CR_DR, .rm = REG_WRITE), [0x21] = ALLPP(K(MOV_R_DR), CR_DR, .rm = REG_WRITE),
	[0x22] = ALLPP(K(MOV_CR_R), CR_DR, .rm = REG_READ), [0x23] = ALLPP(K(MOV_DR_R), CR_DR, .rm = REG_READ),
	[0x28] = {PS_PD},
	[0x29] = {NP(NAT, X_W(S_16), ALIGNED, SSE), P66(NAT, X_W(S_16), ALIGNED, SSE)},
	[0x2a] = {NP(NAT, X_R(S_8), SSE_MMX), P66(NAT, X_R(S_8), SSE_MMX), PF3(NAT, E_R(S_Y), SSE),
		PF2(NAT, E_R(S_Y), SSE)},
	[0x2b] = {NP(NAT, M_W(S_16), ALIGNED, SSE), P66(NAT, M_W(S_16), ALIGNED, SSE), PF3(NAT, M_W(S_4), SSE),
		PF2(NAT, M_W(S_8), SSE)},
	[0x2c ... 0x2d] = {NP(NAT, X_R(S_8), SSE_MMX), P66(NAT, X_R(S_16), ALIGNED, SSE_MMX),
		PF3(NAT, X_R(S_4), G_W, SSE),
		PF2(NAT, X_R(S_8), G_W, SSE)},
	[0x2e ... 0x2f] = {NP(NAT, X_R(S_4), SSE, FW_ALL), P66(NAT, X_R(S_8), SSE, FW_ALL)},
	[0x30] = ALLPP(K(WRMSR)), [0x31] = ALLPP(K(RDTSC)), [0x32] = ALLPP(K(RDMSR)), [0x33] = ALLPP(K(RDPMC)),
	[0x34] = ALLPP(K(SYSENTER)), [0x35] = ALLPP(K(SYSEXIT)),
	[0x40 ... 0x4f] = ALLPP(NAT, E_R(S_V), G_RW), /* CMOVcc */
	[0x50] = {NP(NAT, U_, G_W, SSE), P66(NAT, U_, G_W, SSE)},
	[0x51] = {SSE_FP4},
	[0x52 ... 0x53] = {NP(SSE_X), PF3(NAT, X_R(S_4), SSE)},
	[0x54 ... 0x57] = {PS_PD},
	[0x58 ... 0x59] = {SSE_FP4},
	[0x5a] = {NP(NAT, X_R(S_8), SSE), P66(SSE_X), PF3(NAT, X_R(S_4), SSE), PF2(NAT, X_R(S_8), SSE)},
	[0x5b] = {NP(SSE_X), P66(SSE_X), PF3(SSE_X)},
	[0x5c ... 0x5f] = {SSE_FP4},
	[0x60 ... 0x62] = {NP(NAT, X_R(S_4), MMX), P66(SSE_X)},
	[0x63 ... 0x6b] = {MMX_SSE},
	[0x6c ... 0x6d] = {P66(SSE_X)},
	[0x6e] = {NP(NAT, E_R(S_Y), MMX), P66(NAT, E_R(S_Y), SSE)},
	[0x6f] = {NP(NAT, X_R(S_8), MMX), P66(SSE_X), PF3(NAT, X_R(S_16), SSE)},
	[0x70] = {NP(NAT, X_R(S_8), I(U8), MMX), P66(SSE_X, I(U8)), PF3(SSE_X, I(U8)), PF2(SSE_X, I(U8))},
	[0x71] = {NP(GROUP(GRP_12)), P66(GROUP(GRP_12_66))},
	[0x72] = {NP(GROUP(GRP_13)), P66(GROUP(GRP_13_66))},
	[0x73] = {NP(GROUP(GRP_14)), P66(GROUP(GRP_14_66))},
	[0x74 ... 0x76] = {MMX_SSE},
	[0x77] = {NP(NAT, MMX)},
	[0x78] = {NP(K(UD), .modrm = 1), P66(GROUP(GRP_EXTRQ)), PF2(NAT, U_, I(U8U8), SSE)},
	[0x79] = {NP(K(UD), .modrm = 1), P66(NAT, U_, SSE), PF2(NAT, U_, SSE)},
	[0x7c ... 0x7d] = {P66(SSE_X), PF2(SSE_X)},
	[0x7e] = {NP(NAT, E_W(S_Y), MMX), P66(NAT, E_W(S_Y), SSE), PF3(NAT, X_R(S_8), SSE)},
	[0x7f] = {NP(NAT, X_W(S_8), MMX), P66(NAT, X_W(S_16), ALIGNED, SSE), PF3(NAT, X_W(S_16), SSE)},
	[0x80 ... 0x8f] = ALLPP(K(JCC), I(Z), .force64 = 1),
	[0x90 ... 0x9f] = ALLPP(NAT, E_W(S_1), BYTE_RM), /* SETcc */
	[0xa0] = ALLPP(K(PUSH_SEG), .def64 = 1), [0xa1] = ALLPP(K(POP_SEG), .def64 = 1),
	[0xa2] = ALLPP(K(CPUID)),
	[0xa3] = ALLPP(K(BT_MEM), E_R(S_V), G_R, FW(FL_ARITH & ~FL_ZF)),
	[0xa4] = ALLPP(NAT, E_RW(S_V), G_R, I(U8), FW_ALL, .shift = 1),
	[0xa5] = ALLPP(NAT, E_RW(S_V), G_R, FR_ALL, FW_ALL),
	[0xa8] = ALLPP(K(PUSH_SEG), .def64 = 1), [0xa9] = ALLPP(K(POP_SEG), .def64 = 1),
	[0xaa] = ALLPP(K(RSM), FW_ALL),
	[0xab] = ALLPP(K(BT_MEM), E_RW(S_V), G_R, LOCKABLE, FW(FL_ARITH & ~FL_ZF)),
	[0xac] = ALLPP(NAT, E_RW(S_V), G_R, I(U8), FW_ALL, .shift = 1),
	[0xad] = ALLPP(NAT, E_RW(S_V), G_R, FR_ALL, FW_ALL),
	[0xae] = {NP(GROUP(GRP_15)), P66(GROUP(GRP_15_66)), PF3(GROUP(GRP_15_F3))},
	[0xaf] = ALLPP(NAT, E_R(S_V), G_RW, FW_ALL),
	[0xb0] = ALLPP(NAT, E_RW(S_1), G_R, BYTE2, LOCKABLE, FW_ALL),
	[0xb1] = ALLPP(NAT, E_RW(S_V), G_R, LOCKABLE, FW_ALL),
	[0xb2] = ALLPP(K(LOAD_FAR), M_R(S_FAR), G_W),
	[0xb3] = ALLPP(K(BT_MEM), E_RW(S_V), G_R, LOCKABLE, FW(FL_ARITH & ~FL_ZF)),
	[0xb4 ... 0xb5] = ALLPP(K(LOAD_FAR), M_R(S_FAR), G_W),
	[0xb6] = ALLPP(NAT, E_R(S_1), G_W, BYTE_RM), [0xb7] = ALLPP(NAT, E_R(S_2), G_W),
	[0xb8] = {PF3(NAT, E_R(S_V), G_W, FW_ALL)},
	[0xb9] = ALLPP(K(UD), .modrm = 1),
	[0xba] = ALLPP(GROUP(GRP_8)),
	[0xbb] = ALLPP(K(BT_MEM), E_RW(S_V), G_R, LOCKABLE, FW(FL_ARITH & ~FL_ZF)),
	/* BSF and BSR leave the destination alone when the source is 0. */
	[0xbc ... 0xbd] = {NP(NAT, E_R(S_V), G_RW, FW_ALL), P66(NAT, E_R(S_V), G_RW, FW_ALL, ANYPP),
		PF3(NAT, E_R(S_V), G_W, FW_ALL), PF2(NAT, E_R(S_V), G_RW, FW_ALL, ANYPP)},
	[0xbe] = ALLPP(NAT, E_R(S_1), G_W, BYTE_RM), [0xbf] = ALLPP(NAT, E_R(S_2), G_W),
	[0xc0] = ALLPP(NAT, E_RW(S_1), G_RW, BYTE2, LOCKABLE, FW_ALL),
	[0xc1] = ALLPP(NAT, E_RW(S_V), G_RW, LOCKABLE, FW_ALL),
	[0xc2] = {NP(SSE_X, I(U8)), P66(SSE_X, I(U8)), PF3(NAT, X_R(S_4), I(U8), SSE), PF2(NAT, X_R(S_8), I(U8), SSE)},
	[0xc3] = {NP(NAT, M_W(S_Y), G_R)},
	[0xc4] = {NP(NAT, E_R(S_2), I(U8), MMX), P66(NAT, E_R(S_2), I(U8), SSE)},
	[0xc5] = {NP(NAT, U_, G_W, I(U8), MMX), P66(NAT, U_, G_W, I(U8), SSE)},
	[0xc6] = {NP(SSE_X, I(U8)), P66(SSE_X, I(U8))},
	[0xc7] = {NP(GROUP(GRP_9)), P66(GROUP(GRP_9_66)), PF3(GROUP(GRP_9_F3)), PF2(GROUP(GRP_9_F2))},
	[0xc8 ... 0xcf] = ALLPP(NAT, O_RW),
	[0xd0] = {P66(SSE_X), PF2(SSE_X)},
	[0xd1 ... 0xd5] = {MMX_SSE},
	[0xd6] = {P66(NAT, X_W(S_8), SSE), PF3(NAT, U_, SSE_MMX), PF2(NAT, U_, SSE_MMX)},
	[0xd7] = {NP(NAT, U_, G_W, MMX), P66(NAT, U_, G_W, SSE)},
	[0xd8 ... 0xe5] = {MMX_SSE},
	[0xe6] = {P66(SSE_X), PF3(NAT, X_R(S_8), SSE), PF2(SSE_X)},
	[0xe7] = {NP(NAT, M_W(S_8), MMX), P66(NAT, M_W(S_16), ALIGNED, SSE)},
	[0xe8 ... 0xef] = {MMX_SSE},
	[0xf0] = {PF2(NAT, M_R(S_16), SSE)},
	[0xf1 ... 0xf6] = {MMX_SSE},
	[0xf7] = {NP(K(MASKMOV), U_, MMX), P66(K(MASKMOV), U_, SSE)},
	[0xf8 ... 0xfe] = {MMX_SSE},
	[0xff] = ALLPP(K(UD), .modrm = 1),
};

const struct opdesc decode_map_38[256][4] = {
	[0x00 ... 0x0b] = {MMX_SSE},
	[0x10] = {P66(SSE_X)},
	[0x14 ... 0x15] = {P66(SSE_X)},
	[0x17] = {P66(SSE_X, FW_ALL)},
	[0x1c ... 0x1e] = {MMX_SSE},
	[0x20] = {P66(NAT, X_R(S_8), SSE)}, [0x21] = {P66(NAT, X_R(S_4), SSE)}, [0x22] = {P66(NAT, X_R(S_2), SSE)},
	[0x23] = {P66(NAT, X_R(S_8), SSE)}, [0x24] = {P66(NAT, X_R(S_4), SSE)}, [0x25] = {P66(NAT, X_R(S_8), SSE)},
	[0x28 ... 0x29] = {P66(SSE_X)},
	[0x2a] = {P66(NAT, M_R(S_16), ALIGNED, SSE)},
	[0x2b] = {P66(SSE_X)},
	[0x30] = {P66(NAT, X_R(S_8), SSE)}, [0x31] = {P66(NAT, X_R(S_4), SSE)}, [0x32] = {P66(NAT, X_R(S_2), SSE)},
	[0x33] = {P66(NAT, X_R(S_8), SSE)}, [0x34] = {P66(NAT, X_R(S_4), SSE)}, [0x35] = {P66(NAT, X_R(S_8), SSE)},
	[0x37 ... 0x41] = {P66(SSE_X)},
	[0x80 ... 0x81] = {P66(K(UD), M_R(S_16), G_R)}, /* INVEPT, INVVPID */
	[0x82] = {P66(K(INVPCID), M_R(S_16), G_R, .force64 = 1, .by_w = 1)},
	[0xc8 ... 0xcd] = {NP(NAT, X_R(S_16), SSE)}, /* SHA: AMD does not require alignment, the manuals do */
	[0xcf] = {P66(SSE_X)},
	[0xdb ... 0xdf] = {P66(SSE_X)}, /* AES */
	/* MOVBE, CRC32 */
	[0xf0] = {NP(NAT, M_R(S_V), G_W), P66(NAT, M_R(S_V), G_W, ANYPP), PF2(NAT, E_R(S_1), G_RW, BYTE_RM)},
	[0xf1] = {NP(NAT, M_W(S_V), G_R), P66(NAT, M_W(S_V), G_R, ANYPP), PF2(NAT, E_R(S_V), G_RW)},
	/* ADCX, ADOX */
	[0xf6] = {P66(NAT, E_R(S_Y), G_RW, FR(FL_CF), FW(FL_CF)), PF3(NAT, E_R(S_Y), G_RW, FR(FL_OF), FW(FL_OF))},
	[0xf9] = {NP(NAT, M_W(S_Y), G_R)}, /* MOVDIRI */
};

const struct opdesc decode_map_3a[256][4] = {
	[0x08 ... 0x09] = {P66(SSE_X, I(U8))},
	[0x0a] = {P66(NAT, X_R(S_4), I(U8), SSE)}, [0x0b] = {P66(NAT, X_R(S_8), I(U8), SSE)},
	[0x0c ... 0x0e] = {P66(SSE_X, I(U8))},
	[0x0f] = {NP(NAT, X_R(S_8), I(U8), MMX), P66(SSE_X, I(U8))},
	[0x14] = {P66(NAT, E_W(S_1), I(U8), SSE)}, [0x15] = {P66(NAT, E_W(S_2), I(U8), SSE)},
	[0x16] = {P66(NAT, E_W(S_Y), I(U8), SSE)}, [0x17] = {P66(NAT, E_W(S_4), I(U8), SSE)},
	[0x20] = {P66(NAT, E_R(S_1), I(U8), SSE)}, [0x21] = {P66(NAT, X_R(S_4), I(U8), SSE)},
	[0x22] = {P66(NAT, E_R(S_Y), I(U8), SSE)},
	[0x40 ... 0x42] = {P66(SSE_X, I(U8))}, [0x44] = {P66(SSE_X, I(U8))},
	[0x60 ... 0x63] = {P66(NAT, X_R(S_16), I(U8), SSE, FW_ALL)}, /* PCMPxSTRx: not aligned */
	[0xcc] = {NP(NAT, X_R(S_16), I(U8), SSE)},
	[0xce ... 0xcf] = {P66(SSE_X, I(U8))},
	[0xdf] = {P66(SSE_X, I(U8))},
};
