#include "flowgen_int.h"

#define SEGMENT_SOFT 330 /* a unit is begun before this many bytes; the rest closes what is open */
#define MAX_COST 20000   /* instructions that a function runs, its callees' among them, at most */

static void body(struct gen *g, unsigned n);

static void jcc(struct gen *g, unsigned cc, int label)
{
	struct flow_item *i = asm_item(g);

	if (below(2)) {
		asm_byte(g, i, 0x70 | cc);
		asm_fix(i, FIX_REL8, i->len, label);
		asm_imm(g, i, 0, 1, false);
		return;
	}
	asm_byte(g, i, 0x0f);
	asm_byte(g, i, 0x80 | cc);
	asm_fix(i, FIX_REL32, i->len, label);
	asm_imm(g, i, 0, 4, false);
}

static void branch32(struct gen *g, unsigned opcode, int label)
{
	struct flow_item *i = asm_item(g);

	asm_byte(g, i, opcode);
	asm_fix(i, FIX_REL32, i->len, label);
	asm_imm(g, i, 0, 4, false);
}

static void short_branch(struct gen *g, unsigned opcode, int label)
{
	struct flow_item *i = asm_item(g);

	if (!below(12) && opcode >= 0xe0)
		asm_byte(g, i, 0x67);
	asm_byte(g, i, opcode);
	asm_fix(i, FIX_REL8, i->len, label);
	asm_imm(g, i, 0, 1, false);
}

static void keep_last(struct gen *g) { g->f->items[g->f->nitems - 1].keep = true; }

static void push(struct gen *g, unsigned r)
{
	struct flow_item *i = asm_item(g);

	i->keep = true;
	if (r > 7)
		asm_byte(g, i, 0x41);
	asm_byte(g, i, 0x50 | (r & 7));
	g->depth += 8;
}

static void pop(struct gen *g, unsigned r)
{
	struct flow_item *i = asm_item(g);

	i->keep = true;
	if (r > 7)
		asm_byte(g, i, 0x41);
	asm_byte(g, i, 0x58 | (r & 7));
	g->depth -= 8;
}

/* rsp += n: flags stay, or not */
static void move_sp(struct gen *g, int32_t n)
{
	struct mem m = {.base = SP, .index = -1, .disp = n};
	struct flow_item *i;

	if (below(2)) {
		asm_op(g, 0, 8, 0, 0x8d, SP, 0, &m);
	} else {
		i = asm_op(g, 0, 8, 0, n < 0 && n > -128 && below(2) ? 0x83 : 0x81, n < 0 ? 5 : 0, SP, NULL);
		asm_imm(g, i, (uint64_t)(n < 0 ? -n : n), i->bytes[i->len - 2] == 0x83 ? 1 : 4, false);
	}
	keep_last(g);
	g->depth -= n;
}

static void skip(struct gen *g)
{
	int over = asm_label(g), end;
	uint32_t ptr = g->ptr;

	if (below(2))
		ops_alu(g);
	ptr = g->ptr;
	if (!below(8))
		short_branch(g, 0xe3, over);
	else
		jcc(g, below(16), over);
	body(g, 1 + below(4));
	if (below(3) == 0) { /* else */
		uint32_t then = g->ptr;

		end = asm_label(g);
		branch32(g, 0xe9, end);
		asm_place(g, over);
		g->ptr = ptr;
		body(g, 1 + below(3));
		asm_place(g, end);
		g->ptr &= then;
		return;
	}
	asm_place(g, over);
	g->ptr &= ptr;
}

static void loop(struct gen *g)
{
	int top = asm_label(g), cond = asm_label(g), out = asm_label(g);
	unsigned kind = below(4), r = kind == 3 ? R_CX : ops_out_reg(g), cost = g->cost, count, walk = 16, each;
	uint32_t locked = g->locked, ptr;
	struct exit_point *outer = g->exit, here;
	struct flow_item *init, *i;
	struct mem counter = {.base = SP, .index = -1};
	bool in_memory = kind == 2, enter_below = below(4) == 0;
	unsigned depth_unit = g->unit;

	if (g->locked & BIT_OF(r))
		return;
	if (below(2)) { /* a pointer that goes on with each turn */
		walk = ops_ptr_reg(g);
		if (g->locked & BIT_OF(walk) || walk == r)
			walk = 16;
	}
	init = asm_item(g);
	if (in_memory) {
		asm_byte(g, init, 0x68);
		asm_imm(g, init, 0, 4, false);
		init->keep = true;
		g->depth += 8;
	} else {
		if (r > 7)
			asm_byte(g, init, 0x41);
		asm_byte(g, init, 0xb8 | (r & 7));
		asm_imm(g, init, 0, 4, false);
		ops_wrote(g, r);
		g->locked |= BIT_OF(r);
	}
	/* what stays a pointer through the loop is not written in it */
	for (unsigned k = 0; k < 16; k++)
		if ((g->ptr & BIT_OF(k)) && __builtin_popcount(g->locked) < 8 && below(2))
			g->locked |= BIT_OF(k);
	if (walk < 16)
		g->locked |= BIT_OF(walk);
	g->ptr &= g->locked;
	ptr = g->ptr;
	here = (struct exit_point){.label = out, .depth = g->depth, .ptr = ptr};
	g->exit = &here;
	if (enter_below)
		branch32(g, 0xe9, cond);
	asm_place(g, top);
	body(g, 1 + below(5));
	g->unit = depth_unit;
	if (walk < 16) {
		i = asm_op(g, 0, 8, 0, 0x83, below(4) ? 0 : 5, walk, NULL);
		asm_imm(g, i, below(3) ? 8 * (1 + below(8)) : below(70), 1, false);
		g->clobber |= BIT_OF(walk);
	}
	g->ptr &= ptr;
	if (enter_below)
		asm_place(g, cond);
	switch (kind) {
	case 0:
		asm_op(g, 0, below(2) ? 8 : 4, 0, 0xff, 1, r, NULL);
		jcc(g, 5, top);
		break;
	case 1: /* no flags but at the end */
		counter = (struct mem){.base = (int)r, .index = -1, .disp = -1};
		asm_op(g, 0, 8, 0, 0x8d, r, 0, &counter);
		asm_op(g, 0, 8, 0, 0x85, r, r, NULL);
		jcc(g, 5, top);
		break;
	case 2:
		i = asm_op(g, 0, 8, 0, 0x83, 5, 0, &counter);
		asm_imm(g, i, 1, 1, false);
		jcc(g, 0xf, top);
		break;
	default:
		short_branch(g, 0xe2, top);
	}
	asm_place(g, out);
	g->ptr &= here.ptr;
	g->exit = outer;
	g->locked = locked;
	if (in_memory)
		move_sp(g, 8);
	each = g->cost - cost + 1;
	count = 1 + below(below(4) ? 12 : 60);
	if (count * each > MAX_COST / 4)
		count = each > MAX_COST / 4 ? 1 : MAX_COST / 4 / each;
	g->cost = cost + count * each;
	put_le32(init->bytes + init->len - 4, count);
}

static int pool_slots(struct gen *g, unsigned n)
{
	if (g->f->npool + n > FLOW_POOL)
		return -1;
	g->f->npool += n;
	return (int)(g->f->npool - n);
}

static void set_slot(struct gen *g, int slot, int label)
{
	g->f->pool[slot] = label;
	g->f->pool_alias[slot] = !below(4);
}

/* The address of a label in r. */
static void address(struct gen *g, unsigned r, int label)
{
	struct mem m = {.base = -1, .index = -1, .fix = FIX_DATA};
	struct flow_item *i;

	if (below(2)) {
		i = asm_op(g, 0, 8, 0, 0x8d, r, 0, &m);
		i->fix = FIX_REL32;
		i->target = label;
	} else {
		i = asm_item(g);
		asm_byte(g, i, 0x48 | (r >> 3));
		asm_byte(g, i, 0xb8 | (r & 7));
		asm_fix(i, FIX_ABS64, i->len, label);
		asm_imm(g, i, 0, 8, false);
	}
	i->keep = true;
	ops_wrote(g, r);
}

static void call(struct gen *g)
{
	struct function *fn;
	uint32_t save;
	unsigned r, nargs;
	struct mem m = {.base = -1, .index = -1, .fix = FIX_POOL};
	int slot;

	if (!g->nfn)
		return;
	fn = &g->fn[below(g->nfn)];
	if (g->cost + fn->cost > MAX_COST / 2)
		return;
	save = fn->clobber & g->locked & ~BIT_OF(SP);
	nargs = fn->ret_imm / 8;
	for (r = 0; r < 16; r++)
		if (save & BIT_OF(r))
			push(g, r);
	for (unsigned k = 0; k < nargs; k++)
		push(g, ops_any_reg());
	switch (below(6)) {
	case 0:
		r = ops_out_reg(g);
		address(g, r, fn->label);
		asm_op(g, 0, 4, 0, 0xff, 2, r, NULL);
		break;
	case 1:
		slot = pool_slots(g, 1);
		if (slot < 0) {
			branch32(g, 0xe8, fn->label);
			break;
		}
		set_slot(g, slot, fn->label);
		m.disp = slot;
		asm_op(g, 0, 4, 0, 0xff, 2, 0, &m);
		break;
	case 2:
		branch32(g, 0xe8, fn->plt >= 0 ? fn->plt : fn->label);
		break;
	default:
		branch32(g, 0xe8, fn->label);
	}
	keep_last(g);
	g->depth -= 8 * (int)nargs;
	for (r = 16; r-- > 0;)
		if (save & BIT_OF(r))
			pop(g, r);
	g->small = 0;
	g->ptr &= ~(fn->clobber & ~save);
	g->clobber |= fn->clobber;
	g->cost += fn->cost;
}

static void computed_jump(struct gen *g)
{
	int to = asm_label(g), end, slot;
	unsigned r = ops_out_reg(g), n = 4;
	struct mem m = {.base = -1, .index = -1, .fix = FIX_POOL};
	uint32_t ptr, after = UINT32_MAX;

	switch (below(4)) {
	case 0:
		address(g, r, to);
		asm_op(g, 0, 4, 0, 0xff, 4, r, NULL);
		keep_last(g);
		break;
	case 1:
		address(g, r, to);
		push(g, r);
		if (below(2))
			ops_alu(g);
		asm_plain(g, 0xc3, 0, 0);
		keep_last(g);
		g->depth -= 8;
		break;
	case 2:
		slot = pool_slots(g, 1);
		if (slot < 0)
			break;
		set_slot(g, slot, to);
		m.disp = slot;
		asm_op(g, 0, 4, 0, 0xff, 4, 0, &m);
		keep_last(g);
		break;
	default: /* a table */
		slot = pool_slots(g, n);
		if (slot < 0)
			break;
		asm_imm(g, asm_op(g, 0, 4, 0, 0x83, 4, r, NULL), n - 1, 1, false);
		keep_last(g);
		ops_wrote(g, r);
		m = (struct mem){.base = -1, .index = (int)r, .scale = 3, .fix = FIX_POOL32, .disp = slot};
		asm_op(g, 0, 4, 0, 0xff, 4, 0, &m);
		keep_last(g);
		end = to;
		ptr = g->ptr;
		for (unsigned k = 0; k < n; k++) {
			int label = asm_label(g);

			set_slot(g, slot + (int)k, label);
			asm_place(g, label);
			g->ptr = ptr;
			body(g, 1 + below(2));
			after &= g->ptr;
			branch32(g, 0xe9, end);
			keep_last(g);
		}
		asm_place(g, end);
		g->ptr = after & ptr;
		return;
	}
	/* what is jumped over */
	if (below(2)) {
		ptr = g->ptr;
		body(g, 1);
		g->ptr &= ptr;
	}
	asm_place(g, to);
}

static void get_pc(struct gen *g)
{
	int next = asm_label(g);
	unsigned r = ops_out_reg(g);

	branch32(g, 0xe8, next);
	keep_last(g);
	asm_place(g, next);
	g->depth += 8;
	pop(g, r);
	ops_wrote(g, r);
}

static void saved(struct gen *g)
{
	unsigned r[4], n = 1 + below(4);

	for (unsigned k = 0; k < n; k++) {
		r[k] = ops_any_reg();
		push(g, r[k]);
	}
	body(g, 1 + below(3));
	while (n--) {
		unsigned to = g->locked & BIT_OF(r[n]) || !below(8) ? ops_out_reg(g) : r[n];

		pop(g, to);
		ops_wrote(g, to);
	}
}

static void access8(struct gen *g, unsigned r)
{
	struct mem m = {.base = (int)r, .index = -1, .disp = 8 * ((int32_t)below(3) - 1)};

	if (below(4))
		m.disp = 0;
	asm_op(g, 0, below(4) ? 8 : 4, 0, below(2) ? 0x8b : 0x03, g->locked & BIT_OF(R_AX) ? ops_out_reg(g) : R_AX, 0, &m);
	ops_wrote(g, R_AX);
}

/* A pointer at a page's end that is aligned on one path and not on the other, or not any more: nobody may take it for aligned. */
static void alignment_lost(struct gen *g)
{
	unsigned r = ops_out_reg(g), q = ops_out_reg(g);
	uint64_t end = FLOW_DATA + 4096 * (1 + below(2));
	struct mem m = {.base = -1, .index = -1, .disp = (int32_t)(end - 8 * (1 + below(2)))};
	int over = asm_label(g);
	struct flow_item *i;

	if ((g->locked & BIT_OF(R_AX)) || q == r || q == R_AX || r == R_AX)
		return;
	asm_op(g, 0, 8, 0, 0x8d, r, 0, &m);
	access8(g, r);
	switch (below(4)) {
	case 0: case 1: /* on one path */
		jcc(g, below(16), over);
		i = asm_op(g, 0, 8, 0, 0x83, 0, r, NULL);
		asm_imm(g, i, 1 + below(7), 1, false);
		if (below(2))
			access8(g, r);
		asm_place(g, over);
		break;
	case 2: /* by CMPXCHG, which writes rax */
		asm_op(g, 0, 8, 0, 0x8d, R_AX, 0, &m);
		m.disp += 1 + (int32_t)below(7);
		asm_op(g, 0, 8, 0, 0x8d, q, 0, &m);
		m = (struct mem){.base = R_AX, .index = -1};
		asm_op(g, 0, 8, 0, 0x8b, r, 0, &m);
		asm_op(g, 0, 8, 1, 0xb1, r, q, NULL);
		asm_op(g, 0, 8, 0, 0x03, r, 0, &m);
		asm_op(g, 0, 8, 0, 0x8d, r, 0, &m); /* r has had data */
		break;
	default: /* by a write to its low half or quarter */
		m.disp += 1 + (int32_t)below(7);
		i = asm_op(g, 0, below(2) ? 1 : 2, 0, 0xc6, 0, r, NULL);
		if (i->bytes[0] == 0x66) {
			i->bytes[i->len - 2] = 0xc7;
			asm_imm(g, i, (uint64_t)m.disp & 0xffff, 2, false);
		} else {
			asm_imm(g, i, (uint64_t)m.disp & 0xff, 1, false);
		}
	}
	access8(g, r);
	access8(g, r);
	ops_wrote(g, r);
	ops_wrote(g, q);
	ops_wrote(g, R_AX);
}

static void frame(struct gen *g)
{
	uint32_t locked = g->locked;
	int old = g->frame;
	bool old_rbp = g->rbp_frame, rbp = !(g->locked & BIT_OF(R_BP)) && !old_rbp && below(2), by_enter = rbp && !below(4);
	struct flow_item *i;

	if (rbp && by_enter) {
		i = asm_item(g);
		asm_byte(g, i, 0xc8);
		asm_imm(g, i, 72, 2, false);
		asm_imm(g, i, 0, 1, false);
		i->keep = true;
		g->depth += 80;
	} else {
		if (rbp) {
			push(g, R_BP);
			asm_op(g, 0, 8, 0, 0x89, SP, R_BP, NULL)->keep = true;
		}
		move_sp(g, -72);
	}
	if (rbp) {
		g->locked |= BIT_OF(R_BP);
		ops_wrote(g, R_BP);
		g->rbp_frame = true;
	}
	g->frame = g->depth; /* 72 bytes from there; rbp - 72 if there is one */
	body(g, 2 + below(4));
	if (rbp) {
		asm_plain(g, 0xc9, 0, 0);
		keep_last(g);
		g->depth -= 80;
	} else {
		move_sp(g, 72);
	}
	g->frame = old;
	g->rbp_frame = old_rbp;
	g->locked = locked;
	if (rbp)
		g->ptr &= ~BIT_OF(R_BP);
}

static void misaligned_stack(struct gen *g)
{
	int n = below(2) ? 4 : 1 + (int)below(7), frame_was = g->frame;

	move_sp(g, -n);
	body(g, 1 + below(3));
	move_sp(g, n);
	g->frame = frame_was;
}

/* A branch to where nothing can be fetched: not canonical, not mapped, not executable. */
static void wild_branch(struct gen *g)
{
	int over = asm_label(g);
	unsigned r = ops_out_reg(g), kind = below(3);
	struct flow_item *i;
	uint64_t to = below(3) ? FLOW_CODE + (below(2) ? 0x800000 + below(0x10000) : FLOW_CODE_PAGES * 4096) : FLOW_DATA + below(4096);

	if (kind && below(2)) /* the engine's CALL has stored the return address by then, below rsp */
		to = (rnd() | BIT(47)) & ~BIT(63);
	if (below(4))
		jcc(g, below(16), over);
	i = asm_item(g);
	i->keep = true;
	asm_byte(g, i, 0x48 | (r >> 3));
	asm_byte(g, i, 0xb8 | (r & 7));
	asm_imm(g, i, to, 8, false);
	ops_wrote(g, r);
	if (kind == 2) {
		push(g, r);
		asm_plain(g, below(2) ? 0xc3 : 0xf2, 0, 0);
		if (g->f->items[g->f->nitems - 1].bytes[0] == 0xf2)
			asm_byte(g, &g->f->items[g->f->nitems - 1], 0xc3);
		g->depth -= 8;
	} else {
		asm_op(g, 0, 4, 0, 0xff, 2 + 2 * kind, r, NULL);
	}
	keep_last(g);
	asm_place(g, over);
}

/* Out of the loop, or out of all. */
static void leave_early(struct gen *g)
{
	int over;

	if (g->exit && g->exit->depth == g->depth && below(4)) {
		g->exit->ptr &= g->ptr;
		jcc(g, below(16), g->exit->label);
		return;
	}
	if (!g->is_main && g->rbp_frame)
		return;
	if (!below(24)) {
		wild_branch(g);
		return;
	}
	if (g->is_main && below(4))
		return;
	over = asm_label(g);
	jcc(g, below(16), over);
	if (g->is_main) {
		asm_plain(g, 0xf4, 0, 0);
	} else if (g->depth == 0 && !g->fn[g->nfn].ret_imm) {
		asm_plain(g, 0xc3, 0, 0);
	}
	asm_place(g, over);
}

/* Go on elsewhere. */
static void change_segment(struct gen *g)
{
	int to;

	if (g->f->nsegments == FLOW_SEGMENTS) {
		g->full |= g->segment_len > SEGMENT_SOFT;
		return;
	}
	to = asm_label(g);
	branch32(g, 0xe9, to);
	keep_last(g);
	g->segment = g->f->nsegments++;
	g->segment_len = 0;
	asm_place(g, to);
}

static void unit(struct gen *g)
{
	unsigned k = below(64);

	g->unit = ++g->f->nunits;
	if (g->level < 4 && k < 20) {
		g->level++;
		if (k < 5)
			skip(g);
		else if (k < 8)
			loop(g);
		else if (k < 11)
			call(g);
		else if (k < 13)
			computed_jump(g);
		else if (k < 15)
			saved(g);
		else if (k < 17)
			frame(g);
		else if (k < 18)
			misaligned_stack(g);
		else
			leave_early(g);
		g->level--;
		return;
	}
	if (k == 20)
		get_pc(g);
	else if (k == 21)
		alignment_lost(g);
	else
		ops_straight(g);
}

static void body(struct gen *g, unsigned n)
{
	unsigned outer = g->unit;

	while (n-- && g->budget && !g->full) {
		g->budget--;
		if (g->segment_len > SEGMENT_SOFT || !below(40))
			change_segment(g);
		if (g->full)
			break;
		unit(g);
	}
	g->unit = outer;
}

static void function(struct gen *g, bool is_main)
{
	struct function *fn = &g->fn[g->nfn];
	struct mem m = {.base = -1, .index = -1, .fix = FIX_POOL};
	struct flow_item *i;
	int slot;

	if (g->f->nsegments < FLOW_SEGMENTS) {
		g->segment = g->f->nsegments++;
		g->segment_len = 0;
	}
	g->locked = BIT_OF(SP);
	g->ptr = g->small = g->clobber = g->cost = g->unit = 0;
	g->last = (struct mem){.base = -1, .index = -1};
	g->depth = g->frame = 0;
	g->is_main = is_main;
	g->rbp_frame = g->full = false;
	g->exit = NULL;
	g->budget = is_main ? 8 + below(60) : 2 + below(20);
	*fn = (struct function){.label = asm_label(g), .plt = -1, .ret_imm = is_main || below(4) ? 0 : 8 * (1 + below(2))};
	asm_place(g, fn->label);
	if (!is_main && !below(4))
		asm_plain(g, 0xf3, 0x0f, 0x1e), asm_byte(g, &g->f->items[g->f->nitems - 1], 0xfa);
	body(g, 1000);
	if (is_main) {
		asm_plain(g, 0xf4, 0, 0);
	} else if (fn->ret_imm) {
		i = asm_item(g);
		asm_byte(g, i, 0xc2);
		asm_imm(g, i, fn->ret_imm, 2, false);
	} else {
		asm_plain(g, 0xc3, 0, 0);
	}
	keep_last(g);
	fn->clobber = g->clobber;
	fn->cost = g->cost;
	if (is_main)
		return;
	slot = pool_slots(g, 1);
	if (slot >= 0) {
		fn->plt = asm_label(g);
		asm_place(g, fn->plt);
		set_slot(g, slot, fn->label);
		m.disp = slot;
		asm_op(g, 0, 4, 0, 0xff, 4, 0, &m);
		keep_last(g);
	}
	g->nfn++;
}

/* Half pages in a random order; those that end at a page's end may run over it. */
static void lay_out(struct flow *f)
{
	unsigned half[FLOW_SEGMENTS];

	for (unsigned i = 0; i < FLOW_SEGMENTS; i++)
		half[i] = i;
	for (unsigned i = FLOW_SEGMENTS - 1; i; i--) {
		unsigned k = below(i + 1), t = half[i];

		half[i] = half[k];
		half[k] = t;
	}
	for (unsigned i = 0; i < FLOW_SEGMENTS; i++)
		f->segment_at[i] = half[i] * 2048 + (half[i] & 1 ? (below(3) ? 2047 - below(300) : below(2048)) : 512 + below(1024));
	f->pool_at = 4 * 4096 + 1024 + below(2000);
}

void flow_generate(struct flow *f)
{
	struct gen g = {.f = f};
	unsigned n = below(FUNCTIONS);

	f->nitems = f->nlabels = f->npool = f->nunits = f->nsegments = 0;
	f->overflow = false;
	memset(f->dropped, 0, sizeof(f->dropped));
	f->smc = !below(6);
	lay_out(f);
	for (unsigned i = 0; i < n; i++)
		function(&g, false);
	function(&g, true);
	f->entry = g.fn[g.nfn].label;
	/* what self-modifying stores lead to */
	for (unsigned i = 0; i < f->nitems; i++) {
		struct flow_item *it = &f->items[i];
		int size = -it->target;

		for (unsigned tries = 0; it->fix == FIX_SMC && it->target < 0 && tries < 200; tries++) {
			unsigned k = tries < 30 ? i + 1 + below(30) : below(f->nitems);

			if (k < f->nitems && f->items[k].imm_len >= size)
				it->target = (int32_t)k;
		}
	}
}
