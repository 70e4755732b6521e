/*
 * Model-specific registers: one list. What is not in it is #GP (SDM vol. 4; APM vol. 2, appendix A; KVM's documented
 * MSRs).
 */
#include "engine/soft/interp/interp_int.h"

#include <x86intrin.h>

enum msr_kind {
	MSR_FIELD, /* arg: writable bits, others are #GP */
	MSR_CANON, /* a canonical address */
	MSR_CONST, /* reads as arg, writes are #GP */
	MSR_DROP,  /* reads as arg, writes are dropped */
	MSR_CALL,  /* functions */
};

struct msr_def {
	uint32_t first, last;
	enum msr_kind kind;
	uint16_t off; /* in struct cpu_state; 8 bytes for each MSR of the range */
	uint64_t arg;
	bool (*read)(struct vcpu *v, uint32_t msr, uint64_t *value);
	bool (*write)(struct vcpu *v, uint32_t msr, uint64_t value);
	bool (*there)(const struct vcpu *v, uint32_t msr); /* NULL: always */
};

#define MSR_PAT 0x277
#define MSR_EFER 0xc0000080
#define MSR_APIC_BASE 0x1b
#define HWCR_TSC_FREQ_SEL BIT(24) /* the TSC counts at a fixed rate */
#define DE_CFG_LFENCE BIT(1)	  /* LFENCE serializes */
#define MICROCODE_AMD 0x01000065
#define MICROCODE_INTEL UINT64_C(0x100000000)

static uint64_t *field(struct vcpu *v, const struct msr_def *d, uint32_t msr)
{
	return (uint64_t *)((uint8_t *)&v->s + d->off) + (msr - d->first);
}

/* --- presence --- */

static bool has_amd(const struct vcpu *v, uint32_t msr) { return vendor_amd(v); }
static bool has_intel(const struct vcpu *v, uint32_t msr) { return !vendor_amd(v); }
static bool has_rdtscp(const struct vcpu *v, uint32_t msr)
{
	return cpuid_has(v->cfg->cpuid, 0x80000001, 0, CPUID_EDX, 27) || cpuid_has(v->cfg->cpuid, 7, 0, CPUID_ECX, 22);
}
static bool has_tsc_adjust(const struct vcpu *v, uint32_t msr) { return cpuid_has(v->cfg->cpuid, 7, 0, CPUID_EBX, 1); }
static bool has_arch_caps(const struct vcpu *v, uint32_t msr) { return cpuid_has(v->cfg->cpuid, 7, 0, CPUID_EDX, 29); }
static bool has_flush_cmd(const struct vcpu *v, uint32_t msr) { return cpuid_has(v->cfg->cpuid, 7, 0, CPUID_EDX, 28); }
static bool has_xsaves(const struct vcpu *v, uint32_t msr) { return cpuid_has(v->cfg->cpuid, 0xd, 1, CPUID_EAX, 3); }
static bool has_x2apic(const struct vcpu *v, uint32_t msr) { return v->irqchip; }
static bool has_ibpb(const struct vcpu *v, uint32_t msr)
{
	return cpuid_has(v->cfg->cpuid, 7, 0, CPUID_EDX, 26) || cpuid_has(v->cfg->cpuid, 0x80000008, 0, CPUID_EBX, 12);
}

static uint64_t spec_ctrl_bits(const struct vcpu *v)
{
	const struct cpuid_policy *p = v->cfg->cpuid;
	uint64_t bits = 0;

	if (cpuid_has(p, 7, 0, CPUID_EDX, 26) || cpuid_has(p, 0x80000008, 0, CPUID_EBX, 14))
		bits |= BIT(0); /* IBRS */
	if (cpuid_has(p, 7, 0, CPUID_EDX, 27) || cpuid_has(p, 0x80000008, 0, CPUID_EBX, 15))
		bits |= BIT(1); /* STIBP */
	if (cpuid_has(p, 7, 0, CPUID_EDX, 31) || cpuid_has(p, 0x80000008, 0, CPUID_EBX, 24))
		bits |= BIT(2); /* SSBD */
	if (cpuid_has(p, 0x80000008, 0, CPUID_EBX, 28))
		bits |= BIT(7); /* PSFD */
	return bits;
}
static bool has_spec_ctrl(const struct vcpu *v, uint32_t msr) { return spec_ctrl_bits(v); }

/* Which bit of leaf 0x40000001 announces a KVM MSR. */
static bool has_kvm(const struct vcpu *v, uint32_t msr)
{
	static const struct {
		uint32_t msr;
		unsigned bit;
	} feature[] = {{0x11, 0},	{0x12, 0},	 {0x4b564d00, 3}, {0x4b564d01, 3},
		       {0x4b564d02, 4}, {0x4b564d03, 5}, {0x4b564d04, 6}, {0x4b564d05, 12}};

	for (unsigned i = 0; i < ARRAY_LEN(feature); i++) {
		if (feature[i].msr == msr)
			return cpuid_has(v->cfg->cpuid, 0x40000001, 0, CPUID_EAX, feature[i].bit);
	}
	return false;
}

/* --- side effects --- */

static bool tsc_read(struct vcpu *v, uint32_t msr, uint64_t *value)
{
	*value = __rdtsc() + v->s.tsc_offset;
	return true;
}

static void tsc_shift(struct vcpu *v, uint64_t delta)
{
	v->s.tsc_offset += delta;
	v->s.tsc_adjust += delta;
	kvmclock_update(v);
}

static bool tsc_write(struct vcpu *v, uint32_t msr, uint64_t value)
{
	tsc_shift(v, value - (__rdtsc() + v->s.tsc_offset));
	return true;
}

static bool tsc_adjust_read(struct vcpu *v, uint32_t msr, uint64_t *value)
{
	*value = v->s.tsc_adjust;
	return true;
}

static bool tsc_adjust_write(struct vcpu *v, uint32_t msr, uint64_t value)
{
	tsc_shift(v, value - v->s.tsc_adjust);
	return true;
}

static bool efer_read(struct vcpu *v, uint32_t msr, uint64_t *value)
{
	*value = v->s.efer;
	return true;
}

static bool efer_write(struct vcpu *v, uint32_t msr, uint64_t value)
{
	uint64_t diff;

	if (value & ~(v->cfg->cpuid->efer_allowed | EFER_LMA))
		return false;
	value = (value & ~EFER_LMA) | (v->s.efer & EFER_LMA);
	diff = value ^ v->s.efer;
	if ((diff & EFER_LME) && (v->s.cr0 & CR0_PG))
		return false;
	v->s.efer = value;
	if (diff & EFER_NXE)
		mmu_flush_all(v);
	mmu_context_changed(v);
	return true;
}

static uint64_t *base_msr(struct vcpu *v, uint32_t msr)
{
	return msr == 0xc0000102 ? &v->s.kernel_gs_base : &v->s.seg[msr == 0xc0000100 ? SEG_FS : SEG_GS].base;
}

static bool base_read(struct vcpu *v, uint32_t msr, uint64_t *value)
{
	*value = *base_msr(v, msr);
	return true;
}

static bool base_write(struct vcpu *v, uint32_t msr, uint64_t value)
{
	if (!cpu_canonical(value))
		return false;
	*base_msr(v, msr) = value;
	return true;
}

static bool memory_type_ok(unsigned type, bool pat)
{
	return type == 0 || type == 1 || (type >= 4 && type <= 6) || (pat && type == 7);
}

static bool types_ok(uint64_t value, bool pat)
{
	for (unsigned i = 0; i < 8; i++) {
		if (!memory_type_ok((value >> (8 * i)) & 0xff, pat))
			return false;
	}
	return true;
}

static bool pat_read(struct vcpu *v, uint32_t msr, uint64_t *value)
{
	*value = v->s.pat;
	return true;
}

static bool pat_write(struct vcpu *v, uint32_t msr, uint64_t value)
{
	if (!types_ok(value, true))
		return false;
	v->s.pat = value;
	return true;
}

/* Fixed-range MTRRs: 250, 258, 259, 268-26f hold the state's eleven fields in this order. */
static uint64_t *mtrr_fixed(struct vcpu *v, uint32_t msr)
{
	if (msr == 0x250)
		return &v->s.mtrr_fixed[0];
	return &v->s.mtrr_fixed[msr < 0x268 ? msr - 0x258 + 1 : msr - 0x268 + 3];
}

static bool mtrr_fixed_read(struct vcpu *v, uint32_t msr, uint64_t *value)
{
	*value = *mtrr_fixed(v, msr);
	return true;
}

static bool mtrr_fixed_write(struct vcpu *v, uint32_t msr, uint64_t value)
{
	if (!types_ok(value, false))
		return false;
	*mtrr_fixed(v, msr) = value;
	return true;
}

static bool mtrr_var_read(struct vcpu *v, uint32_t msr, uint64_t *value)
{
	*value = v->s.mtrr_var[msr - 0x200];
	return true;
}

/* Even: base and type; odd: mask and valid bit. */
static bool mtrr_var_write(struct vcpu *v, uint32_t msr, uint64_t value)
{
	uint64_t allowed = (BIT(v->cfg->cpuid->phys_bits) - 1) & ~((msr & 1) ? UINT64_C(0x7ff) : UINT64_C(0xf00));

	if ((value & ~allowed) || (!(msr & 1) && !memory_type_ok(value & 0xff, false)))
		return false;
	v->s.mtrr_var[msr - 0x200] = value;
	return true;
}

static bool mtrr_def_read(struct vcpu *v, uint32_t msr, uint64_t *value)
{
	*value = v->s.mtrr_def_type;
	return true;
}

static bool mtrr_def_write(struct vcpu *v, uint32_t msr, uint64_t value)
{
	if ((value & ~UINT64_C(0xcff)) || !memory_type_ok(value & 0xff, false))
		return false;
	v->s.mtrr_def_type = value;
	return true;
}

static bool spec_ctrl_read(struct vcpu *v, uint32_t msr, uint64_t *value)
{
	*value = v->s.spec_ctrl;
	return true;
}

/* The host's own setting rules what is speculated; the guest reads back what it wrote. */
static bool spec_ctrl_write(struct vcpu *v, uint32_t msr, uint64_t value)
{
	if (value & ~spec_ctrl_bits(v))
		return false;
	v->s.spec_ctrl = value;
	return true;
}

/* Commands (IBPB, L1D flush): written with bit 0, no state. */
static bool command_read(struct vcpu *v, uint32_t msr, uint64_t *value) { return false; }
static bool command_write(struct vcpu *v, uint32_t msr, uint64_t value) { return !(value & ~UINT64_C(1)); }

static bool zero_read(struct vcpu *v, uint32_t msr, uint64_t *value)
{
	*value = 0;
	return true;
}

/* IA32_XSS: no supervisor state is offered. MCG_STATUS: no machine checks happen. */
static bool zero_write(struct vcpu *v, uint32_t msr, uint64_t value) { return !value; }

/* The MMU looks at the mirror in the state. */
static bool apic_base_read(struct vcpu *v, uint32_t msr, uint64_t *value)
{
	if (v->irqchip) {
		machine_lock(v);
		v->s.apic_base = lapic_base_read(v->irqchip, v->index);
		machine_unlock(v);
	}
	*value = v->s.apic_base;
	return true;
}

static bool apic_base_write(struct vcpu *v, uint32_t msr, uint64_t value)
{
	bool ok;

	if (value >> v->cfg->cpuid->phys_bits)
		return false;
	if (!v->irqchip) {
		v->s.apic_base = value;
		return true;
	}
	machine_lock(v);
	ok = lapic_base_write(v->irqchip, v->index, value);
	v->s.apic_base = lapic_base_read(v->irqchip, v->index);
	machine_unlock(v);
	mmu_flush_all(v); /* the APIC's page may have moved */
	return ok;
}

static bool lapic_read(struct vcpu *v, uint32_t msr, uint64_t *value)
{
	bool ok;

	machine_lock(v);
	ok = lapic_msr_read(v->irqchip, v->index, msr, value);
	machine_unlock(v);
	return ok;
}

static bool lapic_write(struct vcpu *v, uint32_t msr, uint64_t value)
{
	bool ok;

	machine_lock(v);
	ok = lapic_msr_write(v->irqchip, v->index, msr, value);
	machine_unlock(v);
	return ok;
}

static bool kvm_read(struct vcpu *v, uint32_t msr, uint64_t *value)
{
	switch (msr) {
	case 0x11:
	case 0x4b564d00:
		*value = v->s.kvm_wall_clock;
		break;
	case 0x12:
	case 0x4b564d01:
		*value = v->s.kvm_system_time;
		break;
	case 0x4b564d02:
		*value = v->s.kvm_async_pf;
		break;
	case 0x4b564d03:
		*value = v->s.kvm_steal_time;
		break;
	case 0x4b564d04:
		*value = v->s.kvm_pv_eoi;
		break;
	default:
		*value = v->s.kvm_poll_control;
		break;
	}
	return true;
}

static bool kvm_write(struct vcpu *v, uint32_t msr, uint64_t value)
{
	switch (msr) {
	case 0x11:
	case 0x4b564d00:
		v->s.kvm_wall_clock = value;
		kvmclock_write_wall(v);
		break;
	case 0x12:
	case 0x4b564d01:
		v->s.kvm_system_time = value;
		kvmclock_update(v);
		break;
	case 0x4b564d02:
		v->s.kvm_async_pf = value;
		break;
	case 0x4b564d03:
		return kvmpv_steal_write(v, value);
	case 0x4b564d04:
		v->s.kvm_pv_eoi = value;
		break;
	default:
		v->s.kvm_poll_control = value;
		break;
	}
	return true;
}

/* --- the list --- */

/* clang-format off */
#define OFF(f) offsetof(struct cpu_state, f)
#define FIELD(nr, f, bits) {nr, nr, MSR_FIELD, OFF(f), bits}
#define CANON(nr, f) {nr, nr, MSR_CANON, OFF(f)}
#define CALL(a, b, r, w) {a, b, MSR_CALL, 0, 0, r, w}
#define CALL_IF(a, b, r, w, there) {a, b, MSR_CALL, 0, 0, r, w, there}
#define CONST_IF(a, b, value, there) {a, b, MSR_CONST, 0, value, NULL, NULL, there}
#define DROP_IF(a, b, value, there) {a, b, MSR_DROP, 0, value, NULL, NULL, there}

static const struct msr_def msrs[] = {
	/* often first */
	CALL_IF(0x6e0, 0x6e0, lapic_read, lapic_write, has_x2apic),              /* IA32_TSC_DEADLINE */
	CALL_IF(0x800, 0x8ff, lapic_read, lapic_write, has_x2apic),              /* x2APIC */
	CALL(0xc0000100, 0xc0000102, base_read, base_write),                     /* FS_BASE, GS_BASE, KERNEL_GS_BASE */
	CALL_IF(0x48, 0x48, spec_ctrl_read, spec_ctrl_write, has_spec_ctrl),     /* IA32_SPEC_CTRL */
	CALL_IF(0x49, 0x49, command_read, command_write, has_ibpb),              /* IA32_PRED_CMD */
	CALL(0x10, 0x10, tsc_read, tsc_write),                                   /* IA32_TSC */
	CALL(MSR_APIC_BASE, MSR_APIC_BASE, apic_base_read, apic_base_write),
	CALL_IF(0x3b, 0x3b, tsc_adjust_read, tsc_adjust_write, has_tsc_adjust),  /* IA32_TSC_ADJUST */
	CALL(MSR_EFER, MSR_EFER, efer_read, efer_write),
	FIELD(0xc0000081, star, UINT64_MAX),
	CANON(0xc0000082, lstar),
	CANON(0xc0000083, cstar),
	FIELD(0xc0000084, sfmask, UINT32_MAX),
	{0xc0000103, 0xc0000103, MSR_FIELD, OFF(tsc_aux), UINT32_MAX, NULL, NULL, has_rdtscp},
	FIELD(0x174, sysenter_cs, UINT32_MAX),
	CANON(0x175, sysenter_esp),
	CANON(0x176, sysenter_eip),
	CALL(MSR_PAT, MSR_PAT, pat_read, pat_write),

	/* memory types: kept, without effect */
	{0xfe, 0xfe, MSR_CONST, 0, 0x508},                                       /* IA32_MTRRCAP: WC, fixed, 8 variable */
	CALL(0x200, 0x20f, mtrr_var_read, mtrr_var_write),
	CALL(0x250, 0x250, mtrr_fixed_read, mtrr_fixed_write),
	CALL(0x258, 0x259, mtrr_fixed_read, mtrr_fixed_write),
	CALL(0x268, 0x26f, mtrr_fixed_read, mtrr_fixed_write),
	CALL(0x2ff, 0x2ff, mtrr_def_read, mtrr_def_write),

	/* machine check: no banks */
	{0x179, 0x179, MSR_CONST, 0, 0},                                         /* IA32_MCG_CAP */
	CALL(0x17a, 0x17a, zero_read, zero_write),                               /* IA32_MCG_STATUS */
	{0x0, 0x1, MSR_DROP, 0, 0},                                              /* IA32_P5_MC_ADDR, _TYPE */

	/* identification, power, debug */
	{0x8b, 0x8b, MSR_DROP, 0, MICROCODE_AMD, NULL, NULL, has_amd},           /* PATCH_LEVEL */
	{0x8b, 0x8b, MSR_DROP, 0, MICROCODE_INTEL, NULL, NULL, has_intel},       /* IA32_BIOS_SIGN_ID */
	DROP_IF(0x79, 0x79, 0, has_intel),                                       /* IA32_BIOS_UPDT_TRIG */
	CONST_IF(0x17, 0x17, 0, has_intel),                                      /* IA32_PLATFORM_ID */
	DROP_IF(0x2a, 0x2a, 0, has_intel),                                       /* EBL_CR_POWERON */
	CONST_IF(0x3a, 0x3a, 1, has_intel),                                      /* IA32_FEATURE_CONTROL: locked, nothing on */
	CONST_IF(0xcd, 0xcd, 3, has_intel),                                      /* FSB_FREQ */
	CONST_IF(0xce, 0xce, 0, has_intel),                                      /* PLATFORM_INFO */
	CALL_IF(0x140, 0x140, zero_read, zero_write, has_intel),                 /* MISC_FEATURES_ENABLES */
	CONST_IF(0x10a, 0x10a, 0, has_arch_caps),
	CALL_IF(0x10b, 0x10b, command_read, command_write, has_flush_cmd),
	FIELD(0x1a0, misc_enable, UINT64_MAX),
	FIELD(0x1d9, debugctl, 3),                                               /* LBR and BTF: kept, without effect */
	{0x1db, 0x1de, MSR_CONST, 0, 0},                                         /* last branch, last exception */
	CALL_IF(0xda0, 0xda0, zero_read, zero_write, has_xsaves),                /* IA32_XSS */

	/* AMD */
	{0xc0010000, 0xc0010007, MSR_DROP, 0, 0, NULL, NULL, has_amd},           /* PERFEVTSEL0-3, PERFCTR0-3: stand still */
	DROP_IF(0xc0010010, 0xc0010010, 0, has_amd),                             /* SYSCFG */
	DROP_IF(0xc0010015, 0xc0010015, HWCR_TSC_FREQ_SEL, has_amd),             /* HWCR */
	DROP_IF(0xc001001a, 0xc001001a, 0, has_amd),                             /* TOP_MEM */
	DROP_IF(0xc001001d, 0xc001001d, 0, has_amd),                             /* TOP_MEM2 */
	DROP_IF(0xc001001f, 0xc001001f, 0, has_amd),                             /* NB_CFG */
	DROP_IF(0xc0010055, 0xc0010055, 0, has_amd),                             /* interrupt pending messages */
	CONST_IF(0xc0010058, 0xc0010058, 0, has_amd),                            /* MMIO configuration base: none */
	CONST_IF(0xc0010112, 0xc0010113, 0, has_amd),                            /* SMM_ADDR, SMM_MASK */
	DROP_IF(0xc0010114, 0xc0010114, 0, has_amd),                             /* VM_CR */
	DROP_IF(0xc0010117, 0xc0010117, 0, has_amd),                             /* VM_HSAVE_PA */
	CONST_IF(0xc0010140, 0xc0010141, 0, has_amd),                            /* OSVW */
	DROP_IF(0xc0011020, 0xc0011023, 0, has_amd),                             /* LS_CFG, IC_CFG, DC_CFG, BU_CFG */
	DROP_IF(0xc0011029, 0xc0011029, DE_CFG_LFENCE, has_amd),                 /* DE_CFG */
	DROP_IF(0xc001102a, 0xc001102b, 0, has_amd),                             /* BU_CFG2, CU_CFG3 */

	/* KVM */
	CALL_IF(0x11, 0x12, kvm_read, kvm_write, has_kvm),                       /* WALL_CLOCK, SYSTEM_TIME */
	CALL_IF(0x4b564d00, 0x4b564d05, kvm_read, kvm_write, has_kvm),
};
/* clang-format on */

static const struct msr_def *find(const struct vcpu *v, uint32_t msr)
{
	for (unsigned i = 0; i < ARRAY_LEN(msrs); i++) {
		const struct msr_def *d = &msrs[i];

		if (msr >= d->first && msr <= d->last && (!d->there || d->there(v, msr)))
			return d;
	}
	return NULL;
}

bool msr_read(struct vcpu *v, uint32_t msr, uint64_t *value)
{
	const struct msr_def *d = find(v, msr);

	if (!d)
		return false;
	switch (d->kind) {
	case MSR_FIELD:
	case MSR_CANON:
		*value = *field(v, d, msr);
		return true;
	case MSR_CONST:
	case MSR_DROP:
		*value = d->arg;
		return true;
	case MSR_CALL:
		return d->read(v, msr, value);
	}
	return false;
}

bool msr_write(struct vcpu *v, uint32_t msr, uint64_t value)
{
	const struct msr_def *d;

	if (msr_is_base(msr))
		return base_write(v, msr, value);
	d = find(v, msr);
	if (!d)
		return false;
	switch (d->kind) {
	case MSR_FIELD:
		if (value & ~d->arg)
			return false;
		*field(v, d, msr) = value;
		return true;
	case MSR_CANON:
		if (!cpu_canonical(value))
			return false;
		*field(v, d, msr) = value;
		return true;
	case MSR_DROP:
		return true;
	case MSR_CALL:
		return d->write(v, msr, value);
	case MSR_CONST:
		break;
	}
	return false;
}
