#include "cpu/cpuid.h"

#include <cpuid.h>
#include <string.h>

#include "cpu/cpuid_int.h"

#define SIGNATURE_KVM                                                                                                  \
	{                                                                                                              \
		0x4b4d564b, 0x564b4d56, 0x0000004d                                                                     \
	} /* "KVMKVMKVM\0\0\0" */
#define HV_BASE 0x40000000
#define HV_FEATURES 0x40000001
#define HV_TIMING 0x40000010
#define APIC_BUS_KHZ 1000000 /* the LAPIC timer counts nanoseconds, as KVM's does */
#define LINEAR_BITS 48
#define PHYS_BITS_MAX 48
#define PHYS_BITS_BASELINE 39
#define BASIC_MAX_INTEL 0x16
#define BASIC_MAX_AMD 0xd
#define EXT_MAX_INTEL 0x80000008
#define EXT_MAX_AMD 0x80000021
#define EXT_MAX_BASELINE 0x80000008
/* Family and model that no kernel has quirks for: Intel 6/15, AMD 31/0. */
#define BASELINE_SIGNATURE_INTEL 0x000006fb
#define BASELINE_SIGNATURE_AMD 0x01000f00
/* 0x80000001 EDX of AMD: these bits are leaf 1's. */
#define AMD_REPEATS 0x0183f3ff
#define XSAVE_LEGACY 576

struct build {
	struct cpuid_policy *p;
	const struct cpuid_host *host;
	enum cpuid_vendor vendor;
	uint64_t xcr0;	/* components that the host can hold */
	unsigned width; /* bits of an APIC id */
};

static struct cpuid_regs read_native(const struct cpuid_host *h, uint32_t leaf, uint32_t subleaf)
{
	struct cpuid_regs r = {0}, top;

	__cpuid(leaf & 0xf0000000, top.eax, top.ebx, top.ecx, top.edx);
	if ((leaf & 0xf0000000) <= top.eax && leaf <= top.eax)
		__cpuid_count(leaf, subleaf, r.eax, r.ebx, r.ecx, r.edx);
	return r;
}

struct cpuid_host cpuid_host_native(void)
{
	struct cpuid_host h = {.read = read_native};

	if (read_native(&h, 1, 0).ecx & BIT(27)) {
		uint32_t lo, hi;

		__asm__ volatile("xgetbv" : "=a"(lo), "=d"(hi) : "c"(0));
		h.xcr0 = (uint64_t)hi << 32 | lo;
	}
	return h;
}

static uint32_t reg_get(const struct cpuid_regs *r, enum cpuid_reg reg)
{
	const uint32_t v[] = {r->eax, r->ebx, r->ecx, r->edx};

	return v[reg];
}

static const struct cpuid_entry *find(const struct cpuid_policy *p, uint32_t leaf, uint32_t subleaf)
{
	for (unsigned i = 0; i < p->count; i++)
		if (p->e[i].leaf == leaf && (!p->e[i].has_subleaf || p->e[i].subleaf == subleaf))
			return &p->e[i];
	return NULL;
}

static struct cpuid_regs host_leaf(const struct build *b, uint32_t leaf, uint32_t subleaf)
{
	return b->host->read(b->host, leaf, subleaf);
}

static bool shown(const struct build *b, const struct cpuid_feature *f)
{
	struct cpuid_regs host = host_leaf(b, f->leaf, f->subleaf);

	if ((b->p->model == CPU_BASELINE && !f->baseline) || (f->xcr0 & ~b->xcr0) ||
	    (f->vendor != VENDOR_ANY && f->vendor != b->vendor))
		return false;
	return f->how == MODEL || (reg_get(&host, f->reg) & BIT(f->bit));
}

static uint32_t features(const struct build *b, uint32_t leaf, uint32_t subleaf, enum cpuid_reg reg)
{
	uint32_t v = 0;

	for (unsigned i = 0; i < cpuid_features_count; i++) {
		const struct cpuid_feature *f = &cpuid_features[i];

		if (f->leaf == leaf && f->subleaf == subleaf && f->reg == reg && shown(b, f))
			v |= UINT32_C(1) << f->bit;
	}
	return v;
}

static void add(struct build *b, uint32_t leaf, struct cpuid_regs r)
{
	b->p->e[b->p->count++] = (struct cpuid_entry){.leaf = leaf, .r = r};
}

static void add_sub(struct build *b, uint32_t leaf, uint32_t subleaf, struct cpuid_regs r)
{
	b->p->e[b->p->count++] = (struct cpuid_entry){.leaf = leaf, .subleaf = subleaf, .has_subleaf = true, .r = r};
}

static bool is_max(const struct build *b) { return b->p->model == CPU_MAX; }

static uint32_t signature(const struct build *b)
{
	if (is_max(b))
		return host_leaf(b, 1, 0).eax;
	return b->vendor == VENDOR_AMD ? BASELINE_SIGNATURE_AMD : BASELINE_SIGNATURE_INTEL;
}

/*
 * Deterministic cache parameters, leaf 4 and 0x8000001d: EAX 4-0 type, 7-5 level, 25-14 the CPUs that share it less
 * one, 31-26 (Intel) the cores of the package less one. The first two levels belong to a core, the third to all.
 */
static void add_caches(struct build *b, uint32_t leaf)
{
	uint32_t all = (UINT32_C(1) << b->width) - 1, cores = leaf == 4 ? (all < 63 ? all : 63) : 0;

	for (uint32_t i = 0; i < 8; i++) {
		struct cpuid_regs r = host_leaf(b, leaf, i);
		uint32_t level = (r.eax >> 5) & 7, share = level >= 3 ? all : 0;

		if (!(r.eax & 0x1f)) {
			add_sub(b, leaf, i, (struct cpuid_regs){0});
			return;
		}
		r.eax = (r.eax & 0x3fff) | share << 14 | cores << 26;
		add_sub(b, leaf, i, r);
	}
}

/* Extended topology: one thread a core, every core in one package. EDX (the x2APIC id) is filled in by cpuid_query. */
static void add_topology(struct build *b)
{
	add_sub(b, 0xb, 0, (struct cpuid_regs){.eax = 0, .ebx = 1, .ecx = 0 | 1 << 8});
	add_sub(b, 0xb, 1, (struct cpuid_regs){.eax = b->width, .ebx = b->p->ncpus, .ecx = 1 | 2 << 8});
	add_sub(b, 0xb, 2, (struct cpuid_regs){.ecx = 2});
}

/* Size of the XSAVE area for the components, as the policy's leaf 0xd lays them out. */
static uint32_t xsave_size(const struct cpuid_policy *p, uint64_t xcr0, bool compact)
{
	uint32_t size = XSAVE_LEGACY;

	for (unsigned i = 2; i < 63; i++) {
		const struct cpuid_entry *e = xcr0 & BIT(i) ? find(p, 0xd, i) : NULL;

		if (e && compact)
			size = (e->r.ecx & BIT(1) ? (uint32_t)align_up(size, 64) : size) + e->r.eax;
		else if (e)
			size = (uint32_t)max_u64(size, (uint64_t)e->r.ebx + e->r.eax);
	}
	return size;
}

static void add_xsave(struct build *b)
{
	struct cpuid_policy *p = b->p;
	struct cpuid_entry *sub0 = &p->e[p->count];

	add_sub(b, 0xd, 0,
		(struct cpuid_regs){.eax = (uint32_t)p->xcr0_allowed, .edx = (uint32_t)(p->xcr0_allowed >> 32)});
	add_sub(b, 0xd, 1, (struct cpuid_regs){.eax = features(b, 0xd, 1, CPUID_EAX)});
	for (unsigned i = 2; i < 63; i++)
		if (p->xcr0_allowed & BIT(i))
			add_sub(b, 0xd, i, host_leaf(b, 0xd, i));
	sub0->r.ecx = xsave_size(p, p->xcr0_allowed, false);
}

static void add_basic(struct build *b)
{
	struct cpuid_policy *p = b->p;
	struct cpuid_regs vendor = host_leaf(b, 0, 0), sub1 = {.eax = features(b, 7, 1, CPUID_EAX)};
	bool intel = b->vendor == VENDOR_INTEL, xsave;

	vendor.eax = intel ? BASIC_MAX_INTEL : BASIC_MAX_AMD;
	add(b, 0, vendor);
	add(b, 1,
	    (struct cpuid_regs){
		    .eax = signature(b),
		    .ebx = 8 << 8 /* CLFLUSH: 64 bytes */ | p->ncpus << 16,
		    .ecx = features(b, 1, 0, CPUID_ECX),
		    .edx = features(b, 1, 0, CPUID_EDX) | (p->ncpus > 1 ? UINT32_C(1) << 28 : 0), /* HTT */
	    });
	xsave = cpuid_has(p, 1, 0, CPUID_ECX, 26);
	p->xcr0_allowed = xsave ? b->xcr0 : XCR0_X87 | XCR0_SSE;
	if (!cpuid_has(p, 1, 0, CPUID_ECX, 28))
		p->xcr0_allowed &= ~(XCR0_AVX | XCR0_AVX512);
	if (!(features(b, 7, 0, CPUID_EBX) & BIT(16)))
		p->xcr0_allowed &= ~XCR0_AVX512;
	if (intel) {
		add(b, 2, host_leaf(b, 2, 0));
		add_caches(b, 4);
	}
	add(b, 6, (struct cpuid_regs){.eax = features(b, 6, 0, CPUID_EAX)});
	add_sub(b, 7, 0,
		(struct cpuid_regs){
			.eax = sub1.eax ? 1 : 0,
			.ebx = features(b, 7, 0, CPUID_EBX),
			.ecx = features(b, 7, 0, CPUID_ECX),
			.edx = features(b, 7, 0, CPUID_EDX),
		});
	add_sub(b, 7, 1, sub1);
	add_topology(b);
	if (xsave)
		add_xsave(b);
	/* TSC = crystal (which is also the LAPIC timer's clock) * EBX / EAX. */
	if (intel) {
		add(b, 0x15,
		    (struct cpuid_regs){.eax = APIC_BUS_KHZ, .ebx = p->tsc_khz, .ecx = APIC_BUS_KHZ * UINT32_C(1000)});
		add(b, 0x16, (struct cpuid_regs){.eax = p->tsc_khz / 1000, .ebx = p->tsc_khz / 1000, .ecx = 100});
	}
}

/* KVM's paravirtual leaves: kvm-clock (old and new MSRs, stable), no I/O delay; nothing that needs asynchronous help.
 */
static void add_hypervisor(struct build *b)
{
	const uint32_t sig[3] = SIGNATURE_KVM;

	add(b, HV_BASE, (struct cpuid_regs){.eax = HV_TIMING, .ebx = sig[0], .ecx = sig[1], .edx = sig[2]});
	add(b, HV_FEATURES, (struct cpuid_regs){.eax = BIT(0) | BIT(1) | BIT(3) | BIT(24)});
	add(b, HV_TIMING, (struct cpuid_regs){.eax = b->p->tsc_khz, .ebx = APIC_BUS_KHZ});
}

static void add_brand(struct build *b)
{
	char text[48] = "doppel x86-64-v2";

	for (uint32_t i = 0; i < 3; i++) {
		const char *t = text + 16 * i;
		struct cpuid_regs base = {get_le32(t), get_le32(t + 4), get_le32(t + 8), get_le32(t + 12)};

		add(b, 0x80000002 + i, is_max(b) ? host_leaf(b, 0x80000002 + i, 0) : base);
	}
}

static unsigned host_phys_bits(const struct build *b)
{
	unsigned bits = host_leaf(b, 0x80000008, 0).eax & 0xff, most = is_max(b) ? PHYS_BITS_MAX : PHYS_BITS_BASELINE;

	return bits < 36 ? 36 : bits > most ? most : bits;
}

static void add_extended(struct build *b)
{
	struct cpuid_policy *p = b->p;
	bool amd = b->vendor == VENDOR_AMD;
	uint32_t ecx = features(b, 0x80000001, 0, CPUID_ECX), edx = features(b, 0x80000001, 0, CPUID_EDX);
	struct cpuid_regs top = amd ? host_leaf(b, 0, 0) : (struct cpuid_regs){0};

	top.eax = !is_max(b) ? EXT_MAX_BASELINE : amd ? EXT_MAX_AMD : EXT_MAX_INTEL;
	add(b, 0x80000000, top);
	if (amd) {
		ecx |= p->ncpus > 1 ? BIT(1) : 0; /* CmpLegacy */
		edx |= features(b, 1, 0, CPUID_EDX) & AMD_REPEATS;
	}
	add(b, 0x80000001,
	    (struct cpuid_regs){
		    .eax = amd ? signature(b) : 0,
		    .ebx = amd && is_max(b) ? host_leaf(b, 0x80000001, 0).ebx : 0,
		    .ecx = ecx,
		    .edx = edx,
	    });
	add_brand(b);
	add(b, 0x80000005, host_leaf(b, 0x80000005, 0));
	add(b, 0x80000006, host_leaf(b, 0x80000006, 0));
	add(b, 0x80000007, (struct cpuid_regs){.edx = features(b, 0x80000007, 0, CPUID_EDX)});
	p->phys_bits = host_phys_bits(b);
	add(b, 0x80000008,
	    (struct cpuid_regs){
		    .eax = p->phys_bits | LINEAR_BITS << 8,
		    .ebx = features(b, 0x80000008, 0, CPUID_EBX),
		    .ecx = amd ? (p->ncpus - 1) | b->width << 12 : 0,
	    });
	if (!amd || !is_max(b))
		return;
	add(b, 0x80000019, host_leaf(b, 0x80000019, 0)); /* TLB of 1 GiB pages */
	add(b, 0x8000001a, host_leaf(b, 0x8000001a, 0)); /* widths of the FPU */
	if (ecx & BIT(22)) {
		add_caches(b, 0x8000001d);
		add(b, 0x8000001e, (struct cpuid_regs){0}); /* ids: cpuid_query; one thread a core, one node */
	}
	add(b, 0x80000021, (struct cpuid_regs){.eax = features(b, 0x80000021, 0, CPUID_EAX)});
}

/* Control bits whose features are shown. */
static void derive(struct cpuid_policy *p)
{
	static const struct {
		uint64_t cr4;
		uint32_t leaf;
		enum cpuid_reg reg;
		unsigned bit;
	} needs[] = {
		{CR4_TSD, 1, CPUID_EDX, 4},	 {CR4_DE, 1, CPUID_EDX, 2},	     {CR4_PSE, 1, CPUID_EDX, 3},
		{CR4_PAE, 1, CPUID_EDX, 6},	 {CR4_MCE, 1, CPUID_EDX, 7},	     {CR4_PGE, 1, CPUID_EDX, 13},
		{CR4_OSFXSR, 1, CPUID_EDX, 24},	 {CR4_OSXMMEXCPT, 1, CPUID_EDX, 25}, {CR4_PCIDE, 1, CPUID_ECX, 17},
		{CR4_OSXSAVE, 1, CPUID_ECX, 26}, {CR4_FSGSBASE, 7, CPUID_EBX, 0},    {CR4_SMEP, 7, CPUID_EBX, 7},
		{CR4_SMAP, 7, CPUID_EBX, 20},	 {CR4_UMIP, 7, CPUID_ECX, 2},
	};

	p->cr4_allowed = CR4_PCE;
	for (unsigned i = 0; i < ARRAY_LEN(needs); i++)
		if (cpuid_has(p, needs[i].leaf, 0, needs[i].reg, needs[i].bit))
			p->cr4_allowed |= needs[i].cr4;
	p->efer_allowed = EFER_SCE | EFER_LME | EFER_LMA;
	if (cpuid_has(p, 0x80000001, 0, CPUID_EDX, 20))
		p->efer_allowed |= EFER_NXE;
	if (cpuid_has(p, 0x80000021, 0, CPUID_EAX, 8))
		p->efer_allowed |= EFER_AUTOIBRS;
}

static enum cpuid_vendor vendor_of(const struct cpuid_host *host)
{
	struct cpuid_regs r = host->read(host, 0, 0);

	/* "AuthenticAMD", "HygonGenuine"; everybody else follows Intel */
	return r.ebx == 0x68747541 || r.ebx == 0x6f677948 ? VENDOR_AMD : VENDOR_INTEL;
}

/* Components come in steps: AVX on x87 and SSE, the three of AVX-512 together and on AVX. */
static uint64_t usable_xcr0(const struct cpuid_host *host)
{
	uint64_t x = host->xcr0 & host->read(host, 0xd, 0).eax & (XCR0_X87 | XCR0_SSE | XCR0_AVX | XCR0_AVX512);

	if (!(x & XCR0_AVX) || (x & XCR0_AVX512) != XCR0_AVX512)
		x &= ~XCR0_AVX512;
	return (x & 3) == 3 ? x : 0;
}

static bool check_host(const struct cpuid_policy *p, struct error *err)
{
	static const struct {
		uint32_t leaf;
		enum cpuid_reg reg;
		unsigned bit;
		const char *name;
	} needed[] = {
		{1, CPUID_EDX, 0, "x87"},
		{1, CPUID_EDX, 4, "TSC"},
		{1, CPUID_EDX, 6, "PAE"},
		{1, CPUID_EDX, 8, "CMPXCHG8B"},
		{1, CPUID_EDX, 24, "FXSR"},
		{1, CPUID_EDX, 26, "SSE2"},
		{0x80000001, CPUID_EDX, 11, "SYSCALL"},
		{0x80000001, CPUID_EDX, 29, "64-bit mode"},
	};

	for (unsigned i = 0; i < ARRAY_LEN(needed); i++)
		if (!cpuid_has(p, needed[i].leaf, 0, needed[i].reg, needed[i].bit)) {
			error_set(err, "this host's CPUID does not show %s", needed[i].name);
			return error_hint(err, "doppel needs an x86-64 CPU and a 64-bit host");
		}
	return true;
}

bool cpuid_policy_build(struct cpuid_policy *p, const struct cpuid_host *host, enum cpu_model model, unsigned ncpus,
			uint32_t tsc_khz, struct error *err)
{
	struct build b = {.p = p, .host = host};

	if (ncpus < 1 || ncpus > CPUID_CPUS_MAX) {
		error_set(err, "%u CPUs are not possible", ncpus);
		return error_hint(err, "give --cpus a number from 1 to %u", CPUID_CPUS_MAX);
	}
	if (!tsc_khz) {
		error_set(err, "this host's time stamp counter does not tick evenly");
		return error_hint(err, "doppel needs a constant-rate TSC: look for constant_tsc in /proc/cpuinfo");
	}
	*p = (struct cpuid_policy){.model = model, .ncpus = ncpus, .tsc_khz = tsc_khz};
	b.vendor = vendor_of(host);
	b.xcr0 = usable_xcr0(host);
	while (UINT32_C(1) << b.width < ncpus)
		b.width++;
	add_basic(&b);
	add_hypervisor(&b);
	add_extended(&b);
	derive(p);
	return check_host(p, err);
}

bool cpuid_policy_init(struct cpuid_policy *p, enum cpu_model model, unsigned ncpus, uint32_t tsc_khz,
		       struct error *err)
{
	struct cpuid_host host = cpuid_host_native();

	return cpuid_policy_build(p, &host, model, ncpus, tsc_khz, err);
}

bool cpuid_has(const struct cpuid_policy *p, uint32_t leaf, uint32_t subleaf, enum cpuid_reg reg, unsigned bit)
{
	const struct cpuid_entry *e = find(p, leaf, subleaf);

	return e && (reg_get(&e->r, reg) & BIT(bit));
}

/* The fields that follow the vCPU and its state. */
static void fill_dynamic(const struct cpuid_policy *p, const struct cpu_state *s, uint32_t leaf, uint32_t subleaf,
			 struct cpuid_regs *r)
{
	switch (leaf) {
	case 1:
		r->ebx |= s->apic_id << 24;
		if (s->cr4 & CR4_OSXSAVE)
			r->ecx |= UINT32_C(1) << 27;
		break;
	case 0xb:
		r->ecx = (r->ecx & ~UINT32_C(0xff)) | (subleaf & 0xff);
		r->edx = s->apic_id;
		break;
	case 0xd:
		if (subleaf == 0)
			r->ebx = xsave_size(p, s->xcr0, false);
		else if (subleaf == 1 && (r->eax & (BIT(1) | BIT(3))))
			r->ebx = xsave_size(p, s->xcr0, true);
		break;
	case 0x8000001e:
		r->eax = s->apic_id;
		r->ebx = s->apic_id & 0xff;
		break;
	}
	if ((leaf == 1 || (leaf == 0x80000001 && (r->edx & BIT(9)))) && !(s->apic_base & BIT(11)))
		r->edx &= ~UINT32_C(0x200); /* APIC */
}

/* SDM vol. 2A, CPUID: a leaf above the highest basic or extended one reads as the highest basic one; AMD has zeros. */
static uint32_t effective_leaf(const struct cpuid_policy *p, uint32_t leaf)
{
	uint32_t basic = p->e[0].r.eax;
	const struct cpuid_entry *ext = find(p, 0x80000000, 0);

	if (basic != BASIC_MAX_INTEL || leaf <= basic || (leaf >= HV_BASE && leaf < HV_BASE + 0x10000000) ||
	    (leaf >= 0x80000000 && leaf <= ext->r.eax))
		return leaf;
	return basic;
}

struct cpuid_regs cpuid_query(const struct cpuid_policy *p, const struct cpu_state *s, uint32_t leaf, uint32_t subleaf)
{
	uint32_t l = effective_leaf(p, leaf);
	const struct cpuid_entry *e = find(p, l, subleaf);
	struct cpuid_regs r = e ? e->r : (struct cpuid_regs){0};

	if (e || l == 0xb)
		fill_dynamic(p, s, l, subleaf, &r);
	return r;
}

void cpuid_policy_add_kvm(struct cpuid_policy *p, uint32_t features)
{
	for (unsigned i = 0; i < p->count; i++)
		if (p->e[i].leaf == HV_FEATURES)
			p->e[i].r.eax |= features;
}
