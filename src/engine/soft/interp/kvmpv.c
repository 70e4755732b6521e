/*
 * KVM's paravirtual features beside the clock: steal time with its preempted byte (KVM_FEATURE_STEAL_TIME, PV_TLB_FLUSH), and
 * the hypercalls KICK_CPU (PV_UNHALT), SEND_IPI and SCHED_YIELD, as Linux documents them (KVM: msr, cpuid, hypercalls).
 */
#include "engine/soft/interp/interp_int.h"

#define STEAL_ENABLED BIT(0)
#define STEAL_RESERVED UINT64_C(0x3e)

#define PREEMPTED BIT(0)
#define FLUSH_TLB BIT(1)

struct steal_time {
	uint64_t steal; /* ns */
	uint32_t version, flags;
	uint8_t preempted, pad8[3];
	uint32_t pad[11];
};
_Static_assert(sizeof(struct steal_time) == 64, "the guest's format");

static struct steal_time *steal_page(const struct vcpu *v)
{
	return v->s.kvm_steal_time & STEAL_ENABLED ? ram_ptr(v->cfg->ram, v->s.kvm_steal_time & ~UINT64_C(0x3f), 64) : NULL;
}

bool kvmpv_steal_write(struct vcpu *v, uint64_t value)
{
	if (value & STEAL_RESERVED)
		return false;
	v->s.kvm_steal_time = value;
	kvmpv_resume(v, 0);
	return true;
}

/*
 * From here to kvmpv_resume this vCPU runs no guest code: others need not interrupt it to flush its TLB, they leave a note
 * in the same byte.
 */
void kvmpv_pause(struct vcpu *v)
{
	struct steal_time *t = steal_page(v);

	if (!t)
		return;
	__atomic_store_n(&t->preempted, PREEMPTED, __ATOMIC_SEQ_CST);
	mmu_host_wrote(v, t, sizeof(*t));
}

void kvmpv_resume(struct vcpu *v, uint64_t stolen)
{
	struct steal_time *t = steal_page(v);

	if (!t)
		return;
	if (__atomic_exchange_n(&t->preempted, 0, __ATOMIC_SEQ_CST) & FLUSH_TLB)
		mmu_flush_all(v);
	if (stolen) { /* the version is odd meanwhile */
		__atomic_store_n(&t->version, t->version | 1, __ATOMIC_SEQ_CST);
		__atomic_store_n(&t->steal, t->steal + stolen, __ATOMIC_SEQ_CST);
		__atomic_store_n(&t->version, t->version + 1, __ATOMIC_SEQ_CST);
	}
	mmu_host_wrote(v, t, sizeof(*t));
}

/* --- hypercalls: number in rax, arguments in rbx, rcx, rdx, rsi; result in rax --- */

#define HC_VAPIC_POLL_IRQ 1
#define HC_KICK_CPU 5
#define HC_SEND_IPI 10
#define HC_SCHED_YIELD 11
#define KVM_ENOSYS 1000
#define KVM_EINVAL 22
#define KVM_EPERM 1

#define ICR_LOGICAL BIT(11)
#define ICR_SHORTHAND (BIT(18) | BIT(19))

static bool offered(const struct vcpu *v, unsigned bit)
{
	return v->irqchip && cpuid_has(v->cfg->cpuid, 0x40000001, 0, CPUID_EAX, bit);
}

/* A bitmap of two words, from APIC id `first` on; the message as in the ICR. Returns how many took it. */
static int64_t send_ipi(struct vcpu *v, const uint64_t map[2], unsigned width, uint64_t first, uint64_t icr)
{
	int64_t count = 0;

	if (icr & (ICR_LOGICAL | ICR_SHORTHAND))
		return -KVM_EINVAL;
	machine_lock(v);
	for (unsigned i = 0; i < 2 * width && first + i < v->cfg->ncpus; i++)
		if (map[i / width] & BIT(i % width))
			count += irqchip_send_ipi(v->irqchip, (uint32_t)(first + i), (uint32_t)icr);
	machine_unlock(v);
	return count;
}

static int64_t hypercall(struct vcpu *v, unsigned size)
{
	uint64_t a[4] = {gpr_get(v, R_BX, size), gpr_get(v, R_CX, size), gpr_get(v, R_DX, size), gpr_get(v, R_SI, size)};

	switch (gpr_get(v, R_AX, size)) {
	case HC_VAPIC_POLL_IRQ:
		return 0;
	case HC_KICK_CPU:
		if (!offered(v, KVM_PV_UNHALT))
			break;
		if (a[1] < v->cfg->ncpus)
			vcpu_unhalt(v, (unsigned)a[1]);
		return 0;
	case HC_SEND_IPI:
		if (!offered(v, KVM_PV_SEND_IPI))
			break;
		return send_ipi(v, a, size == 8 ? 64 : 32, a[2], a[3]);
	case HC_SCHED_YIELD:
		if (!offered(v, KVM_PV_SCHED_YIELD))
			break;
		vcpu_yield(v);
		return 0;
	}
	return -KVM_ENOSYS;
}

ROUTINE(vmcall)
{
	unsigned size = in->mode == MODE_64 ? 8 : 4;
	bool user = !cpu_is_real(&v->s) && cpu_cpl(&v->s);

	gpr_set(v, R_AX, size, (uint64_t)(user ? -KVM_EPERM : hypercall(v, size)));
	return retire(v, in);
}
