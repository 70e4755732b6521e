#include "engine/kvm/kvm.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "engine/kvm/kvm_int.h"

/* Feature words that are cut down to what KVM supports, which would refuse the control bits behind the others. */
struct feature_word {
	uint32_t leaf, subleaf;
	enum cpuid_reg reg;
	uint32_t keep; /* bits that are not KVM's to say: set by the policy, or by KVM itself at run time */
};
static const struct feature_word words[] = {
	{1, 0, CPUID_ECX, 1u << 27 | 1u << 31}, /* OSXSAVE, hypervisor */
	{1, 0, CPUID_EDX, 1u << 28},		/* HTT: topology */
	{7, 0, CPUID_EBX, 0},
	{7, 0, CPUID_ECX, 1u << 4}, /* OSPKE */
	{7, 0, CPUID_EDX, 0},
	{7, 1, CPUID_EAX, 0},
	{7, 1, CPUID_EBX, 0},
	{7, 1, CPUID_EDX, 0},
	{0xd, 0, CPUID_EAX, 0},
	{0xd, 0, CPUID_EDX, 0},
	{0xd, 1, CPUID_EAX, 0},
	{0xd, 1, CPUID_ECX, 0},
	{0x40000001, 0, CPUID_EAX, 0},
	{0x80000001, 0, CPUID_ECX, 1u << 1 | 1u << 22}, /* CmpLegacy, TopologyExtensions */
	{0x80000001, 0, CPUID_EDX, 0},
	{0x80000007, 0, CPUID_EDX, 0},
	{0x80000008, 0, CPUID_EBX, 0},
	{0x80000021, 0, CPUID_EAX, 0},
};

#define KVM_CPUID_MAX 512
/* struct kvm_cpuid2 with room */
struct cpuid_buf {
	uint32_t nent, padding;
	struct kvm_cpuid_entry2 e[KVM_CPUID_MAX];
};
_Static_assert(offsetof(struct cpuid_buf, e) == sizeof(struct kvm_cpuid2), "layout of struct kvm_cpuid2");

static struct kvm_cpuid_entry2 *find(struct cpuid_buf *b, uint32_t leaf, uint32_t subleaf)
{
	for (unsigned i = 0; i < b->nent; i++) {
		struct kvm_cpuid_entry2 *e = &b->e[i];

		if (e->function == leaf && (!(e->flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX) || e->index == subleaf))
			return e;
	}
	return NULL;
}

static uint32_t *reg_of(struct kvm_cpuid_entry2 *e, enum cpuid_reg reg)
{
	return reg == CPUID_EAX ? &e->eax : reg == CPUID_EBX ? &e->ebx : reg == CPUID_ECX ? &e->ecx : &e->edx;
}

/*
 * Leaf 0xd describes the XSAVE area: only components that KVM supports, with KVM's sizes; nothing when there is no
 * XSAVE.
 */
static void cut_xsave(struct cpuid_buf *b, struct cpuid_buf *supported)
{
	struct kvm_cpuid_entry2 *features = find(b, 1, 0), *top = find(b, 0xd, 0), *have = find(supported, 0xd, 0);
	bool xsave = features && (features->ecx & (1u << 26)) && have;

	if (xsave && top)
		top->ecx = have->ecx;
	for (unsigned i = 0; i < b->nent; i++) {
		struct kvm_cpuid_entry2 *e = &b->e[i];

		if (e->function != 0xd)
			continue;
		if (!xsave || (e->index >= 2 && e->index < 32 && top && !(top->eax & (1u << e->index))))
			e->eax = e->ebx = e->ecx = e->edx = 0;
	}
}

static void cut(struct cpuid_buf *b, struct cpuid_buf *supported, bool tsc_deadline)
{
	for (size_t i = 0; i < ARRAY_LEN(words); i++) {
		const struct feature_word *w = &words[i];
		struct kvm_cpuid_entry2 *e = find(b, w->leaf, w->subleaf);
		struct kvm_cpuid_entry2 *have = find(supported, w->leaf, w->subleaf);
		uint32_t mask = w->keep | (have ? *reg_of(have, w->reg) : 0);

		if (w->leaf == 1 && w->reg == CPUID_ECX && tsc_deadline)
			mask |= 1u << 24; /* older KVM only says it by KVM_CAP_TSC_DEADLINE_TIMER */
		if (e)
			*reg_of(e, w->reg) &= mask;
	}
	struct kvm_cpuid_entry2 *addr = find(b, 0x80000008, 0), *have = find(supported, 0x80000008, 0);
	if (addr && have && (have->eax & 0xff) < (addr->eax & 0xff))
		addr->eax = (addr->eax & ~0xffu) | (have->eax & 0xff);
	cut_xsave(b, supported);
}

/* KVM keeps the bits that change while the guest runs (OSXSAVE, sizes of leaf 0xd); APIC ids are filled in per vCPU. */
static void fill(struct cpuid_buf *b, const struct cpuid_policy *p, unsigned vcpu)
{
	struct cpu_state s;

	cpu_state_reset(&s, vcpu);
	for (unsigned i = 0; i < p->count && i < KVM_CPUID_MAX; i++) {
		const struct cpuid_entry *from = &p->e[i];
		struct cpuid_regs r = cpuid_query(p, &s, from->leaf, from->subleaf);

		b->e[b->nent++] = (struct kvm_cpuid_entry2){
			.function = from->leaf,
			.index = from->subleaf,
			.flags = from->has_subleaf ? KVM_CPUID_FLAG_SIGNIFCANT_INDEX : 0,
			.eax = r.eax,
			.ebx = r.ebx,
			.ecx = r.ecx,
			.edx = r.edx,
		};
	}
}

bool kvm_set_cpuid(struct kvm_engine *k, unsigned vcpu, struct error *err)
{
	struct cpuid_buf *b = calloc(2, sizeof(*b));
	bool ok = false;

	if (!b)
		return error_set(err, "out of memory");
	b[1].nent = KVM_CPUID_MAX;
	if (ioctl(k->dev_fd, KVM_GET_SUPPORTED_CPUID, &b[1]) < 0) {
		error_set(err, "KVM_GET_SUPPORTED_CPUID failed: %s", strerror(errno));
	} else {
		fill(&b[0], k->cfg.cpuid, vcpu);
		cut(&b[0], &b[1], ioctl(k->vm_fd, KVM_CHECK_EXTENSION, KVM_CAP_TSC_DEADLINE_TIMER) > 0);
		ok = ioctl(k->vcpu[vcpu].fd, KVM_SET_CPUID2, &b[0]) == 0 ||
		     error_set(err, "KVM_SET_CPUID2 failed: %s", strerror(errno));
	}
	free(b);
	return ok;
}
