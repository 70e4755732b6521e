/*
 * The translator: guest code of one page in, one block of host code out. Near-identity: an innocuous instruction is
 * emitted as it is; see operand.c and flow.c for what is rewritten.
 */
#include <string.h>

#include "engine/soft/mmu/mmu.h"
#include "engine/soft/translate/trans_int.h"

/* Whether the CPU state lets instructions of this unit run; else the slow path raises #NM or #UD. */
static bool unit_ok(uint32_t hflags, const struct insn *in)
{
	static const uint32_t need[] = {
		[UNIT_INT] = 0, [UNIT_X87] = HF_X87, [UNIT_MMX] = HF_X87, [UNIT_SSE] = HF_SSE, [UNIT_AVX] = HF_AVX, [UNIT_AVX512] = HF_AVX512,
	};

	if ((in->vex_gpr && !(hflags & HF_PE)) || insn_is_fp16(in)) /* the slow path asks CPUID */
		return false;
	if (in->unit == UNIT_X87 && in->map == 0 && in->op == 0x9b && !in->has_modrm)
		return !(hflags & HF_TS_WAIT);
	return (hflags & need[in->unit]) == need[in->unit];
}

static bool translate_one(struct trans *t, const struct insn *in, const uint8_t *bytes)
{
	struct operand op;

	if (in->kind == INSN_NOP)
		return true;
	if (in->kind == INSN_LEA) {
		trans_lea(t, in);
		return true;
	}
	if (in->kind != INSN_NATIVE)
		return trans_flow(t, in, bytes);
	if (insn_is_cld_std(in)) {
		if (in->op == 0xfd)
			return false;
		trans_change_flag(t, GS(mask_not_df), 0);
		return true;
	}
	if (!unit_ok(t->hflags, in))
		return false;
	if (insn_is_pause(in) && t->sv->v.cfg->ncpus > 1)
		trans_pause(t);
	if (in->mem == MEM_NONE) {
		trans_native(t, in, bytes, NULL);
		return true;
	}
	if (!trans_mem_is_fast(t, in))
		return false;
	trans_operand(t, in, &op);
	trans_native(t, in, bytes, &op);
	return true;
}

bool trans_is_branch(const struct insn *in)
{
	return in->kind >= INSN_JMP_REL && in->kind <= INSN_LOOPNE;
}

static void poll_irq(struct trans *t)
{
	e_load_gs(&t->e, T1, GS(irq_poll_ptr));
	e_op_mem(&t->e, 0, 0x8b, T1, T1, -1, 0, 0);
	t->irq_poll = 0;
}

/* Append the next instruction. avail: bytes left in the page (or assembled over its end). */
static bool append(struct trans *t, const uint8_t *code, unsigned avail)
{
	struct block *b = t->b;
	struct insn_map *m = &t->c->map[b->map_off + b->ninsn];
	struct insn in;
	enum decode_result r = insn_decode(code, avail, t->mode, &in);

	if (r == DECODE_MORE)
		return false;
	t->next = t->pc + in.len;
	if (t->mode != MODE_64)
		t->next &= 0xffffffff;
	if (r == DECODE_OK)
		trans_prepare(t, &in);
	*m = (struct insn_map){.host_off = e_off(&t->e) - b->host_off, .guest_off = (uint16_t)(t->pc - b->pc), .dirty = t->dirty,
				 .reused = t->reuse};
	b->ninsn++;
	if (r != DECODE_OK) { /* the slow path decodes again and raises #UD or #GP */
		b->guest_len = (uint16_t)(b->guest_len + (in.len ? in.len : 1));
		trans_slow_exit(t);
		return true;
	}
	b->guest_len = (uint16_t)(b->guest_len + in.len);
	if (t->irq_poll == 2)
		poll_irq(t);
	else if (t->irq_poll == 1)
		t->irq_poll = 2;
	if (!translate_one(t, &in, code))
		trans_slow_exit(t);
	trans_done(t, &in);
	t->gpa += in.len;
	t->pc = t->next;
	return true;
}

/* The block ends before t->pc without a branch. */
static void fall_through(struct trans *t)
{
	trans_forget(t);
	if (t->irq_poll) {
		trans_pc(t, T0, t->pc);
		e_jmp_to(&t->e, t->c->exit_lookup);
	} else {
		if (t->pc <= t->b->pc)
			trans_poll(t);
		trans_goto(t, t->pc, e_jmp_link(&t->e));
	}
}

#define READ_AHEAD 64

/* Copy what the instruction at `at` and the one after it may need. */
static void read_code(struct trans *t, const uint8_t *from, unsigned at, unsigned limit)
{
	unsigned want = (unsigned)min_u64(at + 2 * INSN_MAX_LEN, limit), n;

	if (t->ncode >= want)
		return;
	n = (unsigned)min_u64(at + READ_AHEAD, limit) - t->ncode;
	memcpy(t->code + t->ncode, from + t->ncode, n);
	t->ncode += n;
}

/* Branches of this region lead to t->pc: registers and residues as all who come here have them. */
static void bind_forward(struct trans *t)
{
	bool here = false;

	for (unsigned i = 0; i < t->nforward; i++)
		here |= t->forward[i].pc == t->pc;
	if (!here)
		return;
	trans_forget(t);
	t->last.valid = false;
	for (unsigned i = 0; i < t->nforward;) {
		struct forward *f = &t->forward[i];

		if (f->pc != t->pc) {
			i++;
			continue;
		}
		for (unsigned r = 0; r < 16; r++)
			if (t->ended)
				t->residue[r] = f->residue[r];
			else if (t->residue[r] != f->residue[r])
				t->residue[r] = NO_RESIDUE;
		t->ended = false;
		e_patch32(&t->e, f->rel32_at, e_off(&t->e));
		*f = t->forward[--t->nforward];
	}
}

/* Code ends at t->pc; go on at the next place that a branch leads to. */
static void next_forward(struct trans *t)
{
	uint64_t pc = UINT64_MAX;

	for (unsigned i = 0; i < t->nforward; i++)
		if (t->forward[i].pc >= t->pc && t->forward[i].pc < pc)
			pc = t->forward[i].pc;
	if (pc == UINT64_MAX)
		return;
	t->gpa += pc - t->pc;
	t->pc = pc;
	t->b->guest_len = (uint16_t)(pc - t->b->pc);
	t->irq_poll = 0;
}

/*
 * A block ends with its first branch. A region (of code that was seen running: see sample in signal.c) goes on behind it, and behind
 * jumps where branches lead to, in the guest's order: forward branches inside are direct, what is not taken runs through.
 */
static void translate_page(struct trans *t, const uint8_t *page)
{
	unsigned off = t->gpa & (PAGE_SIZE - 1), limit = (unsigned)min_u64(PAGE_SIZE - off, MAX_BLOCK_CODE);

	while (t->b->ninsn < (t->region ? MAX_BLOCK_INSNS : MAX_PLAIN_INSNS)) {
		unsigned at;

		if (t->ended)
			next_forward(t);
		bind_forward(t);
		at = t->b->guest_len;
		if (t->ended || at >= limit || t->nlinks + t->nforward + 4 > MAX_BLOCK_LINKS) /* one instruction adds two, the end one */
			break;
		read_code(t, page + off, at, limit);
		if (!append(t, t->code + at, limit - at))
			break;
	}
	if (!t->ended)
		fall_through(t);
}

/*
 * The first instruction crosses the page end: a block of its own that belongs to both pages. False: #PF on the second page,
 * or it cannot be watched.
 */
static bool translate_crossing(struct trans *t, const uint8_t *page)
{
	struct soft_vcpu *sv = t->sv;
	unsigned n = (unsigned)(PAGE_SIZE - (t->gpa & (PAGE_SIZE - 1)));
	gva_t la = t->code_base + t->pc + n;
	const uint8_t *second;
	bool global;

	if (t->mode != MODE_64)
		la &= 0xffffffff;
	if (!mmu_fetch(sv, la, &t->b->gpa2, &global))
		return false;
	second = ram_ptr(sv->v.cfg->ram, t->b->gpa2, INSN_MAX_LEN);
	if (!second)
		return vcpu_raise_gp(&sv->v, 0); /* code in MMIO space */
	if (!cache_watch_locked(t->c, t->b->gpa2))
		return false;
	t->b->crossing = true;
	if (t->slot)
		t->b->slot2 = cache_slot_locked(t->c, t->b->gpa2);
	memcpy(t->code, page + PAGE_SIZE - n, n);
	memcpy(t->code + n, second, INSN_MAX_LEN);
	append(t, t->code, INSN_MAX_LEN);
	if (!t->ended)
		fall_through(t);
	return true;
}

bool translate_room(const struct code_cache *c)
{
	return c->used + MAX_BLOCK_BYTES <= c->size && c->nblocks < c->max_blocks && c->nlinks + MAX_BLOCK_LINKS <= c->max_links &&
	       c->nmap + MAX_BLOCK_INSNS + 1 <= c->max_map && c->nslots + 2 < CODE_SLOTS && !c->flush_wanted;
}

struct block *translate_locked(struct soft_vcpu *sv, uint64_t pc, gpa_t gpa)
{
	struct code_cache *c = sv->cache;
	struct cpu_state *s = &sv->v.s;
	struct trans t;
	const uint8_t *page = ram_ptr(sv->v.cfg->ram, gpa & ~(PAGE_SIZE - 1), PAGE_SIZE);
	struct block *b;

	if (!page) {
		vcpu_raise_gp(&sv->v, 0); /* code in MMIO space */
		return NULL;
	}
	if (!cache_watch_locked(c, gpa))
		return NULL;
	c->used = (c->used + 15) & ~15ul;
	b = &c->blocks[c->nblocks];
	*b = (struct block){.pc = pc, .gpa = gpa, .gpa2 = ~UINT64_C(0), .hflags = sv->hflags, .host_off = (uint32_t)c->used, .map_off = c->nmap};
	memset(&t, 0, offsetof(struct trans, ool));
	t.sv = sv;
	t.c = c;
	t.b = b;
	t.hflags = sv->hflags;
	t.mode = vcpu_mode(&sv->v);
	t.pc = pc;
	t.gpa = gpa;
	t.e = (struct emit){.p = c->rw + c->used, .base = c->rw};
	t.slot = b->slot = t.mode == MODE_64 ? cache_slot_locked(c, gpa) : 0;
	t.page_pc = pc & ~(PAGE_SIZE - 1);
	t.region = b->region = t.mode == MODE_64 && (!(sv->hflags & HF_CPL0) || cache_is_hot(c, gpa));
	memset(t.residue, NO_RESIDUE, sizeof(t.residue));
	t.code_base = t.mode == MODE_64 ? 0 : s->seg[SEG_CS].base;
	translate_page(&t, page);
	if (!b->ninsn) {
		t.e.p = c->rw + c->used;
		c->nlinks -= t.nlinks;
		t.nlinks = 0;
		t.slot = b->slot = t.mode == MODE_64 ? cache_slot_locked(c, gpa) : 0;
	t.page_pc = pc & ~(PAGE_SIZE - 1);
	t.region = b->region = false;
		t.ended = false;
		if (!translate_crossing(&t, page))
			return NULL;
	}
	trans_finish(&t);
	b->host_len = e_off(&t.e) - b->host_off;
	c->used = e_off(&t.e);
	c->nmap += b->ninsn;
	b->guest_sum = cache_code_sum(t.code, b->guest_len);
	atomic_store_explicit(&c->nblocks, c->nblocks + 1, memory_order_release);
	cache_insert_locked(c, b);
	sv->stats.translations++;
	sv->stats.insns += b->ninsn;
	return b;
}

static unsigned step_hash(const struct insn *in, const uint8_t *bytes)
{
	unsigned h = in->mode;

	for (unsigned i = 0; i < in->len; i++)
		h = h * 31 + bytes[i];
	return h % STEP_HASH;
}

static bool same_bytes(const uint8_t *a, const uint8_t *b, unsigned n)
{
	while (n && *a == *b)
		a++, b++, n--;
	return !n;
}

void *translate_step(struct soft_vcpu *sv, const struct insn *in, const uint8_t *bytes)
{
	struct code_cache *c = sv->cache;
	struct trans t;
	struct operand op = {.base = T0, .index = -1, .disp = 0, .free0 = T2, .free1 = T1};
	unsigned h = step_hash(in, bytes);
	struct step_stub *s;

	cache_lock(c);
	for (;;) {
		for (s = c->steps[h]; s; s = s->next)
			if (s->len == in->len && s->mode == in->mode && same_bytes(s->bytes, bytes, in->len))
				goto found;
		vec_save(&sv->v);
		if (translate_room(c) && c->nsteps < c->max_steps)
			break;
		cache_unlock(c);
		cache_flush(sv);
		cache_lock(c);
	}
	s = &c->step_pool[c->nsteps++];
	*s = (struct step_stub){.len = in->len, .mode = in->mode, .host_off = (uint32_t)c->used, .next = c->steps[h]};
	memcpy(s->bytes, bytes, in->len);
	c->steps[h] = s;
	memset(&t, 0, offsetof(struct trans, ool));
	t.sv = sv;
	t.c = c;
	t.hflags = sv->hflags;
	t.mode = in->mode;
	t.e = (struct emit){.p = c->rw + c->used, .base = c->rw};
	if (in->kind == INSN_MASKMOV)
		trans_maskmov(&t, in, bytes);
	else
		trans_native(&t, in, bytes, in->mem == MEM_NONE ? NULL : &op);
	e_jmp_to(&t.e, c->exit_step);
	c->used = e_off(&t.e);
found:
	cache_unlock(c);
	return c->rx + s->host_off;
}

/* rcx = 0 when the jump-cache entry that mask selects is T0's. Returns the jrcxz to be taken then. */
static uint32_t probe(struct emit *e, int32_t mask)
{
	e_pext(e, R_CX, T0, mask);
	e_load_gs_index(e, R_CX, R_CX, -JC_NEG_OFF);
	e_lea(e, 1, R_CX, R_CX, T0, 0, 0);
	return e_jrcxz(e, 8);
}

static void jump_cached(struct emit *e, uint32_t jrcxz, int32_t mask)
{
	e_patch8(e, jrcxz);
	e_mov(e, R_CX, T1);
	e_pext(e, T1, T0, mask);
	e8(e, 0x65); /* jmp gs:[T1 * 8 + JC_HOST] */
	e_op_mem(e, 0, 0xff, 4, -1, T1, 3, -JC_HOST_OFF);
}

/*
 * Code that blocks jump to: exits, and the jump-cache look-up of indirect branches (T0 = guest pc; T2 = a host address in
 * the branch, for the fault of a target that is not canonical).
 */
void translate_prologues(struct code_cache *c)
{
	struct emit e = {.p = c->rw, .base = c->rw};
	uint32_t hit, second;

	c->exit_chain = e_off(&e);
	e_store_gs_imm(&e, GS(exit_reason), SX_CHAIN);
	e_jmp_gs(&e, GS(exit_fn));
	c->exit_lookup = e_off(&e);
	e_store_gs(&e, T2, GS(exit_arg));
	e_store_gs_imm(&e, GS(exit_reason), SX_LOOKUP);
	e_jmp_gs(&e, GS(exit_fn));
	c->exit_slow = e_off(&e);
	e_store_gs_imm(&e, GS(exit_reason), SX_SLOW);
	e_jmp_gs(&e, GS(exit_fn));
	c->exit_step = e_off(&e);
	e_store_gs_imm(&e, GS(exit_reason), SX_STEP);
	c->exit_signal = e_off(&e);
	e_jmp_gs(&e, GS(exit_signal_fn));
	c->indirect = e_off(&e);
	e_load_gs(&e, T1, GS(poll_ptr));
	e_op_mem(&e, 0, 0x8b, T1, T1, -1, 0, 0);
	e_mov(&e, T1, R_CX);
	hit = probe(&e, GS(mask_jc));
	second = probe(&e, GS(mask_jc2));
	e_mov(&e, R_CX, T1);
	e_jmp_to(&e, c->exit_lookup);
	jump_cached(&e, hit, GS(mask_jc));
	jump_cached(&e, second, GS(mask_jc2));
	c->used = align_up(e_off(&e), 64);
}
