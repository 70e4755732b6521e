/*
 * EVEX maps 1 (0F), 2 (0F 38), 3 (0F 3A), 5 and 6 (FP16): AVX-512 F, DQ, BW, VL, CD, IFMA, VBMI, VBMI2, VNNI, BITALG,
 * VPOPCNTDQ, BF16, FP16, VP2INTERSECT, and the EVEX forms of GFNI, VAES and VPCLMULQDQ.
 * The size of a memory operand and its broadcast give the tuple type of the manual (SDM vol. 2, 2.7.5).
 */
#include "engine/soft/translate/decode_int.h"

#define U512 .unit = UNIT_AVX512
#define VV .vvvv_used = 1
#define VVREG .vvvv_reg = 1
#define W0 .w0 = 1
#define W1 .w1 = 1
#define L0 .lens = L128
#define L12 .lens = L256 | L512
#define L2 .lens = L512
#define MZ .mask = MASK_ZERO
#define MK .mask = MASK_MERGE
#define SAE .round = RC_SAE
#define ER .round = RC_ER
#define NF .no_suppress = 1 /* exception classes E4NF, E5NF, E6NF: masked-off elements may fault */
#define B_W_ .bcast = BC_W
#define B2 .bcast = BC_2
#define B4 .bcast = BC_4
#define B8 .bcast = BC_8
/* Operands as in the manual's Op/En; with and without (_N) a write mask; _K: the destination is an opmask. */
#define RM(s) NAT, X_R(s), U512, MZ
#define RM_N(s) NAT, X_R(s), U512
#define RM_K(s) NAT, X_R(s), U512, MK, .kreg = 1
#define RVM(s) NAT, X_R(s), VV, U512, MZ
#define RVM_N(s) NAT, X_R(s), VV, U512
#define RVM_K(s) NAT, X_R(s), VV, U512, MK, .kreg = 1
#define MR(s) NAT, X_W(s), U512, MZ
#define MR_N(s) NAT, M_W(s), U512
#define FV RVM(S_VL), B_W_
#define FV_RM RM(S_VL), B_W_
#define FVM RVM(S_VL)
/* A pair of PS (no prefix, W0) and PD (66, W1) forms, and the four with scalars. */
#define PS_PD(...) NP(__VA_ARGS__, W0), P66(__VA_ARGS__, W1)
#define SS_SD(...) PF3(RVM(S_4), W0, __VA_ARGS__), PF2(RVM(S_8), W1, __VA_ARGS__)
/* FMA rows: PS/PD and SS/SD by W; the same in FP16. */
#define FMA {P66(FV, ER)}
#define FMA_S {P66(RVM(S_E), ER)}
#define FMA_H {P66(RVM(S_VL), B2, ER, W0)}
#define FMA_SH {P66(RVM(S_2), ER, W0)}
#define GATHER {P66(K(VSIB), M_R(S_E), U512, .vsib = 1, .mask = MASK_MUST, .distinct = 1)}
#define SCATTER {P66(K(VSIB), M_W(S_E), U512, .vsib = 1, .mask = MASK_MUST)}

const struct opdesc decode_evex_0f[256][4] = {
	[0x10] = {PS_PD(RM(S_VL)), PF3(RM(S_4), VVREG, W0), PF2(RM(S_8), VVREG, W1)},
	[0x11] = {PS_PD(MR(S_VL)), PF3(MR(S_4), VVREG, W0), PF2(MR(S_8), VVREG, W1)},
	[0x12] = {NP(RVM_N(S_8), W0, L0), P66(NAT, M_R(S_8), VV, U512, W1, L0), PF3(RM(S_VL), W0, NF),
		PF2(RM(S_DUP), W1, NF)},
	[0x13] = {PS_PD(MR_N(S_8), L0)},
	[0x14 ... 0x15] = {PS_PD(FV, NF)},
	[0x16] = {NP(RVM_N(S_8), W0, L0), P66(NAT, M_R(S_8), VV, U512, W1, L0), PF3(RM(S_VL), W0, NF)},
	[0x17] = {PS_PD(MR_N(S_8), L0)},
	[0x28] = {PS_PD(RM(S_VL), ALIGNED)},
	[0x29] = {PS_PD(MR(S_VL), ALIGNED)},
	[0x2a] = {PF3(NAT, E_R(S_Y), VV, U512, ER), PF2(NAT, E_R(S_Y), VV, U512, ER)},
	[0x2b] = {PS_PD(MR_N(S_VL), ALIGNED)},
	[0x2c] = {PF3(RM_N(S_4), G_W, SAE), PF2(RM_N(S_8), G_W, SAE)},
	[0x2d] = {PF3(RM_N(S_4), G_W, ER), PF2(RM_N(S_8), G_W, ER)},
	[0x2e ... 0x2f] = {NP(RM_N(S_4), W0, SAE, FW_ALL), P66(RM_N(S_8), W1, SAE, FW_ALL)},
	[0x51] = {PS_PD(FV_RM, ER), SS_SD(ER)},
	[0x54 ... 0x57] = {PS_PD(FV)},
	[0x58 ... 0x59] = {PS_PD(FV, ER), SS_SD(ER)},
	[0x5a] = {NP(RM(S_VL2), B4, W0, SAE), P66(RM(S_VL), B8, W1, ER), PF3(RVM(S_4), W0, SAE), PF2(RVM(S_8), W1, ER)},
	[0x5b] = {NP(FV_RM, ER), P66(FV_RM, W0, ER), PF3(FV_RM, W0, SAE)},
	[0x5c] = {PS_PD(FV, ER), SS_SD(ER)}, [0x5d] = {PS_PD(FV, SAE), SS_SD(SAE)},
	[0x5e] = {PS_PD(FV, ER), SS_SD(ER)}, [0x5f] = {PS_PD(FV, SAE), SS_SD(SAE)},
	[0x60 ... 0x61] = {P66(FVM, NF)}, [0x62] = {P66(FV, W0, NF)}, [0x63] = {P66(FVM, NF)},
	[0x64 ... 0x65] = {P66(RVM_K(S_VL))}, [0x66] = {P66(RVM_K(S_VL), B4, W0)},
	[0x67 ... 0x69] = {P66(FVM, NF)}, [0x6a ... 0x6b] = {P66(FV, W0, NF)}, [0x6c ... 0x6d] = {P66(FV, W1, NF)},
	[0x6e] = {P66(NAT, E_R(S_Y), U512, L0)},
	[0x6f] = {P66(RM(S_VL), ALIGNED), PF3(RM(S_VL)), PF2(RM(S_VL))},
	[0x70] = {P66(FV_RM, W0, NF, I(U8)), PF3(RM(S_VL), NF, I(U8)), PF2(RM(S_VL), NF, I(U8))},
	[0x71] = {P66(GROUP(GRP_E12))}, [0x72] = {P66(GROUP(GRP_E13))}, [0x73] = {P66(GROUP(GRP_E14))},
	[0x74 ... 0x75] = {P66(RVM_K(S_VL))}, [0x76] = {P66(RVM_K(S_VL), B4, W0)},
	[0x78] = {NP(FV_RM, SAE), P66(RM(S_VLW), B_W_, SAE), PF3(RM_N(S_4), G_W, SAE), PF2(RM_N(S_8), G_W, SAE)},
	[0x79] = {NP(FV_RM, ER), P66(RM(S_VLW), B_W_, ER), PF3(RM_N(S_4), G_W, ER), PF2(RM_N(S_8), G_W, ER)},
	[0x7a] = {P66(RM(S_VLW), B_W_, SAE), PF3(RM(S_VLW), B_W_, ER), PF2(FV_RM, ER)},
	[0x7b] = {P66(RM(S_VLW), B_W_, ER), PF3(NAT, E_R(S_Y), VV, U512, ER), PF2(NAT, E_R(S_Y), VV, U512, ER)},
	[0x7e] = {P66(NAT, E_W(S_Y), U512, L0), PF3(RM_N(S_8), W1, L0)},
	[0x7f] = {P66(MR(S_VL), ALIGNED), PF3(MR(S_VL)), PF2(MR(S_VL))},
	[0xc2] = {PS_PD(RVM_K(S_VL), B_W_, SAE, I(U8)), PF3(RVM_K(S_4), W0, SAE, I(U8)),
		PF2(RVM_K(S_8), W1, SAE, I(U8))},
	[0xc4] = {P66(NAT, E_R(S_2), VV, U512, L0, I(U8))},
	[0xc5] = {P66(NAT, U_, G_W, U512, L0, I(U8))},
	[0xc6] = {PS_PD(FV, NF, I(U8))},
	/* shift count in 128 bits */
	[0xd1] = {P66(RVM(S_16), NF)}, [0xd2] = {P66(RVM(S_16), W0, NF)}, [0xd3] = {P66(RVM(S_16), W1, NF)},
	[0xd4] = {P66(FV, W1)}, [0xd5] = {P66(FVM)}, [0xd6] = {P66(NAT, X_W(S_8), U512, W1, L0)},
	[0xd8 ... 0xda] = {P66(FVM)}, [0xdb] = {P66(FV)}, [0xdc ... 0xde] = {P66(FVM)}, [0xdf] = {P66(FV)},
	[0xe0] = {P66(FVM)}, [0xe1 ... 0xe2] = {P66(RVM(S_16), NF)}, [0xe3 ... 0xe5] = {P66(FVM)},
	[0xe6] = {P66(FV_RM, W1, SAE), PF3(RM(S_VLW), B_W_, ER), PF2(FV_RM, W1, ER)},
	[0xe7] = {P66(MR_N(S_VL), W0, ALIGNED)},
	[0xe8 ... 0xea] = {P66(FVM)}, [0xeb] = {P66(FV)}, [0xec ... 0xee] = {P66(FVM)}, [0xef] = {P66(FV)},
	[0xf1] = {P66(RVM(S_16), NF)}, [0xf2] = {P66(RVM(S_16), W0, NF)}, [0xf3] = {P66(RVM(S_16), W1, NF)},
	[0xf4] = {P66(FV, W1)}, [0xf5] = {P66(FVM, NF)}, [0xf6] = {P66(RVM_N(S_VL))},
	[0xf8 ... 0xf9] = {P66(FVM)}, [0xfa] = {P66(FV, W0)}, [0xfb] = {P66(FV, W1)}, [0xfc ... 0xfd] = {P66(FVM)},
	[0xfe] = {P66(FV, W0)},
};

const struct opdesc decode_evex_38[256][4] = {
	[0x00] = {P66(FVM, NF)}, [0x04] = {P66(FVM, NF)}, [0x0b] = {P66(FVM)}, [0x0c] = {P66(FV, W0, NF)},
	[0x0d] = {P66(FV, W1, NF)},
	/* 10-15, 20-25, 30-35 with F3: VPMOVUS*, VPMOVS*, VPMOV*, the down-converting moves. */
	[0x10] = {P66(FVM, W1), PF3(MR(S_VL2), W0)}, [0x11] = {P66(FVM, W1), PF3(MR(S_VL4), W0)},
	[0x12] = {P66(FVM, W1), PF3(MR(S_VL8), W0)},
	[0x13] = {P66(RM(S_VL2), W0, SAE), PF3(MR(S_VL2), W0)},
	[0x14] = {P66(FV), PF3(MR(S_VL4), W0)}, [0x15] = {P66(FV), PF3(MR(S_VL2), W0)},
	[0x16] = {P66(FV, L12, NF)},
	[0x18] = {P66(RM(S_4), W0)}, [0x19] = {P66(RM(S_8), L12)},
	[0x1a] = {P66(NAT, M_R(S_16), U512, MZ, L12)}, [0x1b] = {P66(NAT, M_R(S_32), U512, MZ, L2)},
	[0x1c ... 0x1d] = {P66(RM(S_VL))}, [0x1e] = {P66(FV_RM, W0)}, [0x1f] = {P66(FV_RM, W1)},
	[0x20] = {P66(RM(S_VL2)), PF3(MR(S_VL2), W0)}, [0x21] = {P66(RM(S_VL4)), PF3(MR(S_VL4), W0)},
	[0x22] = {P66(RM(S_VL8)), PF3(MR(S_VL8), W0)}, [0x23] = {P66(RM(S_VL2)), PF3(MR(S_VL2), W0)},
	[0x24] = {P66(RM(S_VL4)), PF3(MR(S_VL4), W0)}, [0x25] = {P66(RM(S_VL2), W0), PF3(MR(S_VL2), W0)},
	[0x26] = {P66(RVM_K(S_VL)), PF3(RVM_K(S_VL))}, [0x27] = {P66(RVM_K(S_VL), B_W_), PF3(RVM_K(S_VL), B_W_)},
	[0x28] = {P66(FV, W1), PF3(NAT, U_, U512, .krm = 1)}, /* VPMOVM2B/W */
	[0x29] = {P66(RVM_K(S_VL), B8, W1), PF3(NAT, U_, U512, .kreg = 1)}, /* VPMOVB2M/W2M */
	[0x2a] = {P66(NAT, M_R(S_VL), U512, W0, ALIGNED), PF3(NAT, U_, U512, .krm = 1, W1)}, /* VPBROADCASTMB2Q */
	[0x2b] = {P66(FV, W0, NF)}, [0x2c] = {P66(FV, ER)}, [0x2d] = {P66(RVM(S_E), ER)},
	[0x30] = {P66(RM(S_VL2)), PF3(MR(S_VL2), W0)}, [0x31] = {P66(RM(S_VL4)), PF3(MR(S_VL4), W0)},
	[0x32] = {P66(RM(S_VL8)), PF3(MR(S_VL8), W0)}, [0x33] = {P66(RM(S_VL2)), PF3(MR(S_VL2), W0)},
	[0x34] = {P66(RM(S_VL4)), PF3(MR(S_VL4), W0)}, [0x35] = {P66(RM(S_VL2), W0), PF3(MR(S_VL2), W0)},
	[0x36] = {P66(FV, L12, NF)}, [0x37] = {P66(RVM_K(S_VL), B8, W1)},
	/* VPMOVM2D/Q, VPMOVD2M/Q2M */
	[0x38] = {P66(FVM), PF3(NAT, U_, U512, .krm = 1)}, [0x39] = {P66(FV), PF3(NAT, U_, U512, .kreg = 1)},
	[0x3a] = {P66(FVM), PF3(NAT, U_, U512, .krm = 1, W0)}, /* VPBROADCASTMW2D */
	[0x3b] = {P66(FV)}, [0x3c] = {P66(FVM)}, [0x3d] = {P66(FV)}, [0x3e] = {P66(FVM)}, [0x3f] = {P66(FV)},
	[0x40] = {P66(FV)}, [0x42] = {P66(FV_RM, SAE)}, [0x43] = {P66(RVM(S_E), SAE)}, [0x44] = {P66(FV_RM)},
	[0x45 ... 0x47] = {P66(FV)},
	[0x4c] = {P66(FV_RM)}, [0x4d] = {P66(RVM(S_E))}, [0x4e] = {P66(FV_RM)}, [0x4f] = {P66(RVM(S_E))},
	[0x50 ... 0x51] = {P66(FV, W0)}, [0x52] = {P66(FV, W0), PF3(FV, W0)}, [0x53] = {P66(FV, W0)},
	[0x54] = {P66(RM(S_VL))}, [0x55] = {P66(FV_RM)},
	[0x58] = {P66(RM(S_4), W0)}, [0x59] = {P66(RM(S_8))},
	[0x5a] = {P66(NAT, M_R(S_16), U512, MZ, L12)}, [0x5b] = {P66(NAT, M_R(S_32), U512, MZ, L2)},
	[0x62] = {P66(RM(S_VL), .disp8 = DISP_W21)}, [0x63] = {P66(MR(S_VL), .disp8 = DISP_W21)},
	[0x64 ... 0x65] = {P66(FV)}, [0x66] = {P66(FVM)},
	[0x68] = {PF2(NAT, X_R(S_VL), VV, U512, B_W_, .kreg = 1)}, /* VP2INTERSECT */
	[0x70] = {P66(FVM, W1)}, [0x71] = {P66(FV)},
	[0x72] = {P66(FVM, W1), PF3(RM(S_VL), B4, W0), PF2(FV, W0, NF)}, [0x73] = {P66(FV)},
	[0x75] = {P66(FVM, NF)}, [0x76 ... 0x77] = {P66(FV, NF)},
	[0x78] = {P66(RM(S_1), W0)}, [0x79] = {P66(RM(S_2), W0)},
	/* VPBROADCAST from a GPR */
	[0x7a ... 0x7b] = {P66(NAT, GU_R, U512, MZ, W0)}, [0x7c] = {P66(NAT, GU_R, U512, MZ)},
	[0x7d] = {P66(FVM, NF)}, [0x7e ... 0x7f] = {P66(FV, NF)},
	[0x83] = {P66(FV, W1, NF)},
	[0x88 ... 0x89] = {P66(RM(S_VL), .disp8 = DISP_E)}, [0x8a ... 0x8b] = {P66(MR(S_VL), .disp8 = DISP_E)},
	[0x8d] = {P66(FVM, NF)}, [0x8f] = {P66(RVM_K(S_VL), W0)},
	[0x90 ... 0x93] = GATHER,
	[0x96 ... 0x98] = FMA, [0x99] = FMA_S, [0x9a] = FMA, [0x9b] = FMA_S, [0x9c] = FMA, [0x9d] = FMA_S, [0x9e] = FMA,
	[0x9f] = FMA_S,
	[0xa0 ... 0xa3] = SCATTER,
	[0xa6 ... 0xa8] = FMA, [0xa9] = FMA_S, [0xaa] = FMA, [0xab] = FMA_S, [0xac] = FMA, [0xad] = FMA_S, [0xae] = FMA,
	[0xaf] = FMA_S,
	[0xb4 ... 0xb5] = {P66(FV, W1)},
	[0xb6 ... 0xb8] = FMA, [0xb9] = FMA_S, [0xba] = FMA, [0xbb] = FMA_S, [0xbc] = FMA, [0xbd] = FMA_S, [0xbe] = FMA,
	[0xbf] = FMA_S,
	[0xc4] = {P66(FV_RM, NF)},
	[0xcf] = {P66(FVM, W0)},
	[0xdc ... 0xdf] = {P66(RVM_N(S_VL))},
};

const struct opdesc decode_evex_3a[256][4] = {
	[0x00 ... 0x01] = {P66(FV_RM, W1, L12, NF, I(U8))},
	[0x03] = {P66(FV, NF, I(U8))},
	[0x04] = {P66(FV_RM, W0, NF, I(U8))}, [0x05] = {P66(FV_RM, W1, NF, I(U8))},
	[0x08] = {NP(RM(S_VL), B2, W0, SAE, I(U8)), P66(FV_RM, W0, SAE, I(U8))}, [0x09] = {P66(FV_RM, W1, SAE, I(U8))},
	[0x0a] = {NP(RVM(S_2), W0, SAE, I(U8)), P66(RVM(S_4), W0, SAE, I(U8))},
	[0x0b] = {P66(RVM(S_8), W1, SAE, I(U8))},
	[0x0f] = {P66(FVM, NF, I(U8))},
	[0x14] = {P66(NAT, E_W(S_1), U512, L0, I(U8))}, [0x15] = {P66(NAT, E_W(S_2), U512, L0, I(U8))},
	[0x16] = {P66(NAT, E_W(S_Y), U512, L0, I(U8))}, [0x17] = {P66(NAT, E_W(S_4), U512, L0, I(U8))},
	[0x18] = {P66(RVM(S_16), L12, NF, I(U8))}, [0x19] = {P66(MR(S_16), L12, NF, I(U8))},
	[0x1a] = {P66(RVM(S_32), L2, NF, I(U8))}, [0x1b] = {P66(MR(S_32), L2, NF, I(U8))},
	[0x1d] = {P66(MR(S_VL2), W0, SAE, I(U8))},
	[0x1e ... 0x1f] = {P66(RVM_K(S_VL), B_W_, I(U8))},
	[0x20] = {P66(NAT, E_R(S_1), VV, U512, L0, I(U8))}, [0x21] = {P66(RVM_N(S_4), W0, L0, I(U8))},
	[0x22] = {P66(NAT, E_R(S_Y), VV, U512, L0, I(U8))},
	[0x23] = {P66(FV, L12, NF, I(U8))}, [0x25] = {P66(FV, I(U8))},
	[0x26] = {NP(RM(S_VL), B2, W0, SAE, I(U8)), P66(FV_RM, SAE, I(U8))},
	[0x27] = {NP(RVM(S_2), W0, SAE, I(U8)), P66(RVM(S_E), SAE, I(U8))},
	[0x38] = {P66(RVM(S_16), L12, NF, I(U8))}, [0x39] = {P66(MR(S_16), L12, NF, I(U8))},
	[0x3a] = {P66(RVM(S_32), L2, NF, I(U8))}, [0x3b] = {P66(MR(S_32), L2, NF, I(U8))},
	[0x3e ... 0x3f] = {P66(RVM_K(S_VL), I(U8))},
	[0x42] = {P66(FVM, W0, NF, I(U8))}, [0x43] = {P66(FV, L12, NF, I(U8))}, [0x44] = {P66(RVM_N(S_VL), I(U8))},
	[0x50] = {P66(FV, SAE, I(U8))}, [0x51] = {P66(RVM(S_E), SAE, I(U8))},
	[0x54] = {P66(FV, SAE, I(U8))}, [0x55] = {P66(RVM(S_E), SAE, I(U8))},
	[0x56] = {NP(RM(S_VL), B2, W0, SAE, I(U8)), P66(FV_RM, SAE, I(U8))},
	[0x57] = {NP(RVM(S_2), W0, SAE, I(U8)), P66(RVM(S_E), SAE, I(U8))},
	[0x66] = {NP(RM_K(S_VL), B2, W0, I(U8)), P66(RM_K(S_VL), B_W_, I(U8))},
	[0x67] = {NP(RM_K(S_2), W0, I(U8)), P66(RM_K(S_E), I(U8))},
	[0x70] = {P66(FVM, W1, I(U8))}, [0x71] = {P66(FV, I(U8))}, [0x72] = {P66(FVM, W1, I(U8))},
	[0x73] = {P66(FV, I(U8))},
	[0xc2] = {NP(RVM_K(S_VL), B2, W0, SAE, I(U8)), PF3(RVM_K(S_2), W0, SAE, I(U8))},
	[0xce ... 0xcf] = {P66(FV, W1, NF, I(U8))},
};

/* FP16 arithmetic: packed without prefix, scalar with F3. */
#define CMUL(s) RVM(s), W0, ER, .distinct = 1 /* complex multiplication */
#define PH_SH(...) NP(RVM(S_VL), B2, W0, __VA_ARGS__), PF3(RVM(S_2), W0, __VA_ARGS__)

const struct opdesc decode_evex_5[256][4] = {
	[0x10] = {PF3(RM(S_2), VVREG, W0)}, [0x11] = {PF3(MR(S_2), VVREG, W0)},
	[0x1d] = {NP(RVM(S_4), W0, ER), P66(RM(S_VL), B4, W0, ER)},
	[0x2a] = {PF3(NAT, E_R(S_Y), VV, U512, ER)},
	[0x2c] = {PF3(RM_N(S_2), G_W, SAE)}, [0x2d] = {PF3(RM_N(S_2), G_W, ER)},
	[0x2e ... 0x2f] = {NP(RM_N(S_2), W0, SAE, FW_ALL)},
	[0x51] = {NP(RM(S_VL), B2, W0, ER), PF3(RVM(S_2), W0, ER)},
	[0x58 ... 0x59] = {PH_SH(ER)},
	[0x5a] = {NP(RM(S_VL4), B2, W0, SAE), P66(RM(S_VL), B8, W1, ER), PF3(RVM(S_2), W0, SAE), PF2(RVM(S_8), W1, ER)},
	[0x5b] = {NP(FV_RM, ER), P66(RM(S_VL2), B2, W0, ER), PF3(RM(S_VL2), B2, W0, SAE)},
	[0x5c] = {PH_SH(ER)}, [0x5d] = {PH_SH(SAE)}, [0x5e] = {PH_SH(ER)}, [0x5f] = {PH_SH(SAE)},
	[0x6e] = {P66(NAT, E_R(S_2), U512, L0)}, [0x7e] = {P66(NAT, E_W(S_2), U512, L0)},
	[0x78] = {NP(RM(S_VL2), B2, W0, SAE), P66(RM(S_VL4), B2, W0, SAE), PF3(RM_N(S_2), G_W, SAE)},
	[0x79] = {NP(RM(S_VL2), B2, W0, ER), P66(RM(S_VL4), B2, W0, ER), PF3(RM_N(S_2), G_W, ER)},
	[0x7a] = {P66(RM(S_VL4), B2, W0, SAE), PF2(FV_RM, ER)},
	[0x7b] = {P66(RM(S_VL4), B2, W0, ER), PF3(NAT, E_R(S_Y), VV, U512, ER)},
	[0x7c] = {NP(RM(S_VL), B2, W0, SAE), P66(RM(S_VL), B2, W0, SAE)},
	[0x7d] = {NP(RM(S_VL), B2, W0, ER), P66(RM(S_VL), B2, W0, ER), PF3(RM(S_VL), B2, W0, ER),
		PF2(RM(S_VL), B2, W0, ER)},
};

const struct opdesc decode_evex_6[256][4] = {
	[0x13] = {NP(RVM(S_2), W0, SAE), P66(RM(S_VL2), B2, W0, SAE)},
	[0x2c] = FMA_H, [0x2d] = FMA_SH,
	[0x42] = {P66(RM(S_VL), B2, W0, SAE)}, [0x43] = {P66(RVM(S_2), W0, SAE)},
	[0x4c] = {P66(RM(S_VL), B2, W0)}, [0x4d] = {P66(RVM(S_2), W0)}, [0x4e] = {P66(RM(S_VL), B2, W0)},
	[0x4f] = {P66(RVM(S_2), W0)},
	[0x56] = {PF3(CMUL(S_VL), B4), PF2(CMUL(S_VL), B4)}, [0x57] = {PF3(CMUL(S_4)), PF2(CMUL(S_4))},
	[0x96 ... 0x98] = FMA_H, [0x99] = FMA_SH, [0x9a] = FMA_H, [0x9b] = FMA_SH, [0x9c] = FMA_H, [0x9d] = FMA_SH,
	[0x9e] = FMA_H,
	[0x9f] = FMA_SH,
	[0xa6 ... 0xa8] = FMA_H, [0xa9] = FMA_SH, [0xaa] = FMA_H, [0xab] = FMA_SH, [0xac] = FMA_H, [0xad] = FMA_SH,
	[0xae] = FMA_H,
	[0xaf] = FMA_SH,
	[0xb6 ... 0xb8] = FMA_H, [0xb9] = FMA_SH, [0xba] = FMA_H, [0xbb] = FMA_SH, [0xbc] = FMA_H, [0xbd] = FMA_SH,
	[0xbe] = FMA_H,
	[0xbf] = FMA_SH,
	[0xd6] = {PF3(CMUL(S_VL), B4), PF2(CMUL(S_VL), B4)}, [0xd7] = {PF3(CMUL(S_4)), PF2(CMUL(S_4))},
};
