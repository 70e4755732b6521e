/*
 * What the interpreter routines share among themselves. See interp.h for the contract towards the rest of the engine.
 *
 * Every routine is `bool f(v, in)`: true: done, s.rip is the next instruction; false: fault in v->exc (or v->fatal),
 * nothing changed. So that this holds, a routine first computes and checks, then writes memory, then registers.
 */
#ifndef ENGINE_SOFT_INTERP_INT_H
#define ENGINE_SOFT_INTERP_INT_H

#include "engine/soft/copy.h"
#include "engine/soft/interp/interp.h"
#include "engine/soft/mmu/mmu.h"

#define INTERP_CHUNK (64 * 1024) /* bytes of work of a REP instruction before interrupts are looked at */

#define CMPXCHG_TRIES 64 /* nothing in memory may make a routine loop for ever */

/* --- registers --- */

static inline uint64_t gpr_get(const struct vcpu *v, unsigned r, unsigned size)
{
	return v->s.gpr[r] & mask_bytes(size);
}

/* As the CPU writes a register: 4 bytes clear the upper half, 1 and 2 keep the rest. */
static inline void gpr_set(struct vcpu *v, unsigned r, unsigned size, uint64_t value)
{
	uint64_t m = mask_bytes(size);

	v->s.gpr[r] = size >= 4 ? value & m : (v->s.gpr[r] & ~m) | (value & m);
}

static inline bool retire(struct vcpu *v, const struct insn *in)
{
	uint64_t next = v->s.rip + in->len;

	v->s.rip = in->mode == MODE_64 ? next : (uint32_t)next;
	return true;
}

static inline uint64_t next_rip(const struct vcpu *v, const struct insn *in)
{
	return in->mode == MODE_64 ? v->s.rip + in->len : (uint32_t)(v->s.rip + in->len);
}

static inline bool vendor_amd(const struct vcpu *v)
{
	uint32_t ebx = v->cfg->cpuid->e[0].r.ebx; /* leaf 0 */

	return ebx == 0x68747541 /* Auth(enticAMD) */ || ebx == 0x6f677948 /* Hygo(nGenuine) */;
}

static inline bool protected_not_v86(const struct vcpu *v) { return (v->s.cr0 & CR0_PE) && !cpu_is_v86(&v->s); }

static inline unsigned iopl(const struct vcpu *v) { return (v->s.rflags & FL_IOPL) >> FL_IOPL_SHIFT; }

/* #GP(0) unless at CPL 0. */
static inline bool need_cpl0(struct vcpu *v) { return cpu_cpl(&v->s) == 0 || vcpu_raise_gp(v, 0); }

static inline bool fatal(struct vcpu *v, const char *why)
{
	v->fatal = why;
	return false;
}

static inline void machine_lock(struct vcpu *v)
{
	vec_save(v);
	if (v->cfg->lock)
		pthread_mutex_lock(v->cfg->lock);
}

static inline void machine_unlock(struct vcpu *v)
{
	if (v->cfg->lock)
		pthread_mutex_unlock(v->cfg->lock);
}

/* --- operands (interp.c) --- */

/* The dispatch table has a routine for kind: what the unit test checks. */
bool interp_kind_known(unsigned kind);

/* Linear address of the memory operand, checked for an access of len bytes. */
bool op_linear(struct vcpu *v, const struct insn *in, unsigned len, bool write, gva_t *la);
/* The r/m operand, size 1, 2, 4, 8: register or memory. */
bool op_read(struct vcpu *v, const struct insn *in, unsigned size, uint64_t *value);
bool op_write(struct vcpu *v, const struct insn *in, unsigned size, uint64_t value);
bool mem_read(struct vcpu *v, gva_t la, unsigned size, uint64_t *value, unsigned flags);
bool mem_write(struct vcpu *v, gva_t la, unsigned size, uint64_t value, unsigned flags);
/* Descriptor tables and TSS: supervisor access, canonical check (#GP(0)). */
bool sys_read(struct vcpu *v, gva_t la, void *buf, unsigned len);

/* --- descriptors and segments (segment.c) --- */

struct desc {
	uint64_t raw;
	gva_t la; /* where it was read */
};

static inline unsigned desc_type(const struct desc *d) { return (d->raw >> 40) & 15; }
static inline bool desc_s(const struct desc *d) { return d->raw & BIT(44); }
static inline unsigned desc_dpl(const struct desc *d) { return (d->raw >> 45) & 3; }
static inline bool desc_p(const struct desc *d) { return d->raw & BIT(47); }
static inline bool desc_l(const struct desc *d) { return d->raw & BIT(53); }
static inline bool desc_d(const struct desc *d) { return d->raw & BIT(54); }
static inline bool desc_is_code(const struct desc *d) { return desc_s(d) && (desc_type(d) & 8); }
static inline bool desc_conforming(const struct desc *d) { return desc_type(d) & 4; }
static inline bool desc_is_stack(const struct desc *d) { return desc_s(d) && (desc_type(d) & 10) == 2; }
static inline bool sel_null(uint16_t sel) { return !(sel & 0xfffc); }

/* Error codes name a selector without RPL; ext is 1 while an event from outside the program is delivered. */
static inline bool raise_sel(struct vcpu *v, uint8_t vector, uint16_t sel, unsigned ext)
{
	return vcpu_raise_err(v, vector, (sel & 0xfffcu) | ext);
}

/* Read the descriptor of sel; outside its table: vector(sel). */
bool desc_fetch(struct vcpu *v, uint16_t sel, uint8_t vector, unsigned ext, struct desc *d);
/* The second half of a 16-byte system descriptor. */
bool desc_fetch_high(struct vcpu *v, uint16_t sel, uint8_t vector, unsigned ext, const struct desc *d, uint64_t *high);
bool desc_set_accessed(struct vcpu *v, struct desc *d);
void desc_to_seg(const struct desc *d, uint16_t sel, struct cpu_seg *out);
struct cpu_seg seg_flat_code(uint16_t sel, unsigned dpl, bool is64);
struct cpu_seg seg_flat_stack(uint16_t sel, unsigned dpl);
struct cpu_seg seg_v86(uint16_t sel);
struct cpu_seg seg_null_ss(unsigned dpl);
/* MOV/POP/LxS to ES, SS, DS, FS, GS in the current mode, with all checks. */
bool seg_load(struct vcpu *v, unsigned seg, uint16_t sel);
/* Return to an outer ring: data segments that the new CPL may not use become null. */
void seg_drop_inner(struct vcpu *v, unsigned cpl);
/* The stack segment of a return to ring cpl (IRET, RETF); sel may be null for 64-bit code outside ring 3. */
bool seg_return_ss(struct vcpu *v, uint16_t sel, unsigned cpl, bool to64, struct cpu_seg *out);
/* The code segment of a return (IRET, RETF). */
bool seg_return_cs(struct vcpu *v, uint16_t sel, struct cpu_seg *out);

/* --- stack frames (stack.c) --- */

#define FRAME_MAX 40
struct frame {
	unsigned n, size; /* slots, bytes of each */
	uint64_t val[FRAME_MAX];
};

/* Its slots are not cleared. */
static inline void frame_init(struct frame *f, unsigned n, unsigned size)
{
	f->n = n;
	f->size = size;
}
static inline void frame_add(struct frame *f, uint64_t value) { f->val[f->n++] = value; }
/* Push the slots, val[0] first, below *sp of stack ss; ss_error is the #SS error code. Memory changes wholly or not at
 * all. */
bool frame_push(struct vcpu *v, const struct cpu_seg *ss, bool is64, uint64_t *sp, const struct frame *f,
		unsigned mmu_flags, uint32_t ss_error);
/* Pop f->n slots from the current stack at *sp. */
bool frame_pop(struct vcpu *v, uint64_t *sp, struct frame *f);
/* sp + delta in the stack's width, upper bits kept. */
uint64_t stack_add(const struct vcpu *v, uint64_t sp, int64_t delta);
bool stack_push(struct vcpu *v, unsigned size, uint64_t value);

/* --- control flow (flow.c, far.c, event.c) --- */

/* Near branch: masks, limit or canonical check, sets rip. */
bool branch_check(struct vcpu *v, uint64_t *target, unsigned osz);
/* TSS fields for ring dpl. */
bool tss_stack(struct vcpu *v, unsigned dpl, unsigned ext, uint16_t *ss, uint64_t *sp);
bool tss_ist(struct vcpu *v, unsigned ist, unsigned ext, uint64_t *sp);
/* RSP after a return: one to a 16-bit stack loads only SP, the upper half of the inner ring's ESP shows through, as on
 * the CPU. */
uint64_t return_sp(const struct vcpu *v, uint64_t value, const struct cpu_seg *ss, unsigned osz, bool to64);
bool inner_ss(struct vcpu *v, uint16_t sel, unsigned dpl, unsigned ext, struct cpu_seg *out);
/* rflags after IRET or POPF of an image of osz bytes at CPL cpl. */
uint64_t flags_merge(const struct vcpu *v, uint64_t image, unsigned osz, unsigned cpl, bool iret);

/* --- paravirtual clock (kvmclock.c) --- */

void kvmclock_write_wall(struct vcpu *v);

/* --- other paravirtual features (kvmpv.c) --- */

bool kvmpv_steal_write(struct vcpu *v, uint64_t value);

/* --- extended state (fpustate.c) --- */

#define XS_X87 BIT(0)
#define XS_SSE BIT(1)
#define XS_AVX BIT(2)
#define XS_OPMASK BIT(5)
#define XS_ZMM_HI256 BIT(6)
#define XS_HI16_ZMM BIT(7)
#define XS_PKRU BIT(9)
#define XS_AVX512 (XS_OPMASK | XS_ZMM_HI256 | XS_HI16_ZMM)
#define XS_HEADER 512 /* XSTATE_BV, XCOMP_BV */

/* Offset of a component in the standard format, and its size; size 0: not there. */
unsigned xs_offset(const struct vcpu *v, unsigned comp, unsigned *size);
/* Give components in their initial state (XSTATE_BV clear) their initial bytes, and mark all of mask as in use. */
void xs_own(struct vcpu *v, uint64_t mask);
uint64_t xs_inuse(const struct vcpu *v);
/* Vector register n: its low len bytes (16, 32, 64). Writing a register clears it above len. */
void xs_vector_get(struct vcpu *v, unsigned n, uint8_t *out, unsigned len);
void xs_vector_set(struct vcpu *v, unsigned n, const uint8_t *in, unsigned len);
/* MMX register n, and the x87 state after an MMX instruction (x87env.c). */
uint8_t *x87_mmx(struct vcpu *v, unsigned n);
void x87_enter_mmx(struct vcpu *v);
uint32_t xs_pkru_get(const struct vcpu *v);
void xs_pkru_set(struct vcpu *v, uint32_t value);

/* --- routines, by file --- */

/* clang-format off */
#define ROUTINE(name) bool i_##name(struct vcpu *v, const struct insn *in)

/* flow.c */
ROUTINE(jmp_rel); ROUTINE(jcc); ROUTINE(call_rel); ROUTINE(ret); ROUTINE(jmp_ind); ROUTINE(call_ind); ROUTINE(jcxz); ROUTINE(loop);
/* far.c */
ROUTINE(far_ptr); ROUTINE(far_ind); ROUTINE(retf);
/* event.c, iret.c */
ROUTINE(int); ROUTINE(int3); ROUTINE(int1); ROUTINE(into); ROUTINE(iret);
/* syscall.c */
ROUTINE(syscall); ROUTINE(sysret); ROUTINE(sysenter); ROUTINE(sysexit);
/* stack.c */
ROUTINE(push_r); ROUTINE(push_imm); ROUTINE(push_m); ROUTINE(pop_r); ROUTINE(pop_m); ROUTINE(push_seg); ROUTINE(pop_seg);
ROUTINE(pusha); ROUTINE(popa); ROUTINE(pushf); ROUTINE(popf); ROUTINE(enter); ROUTINE(leave);
/* string.c, io.c */
ROUTINE(movs); ROUTINE(stos); ROUTINE(lods); ROUTINE(scas); ROUTINE(cmps); ROUTINE(xlat); ROUTINE(maskmov); ROUTINE(clzero);
ROUTINE(ins); ROUTINE(outs); ROUTINE(in); ROUTINE(out);
/* segment.c, selector.c */
ROUTINE(mov_rm_seg); ROUTINE(mov_seg_rm); ROUTINE(load_far); ROUTINE(lar); ROUTINE(lsl); ROUTINE(verr); ROUTINE(verw); ROUTINE(arpl);
ROUTINE(lldt); ROUTINE(ltr); ROUTINE(sldt); ROUTINE(str); ROUTINE(smsw); ROUTINE(lgdt); ROUTINE(sgdt);
/* control.c */
ROUTINE(lmsw); ROUTINE(clts); ROUTINE(mov_r_cr); ROUTINE(mov_cr_r); ROUTINE(mov_r_dr); ROUTINE(mov_dr_r);
ROUTINE(invlpg); ROUTINE(invpcid); ROUTINE(xgetbv); ROUTINE(xsetbv);
/* system.c */
ROUTINE(hlt); ROUTINE(cli); ROUTINE(sti); ROUTINE(wbinvd); ROUTINE(rdmsr); ROUTINE(wrmsr); ROUTINE(rdpmc); ROUTINE(rdtsc); ROUTINE(rdtscp);
ROUTINE(cpuid); ROUTINE(swapgs); ROUTINE(rdbase); ROUTINE(wrbase); ROUTINE(rdpid); ROUTINE(clac); ROUTINE(stac); ROUTINE(monitor);
ROUTINE(mwait); ROUTINE(rdpkru); ROUTINE(wrpkru);
/* kvmpv.c */
ROUTINE(vmcall);
/* fpustate.c, x87env.c */
ROUTINE(xsave); ROUTINE(xsavec); ROUTINE(xrstor); ROUTINE(fxsave); ROUTINE(fxrstor);
ROUTINE(fnstenv); ROUTINE(fldenv); ROUTINE(fnsave); ROUTINE(frstor);
/* bits.c, vsib.c, bcd.c */
ROUTINE(bt_mem); ROUTINE(bound); ROUTINE(vsib);
ROUTINE(daa); ROUTINE(das); ROUTINE(aaa); ROUTINE(aas); ROUTINE(aam); ROUTINE(aad); ROUTINE(salc);
/* clang-format on */

#endif
