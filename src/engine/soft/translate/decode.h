/*
 * The decoder: instruction bytes in, a fully described instruction out. No IR: the translator copies the instruction,
 * rewriting what this description points at; interpreter routines execute the `kind`s other than INSN_NATIVE from it.
 *
 * Covers the whole x86-64 user and system instruction space that an AMD Zen 5 or Intel Granite Rapids host can run,
 * in 16-, 32- and 64-bit mode: legacy maps 0, 0F, 0F38, 0F3A; VEX maps 1-3; EVEX maps 1, 2, 3, 5, 6; 3DNow! and XOP are #UD.
 * An allow-list: what it does not know is invalid, so that nothing unexamined is ever executed natively.
 * Manuals: SDM vol. 2 (2, appendix A); AMD APM vol. 3.
 *
 * Pure functions, any thread.
 */
#ifndef ENGINE_SOFT_DECODE_H
#define ENGINE_SOFT_DECODE_H

#include "base/bits.h"
#include "engine/soft/vcpu.h"

#define INSN_MAX_LEN 15

enum insn_enc { ENC_LEGACY, ENC_VEX2, ENC_VEX3, ENC_EVEX };

/* What the single explicit memory operand (modrm, moffs) is used for. */
enum insn_mem {
	MEM_NONE,  /* no memory operand (mod == 3 or no modrm) */
	MEM_READ,
	MEM_WRITE,
	MEM_RMW,   /* also masked EVEX stores whose faults are not suppressed (VEXTRACT*): what is masked off is kept */
	MEM_ADDR,  /* address only, no access: lea, prefetch, nop /r, invlpg, clflush-like hints are READ of 1 byte */
};

/* Register operands that are GPRs, and how they are used. Conservative: WRITE implies that the old value may survive partially. */
#define REG_NONE 0u
#define REG_READ 1u
#define REG_WRITE 2u
#define REG_RW 3u

/* Which state an instruction needs; decides #NM and #UD from CR0/CR4/XCR0. */
enum insn_unit { UNIT_INT, UNIT_X87, UNIT_MMX, UNIT_SSE, UNIT_AVX, UNIT_AVX512 };

/*
 * INSN_NATIVE: innocuous; runs on the host CPU as it is, but for its memory operand and demoted GPRs.
 * The others are control flow and stack (the translator has fast forms, the interpreter exact ones) and critical or
 * privileged instructions (interpreter routines only). The list is X(name); names say the mnemonic.
 */
#define INSN_KINDS(X) \
	/* control flow */ \
	X(JMP_REL) X(JCC) X(CALL_REL) X(RET) X(RET_IMM) X(JMP_IND) X(CALL_IND) X(JCXZ) X(LOOP) X(LOOPE) X(LOOPNE) \
	X(CALL_FAR_PTR) X(JMP_FAR_PTR) X(CALL_FAR_IND) X(JMP_FAR_IND) X(RETF) X(RETF_IMM) X(IRET) \
	X(INT) X(INT3) X(INT1) X(INTO) X(SYSCALL) X(SYSRET) X(SYSENTER) X(SYSEXIT) X(UD) \
	/* stack */ \
	X(PUSH_R) X(PUSH_IMM) X(PUSH_M) X(POP_R) X(POP_M) X(PUSH_SEG) X(POP_SEG) X(PUSHA) X(POPA) X(PUSHF) X(POPF) X(ENTER) X(LEAVE) \
	/* strings (rep in .rep), table look-up, implicit memory */ \
	X(MOVS) X(STOS) X(LODS) X(SCAS) X(CMPS) X(INS) X(OUTS) X(XLAT) X(MASKMOV) X(CLZERO) \
	/* port I/O */ \
	X(IN_IMM) X(OUT_IMM) X(IN_DX) X(OUT_DX) \
	/* segment registers */ \
	X(MOV_RM_SEG) X(MOV_SEG_RM) X(LOAD_FAR) X(LAR) X(LSL) X(VERR) X(VERW) X(ARPL) \
	/* system */ \
	X(HLT) X(CLI) X(STI) X(CLTS) X(LGDT) X(LIDT) X(SGDT) X(SIDT) X(LLDT) X(SLDT) X(LTR) X(STR) X(SMSW) X(LMSW) \
	X(MOV_R_CR) X(MOV_CR_R) X(MOV_R_DR) X(MOV_DR_R) X(INVLPG) X(INVPCID) X(INVD) X(WBINVD) X(RDMSR) X(WRMSR) X(RDPMC) \
	X(RDTSC) X(RDTSCP) X(CPUID) X(SWAPGS) X(RDFSBASE) X(RDGSBASE) X(WRFSBASE) X(WRGSBASE) X(RDPID) X(XGETBV) X(XSETBV) \
	X(CLAC) X(STAC) X(MONITOR) X(MWAIT) X(VMCALL) X(VMMCALL) X(RSM) X(RDPKRU) X(WRPKRU) \
	/* state save and restore: memory formats that hold instruction pointers, or privileged */ \
	X(XSAVE) X(XSAVEOPT) X(XSAVEC) X(XSAVES) X(XRSTOR) X(XRSTORS) X(FXSAVE) X(FXRSTOR) X(FNSTENV) X(FLDENV) X(FNSAVE) X(FRSTOR) \
	/* memory forms that are not one plain access */ \
	X(BT_MEM) X(VSIB) X(BOUND) \
	/* not encodable in 64-bit mode */ \
	X(DAA) X(DAS) X(AAA) X(AAS) X(AAM) X(AAD) X(SALC)

enum insn_kind {
	INSN_NATIVE,
	INSN_NOP, /* nothing to do: nop, multi-byte nop, prefetch, endbr, ud-free hints (PAUSE is NATIVE) */
	INSN_LEA, /* address only into a register */
#define X(name) INSN_##name,
	INSN_KINDS(X)
#undef X
	INSN_KIND_COUNT
};

const char *insn_kind_name(enum insn_kind k); /* "JMP_REL" ... */

struct insn {
	uint8_t len;  /* whole instruction, 1..15 */
	uint8_t kind; /* enum insn_kind */
	uint8_t enc;  /* enum insn_enc */
	uint8_t map;  /* 0 one-byte, 1 0F, 2 0F38, 3 0F3A, 5, 6 (EVEX) */
	uint8_t op;   /* opcode byte in its map */
	uint8_t mode; /* enum insn_cpu_mode it was decoded in */

	/* prefixes */
	uint8_t osz;     /* effective operand size in bytes: 2, 4, 8 (for 64-bit-default stack and branch forms: the effective one) */
	uint8_t asz;     /* effective address size in bytes: 2, 4, 8 */
	uint8_t rex;     /* the REX byte, 0 when absent (VEX/EVEX: 0) */
	uint8_t rep;     /* last of 0xf2/0xf3, 0 when none (also when it is a mandatory prefix: pp tells) */
	uint8_t pp;      /* mandatory prefix as in VEX: 0 none, 1 66, 2 F3, 3 F2 (legacy: only where it selects the instruction) */
	bool opsize66;   /* a 66 prefix is present */
	bool addr67;
	bool lock;       /* LOCK present, and allowed for this form (else the decoder says invalid) */
	uint8_t seg;     /* effective segment of the memory operand: override, or SEG_SS for rsp/rbp bases, SEG_DS. (64-bit: ES/CS/SS/DS overrides ignored) */
	bool seg_override; /* an override prefix is present and effective */

	/* modrm */
	bool has_modrm;
	uint8_t modrm, mod;
	uint8_t reg;     /* modrm.reg with REX.R / VEX.R (and EVEX.R' as bit 4) */
	uint8_t rm;      /* when mod == 3: register with REX.B (and EVEX.X as bit 4 for vector registers) */
	uint8_t opreg;   /* opcode's low 3 bits with REX.B, for the +r forms */
	uint8_t vvvv;    /* VEX/EVEX second source (un-inverted, EVEX.V' as bit 4); 0 when unused */
	bool has_vvvv;   /* vvvv names a register */
	uint8_t vex_w, vex_l;        /* W; L or EVEX.L'L */
	uint8_t evex_aaa; bool evex_z, evex_b;

	/* memory operand */
	uint8_t mem;     /* enum insn_mem */
	uint16_t mem_size; /* bytes accessed (full width for masked forms; element size for EVEX broadcast) */
	bool mem_aligned;  /* must be aligned to mem_size, else #GP (movaps, legacy SSE arithmetic, cmpxchg16b): cannot cross a page */
	bool mem_masked;   /* elements may be masked off: faults are suppressed for those (vmaskmov, EVEX with aaa) */
	int8_t base;     /* GPR 0-15 or -1 */
	int8_t index;    /* GPR 0-15 or -1 (for VSIB: vector register number 0-31) */
	uint8_t scale;   /* 1, 2, 4, 8 */
	bool rip_rel;    /* base is the next instruction's address */
	int64_t disp;    /* sign-extended (EVEX disp8*N already multiplied); moffs: zero-extended absolute address */
	uint8_t disp_off, disp_len; /* bytes within the instruction; 0 length when absent */

	/* immediate(s); moffs addresses count as displacement */
	int64_t imm;     /* sign-extended as the instruction does; ENTER: imm = size, imm2 = level; far ptr: imm = offset, imm2 = selector */
	uint16_t imm2;
	uint8_t imm_off, imm_len; /* all immediate bytes */
	uint8_t op_off;  /* offset of the opcode byte `op` (prefixes, REX, escapes, VEX payload lie before) */
	uint8_t modrm_off;

	/* explicit GPR operands (implicit ones such as rax in MUL, rcx in shifts are never r8-r15 and need no rewriting) */
	uint8_t reg_gpr;   /* REG_*: modrm.reg is a GPR so used */
	uint8_t rm_gpr;    /* REG_*: modrm.rm is a GPR (only when mod == 3) */
	uint8_t vvvv_gpr;  /* REG_* */
	uint8_t opreg_gpr; /* REG_* */
	bool byte_reg;     /* some explicit GPR operand is 8 bits wide: without REX numbers 4-7 of that operand mean AH, CH, DH, BH */
	bool reg_high8, rm_high8; /* that is so here: reg / rm (mod 3) is AH..BH (reg/rm hold 4-7) */

	uint8_t unit;      /* enum insn_unit */
	bool x87_wait;     /* waits for pending x87 exceptions (all x87 but FNxxx control forms) */

	/* Arithmetic flags, as FL_* bits >> 0 within FL_ARITH. written: all of those defined or undefined afterwards; a shift by CL may leave all as they were: then they count as read too. */
	uint16_t flags_read, flags_written;
	uint8_t cc;        /* for JCC, SETcc, CMOVcc: condition 0-15 */
	uint8_t seg_reg;   /* for MOV_*SEG*, PUSH_SEG, POP_SEG, LOAD_FAR: the segment register number */
	bool vex_gpr;      /* VEX instruction on GPRs (BMI): unit INT, but #UD outside protected mode */
};

enum decode_result {
	DECODE_OK,
	DECODE_MORE,     /* bytes ran out before the instruction did: pass more (up to 15) */
	DECODE_INVALID,  /* #UD; in->len bytes were looked at */
	DECODE_TOO_LONG, /* over 15 bytes: #GP(0) */
};

/* Decode one instruction from bytes[0..avail). In the result every field is set. */
enum decode_result insn_decode(const uint8_t *bytes, unsigned avail, enum insn_cpu_mode mode, struct insn *in);

/* Offset part of the memory operand (before the segment base), from GPR values; truncated to the address size. next_rip for rip_rel. Not for VSIB. */
uint64_t insn_mem_offset(const struct insn *in, const uint64_t gpr[16], uint64_t next_rip);

#endif
