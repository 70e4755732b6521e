/*
 * The soft engine's vCPU: architectural state plus what the dispatcher, translator, MMU and interpreter routines share.
 *
 * One vcpu per host thread; nothing in it is touched by another thread but the atomic fields named so.
 * It lives in memory that translated code reaches at a fixed distance from GS (see soft_int.h).
 *
 * Faults: a routine that meets a guest fault calls vcpu_raise* (which fills v->exc) and returns false; callers pass false
 * up to the dispatcher, which delivers it (interp_deliver). s.rip is then still the faulting instruction's address.
 */
#ifndef ENGINE_SOFT_VCPU_H
#define ENGINE_SOFT_VCPU_H

#include <stdatomic.h>

#include "cpu/state.h"
#include "engine/engine.h"
#include "irq/irqchip.h"

struct soft_engine;

struct vcpu_exc {
	uint8_t vector;
	bool has_error;
	bool is_db_trap; /* #DB after the instruction (rip already advanced) */
	uint32_t error;
};

enum insn_cpu_mode { MODE_16, MODE_32, MODE_64 };

struct vcpu {
	struct cpu_state s; /* first: translated code addresses its fields */

	struct vcpu_exc exc; /* valid after a routine returned false */
	uint32_t index;
	bool triple_fault;   /* set by interp_deliver: the vCPU is in shutdown */
	const char *fatal;   /* not implementable here (a hardware task switch ...): engine_run returns EXIT_ERROR with it */

	bool vec_live;       /* the guest's vector state is in the host's registers, not in s.xsave: see vec_save */

	const struct engine_config *cfg; /* ram, bus, cpuid, lock, timers */
	struct irqchip *irqchip;
	struct mmu *mmu;
	struct soft_vcpu_priv *priv; /* dispatcher and translator */
	struct soft_engine *engine;
};

/* Raise an exception at the current instruction. All return false. */
static inline bool vcpu_raise_err(struct vcpu *v, uint8_t vector, uint32_t error)
{
	v->exc = (struct vcpu_exc){.vector = vector, .has_error = true, .error = error};
	return false;
}
static inline bool vcpu_raise(struct vcpu *v, uint8_t vector)
{
	v->exc = (struct vcpu_exc){.vector = vector};
	return false;
}
static inline bool vcpu_raise_gp(struct vcpu *v, uint32_t error) { return vcpu_raise_err(v, EXC_GP, error); }
static inline bool vcpu_raise_ud(struct vcpu *v) { return vcpu_raise(v, EXC_UD); }
static inline bool vcpu_raise_pf(struct vcpu *v, gva_t la, uint32_t error)
{
	v->s.cr2 = la;
	return vcpu_raise_err(v, EXC_PF, error);
}

/*
 * After an exit the guest's vector and x87 state stays in the host's registers. It is saved before anything that reads or writes
 * s.xsave, or may use such registers itself: libc (but for bare system calls), and all layers but this one, cpu and mem, which are
 * compiled without (meson.build, integer_only) and call no memcpy and the like on the way from an exit to the next entry. In a
 * signal handler this does nothing: there the state is in the signal's frame, and s.xsave is old.
 */
void soft_vec_save(struct vcpu *v); /* translate/entry.c */
static inline void vec_save(struct vcpu *v)
{
	if (v->vec_live)
		soft_vec_save(v);
}

/* The mode that instructions are decoded in. */
static inline enum insn_cpu_mode vcpu_mode(const struct vcpu *v)
{
	if (cpu_is_64bit(&v->s))
		return MODE_64;
	return (v->s.seg[SEG_CS].attr & SEG_DB) ? MODE_32 : MODE_16;
}

#endif
