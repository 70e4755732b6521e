/* The CPUID policy on this host and on made-up ones: what is hidden, what must agree with what. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdio.h>
#include <string.h>

#include "cpu/cpuid.h"
#include "cpu/cpuid_int.h"

#define KHZ 2596096

/* A CPU that claims everything: each feature bit set. */
static struct cpuid_regs read_boastful(const struct cpuid_host *h, uint32_t leaf, uint32_t subleaf, bool intel)
{
	static const uint32_t sizes[] = {0, 0, 256, 64, 64, 64, 512, 1024, 128, 8, 16, 24, 8, 8, 8, 8, 8, 64, 8192};
	struct cpuid_regs all = {~0u, ~0u, ~0u, ~0u};
	uint32_t off = 576;

	switch (leaf) {
	case 0:
	case 0x80000000:
		all = intel ? (struct cpuid_regs){0x20, 0x756e6547, 0x6c65746e, 0x49656e69}
			    : (struct cpuid_regs){0x20, 0x68747541, 0x444d4163, 0x69746e65};
		all.eax = leaf | 0x28;
		return all;
	case 1:
		all.eax = 0x000806f8;
		return all;
	case 4:
	case 0x8000001d:
		return subleaf < 4 ? (struct cpuid_regs){0xffffc100 | ((subleaf < 2 ? 1 : subleaf) << 5) | 1,
							 0x01c0003f, 63, 0}
				   : (struct cpuid_regs){0};
	case 0xd:
		if (subleaf < 2)
			return all;
		if (subleaf >= ARRAY_LEN(sizes))
			return (struct cpuid_regs){0};
		for (unsigned i = 2; i < subleaf; i++)
			off += sizes[i];
		return (struct cpuid_regs){sizes[subleaf], off, 0, 0};
	case 0x80000008:
		return (struct cpuid_regs){0x00003934, ~0u, ~0u, ~0u};
	}
	return all;
}

static struct cpuid_regs read_intel(const struct cpuid_host *h, uint32_t leaf, uint32_t subleaf)
{
	return read_boastful(h, leaf, subleaf, true);
}

static struct cpuid_regs read_amd(const struct cpuid_host *h, uint32_t leaf, uint32_t subleaf)
{
	return read_boastful(h, leaf, subleaf, false);
}

static struct cpuid_policy build(struct cpuid_host h, enum cpu_model model, unsigned ncpus)
{
	struct cpuid_policy p;
	struct error err;

	if (!cpuid_policy_build(&p, &h, model, ncpus, KHZ, &err))
		fail_msg("%s", err.msg);
	return p;
}

static struct cpuid_regs ask(const struct cpuid_policy *p, uint32_t id, uint32_t leaf, uint32_t subleaf)
{
	static struct cpu_state s;

	cpu_state_reset(&s, id);
	return cpuid_query(p, &s, leaf, subleaf);
}

static bool has(const struct cpuid_policy *p, const char *name)
{
	for (unsigned i = 0; i < cpuid_features_count; i++) {
		const struct cpuid_feature *f = &cpuid_features[i];

		if (!strcmp(f->name, name))
			return cpuid_has(p, f->leaf, f->subleaf, f->reg, f->bit);
	}
	fail_msg("no feature %s", name);
	return false;
}

/* {feature, what it cannot do without} */
static const char *const implies[][2] = {
	{"avx", "xsave"},
	{"avx2", "avx"},
	{"fma", "avx"},
	{"f16c", "avx"},
	{"vaes", "avx"},
	{"vaes", "aes"},
	{"vpclmulqdq", "pclmulqdq"},
	{"avx-vnni", "avx2"},
	{"avx512f", "avx2"},
	{"avx512dq", "avx512f"},
	{"avx512bw", "avx512f"},
	{"avx512vl", "avx512f"},
	{"avx512cd", "avx512f"},
	{"avx512-ifma", "avx512f"},
	{"avx512-vbmi", "avx512bw"},
	{"avx512-vbmi2", "avx512bw"},
	{"avx512-vnni", "avx512f"},
	{"avx512-bitalg", "avx512bw"},
	{"avx512-vpopcntdq", "avx512f"},
	{"avx512-bf16", "avx512bw"},
	{"avx512-fp16", "avx512bw"},
	{"avx512-vp2intersect", "avx512f"},
	{"xsaveopt", "xsave"},
	{"xsavec", "xsave"},
	{"xgetbv1", "xsave"},
	{"xsaves", "xsavec"},
	{"invpcid", "pcid"},
	{"sse4.2", "sse4.1"},
	{"sse4.1", "ssse3"},
	{"ssse3", "sse3"},
	{"sse3", "sse2"},
	{"sse2", "sse"},
	{"sse", "fxsr"},
	{"aes", "sse2"},
	{"pse36", "pse"},
	{"long-mode", "pae"},
	{"long-mode", "sse2"},
	{"nx", "pae"},
	{"x2apic", "apic"},
	{"mca", "mce"},
	{"invariant-tsc", "tsc"},
	{"tsc-deadline", "apic"},
	{"rdtscp", "tsc"},
};

static void check_invariants(const struct cpuid_policy *p)
{
	bool avx512 = has(p, "avx512f");
	struct cpuid_regs xs;

	assert_true(p->count <= CPUID_MAX_ENTRIES);
	for (unsigned i = 0; i < ARRAY_LEN(implies); i++)
		if (has(p, implies[i][0]) && !has(p, implies[i][1]))
			fail_msg("%s without %s", implies[i][0], implies[i][1]);
	for (unsigned i = 0; i < p->count; i++) /* no leaf twice */
		for (unsigned j = 0; j < i; j++)
			assert_false(p->e[i].leaf == p->e[j].leaf && p->e[i].subleaf == p->e[j].subleaf);
	assert_int_equal(p->xcr0_allowed, 3 | (has(p, "avx") ? XCR0_AVX : 0) | (avx512 ? XCR0_AVX512 : 0));
	assert_int_equal(!!(p->cr4_allowed & CR4_OSXSAVE), has(p, "xsave"));
	assert_int_equal(!!(p->cr4_allowed & CR4_PCIDE), has(p, "pcid"));
	assert_int_equal(!!(p->cr4_allowed & CR4_SMEP), has(p, "smep"));
	assert_int_equal(!!(p->cr4_allowed & CR4_SMAP), has(p, "smap"));
	assert_int_equal(!!(p->cr4_allowed & CR4_UMIP), has(p, "umip"));
	assert_int_equal(!!(p->cr4_allowed & CR4_FSGSBASE), has(p, "fsgsbase"));
	assert_int_equal(p->cr4_allowed & (CR4_VME | CR4_PVI | CR4_LA57 | CR4_PKE | BIT(13) | BIT(14) | BIT(23)), 0);
	assert_int_equal(p->efer_allowed & (EFER_SVME | EFER_FFXSR), 0);
	assert_int_equal(!!(p->efer_allowed & EFER_NXE), has(p, "nx"));
	assert_in_range(p->phys_bits, 36, 48);
	assert_int_equal(ask(p, 0, 0x80000008, 0).eax & 0xffff, p->phys_bits | 48 << 8);
	xs = ask(p, 0, 0xd, 0);
	assert_int_equal(xs.eax, has(p, "xsave") ? p->xcr0_allowed : 0);
	if (has(p, "xsave")) {
		assert_int_equal(xs.ebx, 576); /* XCR0 is 1 after reset */
		assert_true(xs.ecx >= 576 && xs.ecx <= XSAVE_AREA_SIZE);
	}
}

/* {leaf, subleaf, register, bit}: what the machine does not model */
static const struct {
	uint32_t leaf, subleaf;
	enum cpuid_reg reg;
	unsigned bit;
} hidden[] = {
	{1, 0, CPUID_EDX, 1} /* VME */,
	{1, 0, CPUID_ECX, 5} /* VMX */,
	{1, 0, CPUID_ECX, 3} /* MONITOR */,
	{1, 0, CPUID_ECX, 2} /* DTES64 */,
	{1, 0, CPUID_EDX, 21} /* DS */,
	{1, 0, CPUID_EDX, 22} /* ACPI */,
	{1, 0, CPUID_ECX, 15} /* PDCM */,
	{1, 0, CPUID_ECX, 6} /* SMX */,
	{1, 0, CPUID_ECX, 7} /* EIST */,
	{1, 0, CPUID_ECX, 27} /* OSXSAVE */,
	{7, 0, CPUID_EBX, 4} /* HLE */,
	{7, 0, CPUID_EBX, 11} /* RTM */,
	{7, 0, CPUID_EBX, 14} /* MPX */,
	{7, 0, CPUID_EBX, 2} /* SGX */,
	{7, 0, CPUID_EBX, 25} /* PT */,
	{7, 0, CPUID_ECX, 3} /* PKU */,
	{7, 0, CPUID_ECX, 4} /* OSPKE */,
	{7, 0, CPUID_ECX, 5} /* WAITPKG */,
	{7, 0, CPUID_ECX, 7} /* SHSTK */,
	{7, 0, CPUID_ECX, 16} /* LA57 */,
	{7, 0, CPUID_ECX, 31} /* PKS */,
	{7, 0, CPUID_EDX, 5} /* UINTR */,
	{7, 0, CPUID_EDX, 20} /* IBT */,
	{7, 0, CPUID_EDX, 22} /* AMX-BF16 */,
	{7, 0, CPUID_EDX, 24} /* AMX-TILE */,
	{7, 0, CPUID_EDX, 26} /* IBRS */,
	{7, 0, CPUID_EDX, 27} /* STIBP */,
	{7, 0, CPUID_EDX, 28} /* L1D_FLUSH */,
	{7, 0, CPUID_EDX, 29} /* ARCH_CAPABILITIES */,
	{7, 0, CPUID_EDX, 31} /* SSBD */,
	{0x80000001, 0, CPUID_ECX, 2} /* SVM */,
	{0x80000001, 0, CPUID_ECX, 10} /* IBS */,
	{0x80000001, 0, CPUID_ECX, 15} /* LWP */,
	{0x80000001, 0, CPUID_ECX, 23} /* PerfCtrExtCore */,
	{0x80000001, 0, CPUID_ECX, 29} /* MONITORX */,
	{0x80000001, 0, CPUID_EDX, 25} /* FFXSR */,
	{0x80000001, 0, CPUID_EDX, 31} /* 3DNow! */,
	{0x80000008, 0, CPUID_EBX, 12} /* IBPB */,
	{0x80000008, 0, CPUID_EBX, 14} /* IBRS */,
	{0x80000008, 0, CPUID_EBX, 15} /* STIBP */,
	{0x80000008, 0, CPUID_EBX, 24} /* SSBD */,
	{0xd, 1, CPUID_EAX, 4} /* XFD */,
	{0xd, 0, CPUID_EAX, 9} /* PKRU state */,
	{0xd, 0, CPUID_EAX, 17} /* tiles */,
};

static void check_hidden(const struct cpuid_policy *p)
{
	static const uint32_t empty[] = {5, 0xa, 0xf, 0x10, 0x12, 0x14, 0x8000000a, 0x8000001b, 0x8000001c, 0x8000001f};

	for (unsigned i = 0; i < ARRAY_LEN(hidden); i++)
		if (cpuid_has(p, hidden[i].leaf, hidden[i].subleaf, hidden[i].reg, hidden[i].bit))
			fail_msg("leaf %x.%x register %d bit %u", hidden[i].leaf, hidden[i].subleaf, hidden[i].reg,
				 hidden[i].bit);
	for (unsigned i = 0; i < ARRAY_LEN(empty); i++)
		for (unsigned j = 0; j < p->count; j++)
			assert_int_not_equal(p->e[j].leaf, empty[i]);
}

static const struct {
	struct cpuid_host host;
	const char *name;
} hosts[] = {
	{{read_intel, 0x602e7}, "Intel with all"}, {{read_amd, 0x2e7}, "AMD with all"},
	{{read_intel, 7}, "Intel, no AVX-512"},	   {{read_amd, 3}, "AMD, SSE only"},
	{{read_intel, 0}, "Intel, no OSXSAVE"},	   {{read_intel, 0xa7}, "Intel, half of AVX-512"},
};

static void test_invariants(void **state)
{
	(void)state;
	for (unsigned i = 0; i <= ARRAY_LEN(hosts); i++)
		for (unsigned m = CPU_MAX; m <= CPU_BASELINE; m++) {
			struct cpuid_policy p =
				build(i ? hosts[i - 1].host : cpuid_host_native(), (enum cpu_model)m, 3);

			check_invariants(&p);
			check_hidden(&p);
			assert_true(has(&p, "x2apic") && has(&p, "hypervisor") && has(&p, "arat"));
		}
}

static void test_os_state(void **state)
{
	struct cpuid_policy full = build(hosts[0].host, CPU_MAX, 1), avx = build(hosts[2].host, CPU_MAX, 1),
			    none = build(hosts[4].host, CPU_MAX, 1), half = build(hosts[5].host, CPU_MAX, 1);

	(void)state;
	assert_true(has(&full, "avx512f") && has(&full, "avx512-fp16") && full.xcr0_allowed == 0xe7);
	assert_true(has(&avx, "avx2") && !has(&avx, "avx512f") && avx.xcr0_allowed == 7);
	assert_true(has(&half, "avx2") && !has(&half, "avx512vl") && half.xcr0_allowed == 7);
	assert_true(!has(&none, "xsave") && !has(&none, "avx") && has(&none, "aes"));
}

/* What CPU_BASELINE may show that user mode can see: x86-64-v2 of the psABI and what every such CPU has. */
static void test_baseline(void **state)
{
	static const char *const v2[] = {"cmpxchg16b", "lahf",	 "popcnt", "sse3", "ssse3",
					 "sse4.1",     "sse4.2", "sse2",   "cmov", "syscall"};
	static const char *const later[] = {"avx",	"avx2",		"bmi1",
					    "bmi2",	"f16c",		"fma",
					    "lzcnt",	"movbe",	"xsave",
					    "aes",	"sha",		"rdrand",
					    "fsgsbase", "pcid",		"smep",
					    "erms",	"rdpid",	"adx",
					    "clzero",	"tsc-deadline", "invariant-tsc",
					    "sse4a",	"gfni",		"rdseed",
					    "mmxext",	"pclmulqdq",	"topology-extensions"};

	(void)state;
	for (unsigned h = 0; h < 2; h++) {
		struct cpuid_policy p = build(hosts[h].host, CPU_BASELINE, 1);

		for (unsigned i = 0; i < ARRAY_LEN(v2); i++)
			assert_true(has(&p, v2[i]));
		for (unsigned i = 0; i < ARRAY_LEN(later); i++)
			assert_false(has(&p, later[i]));
		assert_int_equal(p.xcr0_allowed, 3);
		assert_int_equal(ask(&p, 0, 7, 0).ebx | ask(&p, 0, 7, 0).ecx | ask(&p, 0, 7, 0).edx, 0);
		assert_int_equal(ask(&p, 0, 0x80000000, 0).eax, 0x80000008);
		assert_int_not_equal(ask(&p, 0, 1, 0).eax, 0x000806f8);
		assert_int_equal(p.efer_allowed & EFER_AUTOIBRS, 0);
		assert_int_equal(p.phys_bits, 39);
	}
}

static void check_topology(const struct cpuid_policy *p, unsigned n, bool amd)
{
	for (uint32_t id = 0; id < n; id++) {
		struct cpuid_regs one = ask(p, id, 1, 0), smt = ask(p, id, 0xb, 0), core = ask(p, id, 0xb, 1),
				  end = ask(p, id, 0xb, 2), past = ask(p, id, 0xb, 9);

		assert_int_equal(one.ebx >> 24, id);
		assert_int_equal((one.ebx >> 16) & 0xff, n);
		assert_int_equal(!!(one.edx & BIT(28)), n > 1);
		assert_int_equal(smt.eax, 0);
		assert_int_equal(smt.ebx, 1);
		assert_int_equal(smt.ecx, 0x100);
		assert_true((UINT32_C(1) << core.eax) >= n && (core.eax == 0 || (UINT32_C(1) << (core.eax - 1)) < n));
		assert_int_equal(core.ebx, n);
		assert_int_equal(core.ecx, 0x201);
		assert_true(end.eax == 0 && end.ebx == 0 && end.ecx == 2);
		assert_int_equal(past.ecx, 9);
		assert_true(smt.edx == id && core.edx == id && end.edx == id && past.edx == id);
		if (amd) {
			struct cpuid_regs size = ask(p, id, 0x80000008, 0), unit = ask(p, id, 0x8000001e, 0);

			assert_int_equal(size.ecx, (n - 1) | core.eax << 12);
			assert_true(unit.eax == id && unit.ebx == id && unit.ecx == 0);
			assert_int_equal(cpuid_has(p, 0x80000001, 0, CPUID_ECX, 1), n > 1);
		}
	}
}

static void test_topology(void **state)
{
	static const unsigned counts[] = {1, 2, 3, 4, 7, 8, 64, 254};

	(void)state;
	for (unsigned i = 0; i < ARRAY_LEN(counts); i++) {
		unsigned n = counts[i];
		struct cpuid_policy intel = build(hosts[0].host, CPU_MAX, n), amd = build(hosts[1].host, CPU_MAX, n);
		uint32_t span = (UINT32_C(1) << ask(&amd, 0, 0xb, 1).eax) - 1;

		check_topology(&intel, n, false);
		check_topology(&amd, n, true);
		for (uint32_t sub = 0; sub < 4; sub++) {
			struct cpuid_regs a = ask(&intel, 0, 4, sub), b = ask(&amd, 0, 0x8000001d, sub);
			uint32_t share = sub == 3 ? span : 0;

			assert_int_equal((a.eax >> 14) & 0xfff, share);
			assert_int_equal(a.eax >> 26, span < 63 ? span : 63);
			assert_int_equal((b.eax >> 14) & 0xfff, share);
			assert_int_equal(b.eax >> 26, 0);
		}
		assert_int_equal(ask(&intel, 0, 4, 4).eax, 0);
	}
}

static void test_hypervisor_and_clock(void **state)
{
	struct cpuid_policy intel = build(hosts[0].host, CPU_MAX, 1), amd = build(hosts[1].host, CPU_MAX, 1);
	struct cpuid_regs r = ask(&amd, 0, 0x40000000, 0);

	(void)state;
	assert_int_equal(r.eax, 0x40000010);
	assert_memory_equal(&r.ebx, "KVMKVMKVM\0\0\0", 12);
	assert_int_equal(ask(&amd, 0, 0x40000001, 0).eax, 1 << 0 | 1 << 1 | 1 << 3 | 1 << 24);
	cpuid_policy_add_kvm(&amd, BIT(KVM_PV_UNHALT) | BIT(KVM_STEAL_TIME));
	assert_int_equal(ask(&amd, 0, 0x40000001, 0).eax, 1 << 0 | 1 << 1 | 1 << 3 | 1 << 5 | 1 << 7 | 1 << 24);
	assert_true(cpuid_has(&amd, 0x40000001, 0, CPUID_EAX, KVM_STEAL_TIME));
	r = ask(&amd, 0, 0x40000010, 0);
	assert_true(r.eax == KHZ && r.ebx == 1000000);
	r = ask(&intel, 0, 0x15, 0);
	assert_int_equal((uint64_t)r.ecx * r.ebx / r.eax, KHZ * UINT64_C(1000));
	assert_int_equal(ask(&intel, 0, 0x16, 0).eax, KHZ / 1000);
}

static void test_dynamic(void **state)
{
	static struct cpu_state s;
	struct cpuid_policy p = build(hosts[1].host, CPU_MAX, 1);

	(void)state;
	cpu_state_reset(&s, 0);
	assert_false(cpuid_query(&p, &s, 1, 0).ecx & BIT(27));
	assert_true(cpuid_query(&p, &s, 1, 0).edx & cpuid_query(&p, &s, 0x80000001, 0).edx & BIT(9));
	s.cr4 |= CR4_OSXSAVE;
	s.apic_base &= ~BIT(11);
	s.xcr0 = 7;
	assert_true(cpuid_query(&p, &s, 1, 0).ecx & BIT(27));
	assert_false((cpuid_query(&p, &s, 1, 0).edx | cpuid_query(&p, &s, 0x80000001, 0).edx) & BIT(9));
	assert_int_equal(cpuid_query(&p, &s, 0xd, 0).ebx, 832);
	assert_int_equal(cpuid_query(&p, &s, 0xd, 1).ebx, 832);
	s.xcr0 = 0xe7;
	assert_int_equal(cpuid_query(&p, &s, 0xd, 0).ebx, cpuid_query(&p, &s, 0xd, 0).ecx);
	assert_int_equal(cpuid_query(&p, &s, 0xd, 1).ebx, 576 + 256 + 64 + 512 + 1024);
}

static void test_out_of_range(void **state)
{
	struct cpuid_policy intel = build(hosts[0].host, CPU_MAX, 1), amd = build(hosts[1].host, CPU_MAX, 1);
	static const uint32_t beyond[] = {0x17, 0x1f, 0x3fffffff, 0x80000009, 0xc0000000, 0xffffffff};
	const struct cpuid_regs zero = {0};

	(void)state;
	for (unsigned i = 0; i < ARRAY_LEN(beyond); i++) {
		struct cpuid_regs last = ask(&intel, 0, 0x16, 0), got = ask(&intel, 0, beyond[i], 0);

		assert_memory_equal(&got, &last, sizeof(got));
		got = ask(&amd, 0, beyond[i], 0);
		assert_memory_equal(&got, &zero, sizeof(got));
	}
	for (uint32_t leaf = 0x40000002; leaf < 0x40000200; leaf++) {
		struct cpuid_regs got = ask(&intel, 0, leaf, 0);

		if (leaf != 0x40000010)
			assert_memory_equal(&got, &zero, sizeof(got));
	}
}

static void test_errors(void **state)
{
	struct cpuid_policy p;
	struct error err;

	(void)state;
	assert_false(cpuid_policy_init(&p, CPU_MAX, 0, KHZ, &err));
	assert_true(err.msg[0] && err.hint[0]);
	assert_false(cpuid_policy_init(&p, CPU_MAX, 255, KHZ, &err));
	assert_false(cpuid_policy_init(&p, CPU_MAX, 1, 0, &err));
	assert_true(err.msg[0] && err.hint[0]);
	assert_true(cpuid_policy_init(&p, CPU_MAX, 1, KHZ, &err));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_invariants),
		cmocka_unit_test(test_os_state),
		cmocka_unit_test(test_baseline),
		cmocka_unit_test(test_topology),
		cmocka_unit_test(test_hypervisor_and_clock),
		cmocka_unit_test(test_dynamic),
		cmocka_unit_test(test_out_of_range),
		cmocka_unit_test(test_errors),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
