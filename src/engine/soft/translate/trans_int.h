/*
 * Inside the translator: one struct for the block under translation, and its parts: operand.c (GPRs and memory operands of
 * native instructions), flow.c (branches and stack), translate.c (the loop over a block).
 */
#ifndef ENGINE_SOFT_TRANS_INT_H
#define ENGINE_SOFT_TRANS_INT_H

#include "engine/soft/translate/emit.h"

/* Instructions of a block, and of a region: see translate.c. */
#define MAX_PLAIN_INSNS 48
#define MAX_BLOCK_INSNS 128
#define MAX_BLOCK_LINKS 64
#define MAX_FORWARD 32
#define MAX_BLOCK_CODE ((MAX_BLOCK_INSNS + 2) * 16)
/* Room that one block may need at most, and one instruction with its out-of-line part. */
#define MAX_BLOCK_BYTES 65536

struct out_of_line { /* crossing access: leave for the slow path */
	uint32_t rel32_at;
	uint64_t pc;
	uint8_t dirty;
};

/* A memory operand made ready: [base + index + disp] is the host address. */
struct operand {
	int base, index;
	int32_t disp;
	uint8_t free0, free1; /* scratch registers left, 0xff when none */
};

/*
 * The last operand looked up, while its registers hold: the same operand again needs no look-up.
 * base to size: as in struct insn.
 */
struct looked_up {
	bool valid;
	int8_t base, index;
	uint8_t scale;
	int32_t disp;
	unsigned size;
	uint8_t regs; /* scratch registers that op names: a bit each */
	struct operand op;
};

/* A branch to a place further on in the same region. */
struct forward {
	uint64_t pc;
	uint32_t rel32_at;
	uint8_t residue[16];
};

struct trans {
	struct emit e;
	struct soft_vcpu *sv;
	struct code_cache *c;
	struct block *b;
	uint32_t hflags;
	enum insn_cpu_mode mode;
	uint64_t pc;       /* of the current instruction */
	uint64_t next;     /* of the one after it */
	gpa_t gpa;         /* of the current instruction */
	uint32_t slot;     /* not 0: the block runs wherever its page is mapped (trans_pc) */
	uint64_t page_pc;  /* of the page's first byte */
	uint64_t code_base; /* CS base: linear address = code_base + pc */
	unsigned nool, nlinks, ncode, nforward;
	bool ended;
	bool region;       /* goes on behind branches */
	/* regs.c */
	uint8_t cached, dirty; /* of guest r9-r11: a bit each */
	uint8_t pending;       /* written by the current instruction */
	uint8_t residue[16];   /* low three bits that a GPR is known to have, or NO_RESIDUE */
	bool direct;           /* the current instruction's r9-r11 are in the host's */
	uint8_t ra, re, rx;    /* its scratch registers: addend, address, check; NO_REG: none */
	struct looked_up last;
	bool reuse;            /* the current instruction's operand is `last` */
	unsigned irq_poll; /* 1: emit the poll at the start of the instruction after the next (STI), 2: now */

	/* Not cleared at the start. */
	struct out_of_line ool[MAX_BLOCK_INSNS * 3];
	struct link *links[MAX_BLOCK_LINKS];
	struct forward forward[MAX_FORWARD];
	/* The guest's bytes from the block's start on, read once: other vCPUs may write them meanwhile. */
	uint8_t code[MAX_BLOCK_CODE];
};

#define NO_REG 0xff
#define NO_RESIDUE 0xff

/* regs.c */
void trans_prepare(struct trans *t, const struct insn *in); /* before an instruction's host code */
void trans_done(struct trans *t, const struct insn *in);    /* after it */
void trans_spill(struct trans *t, unsigned mask);           /* store what is dirty of these */
void trans_forget(struct trans *t);                         /* store, and nothing is cached any more: T0-T2 are free */

/* Operands of this form may be looked up once for several instructions. */
bool trans_can_reuse(const struct trans *t, const struct insn *in);
unsigned trans_scratch_bits(const struct operand *op);

/* operand.c */
/* Operands whose address needs no register to be computed in: a constant; base and displacement. */
bool trans_address_fixed(const struct trans *t, const struct insn *in);
bool trans_address_simple(const struct trans *t, const struct insn *in);
bool trans_mem_is_fast(const struct trans *t, const struct insn *in);
/* The two halves of trans_operand: the offset into T0, zero-extended from the address size; T0 to an operand [T0 + T1]. */
void trans_offset(struct trans *t, const struct insn *in);
void trans_look_up(struct trans *t, const struct insn *in, unsigned size, struct operand *op);
/* Emits address computation, alignment check and table look-up for the instruction's memory operand, or for [ea_reg + disp] when in is NULL. */
void trans_operand(struct trans *t, const struct insn *in, struct operand *op);
/* The same for a stack slot: address register `reg` (rsp or rbp), offset disp, size bytes. In 64-bit mode t->rx is free again. */
void trans_stack(struct trans *t, unsigned reg, int32_t disp, unsigned size, struct operand *op);
/* Re-encode a native instruction; op NULL when it has no memory operand. bytes are the guest's. */
void trans_native(struct trans *t, const struct insn *in, const uint8_t *bytes, const struct operand *op);
void trans_maskmov(struct trans *t, const struct insn *in, const uint8_t *bytes);
void trans_lea(struct trans *t, const struct insn *in);
/* Load GPR n into a register: itself when it is in the host's, else into scratch (returned). */
unsigned trans_gpr(struct trans *t, unsigned n, unsigned scratch);

/* A guest code address into a register. */
void trans_pc(struct trans *t, unsigned to, uint64_t pc);
/* translate.c: branches with a fast form; they end a block */
bool trans_is_branch(const struct insn *in);
/* flow.c: true when the instruction was translated, false: leave it to the slow path */
bool trans_flow(struct trans *t, const struct insn *in, const uint8_t *bytes);
void trans_poll(struct trans *t); /* safepoint */
void trans_goto(struct trans *t, uint64_t target, uint32_t rel32_at); /* make a link for the branch at rel32_at */
/* A branch of a region that can be led to a place further on in it. */
bool trans_forward_ok(const struct trans *t, uint64_t target);
void trans_forward(struct trans *t, uint64_t target, uint32_t rel32_at);
/* v.s.rflags without the flag that the mask at GS leaves out, plus `add`. Host flags stay. */
void trans_change_flag(struct trans *t, int32_t mask, int32_t add);
void trans_slow_exit(struct trans *t);
void trans_pause(struct trans *t); /* now and then, to the slow path before a PAUSE */
void trans_finish(struct trans *t); /* out-of-line parts */
bool trans_linear_page_differs(const struct trans *t, uint64_t target);

#endif
