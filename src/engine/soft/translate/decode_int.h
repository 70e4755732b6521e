/*
 * Inside of the decoder: the row of an opcode table, and the vocabulary that the tables are written in.
 *
 * A table is indexed by opcode and mandatory prefix (none, 66, F3, F2: the order of VEX.pp). A row either describes an
 * instruction or names a group, whose sixteen rows are indexed by modrm (enum opdesc_sel). An empty row is invalid.
 * The rows follow the opcode maps of SDM vol. 2 appendix A and the instruction pages, EVEX ones their tuple types.
 */
#ifndef ENGINE_SOFT_DECODE_INT_H
#define ENGINE_SOFT_DECODE_INT_H

#include "engine/soft/translate/decode.h"

/* Immediates: s sign-extended, u zero-extended. */
enum opdesc_imm {
	IMM_NONE,
	IMM_S8,
	IMM_U8,
	IMM_U16,
	IMM_Z,    /* 2 or 4 bytes by operand size, sign-extended */
	IMM_V,    /* 2, 4 or 8 bytes by operand size */
	IMM_ENTER,
	IMM_FAR,  /* offset by operand size, then selector */
	IMM_U8U8, /* SSE4a */
	IMM_MOFFS,
};

/* Sizes of memory operands. vl is 16 << L; W is REX.W, VEX.W or EVEX.W. */
enum opdesc_size {
	S_0, S_1, S_2, S_4, S_8, S_10, S_16, S_32, S_64, S_512,
	S_V,   /* operand size */
	S_V2,  /* twice the operand size */
	S_FAR, /* operand size + 2 */
	S_DT,  /* descriptor table register: 6, or 10 in 64-bit mode */
	S_Y,   /* GPR: 8 with W in 64-bit mode, else 4 */
	S_Y2,  /* 16 with W in 64-bit mode, else 8 */
	S_E,   /* vector element: 8 with W, else 4 */
	S_W21, /* 2 with W, else 1 */
	S_W82, /* 8 with W, else 2 */
	S_W41, /* 4 with W, else 1 */
	S_ENV, /* x87 environment: 14 or 28 by operand size */
	S_X87, /* x87 state: 94 or 108 by operand size */
	S_VL, S_VL2, S_VL4, S_VL8, /* vl, vl/2, vl/4, vl/8 */
	S_VLW, /* vl with W, else vl/2 */
	S_DUP, /* 8, 32, 64: MOVDDUP */
};

/* By what a group is indexed; +8 when mod == 3. */
enum opdesc_sel { SEL_REG, SEL_RM };

/* FORM_MOD_IGNORED: as if mod were 3 (MOV to and from CR, DR). */
enum opdesc_form { FORM_ANY, FORM_MEM, FORM_REG, FORM_MOD_IGNORED };
/* EVEX.aaa: must be 0; allowed; allowed with z; must not be 0. */
enum opdesc_mask { MASK_NO, MASK_MERGE, MASK_ZERO, MASK_MUST };
/* EVEX.b with memory: element size (W: 4 or 8). */
enum opdesc_bcast { BC_NO, BC_W, BC_2, BC_4, BC_8 };
/* EVEX.b with registers. */
enum opdesc_round { RC_NO, RC_SAE, RC_ER };
/* What an EVEX disp8 counts: units of mem_size, or elements (compress, expand). */
enum opdesc_disp { DISP_SIZE, DISP_E, DISP_W21 };

#define L128 1u
#define L256 2u
#define L512 4u

struct opdesc {
	uint8_t kind;
	uint8_t group;    /* enum opdesc_group: this row only points at a group */
	uint8_t size;     /* enum opdesc_size */
	uint8_t imm;      /* enum opdesc_imm */
	uint16_t fl_read, fl_write;
	bool def : 1;     /* the row is not empty */
	bool modrm : 1;
	unsigned sel : 1, form : 2, mem : 3, unit : 3;
	unsigned reg : 2, rm : 2, vvvv : 2, opreg : 2; /* REG_* */
	bool byte : 1, reg8 : 1, rm8 : 1; /* 8-bit GPR operands */
	bool not64 : 1, only64 : 1;
	bool def64 : 1;   /* 64-bit mode: operand size 8 by default, 2 with 66 */
	bool force64 : 1; /* 64-bit mode: operand size 8 always */
	bool by_w : 1;    /* operand size 4, or 8 with W, whatever 66 and the mode (all vector instructions are so) */
	bool lock : 1, align : 1, wait : 1;
	bool anypp : 1;   /* 66, F3, F2 do not select the instruction */
	bool shift : 1;   /* count in the immediate: zero leaves all flags */
	/* VEX and EVEX */
	bool w0 : 1, w1 : 1;    /* W must be 0; must be 1 */
	unsigned lens : 3;      /* allowed lengths; 0: not looked at */
	bool vvvv_used : 1;
	bool vvvv_reg : 1;      /* used when mod == 3 only */
	bool kreg : 1, krm : 1, kvvvv : 1; /* opmask register operands */
	bool masked : 1;        /* VEX masked moves */
	bool vsib : 1;
	bool distinct : 1;      /* the destination register must differ from the sources */
	bool no_suppress : 1;   /* masked-off elements may fault all the same */
	unsigned disp8 : 2;     /* enum opdesc_disp */
	unsigned mask : 2, bcast : 3, round : 2;
};

enum opdesc_group {
	GRP_NONE, GRP_1_EBIB, GRP_1_EVIZ, GRP_1_EBIB82, GRP_1_EVIB, GRP_1A, GRP_2_EBIB, GRP_2_EVIB, GRP_2_EB1,
	GRP_2_EV1, GRP_2_EBCL, GRP_2_EVCL, GRP_3_EB, GRP_3_EV, GRP_4, GRP_5, GRP_6, GRP_7_NP, GRP_7, GRP_7_VMX,
	GRP_7_MON, GRP_7_XCR, GRP_7_SVM, GRP_7_PKRU, GRP_7_SWAPGS, GRP_7_ANYPP, GRP_8, GRP_9, GRP_9_66,
	GRP_9_F3, GRP_9_F2, GRP_11_EB, GRP_11_EV, GRP_12, GRP_12_66, GRP_13, GRP_13_66, GRP_14, GRP_14_66,
	GRP_15, GRP_15_66, GRP_15_F3, GRP_P, GRP_EXTRQ, GRP_X87_D8, GRP_X87_D9, GRP_X87_D9_2, GRP_X87_D9_4,
	GRP_X87_D9_5, GRP_X87_DA, GRP_X87_DA_5, GRP_X87_DB, GRP_X87_DB_4, GRP_X87_DC, GRP_X87_DD, GRP_X87_DE,
	GRP_X87_DE_3, GRP_X87_DF, GRP_X87_DF_4, GRP_V12, GRP_V13, GRP_V14, GRP_V15, GRP_V17, GRP_E12, GRP_E13,
	GRP_E14,
	GRP_COUNT,
};

extern const struct opdesc decode_groups[GRP_COUNT][16];
extern const struct opdesc decode_map0[256];
extern const struct opdesc decode_map_0f[256][4];
extern const struct opdesc decode_map_38[256][4];
extern const struct opdesc decode_map_3a[256][4];
extern const struct opdesc decode_vex_0f[256][4];
extern const struct opdesc decode_vex_38[256][4];
extern const struct opdesc decode_vex_3a[256][4];
extern const struct opdesc decode_evex_0f[256][4];
extern const struct opdesc decode_evex_38[256][4];
extern const struct opdesc decode_evex_3a[256][4];
extern const struct opdesc decode_evex_5[256][4];
extern const struct opdesc decode_evex_6[256][4];

/* What a row is made of, each a designated initializer. */
#define NAT .def = 1, .kind = INSN_NATIVE
#define K(name) .def = 1, .kind = INSN_##name
#define GROUP(g) .def = 1, .modrm = 1, .group = g
#define GROUP_BY(g, s) .def = 1, .modrm = 1, .group = g, .sel = s

/* modrm.rm: a GPR or memory (E), a vector, x87 or k register or memory (X), memory only (M), register only (U, GU). */
#define E_R(s) .modrm = 1, .mem = MEM_READ, .size = s, .rm = REG_READ
#define E_W(s) .modrm = 1, .mem = MEM_WRITE, .size = s, .rm = REG_WRITE
#define E_RW(s) .modrm = 1, .mem = MEM_RMW, .size = s, .rm = REG_RW
#define X_R(s) .modrm = 1, .mem = MEM_READ, .size = s
#define X_W(s) .modrm = 1, .mem = MEM_WRITE, .size = s
#define M_R(s) .modrm = 1, .mem = MEM_READ, .size = s, .form = FORM_MEM
#define M_W(s) .modrm = 1, .mem = MEM_WRITE, .size = s, .form = FORM_MEM
#define M_RW(s) .modrm = 1, .mem = MEM_RMW, .size = s, .form = FORM_MEM
#define M_ADDR .modrm = 1, .mem = MEM_ADDR, .form = FORM_MEM
#define U_ .modrm = 1, .form = FORM_REG
#define GU_R .modrm = 1, .form = FORM_REG, .rm = REG_READ
#define GU_W .modrm = 1, .form = FORM_REG, .rm = REG_WRITE
/* modrm.reg, vvvv and opcode register as GPRs */
#define G_R .reg = REG_READ
#define G_W .reg = REG_WRITE
#define G_RW .reg = REG_RW
#define B_R .vvvv_used = 1, .vvvv = REG_READ
#define B_W .vvvv_used = 1, .vvvv = REG_WRITE
#define O_R .opreg = REG_READ
#define O_W .opreg = REG_WRITE
#define O_RW .opreg = REG_RW
/* 8-bit operands */
#define BYTE .byte = 1
#define BYTE_RM .byte = 1, .rm8 = 1
#define BYTE2 .byte = 1, .rm8 = 1, .reg8 = 1

#define I(i) .imm = IMM_##i
#define LOCKABLE .lock = 1
#define ALIGNED .align = 1
#define X87 .unit = UNIT_X87, .wait = 1
#define X87_NOWAIT .unit = UNIT_X87
#define MMX .unit = UNIT_MMX, .wait = 1
#define SSE .unit = UNIT_SSE
#define SSE_MMX .unit = UNIT_SSE, .wait = 1
#define ANYPP .anypp = 1
#define ALLPP(...) {{__VA_ARGS__, ANYPP}, {__VA_ARGS__, ANYPP}, {__VA_ARGS__, ANYPP}, {__VA_ARGS__, ANYPP}}
#define NP(...) [0] = {__VA_ARGS__}
#define P66(...) [1] = {__VA_ARGS__}
#define PF3(...) [2] = {__VA_ARGS__}
#define PF2(...) [3] = {__VA_ARGS__}
#define BOTH(n, ...) [n] = {__VA_ARGS__}, [(n) + 8] = {__VA_ARGS__} /* memory and register form of a group */
#define REGFORM(n) [(n) + 8]

/* Flags */
#define FR(f) .fl_read = (f)
#define FW(f) .fl_write = (f)
#define FW_ALL .fl_write = FL_ARITH
#define FR_ALL .fl_read = FL_ARITH

#endif
