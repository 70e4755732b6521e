/*
 * Every CPUID feature that a guest may see. What is not here is hidden, above all what the machine does not model: VME,
 * VMX and SVM, MONITOR and MWAITX, HLE and RTM, protection keys, LA57, CET, AMX, MPX, performance counters, debug store,
 * thermal and power control, SGX, user interrupts, speculation controls (the MSRs behind them), XOP and 3DNow!.
 *
 * Manuals: SDM vol. 2A, CPUID; AMD APM vol. 3, appendix E.
 */
#include "cpu/cpuid_int.h"

/* V2: part of x86-64-v2 or of any platform that runs it. MAX: only in CPU_MAX. */
#define V2 true
#define MAX false
#define BASIC 0x00000001
#define EXT 0x80000001
#define ROW(leaf, sub, reg, bit, how, model, ...) \
	{leaf, sub, CPUID_##reg, bit, how, model, __VA_ARGS__}

#define AVX_STATE .xcr0 = XCR0_AVX
#define AVX512_STATE .xcr0 = XCR0_AVX | XCR0_AVX512
#define XSAVE_STATE .xcr0 = XCR0_X87 | XCR0_SSE

const struct cpuid_feature cpuid_features[] = {
	ROW(BASIC, 0, ECX, 0, HOST, V2, .name = "sse3"),
	ROW(BASIC, 0, ECX, 1, HOST, MAX, .name = "pclmulqdq"),
	ROW(BASIC, 0, ECX, 9, HOST, V2, .name = "ssse3"),
	ROW(BASIC, 0, ECX, 12, HOST, MAX, AVX_STATE, .name = "fma"),
	ROW(BASIC, 0, ECX, 13, HOST, V2, .name = "cmpxchg16b"),
	ROW(BASIC, 0, ECX, 17, HOST, MAX, .name = "pcid"),
	ROW(BASIC, 0, ECX, 19, HOST, V2, .name = "sse4.1"),
	ROW(BASIC, 0, ECX, 20, HOST, V2, .name = "sse4.2"),
	ROW(BASIC, 0, ECX, 21, MODEL, V2, .name = "x2apic"),
	ROW(BASIC, 0, ECX, 22, HOST, MAX, .name = "movbe"),
	ROW(BASIC, 0, ECX, 23, HOST, V2, .name = "popcnt"),
	ROW(BASIC, 0, ECX, 24, MODEL, MAX, .name = "tsc-deadline"), /* counts host TSC ticks: does not travel */
	ROW(BASIC, 0, ECX, 25, HOST, MAX, .name = "aes"),
	ROW(BASIC, 0, ECX, 26, HOST, MAX, XSAVE_STATE, .name = "xsave"),
	ROW(BASIC, 0, ECX, 28, HOST, MAX, AVX_STATE, .name = "avx"),
	ROW(BASIC, 0, ECX, 29, HOST, MAX, AVX_STATE, .name = "f16c"),
	ROW(BASIC, 0, ECX, 30, HOST, MAX, .name = "rdrand"),
	ROW(BASIC, 0, ECX, 31, MODEL, V2, .name = "hypervisor"),

	ROW(BASIC, 0, EDX, 0, HOST, V2, .name = "fpu"),
	ROW(BASIC, 0, EDX, 2, HOST, V2, .name = "de"),
	ROW(BASIC, 0, EDX, 3, HOST, V2, .name = "pse"),
	ROW(BASIC, 0, EDX, 4, HOST, V2, .name = "tsc"),
	ROW(BASIC, 0, EDX, 5, HOST, V2, .name = "msr"),
	ROW(BASIC, 0, EDX, 6, HOST, V2, .name = "pae"),
	ROW(BASIC, 0, EDX, 7, MODEL, V2, .name = "mce"),
	ROW(BASIC, 0, EDX, 8, HOST, V2, .name = "cmpxchg8b"),
	ROW(BASIC, 0, EDX, 9, MODEL, V2, .name = "apic"), /* follows IA32_APIC_BASE bit 11, see cpuid_query */
	ROW(BASIC, 0, EDX, 11, HOST, V2, .name = "sysenter"),
	ROW(BASIC, 0, EDX, 12, MODEL, V2, .name = "mtrr"),
	ROW(BASIC, 0, EDX, 13, HOST, V2, .name = "pge"),
	ROW(BASIC, 0, EDX, 14, MODEL, V2, .name = "mca"),
	ROW(BASIC, 0, EDX, 15, HOST, V2, .name = "cmov"),
	ROW(BASIC, 0, EDX, 16, MODEL, V2, .name = "pat"),
	ROW(BASIC, 0, EDX, 17, HOST, V2, .name = "pse36"),
	ROW(BASIC, 0, EDX, 19, HOST, V2, .name = "clflush"),
	ROW(BASIC, 0, EDX, 23, HOST, V2, .name = "mmx"),
	ROW(BASIC, 0, EDX, 24, HOST, V2, .name = "fxsr"),
	ROW(BASIC, 0, EDX, 25, HOST, V2, .name = "sse"),
	ROW(BASIC, 0, EDX, 26, HOST, V2, .name = "sse2"),
	ROW(BASIC, 0, EDX, 27, HOST, V2, .name = "self-snoop"),

	ROW(6, 0, EAX, 2, MODEL, V2, .name = "arat"),

	ROW(7, 0, EBX, 0, HOST, MAX, .name = "fsgsbase"),
	ROW(7, 0, EBX, 1, MODEL, MAX, .name = "tsc-adjust"),
	ROW(7, 0, EBX, 3, HOST, MAX, .name = "bmi1"),
	ROW(7, 0, EBX, 5, HOST, MAX, AVX_STATE, .name = "avx2"),
	ROW(7, 0, EBX, 6, HOST, MAX, .name = "fdp-excptn-only"), /* not a feature but how the host's x87 behaves */
	ROW(7, 0, EBX, 7, HOST, MAX, .name = "smep"),
	ROW(7, 0, EBX, 8, HOST, MAX, .name = "bmi2"),
	ROW(7, 0, EBX, 9, HOST, MAX, .name = "erms"),
	ROW(7, 0, EBX, 10, HOST, MAX, .name = "invpcid"),
	ROW(7, 0, EBX, 13, HOST, MAX, .name = "zero-fcs-fds"), /* as bit 6 */
	ROW(7, 0, EBX, 16, HOST, MAX, AVX512_STATE, .name = "avx512f"),
	ROW(7, 0, EBX, 17, HOST, MAX, AVX512_STATE, .name = "avx512dq"),
	ROW(7, 0, EBX, 18, HOST, MAX, .name = "rdseed"),
	ROW(7, 0, EBX, 19, HOST, MAX, .name = "adx"),
	ROW(7, 0, EBX, 20, HOST, MAX, .name = "smap"),
	ROW(7, 0, EBX, 21, HOST, MAX, AVX512_STATE, .name = "avx512-ifma"),
	ROW(7, 0, EBX, 23, HOST, MAX, .name = "clflushopt"),
	ROW(7, 0, EBX, 24, HOST, MAX, .name = "clwb"),
	ROW(7, 0, EBX, 28, HOST, MAX, AVX512_STATE, .name = "avx512cd"),
	ROW(7, 0, EBX, 29, HOST, MAX, .name = "sha"),
	ROW(7, 0, EBX, 30, HOST, MAX, AVX512_STATE, .name = "avx512bw"),
	ROW(7, 0, EBX, 31, HOST, MAX, AVX512_STATE, .name = "avx512vl"),

	ROW(7, 0, ECX, 1, HOST, MAX, AVX512_STATE, .name = "avx512-vbmi"),
	ROW(7, 0, ECX, 2, HOST, MAX, .name = "umip"),
	ROW(7, 0, ECX, 6, HOST, MAX, AVX512_STATE, .name = "avx512-vbmi2"),
	ROW(7, 0, ECX, 8, HOST, MAX, .name = "gfni"),
	ROW(7, 0, ECX, 9, HOST, MAX, AVX_STATE, .name = "vaes"),
	ROW(7, 0, ECX, 10, HOST, MAX, AVX_STATE, .name = "vpclmulqdq"),
	ROW(7, 0, ECX, 11, HOST, MAX, AVX512_STATE, .name = "avx512-vnni"),
	ROW(7, 0, ECX, 12, HOST, MAX, AVX512_STATE, .name = "avx512-bitalg"),
	ROW(7, 0, ECX, 14, HOST, MAX, AVX512_STATE, .name = "avx512-vpopcntdq"),
	ROW(7, 0, ECX, 22, HOST, MAX, .name = "rdpid"),

	ROW(7, 0, EDX, 4, HOST, MAX, .name = "fsrm"),
	ROW(7, 0, EDX, 8, HOST, MAX, AVX512_STATE, .name = "avx512-vp2intersect"),
	ROW(7, 0, EDX, 23, HOST, MAX, AVX512_STATE, .name = "avx512-fp16"),

	ROW(7, 1, EAX, 4, HOST, MAX, AVX_STATE, .name = "avx-vnni"),
	ROW(7, 1, EAX, 5, HOST, MAX, AVX512_STATE, .name = "avx512-bf16"),
	ROW(7, 1, EAX, 10, HOST, MAX, .name = "fzrm"),
	ROW(7, 1, EAX, 11, HOST, MAX, .name = "fsrs"),
	ROW(7, 1, EAX, 12, HOST, MAX, .name = "fsrc"),

	ROW(0xd, 1, EAX, 0, HOST, MAX, XSAVE_STATE, .name = "xsaveopt"),
	ROW(0xd, 1, EAX, 1, HOST, MAX, XSAVE_STATE, .name = "xsavec"),
	ROW(0xd, 1, EAX, 2, HOST, MAX, XSAVE_STATE, .name = "xgetbv1"),
	ROW(0xd, 1, EAX, 3, HOST, MAX, XSAVE_STATE, .name = "xsaves"),

	/* Leaf 0x80000001: on AMD EDX repeats bits of leaf 1, see amd_repeats in cpuid.c. */
	ROW(EXT, 0, ECX, 0, HOST, V2, .name = "lahf"),
	ROW(EXT, 0, ECX, 5, HOST, MAX, .name = "lzcnt"),
	ROW(EXT, 0, ECX, 6, HOST, MAX, .vendor = VENDOR_AMD, .name = "sse4a"),
	ROW(EXT, 0, ECX, 7, HOST, MAX, .vendor = VENDOR_AMD, .name = "misalignsse"),
	ROW(EXT, 0, ECX, 8, HOST, MAX, .name = "3dnowprefetch"),
	ROW(EXT, 0, ECX, 22, HOST, MAX, .vendor = VENDOR_AMD, .name = "topology-extensions"),
	ROW(EXT, 0, EDX, 11, HOST, V2, .name = "syscall"),
	ROW(EXT, 0, EDX, 20, HOST, V2, .name = "nx"),
	ROW(EXT, 0, EDX, 22, HOST, MAX, .vendor = VENDOR_AMD, .name = "mmxext"),
	ROW(EXT, 0, EDX, 26, HOST, MAX, .name = "pdpe1gb"),
	ROW(EXT, 0, EDX, 27, HOST, V2, .name = "rdtscp"),
	ROW(EXT, 0, EDX, 29, HOST, V2, .name = "long-mode"),

	ROW(0x80000007, 0, EDX, 8, MODEL, MAX, .name = "invariant-tsc"),

	ROW(0x80000008, 0, EBX, 0, HOST, MAX, .vendor = VENDOR_AMD, .name = "clzero"),
	ROW(0x80000008, 0, EBX, 2, HOST, MAX, .vendor = VENDOR_AMD, .name = "xsaveerptr"),
	ROW(0x80000008, 0, EBX, 26, HOST, MAX, .vendor = VENDOR_AMD, .name = "ssb-no"),
	ROW(0x80000008, 0, EBX, 29, HOST, MAX, .vendor = VENDOR_AMD, .name = "btc-no"),

	ROW(0x80000021, 0, EAX, 2, HOST, MAX, .vendor = VENDOR_AMD, .name = "lfence-serializing"),
	ROW(0x80000021, 0, EAX, 6, MODEL, MAX, .vendor = VENDOR_AMD, .name = "null-selector-clears-base"),
	/* EFER bit 21 is accepted, and under soft no indirect branch of the guest runs as such. */
	ROW(0x80000021, 0, EAX, 8, MODEL, MAX, .vendor = VENDOR_AMD, .name = "automatic-ibrs"),
	ROW(0x80000021, 0, EAX, 29, HOST, MAX, .vendor = VENDOR_AMD, .name = "srso-no"),
};

const unsigned cpuid_features_count = ARRAY_LEN(cpuid_features);
