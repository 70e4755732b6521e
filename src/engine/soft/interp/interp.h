/*
 * Interpreter routines: one per privileged or critical instruction, and exact forms of control flow, stack and strings.
 * Plus event delivery. They work on v->s alone; all guest memory goes through mmu.h.
 *
 * Contract of interp_exec: s.rip is the address of the instruction; on true the instruction has completed and s.rip
 * is the next one to run (for an interrupted REP: the same one again); on false nothing but accessed/dirty bits and, for
 * REP, completed iterations has changed, and v->exc holds the fault. s.rflags holds all flags. s.xsave holds the vector
 * state, but for the kinds that the dispatcher's is_light names (vec_save). REP instructions return after at most some 64 KiB of work, so that interrupts are seen.
 * Interrupt shadows (STI, MOV SS) are set in s.shadow_*; the caller clears them after the next instruction.
 */
#ifndef ENGINE_SOFT_INTERP_H
#define ENGINE_SOFT_INTERP_H

#include "engine/soft/translate/decode.h"
#include "engine/soft/vcpu.h"

bool interp_exec(struct vcpu *v, const struct insn *in);

enum event_type { EVENT_EXCEPTION, EVENT_INTERRUPT, EVENT_NMI, EVENT_SOFT_INT /* INT n, INT3, INTO */ };

/*
 * Deliver an event through the IDT (real mode: IVT): pushes, gates, stack switch, IST, #DF and triple-fault rules (SDM vol. 3, 6).
 * For EVENT_EXCEPTION v->exc is the fault. Returns false when the vCPU is now in shutdown (v->triple_fault) or v->fatal is set.
 * s.rip must be what the handler returns to.
 */
bool interp_deliver(struct vcpu *v, enum event_type type, uint8_t vector);

/* MSRs (also used to load state): false is #GP (nothing raised yet). */
bool msr_read(struct vcpu *v, uint32_t msr, uint64_t *value);
bool msr_write(struct vcpu *v, uint32_t msr, uint64_t value);
/* FS_BASE, GS_BASE, KERNEL_GS_BASE: written at each switch of threads. */
static inline bool msr_is_base(uint32_t msr) { return msr - 0xc0000100 < 3; }

/* Condition code test on flags: cc 0-15. */
bool interp_cc(uint64_t rflags, unsigned cc);

/*
 * Segmentation: linear address of seg:off for an access of len bytes, with limit, type, null and canonical checks
 * (#GP/#SS raised). write: needs a writable segment. Real mode: 64 KiB limit rules. Used by the translator's slow path too.
 */
bool seg_linear(struct vcpu *v, unsigned seg, uint64_t off, unsigned len, bool write, gva_t *la);

/* Called from the dispatcher when guest time passed: refresh kvm-clock pages if enabled (on load of state). */
void kvmclock_update(struct vcpu *v);

/* Called by the dispatcher around a time in which the vCPU waits; stolen: ns since the last call that it wanted to run but did not. */
void kvmpv_pause(struct vcpu *v);
void kvmpv_resume(struct vcpu *v, uint64_t stolen);

/* What hypercalls ask of the dispatcher. unhalt: vCPU `target` leaves HLT, or does not enter it the next time. */
void vcpu_unhalt(struct vcpu *v, unsigned target);
void vcpu_yield(struct vcpu *v);

#endif
