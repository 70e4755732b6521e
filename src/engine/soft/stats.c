/*
 * What the soft engine counts, and where its time goes. Counters are plain words that only the vCPU's thread (and its
 * signal handlers) write; other threads read them as they are.
 */
#include <signal.h>
#include <stdatomic.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "engine/soft/cache/cache_int.h"
#include "engine/soft/soft_int.h"

#define SAMPLE_NS 2000000 /* of CPU time */

/* ---- time ---- */

static uint64_t cpu_time(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &ts);
	return (uint64_t)ts.tv_sec * 1000000000 + (uint64_t)ts.tv_nsec;
}

void time_start(struct soft_vcpu *sv)
{
	struct sigevent ev = {.sigev_notify = SIGEV_THREAD_ID, .sigev_signo = SOFT_SIGNAL, .sigev_value.sival_ptr = &sv->time};
	struct itimerspec its = {.it_value.tv_nsec = SAMPLE_NS, .it_interval.tv_nsec = SAMPLE_NS};

	ev._sigev_un._tid = (int)syscall(SYS_gettid);
	sv->time.last = cpu_time();
	sv->time.timer_ok = !timer_create(CLOCK_THREAD_CPUTIME_ID, &ev, &sv->time.timer) &&
			    !timer_settime(sv->time.timer, 0, &its, NULL); /* without it times stay 0 */
}

void time_stop(struct soft_vcpu *sv)
{
	if (sv->time.timer_ok)
		timer_delete(sv->time.timer);
	sv->time.timer_ok = false;
}

void time_sample(struct soft_vcpu *sv, const void *host_pc)
{
	uint64_t now = cpu_time(), ns = now - sv->time.last;

	sv->time.last = now;
	if (!cache_contains(sv->cache, (uintptr_t)host_pc))
		sv->time.vmm += ns;
	else if (cpu_cpl(&sv->v.s) == 0)
		sv->time.kernel += ns;
	else
		sv->time.user += ns;
}

void time_halt(struct soft_vcpu *sv, bool begin)
{
	int64_t now = clock_now();

	if (begin) {
		__atomic_store_n(&sv->time.halted, now, __ATOMIC_RELAXED);
		return;
	}
	sv->time.idle += (uint64_t)(now - sv->time.halted);
	__atomic_store_n(&sv->time.halted, 0, __ATOMIC_RELAXED);
}

/* With the halt that goes on. Between the two loads one may end: then the value is a little too small or too large, once. */
static uint64_t idle_time(const struct soft_vcpu *sv)
{
	int64_t since = __atomic_load_n(&sv->time.halted, __ATOMIC_RELAXED), now = clock_now();
	uint64_t idle = counter_peek(&sv->time.idle);

	return since && now > since ? idle + (uint64_t)(now - since) : idle;
}

/* ---- counters ---- */

static const struct {
	const char *name;
	size_t offset; /* in struct soft_stats */
	const char *help;
} rows[] = {
#define ROW(name, field, help) {name, offsetof(struct soft_stats, field), help}
	ROW("translations", translations, "blocks translated"),
	ROW("translated.instructions", insns, "guest instructions in them"),
	ROW("links", links, "exits of blocks that were linked to the next block"),
	ROW("entries", entries, "times that translated code was entered"),
	ROW("exits.chain", chains, "exits to a block that was not linked"),
	ROW("exits.lookup", lookups, "indirect branches that missed the jump cache"),
	ROW("exits.poll", polls, "exits because of a request: timer, interrupt, stop"),
	ROW("exits.fault", faults, "exits with an exception of the guest"),
	ROW("slow", slow, "instructions executed by the slow path"),
	ROW("signals", sig_segv, "host signals taken in translated code"),
	ROW("mmu.fills", fills, "guest pages made accessible"),
	ROW("mmu.fills.large", large_fills, "of them, filled as part of a large page"),
	ROW("mmu.table_pages", table_pages, "pages of addend tables filled"),
	ROW("mmu.flushes", flushes, "TLB and code cache flushes"),
	ROW("mmu.jump_cache_clears", jc_clears, "jump caches emptied"),
	ROW("smc", smc, "writes to pages that hold translated code"),
	ROW("invalidations", invalidations, "pages whose translations were dropped"),
	ROW("interrupts", interrupts, "interrupts delivered"),
	ROW("halts", halts, "times that the vCPU halted"),
#undef ROW
};

/* "slow.NAME", in the order of enum insn_kind. */
static const char *const slow_names[INSN_KIND_COUNT] = {
	"slow.NATIVE", "slow.NOP", "slow.LEA",
#define X(name) "slow." #name,
	INSN_KINDS(X)
#undef X
};

static void put_vcpu(struct soft_vcpu *sv, const struct counter_sink *out)
{
	const uint8_t *base = (const uint8_t *)&sv->stats;

	counter_put(out, "time.user", "ns", false, counter_peek(&sv->time.user), "CPU time in translated code, guest CPL 1 to 3");
	counter_put(out, "time.kernel", "ns", false, counter_peek(&sv->time.kernel), "CPU time in translated code, guest CPL 0");
	counter_put(out, "time.vmm", "ns", false, counter_peek(&sv->time.vmm), "CPU time in the VMM: translator, MMU, slow path, devices");
	counter_put(out, "time.idle", "ns", false, idle_time(sv), "time halted");
	for (size_t i = 0; i < ARRAY_LEN(rows); i++)
		counter_put(out, rows[i].name, "", false, counter_peek((const uint64_t *)(base + rows[i].offset)), rows[i].help);
	for (size_t i = 0; i < ARRAY_LEN(slow_names); i++) {
		uint64_t n = counter_peek(&sv->stats.slow_kind[i]);

		if (n)
			counter_put(out, slow_names[i], "", false, n, "of them, of this kind");
	}
}

void soft_stats_put(struct engine *eng, unsigned vcpu, const struct counter_sink *out)
{
	struct soft_engine *e = (struct soft_engine *)eng;
	const struct code_cache *c = e->cache;

	if (vcpu != ENGINE_VM) {
		put_vcpu(e->vcpus[vcpu], out);
		return;
	}
	counter_put(out, "code_cache.size", "bytes", true, c->size, "memory for translated code");
	counter_put(out, "code_cache.used", "bytes", true, __atomic_load_n(&c->used, __ATOMIC_RELAXED), "of it, in use");
	counter_put(out, "code_cache.blocks", "", true, atomic_load_explicit(&c->nblocks, memory_order_relaxed), "translated blocks in it");
}
