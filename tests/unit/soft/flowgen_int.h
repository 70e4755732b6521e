/*
 * Inside the generator of programs: flowasm.c (encoding, layout), flowops.c (operands and straight code), flowgen.c (control flow).
 */
#ifndef FLOWGEN_INT_H
#define FLOWGEN_INT_H

#include <string.h>

#include "flowgen.h"
#include "native.h"

#define FUNCTIONS 6
#define SP R_SP
#define BIT_OF(r) (1u << (r))

struct function {
	int label, plt; /* plt: a jump through the pool, or -1 */
	uint32_t clobber;
	unsigned cost, ret_imm;
};

struct mem {
	int base, index; /* -1: none */
	unsigned scale;
	int32_t disp;
	uint8_t fix;
	bool addr32;
};

/* Where a break leads to. */
struct exit_point {
	int label, depth;
	uint32_t ptr;
};

struct gen {
	struct flow *f;
	unsigned segment, segment_len, unit, budget, level, cost;
	uint32_t locked; /* not to be written */
	uint32_t ptr;    /* known to point near the data arena */
	uint32_t small;  /* known to be below 256 */
	uint32_t clobber;
	struct mem last; /* operand */
	int depth;       /* bytes on the stack since the function's entry */
	int frame;       /* depth of scratch space there, 0: none */
	bool rbp_frame, is_main, full;
	struct exit_point *exit;
	struct function fn[FUNCTIONS];
	unsigned nfn;
};

/* flowasm.c */
struct flow_item *asm_item(struct gen *g);
void asm_byte(struct gen *g, struct flow_item *i, unsigned b);
void asm_imm(struct gen *g, struct flow_item *i, uint64_t v, unsigned n, bool is_free);
void asm_fix(struct flow_item *i, enum flow_fix kind, unsigned at, int32_t target);
int asm_label(struct gen *g);
void asm_place(struct gen *g, int label);
/*
 * size: 1, 2, 4, 8 bytes of a general operand; pp: a prefix that belongs to the opcode; map: 0, 1 (0F), 2 (0F 38), 3 (0F 3A). Operands:
 * reg, and m or the register rm.
 */
struct flow_item *asm_op(struct gen *g, unsigned pp, unsigned size, unsigned map, unsigned opcode, unsigned reg, unsigned rm, const struct mem *m);
/* m or the register rm */
void asm_modrm(struct gen *g, struct flow_item *i, unsigned reg, unsigned rm, const struct mem *m);
struct flow_item *asm_vex(struct gen *g, unsigned pp, unsigned map, unsigned w, unsigned l, unsigned opcode, unsigned reg, unsigned vvvv, unsigned rm,
			  const struct mem *m);
/* Up to three bytes. */
void asm_plain(struct gen *g, unsigned a, unsigned b, unsigned c);

/* flowops.c */
unsigned ops_any_reg(void);
unsigned ops_out_reg(struct gen *g); /* one that may be written */
void ops_wrote(struct gen *g, unsigned r);
unsigned ops_ptr_reg(struct gen *g);
void ops_make_ptr(struct gen *g, unsigned r);
void ops_alu(struct gen *g);
void ops_straight(struct gen *g); /* any instruction, or a few, that does not branch */

#endif
