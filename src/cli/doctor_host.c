/*
 * What the host is, and what of it the soft engine needs. Apart from doctor.c because <sys/auxv.h> and cpu/state.h
 * both define PF_W.
 */
#include "cli/doctor.h"

#include <cpuid.h>
#include <errno.h>
#include <linux/seccomp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/sysinfo.h>
#include <sys/utsname.h>
#include <unistd.h>

#define HWCAP2_FSGSBASE 2	/* AT_HWCAP2: WRGSBASE works in user mode */
#define MAP_COUNT_DEFAULT 65530 /* Linux's default of vm.max_map_count */

static void cpu_names(struct host *h)
{
	uint32_t r[12] = {0};

	__get_cpuid(0, &r[0], &r[1], &r[3], &r[2]);
	memcpy(h->vendor, &r[1], 12);
	memset(r, 0, sizeof(r));
	for (unsigned i = 0; i < 3; i++)
		__get_cpuid(0x80000002 + i, &r[4 * i], &r[4 * i + 1], &r[4 * i + 2], &r[4 * i + 3]);
	memcpy(h->cpu, r, 48);
	for (size_t n = strlen(h->cpu); n > 0 && h->cpu[n - 1] == ' '; n--)
		h->cpu[n - 1] = 0;
	memset(r, 0, sizeof(r));
	__get_cpuid(1, &r[0], &r[1], &r[2], &r[3]);
	h->hypervisor = r[2] >> 31;
}

/* A number in a file: behind `key` at the start of a line, or the first one when key is NULL. */
static bool read_number(const char *path, const char *key, uint64_t *out)
{
	FILE *f = fopen(path, "re");
	char line[256];
	bool found = false;

	while (f && !found && fgets(line, sizeof(line), f)) {
		size_t skip = key ? strlen(key) : 0;
		char *end;

		if (key && strncmp(line, key, skip))
			continue;
		*out = strtoull(line + skip, &end, 10);
		found = end != line + skip;
	}
	if (f)
		fclose(f);
	return found;
}

struct host doctor_host(void)
{
	struct host h = {0};
	struct utsname u;
	uint64_t kib;

	cpu_names(&h);
	if (uname(&u) == 0)
		snprintf(h.kernel, sizeof(h.kernel), "%s %s", u.sysname, u.release);
	h.threads = (unsigned)get_nprocs();
	if (read_number("/proc/meminfo", "MemTotal:", &kib))
		h.memory = kib * KIB;
	if (read_number("/proc/meminfo", "MemAvailable:", &kib))
		h.available = kib * KIB;
	return h;
}

/* ---- what the soft engine stands on ---- */

static struct answer say(bool ok, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

static struct answer say(bool ok, const char *fmt, ...)
{
	struct answer a = {.ok = ok};
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(a.value, sizeof(a.value), fmt, ap);
	va_end(ap);
	return a;
}

static struct answer yes_no(bool ok) { return say(ok, ok ? "yes" : "no"); }
static struct answer check_bmi2(void) { return yes_no(__builtin_cpu_supports("bmi2")); }
static struct answer check_avx2(void) { return yes_no(__builtin_cpu_supports("avx2")); }
static struct answer check_avx512(void) { return yes_no(__builtin_cpu_supports("avx512f")); }
static struct answer check_fsgsbase(void) { return yes_no(getauxval(AT_HWCAP2) & HWCAP2_FSGSBASE); }

/* Code is written through one mapping of a memfd and runs from another. */
static struct answer check_code_memory(void)
{
	int fd = memfd_create("doppel-doctor", MFD_CLOEXEC);
	void *p = MAP_FAILED;

	if (fd < 0)
		return say(false, "memfd_create: %s", strerror(errno));
	if (ftruncate(fd, (off_t)PAGE_SIZE) == 0)
		p = mmap(NULL, PAGE_SIZE, PROT_READ | PROT_EXEC, MAP_SHARED, fd, 0);
	struct answer a = p == MAP_FAILED ? say(false, "mapping it executable: %s", strerror(errno)) : yes_no(true);
	if (p != MAP_FAILED)
		munmap(p, PAGE_SIZE);
	close(fd);
	return a;
}

/* What the soft engine reserves, with room for guest RAM. */
#define SOFT_ADDRESS_SPACE (16 * 1024 * GIB)

static struct answer check_address_space(void)
{
	struct rlimit l;

	if (getrlimit(RLIMIT_AS, &l) < 0)
		return say(false, "%s", strerror(errno));
	if (l.rlim_cur == RLIM_INFINITY)
		return say(true, "unlimited");
	return say(l.rlim_cur >= SOFT_ADDRESS_SPACE, "limited to %llu MiB", (unsigned long long)(l.rlim_cur / MIB));
}

static struct answer check_map_count(void)
{
	uint64_t n;

	if (!read_number("/proc/sys/vm/max_map_count", NULL, &n))
		return say(false, "unknown");
	return say(n >= MAP_COUNT_DEFAULT, "%llu", (unsigned long long)n);
}

static struct answer check_overcommit(void)
{
	static const char *const modes[] = {"heuristic", "always", "never"};
	uint64_t n;

	if (!read_number("/proc/sys/vm/overcommit_memory", NULL, &n) || n > 2)
		return say(false, "unknown");
	return say(n != 2, "%s (vm.overcommit_memory = %u)", modes[n], (unsigned)n);
}

static struct answer check_seccomp(void)
{
	/* A NULL filter: EFAULT where filters are known, EINVAL where not. Nothing is installed. */
	bool known = prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, NULL) < 0 && errno == EFAULT;

	return say(known, "%s%s", known ? "filters available" : "no filters",
		   prctl(PR_GET_SECCOMP) == SECCOMP_MODE_FILTER ? ", this process is under one" : "");
}

const struct check doctor_checks[DOCTOR_CHECKS] = {
	{"BMI2", true, check_bmi2, "translated code uses it"},
	{"AVX2", true, check_avx2, "guest vector state is kept by it"},
	{"AVX-512", false, check_avx512, "guests get it where the host has it"},
	{"FSGSBASE in user mode", true, check_fsgsbase, "translated code finds its vCPU by GS"},
	{"executable memfd", true, check_code_memory, "translated code lives in one"},
	{"address space", true, check_address_space, "24 address tables of 512 GiB and guest RAM are reserved, not taken"},
	{"memory maps", false, check_map_count, "vm.max_map_count: room for mappings of guest pages"},
	{"overcommit", false, check_overcommit, "a guest may be larger than free memory"},
	{"seccomp", false, check_seccomp, "for a sandbox to come; not used yet"},
};
