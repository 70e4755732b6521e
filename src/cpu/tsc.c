#include "cpu/cpuid.h"

#include <cpuid.h>
#include <time.h>

#define WINDOW_NS 10000000
#define SANITY_NS 1000000

struct sample {
	uint64_t tsc;
	int64_t ns;
};

static uint64_t rdtsc_ordered(void)
{
	uint32_t lo, hi;

	__asm__ volatile("lfence; rdtsc; lfence" : "=a"(lo), "=d"(hi)::"memory");
	return (uint64_t)hi << 32 | lo;
}

/* Both clocks at one moment: of some tries the one that was interrupted least. */
static struct sample sample_take(void)
{
	struct sample best = {0};
	uint64_t least = UINT64_MAX;

	for (int i = 0; i < 16; i++) {
		struct timespec ts;
		uint64_t before = rdtsc_ordered(), after;

		clock_gettime(CLOCK_MONOTONIC_RAW, &ts);
		after = rdtsc_ordered();
		if (after - before < least) {
			least = after - before;
			best.tsc = before + (after - before) / 2;
			best.ns = (int64_t)ts.tv_sec * 1000000000 + ts.tv_nsec;
		}
	}
	return best;
}

/* kHz between two samples that lie at least `ns` apart. */
static uint64_t measure(int64_t ns)
{
	struct sample a = sample_take(), b;
	struct timespec nap = {.tv_nsec = ns};

	do {
		clock_nanosleep(CLOCK_MONOTONIC, 0, &nap, NULL);
		b = sample_take();
	} while (b.ns - a.ns < ns);
	if (b.tsc <= a.tsc)
		return 0;
	return (uint64_t)((((unsigned __int128)(b.tsc - a.tsc) * 1000000) + (uint64_t)(b.ns - a.ns) / 2) /
			  (uint64_t)(b.ns - a.ns));
}

static bool near(uint64_t a, uint64_t b, unsigned ppm)
{
	uint64_t d = a > b ? a - b : b - a;

	return d <= mul_div_u64(a, ppm, 1000000);
}

/* What CPUID says, or 0: a hypervisor's timing leaf, else crystal * ratio (some name only the product: the base). */
static uint32_t stated_khz(void)
{
	uint32_t a, b, c, d, base;

	__cpuid(1, a, b, c, d);
	if (c & BIT(31)) {
		__cpuid(0x40000000, a, b, c, d);
		if (a >= 0x40000010 && a < 0x40010000) {
			__cpuid(0x40000010, a, b, c, d);
			return a;
		}
	}
	__cpuid(0, a, b, c, d);
	if (b != 0x756e6547 /* Genu-ineIntel */ || a < 0x15)
		return 0;
	base = a;
	__cpuid(0x15, a, b, c, d);
	if (!a || !b)
		return 0;
	if (c)
		return (uint32_t)(mul_div_u64(c, b, a) / 1000);
	if (base < 0x16)
		return 0;
	__cpuid(0x16, a, b, c, d);
	return (a & 0xffff) * 1000;
}

uint32_t tsc_khz_measure(void)
{
	uint32_t stated = stated_khz();
	uint64_t first, second;

	/* A stated frequency is exact, unless this VM was moved from a host with another one. */
	if (stated && near(stated, measure(SANITY_NS), 20000))
		return stated;
	/* Two windows that agree; a third look when a host pause fell into one of them. */
	first = measure(WINDOW_NS);
	for (int i = 0; i < 3; i++) {
		second = measure(WINDOW_NS);
		if (second <= UINT32_MAX && near(first, second, 500))
			return (uint32_t)((first + second) / 2);
		first = second;
	}
	return 0;
}
