/*
 * Branches, stack instructions and the cheap critical ones, with their fast forms; and the exits of a block.
 *
 * Interrupt requests are seen at safepoints: a load through poll_ptr before every backward branch, in every indirect one,
 * and where code runs on over the end of the address space to 0: so every loop has one. Within a page, blocks are
 * chained by plain jumps. A jump to another page goes through a thunk that checks that the page is still mapped as it
 * was when the exits were chained: see mmu/view.c.
 */
#include "engine/soft/translate/trans_int.h"

#include <string.h>

void trans_poll(struct trans *t)
{
	t->last.valid = false;
	e_load_gs(&t->e, T1, GS(poll_ptr));
	e_op_mem(&t->e, 0, 0x8b, T1, T1, -1, 0, 0);
}

static bool flat_code(const struct trans *t)
{
	return t->mode == MODE_64 || ((t->hflags >> (HF_FLAT_SHIFT + SEG_CS)) & 1);
}

bool trans_linear_page_differs(const struct trans *t, uint64_t target)
{
	return ((t->b->pc ^ target) >> PAGE_SHIFT) != 0;
}

void trans_pc(struct trans *t, unsigned to, uint64_t pc)
{
	int64_t off = (int64_t)(pc - t->page_pc) - 1; /* bases are kept with 1 added */

	if (!t->slot) {
		e_mov_imm(&t->e, to, pc);
		return;
	}
	e_load_gs(&t->e, to, BASE_FIELD(t->slot));
	if (off > INT32_MAX) { /* a branch's reach, and the place in the page */
		e_lea(&t->e, 1, to, (int)to, -1, 0, PAGE_SIZE);
		off -= PAGE_SIZE;
	}
	e_lea(&t->e, 1, to, (int)to, -1, 0, (int32_t)off);
}

static void exit_to(struct trans *t, uint64_t pc, uint32_t prologue)
{
	trans_pc(t, T0, pc);
	e_jmp_to(&t->e, prologue);
}

void trans_slow_exit(struct trans *t)
{
	trans_forget(t);
	exit_to(t, t->pc, t->c->exit_slow);
	t->ended = true;
}

/* The parts of links are emitted in trans_finish; until then patch_off and target are known. */
void trans_goto(struct trans *t, uint64_t target, uint32_t rel32_at)
{
	struct link *l = &t->c->links[t->c->nlinks++];

	*l = (struct link){.target = target, .from = t->b, .patch_off = rel32_at};
	t->links[t->nlinks++] = l;
}

/* Into another page: is it mapped as far from this one as it was when the exit was chained? */
static void emit_thunk(struct trans *t, struct link *l)
{
	struct emit *e = &t->e;
	int64_t distance = (int64_t)((l->target & ~(PAGE_SIZE - 1)) - t->page_pc);
	uint32_t hit;

	l->thunk_off = e_off(e);
	e_mov(e, T1, R_CX);
	e_load_gs(e, T0, BASE_FIELD(t->slot));
	e_align_field(e, 5, FILL_NOP);
	e_load_gs(e, R_CX, 0); /* the base of the target's slot */
	l->thunk_slot_off = e_off(e) - 4;
	e8(e, 0x49); /* not r11 */
	e8(e, 0xf7);
	e8(e, 0xd3);
	e_lea(e, 1, R_CX, R_CX, T0, 0, (int32_t)(1 - distance));
	hit = e_jrcxz(e, 8);
	e_mov(e, R_CX, T1);
	e_jmp_to(e, l->stub_off);
	e_patch8(e, hit);
	e_mov(e, R_CX, T1);
	l->thunk_jmp_off = e_jmp_link(e);
}

bool trans_forward_ok(const struct trans *t, uint64_t target)
{
	return t->region && target >= t->next && target - t->b->pc < MAX_BLOCK_CODE - 2 * INSN_MAX_LEN && t->nforward < MAX_FORWARD &&
	       !trans_linear_page_differs(t, target) && (target & (PAGE_SIZE - 1)) <= PAGE_SIZE - INSN_MAX_LEN;
}

void trans_forward(struct trans *t, uint64_t target, uint32_t rel32_at)
{
	struct forward *f = &t->forward[t->nforward++];

	f->pc = target;
	f->rel32_at = rel32_at;
	memcpy(f->residue, t->residue, sizeof(f->residue));
}

/* Its displacement has room for the distance. */
static bool thunk_reaches(const struct trans *t, uint64_t target)
{
	int64_t d = (int64_t)(target - t->page_pc);

	return d > -INT32_MAX + (int)PAGE_SIZE && d < INT32_MAX - (int)PAGE_SIZE;
}

void trans_finish(struct trans *t)
{
	struct emit *e = &t->e;

	bool other_page;

	for (unsigned i = 0; i < t->nforward; i++) { /* places that were not reached */
		e_patch32(e, t->forward[i].rel32_at, e_off(e));
		trans_goto(t, t->forward[i].pc, e_jmp_link(e));
	}
	for (unsigned i = 0; i < t->nool; i++) {
		e_patch32(e, t->ool[i].rel32_at, e_off(e));
		t->dirty = t->ool[i].dirty;
		trans_spill(t, 7);
		exit_to(t, t->ool[i].pc, t->c->exit_slow);
	}
	for (unsigned i = 0; i < t->nlinks; i++) {
		struct link *l = t->links[i];

		l->stub_off = e_off(e);
		e_patch32(e, l->patch_off, l->stub_off);
		if (!flat_code(t)) {
			exit_to(t, l->target, t->c->exit_lookup);
			continue;
		}
		/* an instruction that crosses the page end is a block of its own and depends on the next page too */
		other_page = t->b->crossing || trans_linear_page_differs(t, l->target) || (l->target & (PAGE_SIZE - 1)) > PAGE_SIZE - INSN_MAX_LEN;
		if (other_page && (!t->slot || !thunk_reaches(t, l->target))) {
			exit_to(t, l->target, t->c->indirect);
			continue;
		}
		trans_pc(t, T0, l->target);
		e_store_gs_imm(e, GS(exit_arg), (uint32_t)(l - t->c->links));
		l->tail_off = e_jmp_link(e);
		e_patch32(e, l->tail_off, t->c->exit_chain);
		if (other_page)
			emit_thunk(t, l);
	}
}

/* Operand width of stack and branch forms that have a fast form here; 0: none. */
static unsigned stack_width(const struct trans *t, const struct insn *in)
{
	if (t->hflags & HF_ALIGN)
		return 0;
	if (t->mode == MODE_64)
		return in->osz == 8 ? 8 : 0;
	if (t->mode == MODE_32 && in->osz == 4 && (t->hflags & HF_SS32) && ((t->hflags >> (HF_FLAT_SHIFT + SEG_SS)) & 1))
		return 4;
	return 0;
}

static void add_sp(struct trans *t, int32_t n)
{
	e_lea(&t->e, t->mode == MODE_64, R_SP, R_SP, -1, 0, n);
}

static void load(struct trans *t, unsigned width, unsigned reg, const struct operand *op)
{
	e_op_mem(&t->e, width == 8, 0x8b, reg, op->base, op->index, 0, op->disp);
}
static void store(struct trans *t, unsigned width, unsigned reg, const struct operand *op)
{
	e_op_mem(&t->e, width == 8, 0x89, reg, op->base, op->index, 0, op->disp);
}
static void store_imm(struct trans *t, unsigned width, int64_t v, const struct operand *op)
{
	if (width == 8 && v != (int32_t)v) {
		e_mov_imm(&t->e, T2, (uint64_t)v);
		store(t, width, T2, op);
		return;
	}
	e_op_mem(&t->e, width == 8, 0xc7, 0, op->base, op->index, 0, op->disp);
	e32(&t->e, (uint32_t)v);
}

static void push_op(struct trans *t, unsigned width, struct operand *op)
{
	trans_stack(t, R_SP, -(int32_t)width, width, op);
}

/* T0 = the value of a register or memory operand */
static bool load_rm(struct trans *t, const struct insn *in, unsigned width)
{
	struct operand op;

	if (in->mem == MEM_NONE) {
		if (in->rm >= T2 && in->rm <= T0)
			e_load_gs(&t->e, T0, GS_GPR(in->rm));
		else
			e_mov(&t->e, T0, in->rm);
		if (width == 4)
			e_mov32(&t->e, T0, T0);
		return true;
	}
	if (!trans_mem_is_fast(t, in))
		return false;
	trans_operand(t, in, &op);
	load(t, width, T0, &op);
	return true;
}

static void jump(struct trans *t, uint64_t target)
{
	t->ended = true;
	if (trans_forward_ok(t, target)) {
		trans_forward(t, target, e_jmp(&t->e));
		return;
	}
	if (target <= t->pc)
		trans_poll(t);
	trans_goto(t, target, e_jmp_link(&t->e));
}

static void poll_region(struct trans *t)
{
	if (t->region)
		trans_poll(t);
}

/* Says where it was, in T2, when the target (T0) is not canonical. */
static void look_up_target(struct trans *t)
{
	e8(&t->e, 0x4c); /* lea r9, [rip + 0] */
	e8(&t->e, 0x8d);
	e8(&t->e, 0x0d);
	e32(&t->e, 0);
	e_jmp_to(&t->e, t->c->indirect);
}

/*
 * To the guest pc in T0. A region looks into the jump cache's first place itself: its jump has its own branch prediction. It has
 * polled at the instruction's begin (poll_region), as rsp has moved now.
 */
static void jump_indirect(struct trans *t)
{
	struct emit *e = &t->e;
	uint32_t hit;

	t->ended = true;
	if (!t->region) {
		look_up_target(t);
		return;
	}
	e_mov(e, T2, R_CX);
	e_pext(e, T1, T0, GS(mask_jc));
	e_load_gs_index(e, R_CX, T1, -JC_NEG_OFF);
	e_lea(e, 1, R_CX, R_CX, T0, 0, 0);
	hit = e_jrcxz(e, 8);
	e_mov(e, R_CX, T2);
	look_up_target(t);
	e_patch8(e, hit);
	e_mov(e, R_CX, T2);
	e8(e, 0x65); /* jmp gs:[T1 * 8 + JC_HOST] */
	e_op_mem(e, 0, 0xff, 4, -1, T1, 3, -JC_HOST_OFF);
}

static uint64_t branch_target(const struct trans *t, const struct insn *in)
{
	uint64_t target = t->next + (uint64_t)in->imm;

	return t->mode == MODE_64 ? target : target & 0xffffffff;
}

static bool branch_is_fast(const struct trans *t, const struct insn *in)
{
	return t->mode == MODE_64 || (t->mode == MODE_32 && in->osz == 4 && flat_code(t));
}

static void jcc(struct trans *t, const struct insn *in)
{
	uint64_t target = branch_target(t, in);

	/* trans_prepare has spilled: nothing is dirty */
	if (target <= t->pc || t->next <= t->pc) {
		t->cached &= (uint8_t)~(1u << (T1 - T2));
		trans_poll(t);
	}
	if (trans_forward_ok(t, target))
		trans_forward(t, target, e_jcc(&t->e, in->cc));
	else
		trans_goto(t, target, e_jcc_link(&t->e, in->cc));
	if (t->region && t->next > t->pc)
		return;
	trans_forget(t);
	trans_goto(t, t->next, e_jmp_link(&t->e));
	t->ended = true;
}

static bool loop_or_jcxz(struct trans *t, const struct insn *in)
{
	uint64_t target = branch_target(t, in);
	uint32_t zero;

	if (in->asz == 2 || in->kind == INSN_LOOPE || in->kind == INSN_LOOPNE)
		return false;
	trans_poll(t);
	if (in->kind == INSN_LOOP)
		e_lea(&t->e, in->asz == 8, R_CX, R_CX, -1, 0, -1);
	zero = e_jrcxz(&t->e, in->asz);
	trans_goto(t, in->kind == INSN_LOOP ? target : t->next, e_jmp_link(&t->e));
	e_patch8(&t->e, zero);
	trans_goto(t, in->kind == INSN_LOOP ? t->next : target, e_jmp_link(&t->e));
	t->ended = true;
	return true;
}

static bool call(struct trans *t, const struct insn *in, unsigned width)
{
	struct operand op;
	uint64_t target = branch_target(t, in);

	if (in->kind == INSN_CALL_IND) {
		poll_region(t);
		if (!load_rm(t, in, width))
			return false;
	}
	if (in->kind == INSN_CALL_REL && target <= t->pc)
		trans_poll(t);
	push_op(t, width, &op);
	if (t->slot) {
		trans_pc(t, T2, t->next);
		store(t, width, T2, &op);
	} else {
		store_imm(t, width, (int64_t)t->next, &op);
	}
	add_sp(t, -(int32_t)width);
	if (in->kind == INSN_CALL_IND) {
		jump_indirect(t);
	} else {
		trans_goto(t, target, e_jmp_link(&t->e));
		t->ended = true;
	}
	return true;
}

static void ret(struct trans *t, const struct insn *in, unsigned width)
{
	struct operand op;

	poll_region(t);
	trans_stack(t, R_SP, 0, width, &op);
	load(t, width, T0, &op);
	add_sp(t, (int32_t)width + (in->kind == INSN_RET_IMM ? (int32_t)(uint16_t)in->imm : 0));
	jump_indirect(t);
}

static bool push(struct trans *t, const struct insn *in, unsigned width)
{
	struct operand op;
	unsigned reg;

	if (in->kind == INSN_PUSH_M && !load_rm(t, in, width))
		return false;
	push_op(t, width, &op);
	switch (in->kind) {
	case INSN_PUSH_R:
		reg = t->direct ? in->opreg : trans_gpr(t, in->opreg, T2);
		store(t, width, reg, &op);
		break;
	case INSN_PUSH_IMM:
		store_imm(t, width, in->imm, &op);
		break;
	default: /* trans_forget has been here */
		store(t, width, T0, &op);
		break;
	}
	add_sp(t, -(int32_t)width);
	return true;
}

static void pop_r(struct trans *t, const struct insn *in, unsigned width)
{
	struct operand op;
	unsigned reg = in->opreg;

	trans_stack(t, R_SP, 0, width, &op);
	if (!t->direct && reg >= T2 && reg <= T0) {
		load(t, width, T2, &op);
		e_store_gs(&t->e, T2, GS_GPR((int)reg));
	} else {
		load(t, width, reg, &op);
	}
	if (reg != R_SP)
		add_sp(t, (int32_t)width);
}

static void leave(struct trans *t, unsigned width)
{
	struct operand op;

	trans_stack(t, R_BP, 0, width, &op);
	load(t, width, T2, &op);
	e_lea(&t->e, width == 8, R_SP, R_BP, -1, 0, (int32_t)width);
	e_mov(&t->e, R_BP, T2);
}

void trans_change_flag(struct trans *t, int32_t mask, int32_t add)
{
	struct emit *e = &t->e;

	e_load_gs(e, T0, GS(v.s.rflags));
	e_pext(e, T0, T0, mask);
	e_pdep(e, T0, T0, mask);
	if (add)
		e_lea(e, 1, T0, T0, -1, 0, add);
	e_store_gs(e, T0, GS(v.s.rflags));
}

static bool stac_clac(struct trans *t, const struct insn *in)
{
	if (!(t->hflags & HF_CPL0) || !(t->hflags & HF_SMAP) || t->mode != MODE_64)
		return false;
	trans_change_flag(t, GS(mask_not_ac), in->kind == INSN_STAC ? (int32_t)FL_AC : 0);
	e_load_gs(&t->e, T0, in->kind == INSN_STAC ? GS(gs_kernel_ac) : GS(gs_kernel));
	e8(&t->e, 0xf3); /* wrgsbase r11 */
	e8(&t->e, 0x49);
	e8(&t->e, 0x0f);
	e8(&t->e, 0xae);
	e8(&t->e, 0xdb);
	return true;
}

/*
 * REP MOVS and REP STOS of 64-bit mode. What this form does not cover (DF set, 1024 elements or more, a run that leaves its
 * page, segment bases) goes to the slow path; jrcxz is the one branch that needs no flags.
 */
static void slow_unless_rcx_zero(struct trans *t)
{
	struct emit *e = &t->e;
	uint32_t ok = e_jrcxz(e, 8);

	e_mov(e, R_CX, T0);
	t->ool[t->nool++] = (struct out_of_line){.rel32_at = e_jmp(e), .pc = t->pc, .dirty = t->dirty};
	e_patch8(e, ok);
	e_mov(e, R_CX, T0);
}

void trans_pause(struct trans *t)
{
	struct emit *e = &t->e;
	uint32_t zero, on;

	trans_forget(t);
	e_mov(e, T0, R_CX);
	e_load_gs(e, R_CX, GS(pauses));
	e_lea(e, 1, R_CX, R_CX, -1, 0, -1);
	e_store_gs(e, R_CX, GS(pauses));
	zero = e_jrcxz(e, 8);
	e_mov(e, R_CX, T0);
	on = e_jmp(e);
	e_patch8(e, zero);
	e_mov(e, R_CX, T0);
	t->ool[t->nool++] = (struct out_of_line){.rel32_at = e_jmp(e), .pc = t->pc};
	e_patch32(e, on, e_off(e));
}

static void not_reg(struct trans *t, unsigned reg)
{
	e8(&t->e, 0x49);
	e8(&t->e, 0xf7);
	e8(&t->e, 0xd0 | (reg & 7));
}

/* The rcx elements from [reg] must end in the page where they begin. T0 holds rcx; leaves the page's index in T1. */
static void check_run(struct trans *t, unsigned reg, unsigned size)
{
	struct emit *e = &t->e;

	e_lea(e, 1, T2, (int)reg, R_CX, size == 8 ? 3 : size == 4 ? 2 : size - 1, -1);
	e_pext(e, T2, T2, GS(mask_page));
	e_pext(e, T1, reg, GS(mask_page));
	not_reg(t, T2);
	e_lea(e, 1, R_CX, T1, T2, 0, 1); /* T1 - T2 */
	slow_unless_rcx_zero(t);
}

static bool rep_string(struct trans *t, const struct insn *in)
{
	struct emit *e = &t->e;
	bool movs = in->kind == INSN_MOVS;
	unsigned size = (in->op & 1) ? in->osz : 1;

	if (t->mode != MODE_64 || in->asz != 8 || !in->rep || (t->hflags & HF_ALIGN) || in->seg == SEG_FS || in->seg == SEG_GS)
		return false;
	e_mov(e, T0, R_CX);
	e_load_gs(e, T1, GS(v.s.rflags));
	e_pext(e, T1, T1, GS(mask_df));
	e_pext(e, R_CX, R_CX, GS(mask_count));
	e_lea(e, 1, R_CX, R_CX, T1, 0, 0);
	slow_unless_rcx_zero(t);
	if (movs)
		check_run(t, R_SI, size);
	check_run(t, R_DI, size);
	if (movs) {
		e_pext(e, T2, R_SI, GS(mask_page));
		e_load_gs_index(e, T2, T2, 0);
	}
	e_load_gs_index(e, T1, T1, 0);
	/* from here to the end rdi and rsi are host addresses: the signal handler takes T1 and T2 off again */
	if (movs)
		e_lea(e, 1, R_SI, R_SI, T2, 0, 0);
	e_lea(e, 1, R_DI, R_DI, T1, 0, 0);
	if (size == 2)
		e8(e, 0x66);
	e8(e, 0xf3);
	if (size == 8)
		e8(e, 0x48);
	e8(e, in->op);
	not_reg(t, T1);
	e_lea(e, 1, R_DI, R_DI, T1, 0, 1);
	if (movs) {
		not_reg(t, T2);
		e_lea(e, 1, R_SI, R_SI, T2, 0, 1);
	}
	return true;
}

/* A field of the vCPU into a GPR, in long mode. */
static void load_field(struct trans *t, unsigned to, int32_t field)
{
	if (to >= T2 && to <= T0) {
		e_load_gs(&t->e, T0, field);
		e_store_gs(&t->e, T0, GS_GPR((int)to));
	} else {
		e_load_gs(&t->e, to, field);
	}
}

/* MOV r64, CR0/2/3/4: plain fields; CR8 is the LAPIC's */
static bool mov_from_cr(struct trans *t, const struct insn *in)
{
	static const int32_t field[] = {[0] = GS(v.s.cr0), [2] = GS(v.s.cr2), [3] = GS(v.s.cr3), [4] = GS(v.s.cr4)};

	if (t->mode != MODE_64 || !(t->hflags & HF_CPL0) || in->reg > 4 || !field[in->reg])
		return false;
	load_field(t, in->rm, field[in->reg]);
	return true;
}

static bool swapgs(struct trans *t)
{
	int32_t base = GS(v.s.seg) + (int32_t)(SEG_GS * sizeof(struct cpu_seg) + offsetof(struct cpu_seg, base));

	if (t->mode != MODE_64 || !(t->hflags & HF_CPL0))
		return false;
	e_load_gs(&t->e, T0, base);
	e_load_gs(&t->e, T1, GS(v.s.kernel_gs_base));
	e_store_gs(&t->e, T1, base);
	e_store_gs(&t->e, T0, GS(v.s.kernel_gs_base));
	return true;
}

/* rdx:rax = host TSC + offset; the upper halves of both become 0. No flags. */
static bool rdtsc(struct trans *t)
{
	struct emit *e = &t->e;

	if (!(t->hflags & HF_TSC))
		return false;
	e8(e, 0x0f);
	e8(e, 0x31);
	e_rorx(e, R_DX, R_DX, 32);
	e_load_gs(e, T0, GS(v.s.tsc_offset));
	e_lea(e, 1, R_AX, R_AX, R_DX, 0, 0);
	e_lea(e, 1, R_AX, R_AX, T0, 0, 0);
	e_rorx(e, R_DX, R_AX, 32);
	e_mov32(e, R_DX, R_DX);
	e_mov32(e, R_AX, R_AX);
	return true;
}

/* The fence stands for RDTSCP's own wait for what comes before (SDM vol. 2, RDTSCP). */
static bool rdtscp(struct trans *t)
{
	struct emit *e = &t->e;

	if (!(t->hflags & HF_TSC) || !cpuid_has(t->sv->v.cfg->cpuid, 0x80000001, 0, CPUID_EDX, 27))
		return false;
	e8(e, 0x0f);
	e8(e, 0xae);
	e8(e, 0xe8); /* lfence */
	rdtsc(t);
	e_load_gs(e, R_CX, GS(v.s.tsc_aux));
	e_mov32(e, R_CX, R_CX);
	return true;
}

static bool read_base(struct trans *t, const struct insn *in)
{
	unsigned seg = in->kind == INSN_RDFSBASE ? SEG_FS : SEG_GS;

	if (t->mode != MODE_64 || !(t->hflags & HF_FSGSBASE) || in->osz != 8)
		return false;
	load_field(t, in->rm, GS(v.s.seg) + (int32_t)(seg * sizeof(struct cpu_seg) + offsetof(struct cpu_seg, base)));
	return true;
}

/*
 * BT, BTS, BTR, BTC with a bit number in a register and memory: the number, signed, reaches beyond the operand. The element
 * that holds the bit is addressed, and the host's own instruction works on it with the number's low bits.
 */
static bool bit_in_memory(struct trans *t, const struct insn *in)
{
	struct emit *e = &t->e;
	struct operand op;
	unsigned log = in->osz == 8 ? 3 : 2, reg;

	if (t->mode != MODE_64 || in->osz == 2 || in->asz != 8 || !trans_mem_is_fast(t, in))
		return false;
	trans_offset(t, in);
	reg = trans_gpr(t, in->reg, T1);
	e_mov_imm(e, T2, in->osz == 8 ? 6 : 5);
	e8(e, 0xc4); /* sarx r9, reg, r9 */
	e8(e, 0x42 | (reg > 7 ? 0 : 0x20));
	e8(e, (in->osz == 8 ? 0x80 : 0) | (~T2 & 15) << 3 | 2);
	e8(e, 0xf7);
	e8(e, 0xc0 | (T2 & 7) << 3 | (reg & 7));
	if (in->osz == 4) { /* movsxd r9, r9d */
		e8(e, 0x4d);
		e8(e, 0x63);
		e8(e, 0xc9);
	}
	e_lea(e, 1, T0, T0, T2, log, 0);
	trans_look_up(t, in, in->osz, &op);
	reg = trans_gpr(t, in->reg, T2);
	e_pext(e, T2, reg, GS(mask_align) + 8 * (in->osz == 8 ? 6 : 5));
	if (in->lock)
		e8(e, 0xf0);
	e8(e, 0x40 | (in->osz == 8 ? 8 : 0) | 4 | 2 | 1); /* op [T0 + T1], T2 */
	e8(e, 0x0f);
	e8(e, in->op);
	e_mem(e, T2, op.base, op.index, 0, op.disp);
	return true;
}

/* MOV r, Sreg: the selector, zero-extended */
static bool mov_from_seg(struct trans *t, const struct insn *in)
{
	unsigned to = in->rm, reg = to >= T2 && to <= T0 ? T0 : to;

	if (in->mem != MEM_NONE || in->osz == 2)
		return false;
	e8(&t->e, 0x65); /* movzx reg32, word gs:[selector] */
	if (reg > 7)
		e8(&t->e, 0x44);
	e8(&t->e, 0x0f);
	e8(&t->e, 0xb7);
	e_mem(&t->e, reg, -1, -1, 0, GS(v.s.seg) + (int32_t)(in->seg_reg * sizeof(struct cpu_seg) + offsetof(struct cpu_seg, sel)));
	if (reg != to)
		e_store_gs(&t->e, reg, GS_GPR((int)to));
	return true;
}

static bool pushf(struct trans *t, const struct insn *in)
{
	struct emit *e = &t->e;
	struct operand op;

	if (t->mode != MODE_64 || in->osz != 8 || (t->hflags & HF_ALIGN))
		return false;
	e_mov(e, T2, R_AX);
	e8(e, 0x9f); /* lahf */
	e8(e, 0x0f); /* seto al */
	e8(e, 0x90);
	e8(e, 0xc0);
	e_pext(e, T0, R_AX, GS(mask_ff00));
	e_pdep(e, T1, R_AX, GS(mask_of));
	e_lea(e, 1, T0, T0, T1, 0, 0);
	e_mov(e, R_AX, T2);
	e_load_gs(e, T1, GS(v.s.rflags));
	e_pext(e, T1, T1, GS(mask_sys));
	e_pdep(e, T1, T1, GS(mask_sys));
	e_lea(e, 1, T0, T0, T1, 0, 0);
	push_op(t, 8, &op);
	store(t, 8, T0, &op);
	add_sp(t, -8);
	return true;
}

/* Inline only when the instruction after it is in this block and no branch, so that the interrupt shadow is kept (see irq_poll). */
static bool sti(struct trans *t, const struct insn *in, const uint8_t *bytes)
{
	struct insn next;

	if (!(t->hflags & HF_IOPL_OK) || t->b->ninsn > (t->region ? MAX_BLOCK_INSNS : MAX_PLAIN_INSNS) - 4u || (t->next & (PAGE_SIZE - 1)) > PAGE_SIZE - 2 * INSN_MAX_LEN ||
	    trans_linear_page_differs(t, t->next))
		return false;
	if (insn_decode(bytes + in->len, INSN_MAX_LEN, t->mode, &next) != DECODE_OK || trans_is_branch(&next))
		return false;
	trans_change_flag(t, GS(mask_not_if), (int32_t)FL_IF);
	t->irq_poll = 1;
	return true;
}

bool trans_flow(struct trans *t, const struct insn *in, const uint8_t *bytes)
{
	unsigned width;

	switch (in->kind) {
	case INSN_JMP_REL:
		if (!branch_is_fast(t, in))
			return false;
		jump(t, branch_target(t, in));
		return true;
	case INSN_JCC:
		if (!branch_is_fast(t, in))
			return false;
		jcc(t, in);
		return true;
	case INSN_JCXZ: case INSN_LOOP: case INSN_LOOPE: case INSN_LOOPNE:
		return branch_is_fast(t, in) && loop_or_jcxz(t, in);
	case INSN_JMP_IND:
		if (!branch_is_fast(t, in))
			return false;
		poll_region(t);
		if (!load_rm(t, in, t->mode == MODE_64 ? 8 : 4))
			return false;
		jump_indirect(t);
		return true;
	case INSN_CLI:
		if (!(t->hflags & HF_IOPL_OK))
			return false;
		trans_change_flag(t, GS(mask_not_if), 0);
		return true;
	case INSN_STI:
		return sti(t, in, bytes);
	case INSN_MOVS: case INSN_STOS:
		return rep_string(t, in);
	case INSN_MOV_R_CR:
		return mov_from_cr(t, in);
	case INSN_SWAPGS:
		return swapgs(t);
	case INSN_RDTSC:
		return rdtsc(t);
	case INSN_RDTSCP:
		return rdtscp(t);
	case INSN_RDFSBASE: case INSN_RDGSBASE:
		return read_base(t, in);
	case INSN_BT_MEM:
		return bit_in_memory(t, in);
	case INSN_MOV_RM_SEG:
		return mov_from_seg(t, in);
	case INSN_STAC: case INSN_CLAC:
		return stac_clac(t, in);
	case INSN_PUSHF:
		return pushf(t, in);
	default:
		break;
	}
	width = stack_width(t, in);
	if (!width)
		return false;
	switch (in->kind) {
	case INSN_CALL_REL: case INSN_CALL_IND:
		return flat_code(t) && call(t, in, width);
	case INSN_RET: case INSN_RET_IMM:
		if (!flat_code(t))
			return false;
		ret(t, in, width);
		return true;
	case INSN_PUSH_R: case INSN_PUSH_IMM: case INSN_PUSH_M:
		return push(t, in, width);
	case INSN_POP_R:
		pop_r(t, in, width);
		return true;
	case INSN_LEAVE:
		leave(t, width);
		return true;
	default:
		return false;
	}
}
