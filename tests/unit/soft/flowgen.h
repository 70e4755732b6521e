/*
 * Random programs with control flow that any start state runs to an end, and whose memory operands stay near their arenas,
 * by construction: pointers are made in range and tracked, loops count down, calls lead to functions made before.
 *
 * The program lies in a code arena, its operands in a data arena and on a stack; all three are mapped a second time at
 * FLOW_ALIAS beyond. Around data and stack nothing is mapped.
 */
#ifndef FLOWGEN_H
#define FLOWGEN_H

#include <stdbool.h>
#include <stdint.h>

#define FLOW_CODE UINT64_C(0x10000000)
#define FLOW_CODE_PAGES 5
#define FLOW_DATA UINT64_C(0x20000000)
#define FLOW_DATA_PAGES 4 /* the last is read-only */
#define FLOW_STACK UINT64_C(0x28000000)
#define FLOW_STACK_PAGES 2
#define FLOW_ALIAS UINT64_C(0x4000000)

#define FLOW_ITEMS 2000
#define FLOW_LABELS 600
#define FLOW_POOL 64
#define FLOW_SEGMENTS 8

enum flow_fix { FIX_NONE, FIX_REL8, FIX_REL32, FIX_ABS64, FIX_DATA, FIX_POOL, FIX_POOL32, FIX_SMC };

/* One instruction, or a label's place (len 0). */
struct flow_item {
	uint8_t bytes[24], len;
	uint8_t fix, fix_at;
	uint8_t imm_at, imm_len; /* an immediate that may have any value; 0: none */
	uint8_t segment;
	bool keep;               /* others rely on it: not to be left out */
	uint16_t unit;           /* items of one number are left out together */
	int32_t target;          /* label, data offset or pool slot */
	uint32_t at;             /* offset in the code arena */
};

struct flow {
	struct flow_item items[FLOW_ITEMS];
	unsigned nitems, nlabels, npool, nunits, nsegments;
	uint32_t label_at[FLOW_LABELS];
	int32_t pool[FLOW_POOL];  /* labels */
	bool pool_alias[FLOW_POOL];
	uint32_t segment_at[FLOW_SEGMENTS];
	uint32_t pool_at;
	bool dropped[FLOW_ITEMS]; /* units */
	bool smc, overflow;
	int entry; /* label */
};

/* Uses rnd(). */
void flow_generate(struct flow *f);
/* False: it does not fit. */
bool flow_assemble(struct flow *f, uint8_t *code);
/* Other values for some free immediates of an assembled program. */
void flow_mutate(const struct flow *f, uint8_t *code);

#endif
