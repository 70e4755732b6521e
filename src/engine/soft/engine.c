/*
 * The soft engine as engine.h wants it: creation, state in and out, reset.
 */
#include "engine/engine.h"

#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <unistd.h>

#include "engine/soft/cache/cache_int.h"
#include "engine/soft/interp/interp.h"
#include "engine/soft/mmu/mmu.h"
#include "engine/soft/soft_int.h"

#define DEFAULT_CACHE (64 * MIB)

_Static_assert(offsetof(struct soft_vcpu, self) <= VCPU_OFF, "what translated code reads must lie in the mapped part");
_Static_assert(JC_ENTRIES == 1 << 15 && JC_MASK1 == JC_ENTRIES - 1, "the masks select 15 bits");
_Static_assert(JC_ENTRIES * 16 + 8 <= CTX_PRIV_SIZE - 64, "jump cache, page bases and check word share the private pages");

static struct soft_engine *soft_engine(struct engine *e) { return (struct soft_engine *)e; }

bool soft_host_ok(struct error *err)
{
	if (!__builtin_cpu_supports("bmi2")) {
		error_set(err, "soft engine: this CPU has no BMI2");
		return error_hint(err, "any Intel CPU since 2013 or AMD CPU since 2015 has it; a VM may hide it (use its host's CPU model)");
	}
	if (!(getauxval(AT_HWCAP2) & 2)) { /* HWCAP2_FSGSBASE: user mode may use WRGSBASE */
		error_set(err, "soft engine: this host does not let programs set the GS base");
		return error_hint(err, "it takes Linux 5.9 or later, not started with nofsgsbase, and a CPU with FSGSBASE");
	}
	if (!(__builtin_cpu_supports("avx2"))) /* BMI2 without AVX2 exists in no product, only in masked CPU models */
		return error_set(err, "soft engine: this CPU has no AVX2");
	return true;
}

static uint64_t host_xcr0(void)
{
	uint32_t lo, hi;

	__asm__ volatile("xgetbv" : "=a"(lo), "=d"(hi) : "c"(0));
	return (uint64_t)hi << 32 | lo;
}

static void fill_constants(struct soft_vcpu *sv)
{
	sv->mask_page = BIT(48) - BIT(12);
	sv->mask_jc = JC_MASK1;
	sv->mask_jc2 = JC_MASK2;
	sv->mask_fff = 0xfff;
	sv->mask_1000 = 0x1000;
	for (unsigned i = 0; i < ARRAY_LEN(sv->mask_align); i++)
		sv->mask_align[i] = BIT(i) - 1;
	for (unsigned i = 1; i < ARRAY_LEN(sv->mask_high); i++)
		sv->mask_high[i] = (BIT(i) - 1) << (64 - i);
	sv->mask_not_if = ~FL_IF;
	sv->mask_not_ac = ~FL_AC;
	sv->mask_not_df = ~FL_DF;
	sv->mask_sys = FL_TF | FL_IF | FL_DF | FL_IOPL | FL_NT | FL_AC | FL_VIF | FL_VIP | FL_ID;
	sv->mask_ff00 = 0xff00;
	sv->mask_of = FL_OF;
	sv->mask_df = FL_DF;
	sv->mask_count = ~UINT64_C(8191);
	sv->exit_fn = (uintptr_t)soft_exit;
	sv->exit_signal_fn = (uintptr_t)soft_exit_signal;
	sv->xsave_mask = sv->v.cfg->cpuid->xcr0_allowed & host_xcr0();
	atomic_store(&sv->poll_ptr, &sv->poll_ok_word);
	atomic_store(&sv->irq_poll_ptr, &sv->poll_ok_word);
	sv->ctlb_gen = 1;
	sv->pauses = PAUSES_PER_YIELD;
}

struct soft_vcpu *soft_vcpu_new(struct soft_engine *e, unsigned index, struct error *err)
{
	size_t size = align_up(max_u64(sizeof(struct soft_vcpu), VCPU_OFF), PAGE_SIZE);
	int fd = memfd_create("doppel-vcpu", MFD_CLOEXEC);
	struct soft_vcpu *sv = MAP_FAILED;

	if (fd >= 0 && !ftruncate(fd, (off_t)size))
		sv = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (sv == MAP_FAILED) {
		error_set(err, "soft engine: out of memory for a vCPU");
		return NULL;
	}
	sv->self = (uint8_t *)sv;
	sv->v.index = index;
	sv->v.cfg = &e->cfg;
	sv->v.irqchip = e->irqchip;
	sv->v.engine = e;
	sv->cache = e->cache;
	cpu_state_reset(&sv->v.s, index);
	fill_constants(sv);
	sv->bad_page = mmap(NULL, PAGE_SIZE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	sv->masked_pages = mmap(NULL, 4 * PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	mprotect(sv->masked_pages + PAGE_SIZE, 2 * PAGE_SIZE, PROT_NONE);
	sv->hflags_stale = true;
	if (!table_init(sv, fd, err) || !signals_init(sv, err)) {
		close(fd);
		return NULL;
	}
	close(fd);
	return sv;
}

void soft_vcpu_free(struct soft_vcpu *sv)
{
	signals_thread_fini(sv);
	table_fini(sv);
	munmap(sv->altstack, 128 * 1024);
	munmap(sv->bad_page, PAGE_SIZE);
	munmap(sv->masked_pages, 4 * PAGE_SIZE);
	munmap(sv, align_up(max_u64(sizeof(*sv), VCPU_OFF), PAGE_SIZE));
}

/* ---- up-calls of the interrupt chips, machine lock held ---- */

static void chip_kick(void *ctx, unsigned cpu) { soft_request(((struct soft_engine *)ctx)->vcpus[cpu], REQ_IRQ); }
static void chip_nmi(void *ctx, unsigned cpu) { soft_request(((struct soft_engine *)ctx)->vcpus[cpu], REQ_NMI); }
/* A SIPI counts only after the INIT: one that waits to be seen still does not outlive the next INIT. */
static void chip_init(void *ctx, unsigned cpu)
{
	struct soft_engine *e = ctx;

	lapic_init(e->irqchip, cpu);
	atomic_fetch_and(&e->vcpus[cpu]->requests, ~(REQ_SIPI | REQ_NMI));
	soft_request(e->vcpus[cpu], REQ_INIT);
}
static void chip_sipi(void *ctx, unsigned cpu, uint8_t vector)
{
	struct soft_vcpu *sv = ((struct soft_engine *)ctx)->vcpus[cpu];

	atomic_store(&sv->sipi_vector, vector);
	soft_request(sv, REQ_SIPI);
}
static uint64_t chip_tsc(void *ctx, unsigned cpu)
{
	return __builtin_ia32_rdtsc() + ((struct soft_engine *)ctx)->vcpus[cpu]->v.s.tsc_offset;
}

static const struct irqchip_cpu_ops chip_ops = {chip_kick, chip_nmi, chip_init, chip_sipi, chip_tsc};

/* A device wrote guest RAM, somewhere in it a page with translated code. */
static void ram_written(void *ctx, gpa_t gpa, uint64_t len)
{
	struct soft_engine *e = ctx;
	uint64_t off;

	for (gpa_t p = gpa & ~(PAGE_SIZE - 1); p < gpa + len; p += PAGE_SIZE)
		if (ram_offset(e->cfg.ram, p, &off) && __atomic_load_n(&e->watch[off >> PAGE_SHIFT], __ATOMIC_RELAXED))
			cache_invalidate_page(e->cache, p);
}

static void nudge(void *ctx, unsigned member) { soft_request(((struct soft_engine *)ctx)->vcpus[member], REQ_PAUSE); }

static bool map_ram(struct soft_engine *e, struct error *err)
{
	uint64_t size = ram_size(e->cfg.ram);

	e->ram_rw = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, ram_fd(e->cfg.ram), 0);
	e->ram_ro = mmap(NULL, size, PROT_READ, MAP_SHARED | MAP_NORESERVE, ram_fd(e->cfg.ram), 0);
	e->guard = mmap(NULL, 4 * PAGE_SIZE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (e->ram_rw == MAP_FAILED || e->ram_ro == MAP_FAILED || e->guard == MAP_FAILED)
		return error_set(err, "soft engine: cannot map guest RAM of %llu MiB", (unsigned long long)(size / MIB));
	e->watch = ram_watch_map(e->cfg.ram);
	ram_set_watcher(e->cfg.ram, ram_written, e);
	return true;
}

static void soft_destroy(struct engine *eng)
{
	struct soft_engine *e = soft_engine(eng);
	uint64_t size = ram_size(e->cfg.ram);

	ram_set_watcher(e->cfg.ram, NULL, NULL);
	for (unsigned i = 0; i < e->cfg.ncpus; i++) {
		if (e->vcpus && e->vcpus[i])
			soft_vcpu_free(e->vcpus[i]);
	}
	free(e->vcpus);
	cache_free(e->cache);
	irqchip_free(e->irqchip);
	free(e->lapic_timers);
	rendezvous_fini(&e->rendezvous);
	if (e->ram_rw)
		munmap(e->ram_rw, size);
	if (e->ram_ro)
		munmap(e->ram_ro, size);
	if (e->guard)
		munmap(e->guard, 4 * PAGE_SIZE);
	free(e);
}

/*
 * What a process has once and vCPUs share: 2^47 bytes of addresses, of which contexts get 100 TiB; 65,530 mappings (the host's
 * default), of which those of tables get half: each table page in use may split its reservation into two more.
 */
static void share_out(struct soft_engine *e)
{
	uint64_t slots = (UINT64_C(100) << 40) / e->cfg.ncpus / (CTX_KINDS * TABLE_BYTES);

	e->slots = (unsigned)min_u64(max_u64(slots, 1), CTX_SLOTS);
	e->table_pages = (uint32_t)min_u64(8192, 14336 / e->cfg.ncpus);
	for (unsigned i = 0; i < e->cfg.ncpus; i++)
		timer_queue_init(&e->lapic_timers[i]);
}

static struct engine *soft_create(const struct engine_config *cfg, struct error *err)
{
	struct soft_engine *e;
	struct irqchip_config ic;

	if (!soft_host_ok(err))
		return NULL;
	if (cfg->ncpus < 1 || cfg->ncpus > SOFT_MAX_CPUS) {
		error_set(err, "soft engine: %u vCPUs asked for, 1 to %u are supported", cfg->ncpus, SOFT_MAX_CPUS);
		return NULL;
	}
	e = calloc(1, sizeof(*e));
	if (!e || !rendezvous_init(&e->rendezvous, cfg->ncpus, nudge, e) || !(e->vcpus = calloc(cfg->ncpus, sizeof(struct soft_vcpu *))) ||
	    !(e->lapic_timers = calloc(cfg->ncpus, sizeof(*e->lapic_timers)))) {
		if (e)
			rendezvous_fini(&e->rendezvous);
		if (e)
			free(e->vcpus);
		free(e);
		error_set(err, "out of memory");
		return NULL;
	}
	e->e.ops = &engine_soft;
	e->cfg = *cfg;
	share_out(e);
	ic = (struct irqchip_config){.ncpus = cfg->ncpus, .tsc_khz = cfg->cpuid->tsc_khz, .timers = cfg->timers, .cpu_timers = e->lapic_timers,
				     .ops = &chip_ops, .ops_ctx = e};
	if (!map_ram(e, err) || !(e->cache = cache_new(e, cfg->code_cache_bytes ? cfg->code_cache_bytes : DEFAULT_CACHE, err)) ||
	    !(e->irqchip = irqchip_new(&ic, cfg->bus, err)))
		goto fail;
	for (unsigned i = 0; i < cfg->ncpus; i++) {
		e->vcpus[i] = soft_vcpu_new(e, i, err);
		if (!e->vcpus[i])
			goto fail;
	}
	return &e->e;
fail:
	soft_destroy(&e->e);
	return NULL;
}

static const struct irq_sink *soft_irq_sink(struct engine *e)
{
	return irqchip_sink(soft_engine(e)->irqchip);
}

static void soft_get_state(struct engine *e, unsigned vcpu, struct cpu_state *out)
{
	*out = soft_engine(e)->vcpus[vcpu]->v.s;
}

static bool soft_set_state(struct engine *eng, unsigned vcpu, const struct cpu_state *in, struct error *err)
{
	struct soft_engine *e = soft_engine(eng);
	struct soft_vcpu *sv = e->vcpus[vcpu];
	struct cpu_state *s = &sv->v.s;

	if (in->version != CPU_STATE_VERSION)
		return error_set(err, "vCPU state of version %u, this program knows version %u", in->version, CPU_STATE_VERSION);
	*s = *in;
	/* what XRSTOR would refuse */
	memset(s->xsave + 520, 0, 56);
	put_le64(s->xsave + 512, get_le64(s->xsave + 512) & sv->xsave_mask);
	put_le32(s->xsave + 24, get_le32(s->xsave + 24) & 0xffff);
	sv->v.triple_fault = false;
	sv->v.fatal = NULL;
	mmu_flush_all(&sv->v);
	mmu_context_changed(&sv->v);
	lapic_base_write(e->irqchip, vcpu, in->apic_base);
	return true;
}

static enum engine_exit soft_engine_run(struct engine *e, unsigned vcpu)
{
	struct soft_vcpu *sv = soft_engine(e)->vcpus[vcpu];

	if (!sv->tid) {
		sv->tid = gettid();
		signals_thread_init(sv);
	}
	return soft_run(sv);
}

static void soft_kick(struct engine *e, unsigned vcpu)
{
	soft_request(soft_engine(e)->vcpus[vcpu], REQ_KICK);
}

static const char *soft_last_error(struct engine *e, unsigned vcpu)
{
	return soft_engine(e)->vcpus[vcpu]->error;
}

static void soft_reset(struct engine *eng)
{
	struct soft_engine *e = soft_engine(eng);

	pthread_mutex_lock(e->cfg.lock);
	irqchip_reset(e->irqchip);
	pthread_mutex_unlock(e->cfg.lock);
	cache_flush(e->vcpus[0]);
	for (unsigned i = 0; i < e->cfg.ncpus; i++) {
		struct soft_vcpu *sv = e->vcpus[i];

		cpu_state_reset(&sv->v.s, i);
		sv->v.triple_fault = false;
		sv->v.fatal = NULL;
		sv->exc_count = 0;
		mmu_flush_all(&sv->v);
		mmu_context_changed(&sv->v);
		atomic_store(&sv->requests, 0);
		atomic_store(&sv->unhalted, false);
	}
}

const struct engine_ops engine_soft = {
	.name = "soft",
	.create = soft_create,
	.destroy = soft_destroy,
	.irq_sink = soft_irq_sink,
	.get_state = soft_get_state,
	.set_state = soft_set_state,
	.run = soft_engine_run,
	.kick = soft_kick,
	.last_error = soft_last_error,
	.reset = soft_reset,
	.stats = soft_stats_put,
};
