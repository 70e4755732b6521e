/*
 * Event delivery: interrupts, exceptions and INT n through the IVT or IDT (SDM vol. 3, 6; APM vol. 2, 8).
 *
 * One attempt (`attempt`) either completes or leaves a new fault in v->exc; interp_deliver combines the two by the
 * double-fault table. Nothing but accessed bits changes in a failed attempt.
 */
#include "engine/soft/interp/interp_int.h"

struct event {
	uint8_t vector;
	bool has_error, soft;
	unsigned ext; /* bit 0 of error codes raised on the way */
	uint32_t error;
	uint64_t rflags; /* image to push */
};

static bool gate_error(struct vcpu *v, uint8_t exc, const struct event *ev)
{
	return vcpu_raise_err(v, exc, ev->vector * 8u + 2 + ev->ext);
}

static bool deliver_real(struct vcpu *v, const struct event *ev)
{
	struct frame f;
	uint64_t sp = v->s.gpr[R_SP];
	uint8_t ivt[4];

	frame_init(&f, 0, 2);
	frame_add(&f, ev->rflags);
	frame_add(&f, v->s.seg[SEG_CS].sel);
	frame_add(&f, v->s.rip);
	if (ev->vector * 4u + 3 > v->s.idt.limit)
		return gate_error(v, EXC_GP, ev);
	if (!sys_read(v, v->s.idt.base + ev->vector * 4u, ivt, 4) ||
	    !frame_push(v, &v->s.seg[SEG_SS], false, &sp, &f, 0, 0))
		return false;
	v->s.gpr[R_SP] = sp;
	v->s.seg[SEG_CS].sel = get_le16(ivt + 2);
	v->s.seg[SEG_CS].base = (uint32_t)v->s.seg[SEG_CS].sel << 4;
	v->s.rip = get_le16(ivt);
	v->s.rflags &= ~(FL_IF | FL_TF | FL_AC | FL_RF);
	return true;
}

struct idt_gate {
	uint64_t raw, off;
	uint16_t sel;
	unsigned type, ist, size; /* size of pushed slots: 2, 4, 8 */
};

static bool read_gate(struct vcpu *v, const struct event *ev, struct idt_gate *g)
{
	bool lm = cpu_long_mode(&v->s);
	unsigned len = lm ? 16 : 8;
	uint64_t raw[2] = {0};

	if ((ev->vector + 1u) * len - 1 > v->s.idt.limit)
		return gate_error(v, EXC_GP, ev);
	if (!sys_read(v, v->s.idt.base + ev->vector * len, raw, len))
		return false;
	*g = (struct idt_gate){
		.raw = raw[0],
		.sel = raw[0] >> 16,
		.type = (raw[0] >> 40) & 0x1f,
		.off = (raw[0] & 0xffff) | ((raw[0] >> 32) & 0xffff0000),
	};
	switch (g->type) {
	case 6:
	case 7:
		g->size = 2;
		g->off &= 0xffff;
		break;
	case 14:
	case 15:
		g->size = 4;
		break;
	}
	if (lm) {
		g->off |= raw[1] << 32;
		g->ist = (raw[0] >> 32) & 7;
		g->size = g->size == 4 ? 8 : 0;
	}
	if (!g->size && (lm || g->type != 5))
		return gate_error(v, EXC_GP, ev);
	if (ev->soft && ((raw[0] >> 45) & 3) < cpu_cpl(&v->s))
		return gate_error(v, EXC_GP, ev);
	if (!(raw[0] & BIT(47)))
		return gate_error(v, EXC_NP, ev);
	return g->size || fatal(v, "hardware task switch (task gate in the IDT)");
}

/* The handler's code segment and ring. */
static bool handler_cs(struct vcpu *v, const struct event *ev, const struct idt_gate *g, struct cpu_seg *cs,
		       unsigned *ring)
{
	unsigned cpl = cpu_cpl(&v->s);
	struct desc d;

	if (sel_null(g->sel))
		return vcpu_raise_gp(v, ev->ext);
	if (!desc_fetch(v, g->sel, EXC_GP, ev->ext, &d))
		return false;
	if (!desc_is_code(&d) || desc_dpl(&d) > cpl || (cpu_long_mode(&v->s) && (!desc_l(&d) || desc_d(&d))))
		return raise_sel(v, EXC_GP, g->sel, ev->ext);
	if (!desc_p(&d))
		return raise_sel(v, EXC_NP, g->sel, ev->ext);
	*ring = desc_conforming(&d) ? cpl : desc_dpl(&d);
	if (cpu_is_v86(&v->s) && *ring != 0)
		return raise_sel(v, EXC_GP, g->sel, ev->ext);
	if (!desc_set_accessed(v, &d))
		return false;
	desc_to_seg(&d, (g->sel & 0xfffc) | *ring, cs);
	if (cpu_long_mode(&v->s) ? !cpu_canonical(g->off) : g->off > cs->limit)
		return vcpu_raise_gp(v, ev->ext);
	return true;
}

static void enter_handler(struct vcpu *v, const struct idt_gate *g, const struct cpu_seg *cs, const struct cpu_seg *ss,
			  uint64_t sp)
{
	v->s.seg[SEG_CS] = *cs;
	v->s.seg[SEG_SS] = *ss;
	v->s.gpr[R_SP] = sp;
	v->s.rip = g->off;
	v->s.rflags &= ~(FL_TF | FL_NT | FL_VM | FL_RF);
	if (!(g->type & 1))
		v->s.rflags &= ~FL_IF;
	mmu_context_changed(v);
}

static bool deliver_long(struct vcpu *v, const struct event *ev, const struct idt_gate *g)
{
	struct cpu_seg cs, ss = v->s.seg[SEG_SS];
	uint64_t sp = v->s.gpr[R_SP];
	struct frame f;
	unsigned ring;
	uint16_t unused;

	frame_init(&f, 0, 8);
	if (!handler_cs(v, ev, g, &cs, &ring))
		return false;
	if (g->ist) {
		if (!tss_ist(v, g->ist, ev->ext, &sp))
			return false;
	} else if (ring < cpu_cpl(&v->s) && !tss_stack(v, ring, ev->ext, &unused, &sp)) {
		return false;
	}
	frame_add(&f, v->s.seg[SEG_SS].sel);
	frame_add(&f, v->s.gpr[R_SP]);
	frame_add(&f, ev->rflags);
	frame_add(&f, v->s.seg[SEG_CS].sel);
	frame_add(&f, v->s.rip);
	if (ev->has_error)
		frame_add(&f, ev->error);
	if (ring < cpu_cpl(&v->s))
		ss = seg_null_ss(ring);
	sp &= ~UINT64_C(15);
	if (!frame_push(v, &ss, true, &sp, &f, ring < 3 ? MMU_SYSTEM : 0, ev->ext))
		return false;
	enter_handler(v, g, &cs, &ss, sp);
	return true;
}

static bool deliver_legacy(struct vcpu *v, const struct event *ev, const struct idt_gate *g)
{
	static const uint8_t v86_saved[] = {SEG_GS, SEG_FS, SEG_DS, SEG_ES};
	bool v86 = cpu_is_v86(&v->s);
	struct cpu_seg cs, ss = v->s.seg[SEG_SS];
	uint64_t sp = v->s.gpr[R_SP];
	struct frame f;
	uint32_t ss_error = ev->ext;
	uint16_t ss_sel;
	unsigned ring;

	frame_init(&f, 0, g->size);
	if (!handler_cs(v, ev, g, &cs, &ring))
		return false;
	if (ring < cpu_cpl(&v->s)) {
		if (!tss_stack(v, ring, ev->ext, &ss_sel, &sp) || !inner_ss(v, ss_sel, ring, ev->ext, &ss))
			return false;
		ss_error |= ss_sel & 0xfffcu;
		for (unsigned i = 0; v86 && i < ARRAY_LEN(v86_saved); i++)
			frame_add(&f, v->s.seg[v86_saved[i]].sel);
		frame_add(&f, v->s.seg[SEG_SS].sel);
		frame_add(&f, v->s.gpr[R_SP]);
	}
	frame_add(&f, ev->rflags);
	frame_add(&f, v->s.seg[SEG_CS].sel);
	frame_add(&f, v->s.rip);
	if (ev->has_error)
		frame_add(&f, ev->error);
	if (!frame_push(v, &ss, false, &sp, &f, ring < 3 ? MMU_SYSTEM : 0, ss_error))
		return false;
	for (unsigned i = 0; v86 && i < ARRAY_LEN(v86_saved); i++)
		v->s.seg[v86_saved[i]] = (struct cpu_seg){.attr = SEG_UNUSABLE};
	enter_handler(v, g, &cs, &ss, sp);
	return true;
}

static bool attempt(struct vcpu *v, const struct event *ev)
{
	struct idt_gate g;

	if (cpu_is_real(&v->s))
		return deliver_real(v, ev);
	if (!read_gate(v, ev, &g))
		return false;
	return cpu_long_mode(&v->s) ? deliver_long(v, ev, &g) : deliver_legacy(v, ev, &g);
}

/* SDM vol. 3, table 6-4. */
enum exc_class { BENIGN, CONTRIBUTORY, PAGE_FAULT };

static enum exc_class exc_class(uint8_t vector)
{
	switch (vector) {
	case EXC_PF:
		return PAGE_FAULT;
	case EXC_DE:
	case EXC_TS:
	case EXC_NP:
	case EXC_SS:
	case EXC_GP:
		return CONTRIBUTORY;
	default:
		return BENIGN;
	}
}

static struct event exception_event(const struct vcpu *v)
{
	struct event ev = {.vector = v->exc.vector,
			   .has_error = v->exc.has_error,
			   .error = v->exc.error,
			   .ext = 1,
			   .rflags = v->s.rflags | FL_FIXED};

	if (ev.vector != EXC_DB)
		ev.rflags |= FL_RF; /* all faults; traps #BP and #OF come as EVENT_SOFT_INT */
	return ev;
}

/* What follows when `second` was met while `first` was delivered. False: shutdown. */
static bool combine(struct vcpu *v, bool first_exc, uint8_t first)
{
	enum exc_class a = exc_class(first), b = exc_class(v->exc.vector);

	if (!first_exc)
		return true;
	if (first == EXC_DF) {
		if (b != BENIGN)
			return false;
	} else if ((a == CONTRIBUTORY && b == CONTRIBUTORY) || (a == PAGE_FAULT && b != BENIGN)) {
		vcpu_raise_err(v, EXC_DF, 0);
	}
	return true;
}

static void delivered(struct vcpu *v, uint8_t vector, bool exc)
{
	if (exc && vector == EXC_DB)
		v->s.dr[7] &= ~BIT(13); /* GD */
	v->s.shadow_sti = v->s.shadow_mov_ss = 0;
	v->s.run_state = CPU_RUNNING;
}

bool interp_deliver(struct vcpu *v, enum event_type type, uint8_t vector)
{
	bool exc = type == EVENT_EXCEPTION;
	struct event ev = {.vector = vector,
			   .soft = type == EVENT_SOFT_INT,
			   .ext = type != EVENT_SOFT_INT,
			   .rflags = v->s.rflags | FL_FIXED};

	if (exc)
		ev = exception_event(v);
	/* Each round ends or meets a new fault, of which the third in a row shuts down: the bound is a guard. */
	for (unsigned round = 0; round < 8; round++) {
		if (attempt(v, &ev)) {
			if (type == EVENT_NMI)
				v->s.nmi_masked = 1;
			delivered(v, ev.vector, exc);
			return true;
		}
		if (v->fatal)
			return false;
		if (!combine(v, exc, ev.vector))
			break;
		exc = true;
		ev = exception_event(v);
	}
	v->triple_fault = true;
	return false;
}

/* --- INT n, INT3, INT1, INTO: the fault, if any, belongs to the instruction --- */

static bool soft_interrupt(struct vcpu *v, const struct insn *in, uint8_t vector, bool check_dpl)
{
	struct event ev = {
		.vector = vector, .soft = check_dpl, .ext = !check_dpl, .rflags = (v->s.rflags | FL_FIXED) & ~FL_RF};
	uint64_t rip = v->s.rip;

	v->s.rip = next_rip(v, in);
	if (!attempt(v, &ev)) {
		v->s.rip = rip;
		return false;
	}
	return true;
}

ROUTINE(int)
{
	if (cpu_is_v86(&v->s) && iopl(v) < 3)
		return vcpu_raise_gp(v, 0);
	return soft_interrupt(v, in, in->imm, true);
}

ROUTINE(int3) { return soft_interrupt(v, in, EXC_BP, true); }
ROUTINE(int1) { return soft_interrupt(v, in, EXC_DB, false); }

ROUTINE(into) { return (v->s.rflags & FL_OF) ? soft_interrupt(v, in, EXC_OF, true) : retire(v, in); }
