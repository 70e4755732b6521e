/*
 * VEX maps 1 (0F), 2 (0F 38), 3 (0F 3A): AVX, AVX2, F16C, FMA, AVX-VNNI, VAES, GFNI, opmask and BMI instructions.
 */
#include "engine/soft/translate/decode_int.h"

#define AVX .unit = UNIT_AVX
#define VV .vvvv_used = 1
#define W0 .w0 = 1
#define W1 .w1 = 1
#define L0 .lens = L128
#define L1 .lens = L256
/* Operands as in the manual's Op/En: RM, RVM (vvvv is the first source), MR. */
#define RM NAT, X_R(S_VL), AVX
#define RVM NAT, X_R(S_VL), VV, AVX
#define RM_(s) NAT, X_R(s), AVX
#define RVM_(s) NAT, X_R(s), VV, AVX
#define MR_(s) NAT, X_W(s), AVX
#define RVM4 NP(RVM), P66(RVM), PF3(RVM_(S_4)), PF2(RVM_(S_8))
#define KREG3 NAT, U_, .kreg = 1, .krm = 1, .kvvvv = 1, VV, L1, .unit = UNIT_AVX512
#define KREG2 NAT, U_, .kreg = 1, .krm = 1, L0, .unit = UNIT_AVX512
#define KMEM .kreg = 1, L0, .unit = UNIT_AVX512
#define GATHER K(VSIB), M_R(S_E), VV, AVX, .vsib = 1, .masked = 1, .distinct = 1
#define FMA {P66(RVM)}
#define FMA_S {P66(RVM_(S_E))}
#define BMI_RMV NAT, E_R(S_Y), G_W, B_R, L0

const struct opdesc decode_vex_0f[256][4] = {
	[0x10] = {NP(RM), P66(RM), PF3(RM_(S_4), .vvvv_reg = 1), PF2(RM_(S_8), .vvvv_reg = 1)},
	[0x11] = {NP(MR_(S_VL)), P66(MR_(S_VL)), PF3(MR_(S_4), .vvvv_reg = 1), PF2(MR_(S_8), .vvvv_reg = 1)},
	[0x12] = {NP(RVM_(S_8), L0), P66(NAT, M_R(S_8), VV, AVX, L0), PF3(RM), PF2(RM_(S_DUP))},
	[0x13] = {NP(NAT, M_W(S_8), AVX, L0), P66(NAT, M_W(S_8), AVX, L0)},
	[0x14 ... 0x15] = {NP(RVM), P66(RVM)},
	[0x16] = {NP(RVM_(S_8), L0), P66(NAT, M_R(S_8), VV, AVX, L0), PF3(RM)},
	[0x17] = {NP(NAT, M_W(S_8), AVX, L0), P66(NAT, M_W(S_8), AVX, L0)},
	[0x28] = {NP(RM, ALIGNED), P66(RM, ALIGNED)},
	[0x29] = {NP(MR_(S_VL), ALIGNED), P66(MR_(S_VL), ALIGNED)},
	[0x2a] = {PF3(NAT, E_R(S_Y), VV, AVX), PF2(NAT, E_R(S_Y), VV, AVX)},
	[0x2b] = {NP(NAT, M_W(S_VL), AVX, ALIGNED), P66(NAT, M_W(S_VL), AVX, ALIGNED)},
	[0x2c ... 0x2d] = {PF3(RM_(S_4), G_W), PF2(RM_(S_8), G_W)},
	[0x2e ... 0x2f] = {NP(RM_(S_4), FW_ALL), P66(RM_(S_8), FW_ALL)},
	[0x41 ... 0x42] = {NP(KREG3), P66(KREG3)},
	[0x44] = {NP(KREG2), P66(KREG2)},
	[0x45 ... 0x47] = {NP(KREG3), P66(KREG3)},
	[0x4a] = {NP(KREG3), P66(KREG3)},
	[0x4b] = {NP(KREG3), P66(KREG3, W0)},
	[0x50] = {NP(NAT, U_, G_W, AVX), P66(NAT, U_, G_W, AVX)},
	[0x51] = {NP(RM), P66(RM), PF3(RVM_(S_4)), PF2(RVM_(S_8))},
	[0x52 ... 0x53] = {NP(RM), PF3(RVM_(S_4))},
	[0x54 ... 0x57] = {NP(RVM), P66(RVM)},
	[0x58 ... 0x59] = {RVM4},
	[0x5a] = {NP(RM_(S_VL2)), P66(RM), PF3(RVM_(S_4)), PF2(RVM_(S_8))},
	[0x5b] = {NP(RM), P66(RM), PF3(RM)},
	[0x5c ... 0x5f] = {RVM4},
	[0x60 ... 0x6d] = {P66(RVM)},
	[0x6e] = {P66(NAT, E_R(S_Y), AVX, L0)},
	[0x6f] = {P66(RM, ALIGNED), PF3(RM)},
	[0x70] = {P66(RM, I(U8)), PF3(RM, I(U8)), PF2(RM, I(U8))},
	[0x71] = {P66(GROUP(GRP_V12))}, [0x72] = {P66(GROUP(GRP_V13))}, [0x73] = {P66(GROUP(GRP_V14))},
	[0x74 ... 0x76] = {P66(RVM)},
	[0x77] = {NP(NAT, AVX)}, /* VZEROUPPER, VZEROALL */
	[0x7c ... 0x7d] = {P66(RVM), PF2(RVM)},
	[0x7e] = {P66(NAT, E_W(S_Y), AVX, L0), PF3(RM_(S_8), L0)},
	[0x7f] = {P66(MR_(S_VL), ALIGNED), PF3(MR_(S_VL))},
	[0x90] = {NP(NAT, X_R(S_W82), .krm = 1, KMEM), P66(NAT, X_R(S_W41), .krm = 1, KMEM)}, /* KMOV */
	[0x91] = {NP(NAT, M_W(S_W82), KMEM), P66(NAT, M_W(S_W41), KMEM)},
	[0x92] = {NP(NAT, GU_R, KMEM, W0), P66(NAT, GU_R, KMEM, W0), PF2(NAT, GU_R, KMEM)},
	[0x93] = {NP(NAT, U_, G_W, .krm = 1, L0, .unit = UNIT_AVX512, W0),
		P66(NAT, U_, G_W, .krm = 1, L0, .unit = UNIT_AVX512, W0),
		PF2(NAT, U_, G_W, .krm = 1, L0, .unit = UNIT_AVX512)},
	[0x98 ... 0x99] = {NP(KREG2, FW_ALL), P66(KREG2, FW_ALL)},
	[0xae] = {NP(GROUP(GRP_V15))},
	[0xc2] = {NP(RVM, I(U8)), P66(RVM, I(U8)), PF3(RVM_(S_4), I(U8)), PF2(RVM_(S_8), I(U8))},
	[0xc4] = {P66(NAT, E_R(S_2), VV, AVX, L0, I(U8))},
	[0xc5] = {P66(NAT, U_, G_W, AVX, L0, I(U8))},
	[0xc6] = {NP(RVM, I(U8)), P66(RVM, I(U8))},
	[0xd0] = {P66(RVM), PF2(RVM)},
	[0xd1 ... 0xd3] = {P66(RVM_(S_16))}, /* shift count in 128 bits */
	[0xd4 ... 0xd5] = {P66(RVM)},
	[0xd6] = {P66(MR_(S_8), L0)},
	[0xd7] = {P66(NAT, U_, G_W, AVX)},
	[0xd8 ... 0xe0] = {P66(RVM)},
	[0xe1 ... 0xe2] = {P66(RVM_(S_16))},
	[0xe3 ... 0xe5] = {P66(RVM)},
	[0xe6] = {P66(RM), PF3(RM_(S_VL2)), PF2(RM)},
	[0xe7] = {P66(NAT, M_W(S_VL), AVX, ALIGNED)},
	[0xe8 ... 0xef] = {P66(RVM)},
	[0xf0] = {PF2(NAT, M_R(S_VL), AVX)},
	[0xf1 ... 0xf3] = {P66(RVM_(S_16))},
	[0xf4 ... 0xf6] = {P66(RVM)},
	[0xf7] = {P66(K(MASKMOV), U_, AVX, L0)},
	[0xf8 ... 0xfe] = {P66(RVM)},
};

const struct opdesc decode_vex_38[256][4] = {
	[0x00 ... 0x0b] = {P66(RVM)},
	[0x0c ... 0x0d] = {P66(RVM, W0)},
	[0x0e ... 0x0f] = {P66(RM, W0, FW_ALL)},
	[0x13] = {P66(RM_(S_VL2), W0)},
	[0x16] = {P66(RVM, W0, L1)},
	[0x17] = {P66(RM, FW_ALL)},
	[0x18] = {P66(RM_(S_4), W0)}, [0x19] = {P66(RM_(S_8), W0, L1)}, [0x1a] = {P66(NAT, M_R(S_16), AVX, W0, L1)},
	[0x1c ... 0x1e] = {P66(RM)},
	[0x20] = {P66(RM_(S_VL2))}, [0x21] = {P66(RM_(S_VL4))}, [0x22] = {P66(RM_(S_VL8))},
	[0x23] = {P66(RM_(S_VL2))}, [0x24] = {P66(RM_(S_VL4))}, [0x25] = {P66(RM_(S_VL2))},
	[0x28 ... 0x29] = {P66(RVM)},
	[0x2a] = {P66(NAT, M_R(S_VL), AVX, ALIGNED)},
	[0x2b] = {P66(RVM)},
	[0x2c ... 0x2d] = {P66(NAT, M_R(S_VL), VV, AVX, W0, .masked = 1)},
	[0x2e ... 0x2f] = {P66(NAT, M_W(S_VL), VV, AVX, W0, .masked = 1)},
	[0x30] = {P66(RM_(S_VL2))}, [0x31] = {P66(RM_(S_VL4))}, [0x32] = {P66(RM_(S_VL8))},
	[0x33] = {P66(RM_(S_VL2))}, [0x34] = {P66(RM_(S_VL4))}, [0x35] = {P66(RM_(S_VL2))},
	[0x36] = {P66(RVM, W0, L1)},
	[0x37 ... 0x40] = {P66(RVM)},
	[0x41] = {P66(RM, L0)},
	[0x45] = {P66(RVM)}, [0x46] = {P66(RVM, W0)}, [0x47] = {P66(RVM)},
	[0x50 ... 0x53] = {P66(RVM, W0)}, /* AVX-VNNI */
	[0x58] = {P66(RM_(S_4), W0)}, [0x59] = {P66(RM_(S_8), W0)}, [0x5a] = {P66(NAT, M_R(S_16), AVX, W0, L1)},
	[0x78] = {P66(RM_(S_1), W0)}, [0x79] = {P66(RM_(S_2), W0)},
	[0x8c] = {P66(NAT, M_R(S_VL), VV, AVX, .masked = 1)}, [0x8e] = {P66(NAT, M_W(S_VL), VV, AVX, .masked = 1)},
	[0x90 ... 0x93] = {P66(GATHER)},
	[0x96 ... 0x98] = FMA, [0x99] = FMA_S, [0x9a] = FMA, [0x9b] = FMA_S, [0x9c] = FMA, [0x9d] = FMA_S, [0x9e] = FMA,
	[0x9f] = FMA_S,
	[0xa6 ... 0xa8] = FMA, [0xa9] = FMA_S, [0xaa] = FMA, [0xab] = FMA_S, [0xac] = FMA, [0xad] = FMA_S, [0xae] = FMA,
	[0xaf] = FMA_S,
	[0xb6 ... 0xb8] = FMA, [0xb9] = FMA_S, [0xba] = FMA, [0xbb] = FMA_S, [0xbc] = FMA, [0xbd] = FMA_S, [0xbe] = FMA,
	[0xbf] = FMA_S,
	[0xcf] = {P66(RVM, W0)},
	[0xdb] = {P66(RM, L0)}, [0xdc ... 0xdf] = {P66(RVM)},
	[0xf2] = {NP(BMI_RMV, FW_ALL)}, /* ANDN */
	[0xf3] = {NP(GROUP(GRP_V17))},
	[0xf5] = {NP(BMI_RMV, FW_ALL), PF3(BMI_RMV), PF2(BMI_RMV)}, /* BZHI, PEXT, PDEP */
	[0xf6] = {PF2(NAT, E_R(S_Y), G_W, B_W, L0)}, /* MULX */
	[0xf7] = {NP(BMI_RMV, FW_ALL), P66(BMI_RMV), PF3(BMI_RMV), PF2(BMI_RMV)}, /* BEXTR, SHLX, SARX, SHRX */
};

const struct opdesc decode_vex_3a[256][4] = {
	[0x00 ... 0x01] = {P66(RM, L1, I(U8))}, /* VPERMQ, VPERMPD: W1 in the manuals, AMD ignores it */
	[0x02] = {P66(RVM, W0, I(U8))},
	[0x04 ... 0x05] = {P66(RM, W0, I(U8))},
	[0x06] = {P66(RVM, W0, L1, I(U8))},
	[0x08 ... 0x09] = {P66(RM, I(U8))}, [0x0a] = {P66(RVM_(S_4), I(U8))}, [0x0b] = {P66(RVM_(S_8), I(U8))},
	[0x0c ... 0x0f] = {P66(RVM, I(U8))},
	[0x14] = {P66(NAT, E_W(S_1), AVX, L0, I(U8))}, [0x15] = {P66(NAT, E_W(S_2), AVX, L0, I(U8))},
	[0x16] = {P66(NAT, E_W(S_Y), AVX, L0, I(U8))}, [0x17] = {P66(NAT, E_W(S_4), AVX, L0, I(U8))},
	[0x18] = {P66(RVM_(S_16), W0, L1, I(U8))}, [0x19] = {P66(MR_(S_16), W0, L1, I(U8))},
	[0x1d] = {P66(MR_(S_VL2), W0, I(U8))},
	[0x20] = {P66(NAT, E_R(S_1), VV, AVX, L0, I(U8))}, [0x21] = {P66(RVM_(S_4), L0, I(U8))},
	[0x22] = {P66(NAT, E_R(S_Y), VV, AVX, L0, I(U8))},
	[0x30 ... 0x33] = {P66(KREG2, I(U8))}, /* KSHIFT */
	[0x38] = {P66(RVM_(S_16), W0, L1, I(U8))}, [0x39] = {P66(MR_(S_16), W0, L1, I(U8))},
	[0x40] = {P66(RVM, I(U8))}, [0x41] = {P66(RVM, L0, I(U8))}, [0x42] = {P66(RVM, I(U8))},
	[0x44] = {P66(RVM, I(U8))},
	[0x46] = {P66(RVM, W0, L1, I(U8))},
	[0x4a ... 0x4c] = {P66(RVM, W0, I(U8))}, /* the immediate names a register */
	[0x60 ... 0x63] = {P66(RM, L0, I(U8), FW_ALL)},
	[0xce ... 0xcf] = {P66(RVM, W1, I(U8))},
	[0xdf] = {P66(RM, L0, I(U8))},
	[0xf0] = {PF2(NAT, E_R(S_Y), G_W, L0, I(U8))}, /* RORX */
};
