#include "engine/kvm/kvm.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <x86intrin.h>

#include "base/log.h"
#include "engine/kvm/kvm_int.h"

/* MSRs with a field in struct cpu_state, less EFER and APIC_BASE (in SREGS2) and the TSC's. SDM vol. 4; KVM's msr.rst.
 */
struct msr_field {
	uint32_t msr;
	uint16_t count; /* consecutive MSRs in consecutive fields */
	uint16_t off;
};
#define F(num, n, field)                                                                                               \
	{                                                                                                              \
		num, n, offsetof(struct cpu_state, field)                                                              \
	}
static const struct msr_field msr_fields[] = {
	F(0x174, 1, sysenter_cs),
	F(0x175, 1, sysenter_esp),
	F(0x176, 1, sysenter_eip),
	F(0x277, 1, pat),
	F(0xc0000081, 1, star),
	F(0xc0000082, 1, lstar),
	F(0xc0000083, 1, cstar),
	F(0xc0000084, 1, sfmask),
	F(0xc0000102, 1, kernel_gs_base),
	F(0xc0000103, 1, tsc_aux),
	F(0x3b, 1, tsc_adjust),
	F(0x48, 1, spec_ctrl),
	F(0x1a0, 1, misc_enable),
	F(0x1d9, 1, debugctl),
	F(0x17a, 1, mcg_status),
	F(0x17b, 1, mcg_ctl),
	F(0x2ff, 1, mtrr_def_type),
	F(0x250, 1, mtrr_fixed[0]),
	F(0x258, 2, mtrr_fixed[1]),
	F(0x268, 8, mtrr_fixed[3]),
	F(0x200, 16, mtrr_var),
	F(0x4b564d00, 1, kvm_wall_clock),
	F(0x4b564d01, 1, kvm_system_time),
	F(0x4b564d02, 1, kvm_async_pf),
	F(0x4b564d03, 1, kvm_steal_time),
	F(0x4b564d04, 1, kvm_pv_eoi),
	F(0x4b564d05, 1, kvm_poll_control),
	F(0x6e0, 1, tsc_deadline),
};
#undef F
#define MSR_TSC 0x10
#define MSR_TSC_DEADLINE 0x6e0
#define MSR_MAX 64

/* struct kvm_msrs with room, and where each value belongs */
struct msr_buf {
	uint32_t nmsrs, pad;
	struct kvm_msr_entry e[MSR_MAX];
	uint16_t off[MSR_MAX]; /* of the field in struct cpu_state */
};
_Static_assert(offsetof(struct msr_buf, e) == sizeof(struct kvm_msrs), "layout of struct kvm_msrs");

static void msr_buf_fill(struct msr_buf *b, const struct cpu_state *s)
{
	memset(b, 0, sizeof(*b));
	for (size_t i = 0; i < ARRAY_LEN(msr_fields); i++) {
		for (unsigned n = 0; n < msr_fields[i].count; n++) {
			unsigned at = b->nmsrs++;

			b->off[at] = (uint16_t)(msr_fields[i].off + 8 * n);
			b->e[at].index = msr_fields[i].msr + n;
			if (s)
				memcpy(&b->e[at].data, (const char *)s + b->off[at], 8);
		}
	}
}

/*
 * KVM stops at the first MSR that it refuses and returns how many it did: go on behind that one. refused, when not
 * NULL, is called for it.
 */
static void msr_transfer(int fd, unsigned long req, const struct msr_buf *b, struct kvm_msr_entry *out,
			 void (*refused)(const struct kvm_msr_entry *m))
{
	unsigned done = 0, total = b->nmsrs;

	while (done < total) {
		struct msr_buf part = {.nmsrs = total - done};

		memcpy(part.e, b->e + done, part.nmsrs * sizeof(part.e[0]));
		int n = ioctl(fd, req, &part);
		if (n < 0)
			n = 0;
		if (out)
			memcpy(out + done, part.e, (size_t)n * sizeof(part.e[0]));
		done += (unsigned)n;
		if (done < total && refused)
			refused(&b->e[done]);
		if (done < total)
			done++;
	}
}

static void msr_refused(const struct kvm_msr_entry *m)
{
	if (m->data)
		log_warn("kvm: MSR 0x%x cannot be set to 0x%llx", m->index, (unsigned long long)m->data);
}

static void get_msrs(const struct kvm_vcpu *v, struct cpu_state *out)
{
	struct kvm_msr_entry val[MSR_MAX] = {0};
	struct msr_buf b;

	msr_buf_fill(&b, NULL);
	msr_transfer(v->fd, KVM_GET_MSRS, &b, val, NULL);
	for (unsigned i = 0; i < b.nmsrs; i++)
		memcpy((char *)out + b.off[i], &val[i].data, 8);
}

static bool set_one_msr(int fd, uint32_t msr, uint64_t value)
{
	struct msr_buf b = {.nmsrs = 1, .e[0] = {.index = msr, .data = value}};

	return ioctl(fd, KVM_SET_MSRS, &b) == 1;
}

static void get_tsc(const struct kvm_engine *k, const struct kvm_vcpu *v, struct cpu_state *out)
{
	struct kvm_device_attr a = {
		.group = KVM_VCPU_TSC_CTRL, .attr = KVM_VCPU_TSC_OFFSET, .addr = (uintptr_t)&out->tsc_offset};
	struct msr_buf b = {.nmsrs = 1, .e[0].index = MSR_TSC};

	if (k->has_tsc_attr)
		ioctl(v->fd, KVM_GET_DEVICE_ATTR, &a);
	else if (ioctl(v->fd, KVM_GET_MSRS, &b) == 1)
		out->tsc_offset = b.e[0].data - __rdtsc();
}

/* A KVM without VT-x or SVM may take the offset and ignore it. */
static bool set_tsc(const struct kvm_engine *k, const struct kvm_vcpu *v, const struct cpu_state *in, struct error *err)
{
	uint64_t offset = in->tsc_offset;
	struct kvm_device_attr a = {
		.group = KVM_VCPU_TSC_CTRL, .attr = KVM_VCPU_TSC_OFFSET, .addr = (uintptr_t)&offset};

	if (!k->has_tsc_attr)
		return set_one_msr(v->fd, MSR_TSC, __rdtsc() + offset) || error_set(err, "KVM refuses the vCPU's TSC");
	if (ioctl(v->fd, KVM_SET_DEVICE_ATTR, &a) < 0)
		return error_set(err, "KVM refuses the vCPU's TSC offset: %s", strerror(errno));
	if (ioctl(v->fd, KVM_GET_DEVICE_ATTR, &a) == 0 && offset != in->tsc_offset)
		log_warn("kvm: this KVM cannot offset the TSC: the guest sees the host's");
	return true;
}

static struct cpu_seg seg_from_kvm(const struct kvm_segment *k)
{
	return (struct cpu_seg){
		.base = k->base,
		.limit = k->limit,
		.sel = k->selector,
		.attr = (uint32_t)k->type | (uint32_t)k->s << 4 | (uint32_t)k->dpl << SEG_DPL_SHIFT |
			(uint32_t)k->present << 7 | (uint32_t)k->avl << 12 | (uint32_t)k->l << 13 |
			(uint32_t)k->db << 14 | (uint32_t)k->g << 15 | (uint32_t)k->unusable << 16,
	};
}

static struct kvm_segment seg_to_kvm(const struct cpu_seg *s)
{
	return (struct kvm_segment){
		.base = s->base,
		.limit = s->limit,
		.selector = s->sel,
		.type = s->attr & SEG_TYPE,
		.s = (s->attr & SEG_S) != 0,
		.dpl = (s->attr & SEG_DPL) >> SEG_DPL_SHIFT,
		.present = (s->attr & SEG_P) != 0,
		.avl = (s->attr & SEG_AVL) != 0,
		.l = (s->attr & SEG_L) != 0,
		.db = (s->attr & SEG_DB) != 0,
		.g = (s->attr & SEG_G) != 0,
		.unusable = (s->attr & SEG_UNUSABLE) != 0,
	};
}

static void regs_from_kvm(const struct kvm_regs *r, struct cpu_state *s)
{
	const uint64_t gpr[16] = {r->rax, r->rcx, r->rdx, r->rbx, r->rsp, r->rbp, r->rsi, r->rdi,
				  r->r8,  r->r9,  r->r10, r->r11, r->r12, r->r13, r->r14, r->r15};

	memcpy(s->gpr, gpr, sizeof(gpr));
	s->rip = r->rip;
	s->rflags = r->rflags;
}

static struct kvm_regs regs_to_kvm(const struct cpu_state *s)
{
	const uint64_t *g = s->gpr;

	return (struct kvm_regs){
		.rax = g[R_AX],
		.rcx = g[R_CX],
		.rdx = g[R_DX],
		.rbx = g[R_BX],
		.rsp = g[R_SP],
		.rbp = g[R_BP],
		.rsi = g[R_SI],
		.rdi = g[R_DI],
		.r8 = g[R_8],
		.r9 = g[R_9],
		.r10 = g[R_10],
		.r11 = g[R_11],
		.r12 = g[R_12],
		.r13 = g[R_13],
		.r14 = g[R_14],
		.r15 = g[R_15],
		.rip = s->rip,
		.rflags = s->rflags,
	};
}

static void sregs_from_kvm(const struct kvm_sregs2 *r, struct cpu_state *s)
{
	s->seg[SEG_ES] = seg_from_kvm(&r->es);
	s->seg[SEG_CS] = seg_from_kvm(&r->cs);
	s->seg[SEG_SS] = seg_from_kvm(&r->ss);
	s->seg[SEG_DS] = seg_from_kvm(&r->ds);
	s->seg[SEG_FS] = seg_from_kvm(&r->fs);
	s->seg[SEG_GS] = seg_from_kvm(&r->gs);
	s->ldt = seg_from_kvm(&r->ldt);
	s->tr = seg_from_kvm(&r->tr);
	s->gdt = (struct cpu_dtr){.base = r->gdt.base, .limit = r->gdt.limit};
	s->idt = (struct cpu_dtr){.base = r->idt.base, .limit = r->idt.limit};
	s->cr0 = r->cr0;
	s->cr2 = r->cr2;
	s->cr3 = r->cr3;
	s->cr4 = r->cr4;
	s->cr8 = r->cr8;
	s->efer = r->efer;
	s->apic_base = r->apic_base;
	if (r->flags & KVM_SREGS2_FLAGS_PDPTRS_VALID)
		memcpy(s->pdpte, r->pdptrs, sizeof(s->pdpte));
}

static struct kvm_sregs2 sregs_to_kvm(const struct cpu_state *s)
{
	bool pae = (s->cr0 & CR0_PG) && (s->cr4 & CR4_PAE) && !(s->efer & EFER_LMA);
	struct kvm_sregs2 r = {
		.es = seg_to_kvm(&s->seg[SEG_ES]),
		.cs = seg_to_kvm(&s->seg[SEG_CS]),
		.ss = seg_to_kvm(&s->seg[SEG_SS]),
		.ds = seg_to_kvm(&s->seg[SEG_DS]),
		.fs = seg_to_kvm(&s->seg[SEG_FS]),
		.gs = seg_to_kvm(&s->seg[SEG_GS]),
		.ldt = seg_to_kvm(&s->ldt),
		.tr = seg_to_kvm(&s->tr),
		.gdt = {.base = s->gdt.base, .limit = s->gdt.limit},
		.idt = {.base = s->idt.base, .limit = s->idt.limit},
		.cr0 = s->cr0,
		.cr2 = s->cr2,
		.cr3 = s->cr3,
		.cr4 = s->cr4,
		.cr8 = s->cr8,
		.efer = s->efer,
		.apic_base = s->apic_base,
		.flags = pae ? KVM_SREGS2_FLAGS_PDPTRS_VALID : 0,
	};

	memcpy(r.pdptrs, s->pdpte, sizeof(r.pdptrs));
	return r;
}

static void events_from_kvm(const struct kvm_vcpu_events *ev, struct cpu_state *s)
{
	s->exc_pending = ev->exception.injected || ev->exception.pending;
	s->exc_vector = s->exc_pending ? ev->exception.nr : 0;
	s->exc_has_error = s->exc_pending && ev->exception.has_error_code;
	s->exc_error = s->exc_has_error ? ev->exception.error_code : 0;
	s->int_pending = ev->interrupt.injected;
	s->int_vector = s->int_pending ? ev->interrupt.nr : 0;
	s->int_soft = s->int_pending && ev->interrupt.soft;
	s->shadow_sti = (ev->interrupt.shadow & KVM_X86_SHADOW_INT_STI) != 0;
	s->shadow_mov_ss = (ev->interrupt.shadow & KVM_X86_SHADOW_INT_MOV_SS) != 0;
	s->nmi_pending = ev->nmi.injected || ev->nmi.pending;
	s->nmi_masked = ev->nmi.masked && !ev->nmi.injected;
	s->sipi_vector = (uint8_t)ev->sipi_vector;
}

/* The machine has no SMM: smi_pending stays as it is. */
static struct kvm_vcpu_events events_to_kvm(const struct cpu_state *s)
{
	return (struct kvm_vcpu_events){
		.exception = {.injected = s->exc_pending,
			      .nr = s->exc_vector,
			      .has_error_code = s->exc_has_error,
			      .error_code = s->exc_error},
		.interrupt = {.injected = s->int_pending,
			      .nr = s->int_vector,
			      .soft = s->int_soft,
			      .shadow = (uint8_t)((s->shadow_sti ? KVM_X86_SHADOW_INT_STI : 0) |
						  (s->shadow_mov_ss ? KVM_X86_SHADOW_INT_MOV_SS : 0))},
		.nmi = {.pending = s->nmi_pending, .masked = s->nmi_masked},
		.sipi_vector = s->sipi_vector,
		.flags = KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_SIPI_VECTOR | KVM_VCPUEVENT_VALID_SHADOW,
	};
}

static uint32_t run_state_from_kvm(uint32_t mp)
{
	switch (mp) {
	case KVM_MP_STATE_HALTED:
		return CPU_HALTED;
	case KVM_MP_STATE_UNINITIALIZED:
		return CPU_WAIT_INIT;
	case KVM_MP_STATE_INIT_RECEIVED:
		return CPU_WAIT_SIPI;
	default:
		return CPU_RUNNING;
	}
}

static uint32_t run_state_to_kvm(uint32_t state)
{
	switch (state) {
	case CPU_HALTED:
		return KVM_MP_STATE_HALTED;
	case CPU_WAIT_INIT:
		return KVM_MP_STATE_UNINITIALIZED;
	case CPU_WAIT_SIPI:
		return KVM_MP_STATE_INIT_RECEIVED;
	default:
		return KVM_MP_STATE_RUNNABLE;
	}
}

void kvm_get_state(struct engine *e, unsigned vcpu, struct cpu_state *out)
{
	struct kvm_engine *k = kvm_engine_of(e);
	struct kvm_vcpu *v = &k->vcpu[vcpu];
	struct kvm_regs regs = {0};
	struct kvm_sregs2 sregs = {0};
	struct kvm_debugregs dr = {0};
	struct kvm_xcrs xcrs = {0};
	struct kvm_vcpu_events ev = {0};
	struct kvm_mp_state mp = {0};

	_Static_assert(sizeof(struct kvm_xsave) == XSAVE_AREA_SIZE, "KVM_GET_XSAVE fills the field");
	memset(out, 0, sizeof(*out));
	out->version = CPU_STATE_VERSION;
	out->apic_id = vcpu;
	/* First: it makes KVM act on a pending INIT or SIPI. */
	ioctl(v->fd, KVM_GET_MP_STATE, &mp);
	out->run_state = run_state_from_kvm(mp.mp_state);
	ioctl(v->fd, KVM_GET_REGS, &regs);
	regs_from_kvm(&regs, out);
	ioctl(v->fd, KVM_GET_SREGS2, &sregs);
	sregs_from_kvm(&sregs, out);
	ioctl(v->fd, KVM_GET_XSAVE, out->xsave);
	if (ioctl(v->fd, KVM_GET_XCRS, &xcrs) == 0 && xcrs.nr_xcrs > 0)
		out->xcr0 = xcrs.xcrs[0].value;
	ioctl(v->fd, KVM_GET_DEBUGREGS, &dr);
	memcpy(out->dr, dr.db, sizeof(dr.db));
	out->dr[6] = dr.dr6;
	out->dr[7] = dr.dr7;
	get_msrs(v, out);
	get_tsc(k, v, out);
	ioctl(v->fd, KVM_GET_VCPU_EVENTS, &ev);
	events_from_kvm(&ev, out);
}

#define SET(v, req, arg, err)                                                                                          \
	(ioctl((v)->fd, req, arg) == 0 || error_set(err, "%s of vCPU state failed: %s", #req, strerror(errno)))

static bool set_regs(const struct kvm_vcpu *v, const struct cpu_state *in, const struct cpu_state *was,
		     struct error *err)
{
	struct kvm_regs regs = regs_to_kvm(in), old;

	if (was) {
		old = regs_to_kvm(was);
		if (!memcmp(&regs, &old, sizeof(regs)))
			return true;
	}
	return SET(v, KVM_SET_REGS, &regs, err);
}

/* A KVM without VT-x or SVM may take paging modes that it cannot run, and drop CR0.PG without a word. */
static bool set_sregs(const struct kvm_vcpu *v, const struct cpu_state *in, const struct cpu_state *was,
		      struct error *err)
{
	struct kvm_sregs2 sregs = sregs_to_kvm(in), other;

	if (was) {
		other = sregs_to_kvm(was);
		if (!memcmp(&sregs, &other, sizeof(sregs)))
			return true;
	}
	if (!SET(v, KVM_SET_SREGS2, &sregs, err))
		return false;
	if (ioctl(v->fd, KVM_GET_SREGS2, &other) < 0 || other.cr0 != in->cr0 || other.cr3 != in->cr3 ||
	    other.cr4 != in->cr4 || other.efer != in->efer)
		return error_set(err, "this KVM cannot run with cr0 %llx, cr3 %llx, cr4 %llx, efer %llx",
				 (unsigned long long)in->cr0, (unsigned long long)in->cr3, (unsigned long long)in->cr4,
				 (unsigned long long)in->efer);
	return true;
}

#define MXCSR_INIT 0x1f80u
#define XSTATE_SSE 2u

/*
 * XSAVEOPT may leave XSTATE_BV[SSE] clear and MXCSR set; KVM takes MXCSR over only with that bit. XMM registers are zero
 * then.
 */
static bool set_xsave(const struct kvm_vcpu *v, const struct cpu_state *in, struct error *err)
{
	uint64_t bv = get_le64(in->xsave + 512);
	uint8_t copy[XSAVE_AREA_SIZE];

	if ((bv & XSTATE_SSE) || get_le32(in->xsave + 24) == MXCSR_INIT)
		return SET(v, KVM_SET_XSAVE, (void *)(uintptr_t)in->xsave, err);
	memcpy(copy, in->xsave, sizeof(copy));
	memset(copy + 160, 0, 256);
	put_le64(copy + 512, bv | XSTATE_SSE);
	return SET(v, KVM_SET_XSAVE, copy, err);
}

static bool set_extended(const struct kvm_vcpu *v, const struct cpu_state *in, const struct cpu_state *was,
			 struct error *err)
{
	struct kvm_xcrs xcrs = {.nr_xcrs = 1, .xcrs[0] = {.xcr = 0, .value = in->xcr0}};
	struct kvm_debugregs dr = {.dr6 = in->dr[6], .dr7 = in->dr[7]};

	memcpy(dr.db, in->dr, sizeof(dr.db));
	if ((!was || was->xcr0 != in->xcr0) && !SET(v, KVM_SET_XCRS, &xcrs, err))
		return false;
	if ((!was || memcmp(was->xsave, in->xsave, sizeof(in->xsave))) && !set_xsave(v, in, err))
		return false;
	return (was && !memcmp(was->dr, in->dr, sizeof(in->dr))) || SET(v, KVM_SET_DEBUGREGS, &dr, err);
}

static void set_msrs(const struct kvm_vcpu *v, const struct cpu_state *in, const struct cpu_state *was)
{
	struct msr_buf all, part = {0};

	msr_buf_fill(&all, in);
	for (unsigned i = 0; i < all.nmsrs; i++)
		if (!was || memcmp((const char *)was + all.off[i], &all.e[i].data, 8))
			part.e[part.nmsrs++] = all.e[i];
	msr_transfer(v->fd, KVM_SET_MSRS, &part, NULL, msr_refused);
}

/* KVM_SET_REGS drops a pending exception. */
static bool set_events(const struct kvm_vcpu *v, const struct cpu_state *in, const struct cpu_state *was,
		       struct error *err)
{
	struct kvm_vcpu_events ev = events_to_kvm(in), old;

	if (was) {
		old = events_to_kvm(was);
		if (!in->exc_pending && !memcmp(&ev, &old, sizeof(ev)))
			return true;
		/* An NMI or SIPI may have come in the meantime. */
		ev.flags &= ~(uint32_t)KVM_VCPUEVENT_VALID_SIPI_VECTOR;
		if (in->nmi_pending == was->nmi_pending)
			ev.flags &= ~(uint32_t)KVM_VCPUEVENT_VALID_NMI_PENDING;
	}
	return SET(v, KVM_SET_VCPU_EVENTS, &ev, err);
}

/*
 * Order: segments and control registers before what is checked against them; registers before events; mp_state after
 * SREGS, which may set it on vCPU 0.
 */
bool kvm_put_state(struct kvm_engine *k, unsigned vcpu, const struct cpu_state *in, const struct cpu_state *was,
		   struct error *err)
{
	struct kvm_vcpu *v = &k->vcpu[vcpu];
	struct kvm_mp_state mp = {.mp_state = run_state_to_kvm(in->run_state)};

	if (in->version != CPU_STATE_VERSION)
		return error_set(err, "vCPU state has version %u, not %u", in->version, CPU_STATE_VERSION);
	if (!set_sregs(v, in, was, err) || !set_regs(v, in, was, err) || !set_extended(v, in, was, err))
		return false;
	if ((!was || was->tsc_offset != in->tsc_offset) && !set_tsc(k, v, in, err))
		return false;
	set_msrs(v, in, was);
	v->tsc_deadline = in->tsc_deadline;
	if ((!was || was->run_state != in->run_state) && !SET(v, KVM_SET_MP_STATE, &mp, err))
		return false;
	return set_events(v, in, was, err);
}

bool kvm_set_state(struct engine *e, unsigned vcpu, const struct cpu_state *in, struct error *err)
{
	return kvm_put_state(kvm_engine_of(e), vcpu, in, NULL, err);
}

/* struct irqchip_state holds the chips as the kernel has them. */
_Static_assert(sizeof(struct kvm_ioapic_state) == sizeof(((struct irqchip_state *)0)->ioapic), "IOAPIC");
_Static_assert(sizeof(struct kvm_pic_state) == sizeof(((struct irqchip_state *)0)->pic[0]), "PIC");
_Static_assert(sizeof(struct kvm_pit_state2) == sizeof(((struct irqchip_state *)0)->pit), "PIT");

bool kvm_engine_get_irqchip(struct engine *e, struct irqchip_state *out)
{
	struct kvm_engine *k = kvm_engine_of(e);
	struct kvm_irqchip chip;

	for (unsigned id = 0; id < KVM_NR_IRQCHIPS; id++) {
		memset(&chip, 0, sizeof(chip));
		chip.chip_id = id;
		if (ioctl(k->vm_fd, KVM_GET_IRQCHIP, &chip) < 0)
			return false;
		if (id == KVM_IRQCHIP_IOAPIC)
			memcpy(out->ioapic, &chip.chip.ioapic, sizeof(out->ioapic));
		else
			memcpy(out->pic[id], &chip.chip.pic, sizeof(out->pic[id]));
	}
	return ioctl(k->vm_fd, KVM_GET_PIT2, out->pit) == 0;
}

bool kvm_engine_set_irqchip(struct engine *e, const struct irqchip_state *in)
{
	struct kvm_engine *k = kvm_engine_of(e);
	struct irqchip_state copy = *in;
	struct kvm_irqchip chip;

	for (unsigned id = 0; id < KVM_NR_IRQCHIPS; id++) {
		memset(&chip, 0, sizeof(chip));
		chip.chip_id = id;
		if (id == KVM_IRQCHIP_IOAPIC)
			memcpy(&chip.chip.ioapic, in->ioapic, sizeof(in->ioapic));
		else
			memcpy(&chip.chip.pic, in->pic[id], sizeof(in->pic[id]));
		if (ioctl(k->vm_fd, KVM_SET_IRQCHIP, &chip) < 0)
			return false;
	}
	return ioctl(k->vm_fd, KVM_SET_PIT2, copy.pit) == 0;
}

bool kvm_engine_get_lapic(struct engine *e, unsigned vcpu, uint8_t regs[1024])
{
	return ioctl(kvm_engine_of(e)->vcpu[vcpu].fd, KVM_GET_LAPIC, regs) == 0;
}

bool kvm_engine_set_lapic(struct engine *e, unsigned vcpu, const uint8_t regs[1024])
{
	struct kvm_vcpu *v = &kvm_engine_of(e)->vcpu[vcpu];
	struct kvm_lapic_state lapic;

	memcpy(lapic.regs, regs, sizeof(lapic.regs));
	if (ioctl(v->fd, KVM_SET_LAPIC, &lapic) < 0)
		return false;
	set_one_msr(v->fd, MSR_TSC_DEADLINE, v->tsc_deadline);
	return true;
}
