/*
 * The dispatcher: every exit of translated code and every request from outside lands in soft_run.
 */
#include <linux/futex.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "engine/soft/cache/cache_int.h"
#include "engine/soft/copy.h"
#include "engine/soft/interp/interp.h"
#include "engine/soft/mmu/mmu.h"
#include "engine/soft/soft_int.h"

#define SPIN_GAP_NS 1000000 /* two yields further apart belong to different waits */
#define YIELDS_PER_NAP 8
#define MAX_FLUSHES 4 /* in a row, before the host's refusal to protect a page is taken as final */

void soft_request(struct soft_vcpu *sv, unsigned req)
{
	atomic_fetch_or(&sv->requests, req);
	if (req == REQ_IRQ)
		atomic_store(&sv->irq_poll_ptr, sv->bad_page);
	atomic_store(&sv->poll_ptr, sv->bad_page);
	atomic_fetch_add(&sv->wake, 1);
	if (atomic_load(&sv->waiting))
		syscall(SYS_futex, &sv->wake, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
}

static bool flat_limit(const struct cpu_seg *s, bool code)
{
	if (s->limit != UINT32_MAX || (s->attr & SEG_UNUSABLE) || !(s->attr & SEG_P) || !(s->attr & SEG_S))
		return false;
	return code ? (s->attr & 0xa) == 0xa /* readable code */ : (s->attr & 0xe) == 0x2 /* writable data, expand-up */;
}

uint32_t soft_hflags(const struct vcpu *v)
{
	const struct cpu_state *s = &v->s;
	bool ts = s->cr0 & CR0_TS, em = s->cr0 & CR0_EM;
	unsigned cpl = cpu_cpl(s), iopl = (s->rflags & FL_IOPL) >> FL_IOPL_SHIFT;
	uint32_t hf = vcpu_mode(v);

	if ((hf & HF_MODE) != MODE_64) {
		if (s->seg[SEG_SS].attr & SEG_DB)
			hf |= HF_SS32;
		for (unsigned i = 0; i < SEG_COUNT; i++) {
			if (!flat_limit(&s->seg[i], i == SEG_CS))
				continue;
			hf |= 1u << (HF_FLATLIM_SHIFT + i);
			if (!s->seg[i].base)
				hf |= 1u << (HF_FLAT_SHIFT + i);
		}
	}
	if (!em && !ts)
		hf |= HF_X87;
	if (!em && !ts && (s->cr4 & CR4_OSFXSR))
		hf |= HF_SSE;
	if (!cpu_is_real(s) && !cpu_is_v86(s)) {
		hf |= HF_PE;
		if (!ts && (s->cr4 & CR4_OSXSAVE)) {
			if ((s->xcr0 & 0x6) == 0x6)
				hf |= HF_AVX;
			if ((s->xcr0 & 0xe6) == 0xe6)
				hf |= HF_AVX512;
		}
	}
	if (cpl == 0)
		hf |= HF_CPL0;
	if (cpu_is_v86(s) ? iopl == 3 : cpl <= iopl)
		hf |= HF_IOPL_OK;
	if (cpl == 0 || !(s->cr4 & CR4_TSD))
		hf |= HF_TSC;
	if (s->cr4 & CR4_SMAP)
		hf |= HF_SMAP;
	if (s->cr4 & CR4_FSGSBASE)
		hf |= HF_FSGSBASE;
	if (ts && (s->cr0 & CR0_MP))
		hf |= HF_TS_WAIT;
	if (cpl == 3 && (s->cr0 & CR0_AM) && (s->rflags & FL_AC))
		hf |= HF_ALIGN;
	return hf;
}

static void refresh(struct soft_vcpu *sv)
{
	sv->hflags = soft_hflags(&sv->v);
	sv->hflags_stale = false;
	table_select(sv);
}

/* ---- entering translated code ---- */

#ifdef SOFT_VEC_CHECK
/* A build for tests (HACKING.md): vector state that was left in the registers is found there unchanged. */
static _Thread_local uint8_t vec_left[XSAVE_AREA_SIZE] __attribute__((aligned(64))), vec_found[XSAVE_AREA_SIZE] __attribute__((aligned(64)));

static void vec_xsave(const struct soft_vcpu *sv, uint8_t *area)
{
	__asm__ volatile("xsave64 (%0)" : : "r"(area), "a"((uint32_t)sv->xsave_mask), "d"((uint32_t)(sv->xsave_mask >> 32)) : "memory");
}

static void vec_check_left(struct soft_vcpu *sv) { vec_xsave(sv, vec_left); }

static void vec_check_found(struct soft_vcpu *sv)
{
	if (!sv->v.vec_live)
		return;
	vec_xsave(sv, vec_found);
	for (unsigned i = 0; i < XSAVE_AREA_SIZE; i++) /* but its header */
		if ((i < 512 || i >= 576) && vec_left[i] != vec_found[i]) {
			fprintf(stderr, "vector state at %u: left %#x, found %#x\n", i, vec_left[i], vec_found[i]);
			abort();
		}
	__asm__ volatile("xrstor64 (%0)" : : "r"(vec_found), "a"((uint32_t)sv->xsave_mask), "d"((uint32_t)(sv->xsave_mask >> 32)) : "memory");
}
#else
static void vec_check_left(struct soft_vcpu *sv) {}
static void vec_check_found(struct soft_vcpu *sv) {}
#endif

static void enter(struct soft_vcpu *sv, const void *host)
{
	struct cpu_state *s = &sv->v.s;

	sv->entry = (uintptr_t)host;
	sv->run_flags = (s->rflags & FL_ARITH) | FL_FIXED;
	write_gs((uintptr_t)sv->ctx->gs);
	vec_check_found(sv);
	soft_enter(sv);
	vec_check_left(sv);
#ifndef SOFT_LAZY_VECTORS
	vec_save(&sv->v);
#endif
	s->rflags = (s->rflags & ~FL_ARITH) | (sv->run_flags & FL_ARITH);
	ctx_sync(sv);
	sv->stats.entries++;
}

/* Linear address of the instruction at rip. */
static bool fetch_address(struct soft_vcpu *sv, gva_t *la)
{
	struct cpu_state *s = &sv->v.s;

	*la = s->rip;
	if (cpu_is_64bit(s))
		return cpu_canonical(*la) || vcpu_raise_gp(&sv->v, 0);
	if (s->rip > s->seg[SEG_CS].limit)
		return vcpu_raise_gp(&sv->v, 0);
	*la = (uint32_t)(s->seg[SEG_CS].base + s->rip);
	return true;
}

/* The same bytes were decoded in the same mode before. */
static bool decoded_before(struct soft_vcpu *sv, gva_t la, struct insn *in, uint8_t bytes[16], struct decoded **place)
{
	const uint8_t *host;
	struct decoded *d;
	bool global;
	gpa_t gpa;

	if ((la & (PAGE_SIZE - 1)) > PAGE_SIZE - 16 || !mmu_fetch(sv, la, &gpa, &global) || !(host = ram_ptr(sv->v.cfg->ram, gpa, 16)))
		return false;
	copy_bytes(bytes, host, 16);
	d = *place = &sv->decoded[(gpa ^ gpa >> 6) & (ARRAY_LEN(sv->decoded) - 1)];
	if (!d->in.len || d->in.mode != vcpu_mode(&sv->v) || get_le64(d->bytes) != get_le64(bytes) || get_le64(d->bytes + 8) != get_le64(bytes + 8))
		return false;
	copy_bytes(in, &d->in, sizeof(*in));
	return true;
}

bool soft_fetch_insn(struct soft_vcpu *sv, struct insn *in, uint8_t bytes[16])
{
	struct vcpu *v = &sv->v;
	unsigned have = 0;
	enum decode_result r = DECODE_MORE;
	struct decoded *place = NULL;
	gva_t la;

	if (!fetch_address(sv, &la))
		return false;
	if (decoded_before(sv, la, in, bytes, &place))
		r = DECODE_OK;
	while (r == DECODE_MORE && have < INSN_MAX_LEN) {
		gva_t at = cpu_long_mode(&v->s) ? la + have : (uint32_t)(la + have);
		unsigned n = (unsigned)min_u64(INSN_MAX_LEN - have, PAGE_SIZE - (at & (PAGE_SIZE - 1)));
		const uint8_t *host;
		bool global;
		gpa_t gpa;

		if (!mmu_fetch(sv, at, &gpa, &global))
			return false;
		host = ram_ptr(v->cfg->ram, gpa, n);
		if (!host)
			return vcpu_raise_gp(v, 0);
		copy_bytes(bytes + have, host, n);
		have += n;
		r = insn_decode(bytes, have, vcpu_mode(v), in);
		if (r == DECODE_OK && place && n == INSN_MAX_LEN) {
			copy_bytes(place->bytes, bytes, INSN_MAX_LEN);
			place->bytes[15] = host[15];
			copy_bytes(&place->in, in, sizeof(*in));
		}
	}
	if (r == DECODE_OK) /* its last byte too lies within the limit */
		return cpu_is_64bit(&v->s) || v->s.rip + in->len - 1 <= v->s.seg[SEG_CS].limit || vcpu_raise_gp(v, 0);
	return r == DECODE_TOO_LONG || r == DECODE_MORE ? vcpu_raise_gp(v, 0) : vcpu_raise_ud(v);
}

/* ---- the slow path: one instruction, driven from here ---- */

/* An unmasked x87 exception waits (FSW.ES) and the instruction is one that reports it. */
static bool x87_pending(const struct cpu_state *s, const struct insn *in)
{
	if (in->map == 1 && in->op == 0x2a && in->mem != MEM_NONE) /* CVTPI2Px from memory touches no MMX register */
		return false;
	return in->x87_wait && (s->xsave[512] & 1) && (s->xsave[2] & 0x80);
}

/* #NM, #UD and #MF that come before an instruction's operands. */
static bool check_unit(struct vcpu *v, const struct insn *in)
{
	const struct cpu_state *s = &v->s;
	bool prot = !cpu_is_real(s) && !cpu_is_v86(s);
	uint64_t need = in->unit == UNIT_AVX512 ? 0xe6 : 0x6;

	if (in->vex_gpr && !prot)
		return vcpu_raise_ud(v);
	if (insn_is_fp16(in) && !cpuid_has(v->cfg->cpuid, 7, 0, CPUID_EDX, 23))
		return vcpu_raise_ud(v);
	switch (in->unit) {
	case UNIT_INT:
		return true;
	case UNIT_X87:
		if (in->map == 0 && in->op == 0x9b && !in->has_modrm)
			return (s->cr0 & (CR0_MP | CR0_TS)) != (CR0_MP | CR0_TS) || vcpu_raise(v, EXC_NM);
		if (s->cr0 & CR0_EM)
			return vcpu_raise(v, EXC_NM);
		break;
	case UNIT_MMX:
		if (s->cr0 & CR0_EM)
			return vcpu_raise_ud(v);
		break;
	case UNIT_SSE:
		if ((s->cr0 & CR0_EM) || !(s->cr4 & CR4_OSFXSR))
			return vcpu_raise_ud(v);
		break;
	default:
		if (!prot || !(s->cr4 & CR4_OSXSAVE) || (s->xcr0 & need) != need)
			return vcpu_raise_ud(v);
	}
	if (s->cr0 & CR0_TS)
		return vcpu_raise(v, EXC_NM);
	if (in->x87_wait)
		vec_save(v);
	return !x87_pending(s, in) || vcpu_raise(v, EXC_MF);
}

static bool run_step(struct soft_vcpu *sv, const struct insn *in, const uint8_t *bytes, void *operand)
{
	void *stub = translate_step(sv, in, bytes);

	sv->step_ptr = (uintptr_t)operand;
	sv->stepping = true;
	enter(sv, stub);
	sv->stepping = false;
	if (sv->exit_reason != SX_STEP)
		return false;
	sv->v.s.rip += in->len;
	return true;
}

/* Segment offset and size of the operand; MASKMOV's is implicit. */
static uint64_t operand_offset(const struct vcpu *v, const struct insn *in, unsigned *size)
{
	if (in->kind != INSN_MASKMOV) {
		*size = in->mem_size;
		return insn_mem_offset(in, v->s.gpr, v->s.rip + in->len);
	}
	*size = in->unit == UNIT_MMX ? 8 : 16;
	return v->s.gpr[R_DI] & mask_bytes(in->asz);
}

/*
 * A masked vector instruction whose full operand is not accessible: elements that are masked off do not fault, so the CPU
 * has to tell which count. The operand is put where its inaccessible pages are inaccessible on the host too.
 */
static bool step_masked(struct soft_vcpu *sv, const struct insn *in, const uint8_t *bytes, gva_t la, unsigned size)
{
	static const uint8_t first_page[4] = {1 /* neither */, 0 /* first ok */, 2 /* second ok */, 0};
	struct vcpu *v = &sv->v;
	bool write = in->mem != MEM_READ;
	unsigned off = la & (PAGE_SIZE - 1), n0 = (unsigned)min_u64(size, PAGE_SIZE - off), len[2] = {n0, size - n0}, ok = 0;
	uint8_t data[2][64], *p;
	uint32_t error[2] = {0};

	for (unsigned i = 0; i < 2 && len[i]; i++) {
		gva_t at = la + (i ? n0 : 0);

		if ((!write || mmu_probe_write(v, at, len[i], 0)) && mmu_read(v, at, data[i], len[i], 0))
			ok |= 1u << i;
		else
			error[i] = v->exc.error;
	}
	p = sv->masked_pages + first_page[ok] * PAGE_SIZE + off;
	if (ok == 3) /* became accessible meanwhile */
		p = sv->bounce + (la & 63);
	for (unsigned i = 0; i < 2; i++)
		if (ok & (1u << i))
			copy_bytes(p + (i ? n0 : 0), data[i], len[i]);
	sv->step_fault = 0;
	if (!run_step(sv, in, bytes, p)) {
		uint64_t at = sv->step_fault - (uintptr_t)p;

		if (sv->step_fault && at < size)
			vcpu_raise_pf(v, la + at, error[at >= n0]);
		return false;
	}
	for (unsigned i = 0; i < 2 && write; i++)
		if ((ok & (1u << i)) && !mmu_write(v, la + (i ? n0 : 0), p + (i ? n0 : 0), len[i], 0))
			return false;
	return true;
}

/* The operand has no linear address (v->exc says why): fine when all elements are masked off. */
static bool step_nothing(struct soft_vcpu *sv, const struct insn *in, const uint8_t *bytes)
{
	struct vcpu_exc exc = sv->v.exc;

	if (run_step(sv, in, bytes, sv->masked_pages + PAGE_SIZE))
		return true;
	sv->v.exc = exc;
	return false;
}

/* An implicit LOCK too (SDM vol. 3, 8.1.2.1). */
static bool is_locked(const struct insn *in)
{
	return in->lock || (in->enc == ENC_LEGACY && in->map == 0 && (in->op == 0x86 || in->op == 0x87));
}

/* The operand is MMIO or crosses a page: through a buffer of the same alignment, read, changed and written back. */
static bool step_bounced(struct soft_vcpu *sv, const struct insn *in, const uint8_t *bytes, gva_t la, unsigned size, bool keeps)
{
	struct vcpu *v = &sv->v;
	bool write = in->mem != MEM_READ;
	uint8_t *bounce = sv->bounce + (la & 63);

	if (write && !mmu_probe_write(v, la, size, 0))
		return in->mem_masked ? step_masked(sv, in, bytes, la, size) : false;
	if ((in->mem != MEM_WRITE || keeps) && !mmu_read(v, la, bounce, size, MMU_READ))
		return !write && in->mem_masked ? step_masked(sv, in, bytes, la, size) : false;
	if (!run_step(sv, in, bytes, bounce))
		return false;
	return !write || mmu_write(v, la, bounce, size, 0);
}

static bool step_memory(struct soft_vcpu *sv, const struct insn *in, const uint8_t *bytes)
{
	struct vcpu *v = &sv->v;
	bool write = in->mem != MEM_READ, keeps = in->mem_masked || in->kind == INSN_MASKMOV || in->unit == UNIT_X87 /* an unmasked exception stores nothing */;
	unsigned size, flags = write ? MMU_WRITE : MMU_READ;
	uint64_t off = operand_offset(v, in, &size);
	void *host = NULL;
	gva_t la;
	bool ok;

	if (size > BOUNCE_SIZE)
		return vcpu_raise_ud(v);
	/* MXCSR.MM set: the CPU decides, as the buffer below is aligned like the operand */
	if (in->mem_aligned && ((v->s.seg[in->seg].base + off) & (size - 1))) {
		vec_save(v);
		if (!(get_le32(v->s.xsave + 24) & BIT(17)))
			return vcpu_raise_gp(v, 0);
	}
	if (!seg_linear(v, in->seg, off, size, write, &la))
		return in->mem_masked && step_nothing(sv, in, bytes);
	if ((sv->hflags & HF_ALIGN) && size <= 8 && (la & (size - 1)))
		return vcpu_raise_err(v, EXC_AC, 0);
	if ((la & (PAGE_SIZE - 1)) + size <= PAGE_SIZE) {
		if (!mmu_host_ptr(v, la, flags, &host))
			return in->mem_masked ? step_masked(sv, in, bytes, la, size) : false;
		if (host) {
			ok = run_step(sv, in, bytes, host);

			if (write)
				mmu_host_wrote(v, host, size);
			return ok;
		}
	}
	if (!write || (!is_locked(in) && !keeps))
		return step_bounced(sv, in, bytes, la, size, keeps);
	soft_stop_world(sv); /* what is read and written back must not change meanwhile */
	ok = step_bounced(sv, in, bytes, la, size, keeps);
	soft_start_world(sv);
	return ok;
}

/* ---- waiting ---- */

static int64_t thread_cpu_time(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &ts);
	return ts.tv_sec * INT64_C(1000000000) + ts.tv_nsec;
}

/* What this thread did not get of the host's CPUs though it wanted to run, since the last call. */
static uint64_t stolen(struct soft_vcpu *sv)
{
	int64_t total, more;

	if (!(sv->v.s.kvm_steal_time & 1))
		return 0;
	if (!sv->run_since) {
		sv->run_since = clock_now() - thread_cpu_time();
		sv->idle = sv->stolen = 0;
	}
	total = clock_now() - sv->run_since - thread_cpu_time() - sv->idle;
	more = total > sv->stolen ? total - sv->stolen : 0;
	sv->stolen += more;
	return (uint64_t)more;
}

/* Sleep until something is requested, ns at most if not NULL. */
static void wait_for_request(struct soft_vcpu *sv, const struct timespec *ns)
{
	struct rendezvous *w = &sv->v.engine->rendezvous;
	unsigned seen = atomic_load(&sv->wake);
	int64_t before = clock_now();

	kvmpv_pause(&sv->v);
	rendezvous_leave(w, sv->v.index);
	time_halt(sv, true);
	atomic_store(&sv->waiting, true);
	if (!atomic_load(&sv->requests))
		syscall(SYS_futex, &sv->wake, FUTEX_WAIT_PRIVATE, seen, ns, NULL, 0);
	atomic_store(&sv->waiting, false);
	time_halt(sv, false);
	rendezvous_enter(w, sv->v.index);
	sv->idle += clock_now() - before;
	kvmpv_resume(&sv->v, stolen(sv));
}

void vcpu_yield(struct vcpu *v) { sched_yield(); }

void vcpu_unhalt(struct vcpu *v, unsigned target)
{
	struct soft_vcpu *sv = v->engine->vcpus[target];

	atomic_store(&sv->unhalted, true);
	soft_request(sv, REQ_UNHALT);
}

/*
 * The guest has executed many PAUSEs: it waits for another vCPU, whose thread may be waiting for this one's host CPU. Yielding
 * lets those run that wait for the same CPU; when that has not helped for a while, a short sleep leaves the CPU to
 * threads that queue for others.
 */
static void spin_wait(struct soft_vcpu *sv)
{
	static const struct timespec nap = {.tv_nsec = 50000};
	int64_t now = clock_now();

	sv->pauses = PAUSES_PER_YIELD;
	if (sv->v.engine->steps_only)
		return;
	sv->yields = now - sv->last_yield < SPIN_GAP_NS ? sv->yields + 1 : 0;
	if (sv->yields < YIELDS_PER_NAP) {
		sched_yield();
	} else {
		sv->yields = 0;
		wait_for_request(sv, &nap);
	}
	sv->last_yield = clock_now();
}

/*
 * Routines that touch no vector state and need no vector registers, the frequent ones: run while the guest's are live (vec_save).
 * Native instructions want them live, and save them where it must be.
 */
static bool is_light(const struct vcpu *v, const struct insn *in)
{
	switch (in->kind) {
	case INSN_SYSCALL: case INSN_SYSRET: case INSN_IRET: case INSN_SWAPGS: case INSN_MOV_RM_SEG: case INSN_MOV_SEG_RM:
	case INSN_MOV_R_CR: case INSN_MOV_CR_R: case INSN_CLTS: case INSN_INVLPG: case INSN_CPUID: case INSN_RDTSC: case INSN_RDTSCP:
	case INSN_RDFSBASE: case INSN_RDGSBASE: case INSN_WRFSBASE: case INSN_WRGSBASE: case INSN_CLI: case INSN_STI: case INSN_CLAC: case INSN_STAC:
	case INSN_PUSHF: case INSN_POPF: case INSN_NATIVE: case INSN_MASKMOV:
		return true;
	case INSN_WRMSR:
		return msr_is_base((uint32_t)v->s.gpr[R_CX]);
	default:
		return false;
	}
}

/* Execute the instruction at rip. False: v.exc holds its fault. */
static bool step_insn(struct soft_vcpu *sv, struct insn *in)
{
	struct vcpu *v = &sv->v;
	uint8_t bytes[16];

	if (!soft_fetch_insn(sv, in, bytes))
		return false;
	sv->stats.slow++;
	sv->stats.slow_kind[in->kind]++;
	if (!is_light(v, in))
		vec_save(v);
	if (in->kind == INSN_MASKMOV)
		return check_unit(v, in) && step_memory(sv, in, bytes);
	if (in->kind != INSN_NATIVE)
		return interp_exec(v, in);
	if (insn_is_cld_std(in)) {
		v->s.rflags = in->op == 0xfd ? v->s.rflags | FL_DF : v->s.rflags & ~FL_DF;
		v->s.rip += in->len;
		return true;
	}
	if (insn_is_pause(in)) {
		vec_save(v);
		spin_wait(sv);
	}
	if (!check_unit(v, in))
		return false;
	if (in->mem == MEM_NONE) {
		if (!run_step(sv, in, bytes, NULL))
			return false;
	} else if (!step_memory(sv, in, bytes)) {
		return false;
	}
	if (!cpu_is_64bit(&v->s))
		v->s.rip &= 0xffffffff;
	return true;
}

static void deliver(struct soft_vcpu *sv, enum event_type type, uint8_t vector)
{
	unsigned i = sv->exc_count++ % ARRAY_LEN(sv->exc_log);

	if (type == EVENT_EXCEPTION) {
		sv->exc_log[i].rip = sv->v.s.rip;
		sv->exc_log[i].cr2 = sv->v.s.cr2;
		sv->exc_log[i].vector = vector;
		sv->exc_log[i].error = sv->v.exc.has_error ? sv->v.exc.error : 0;
	} else {
		sv->exc_count--;
	}
	if (type == EVENT_EXCEPTION && vector == EXC_PF && !(sv->v.exc.error & PF_I)) {
		sv->faulted.rip = sv->v.s.rip;
		sv->faulted.la = sv->v.s.cr2;
		sv->faulted.cr3 = sv->v.s.cr3;
		sv->faulted.valid = true;
	}
	interp_deliver(&sv->v, type, vector);
	sv->hflags_stale = true;
}

/* INT n and its kin, SYSCALL and SYSENTER clear TF by themselves: no single-step trap follows them. */
static bool traps_itself(const struct insn *in)
{
	switch (in->kind) {
	case INSN_INT: case INSN_INT3: case INSN_INT1: case INSN_INTO: case INSN_SYSCALL: case INSN_SYSENTER:
		return true;
	default:
		return false;
	}
}

static bool code_breakpoint(struct soft_vcpu *sv)
{
	struct cpu_state *s = &sv->v.s;
	gva_t la = cpu_is_64bit(s) ? s->rip : (uint32_t)(s->seg[SEG_CS].base + s->rip);
	uint64_t hit = 0;

	if (s->rflags & FL_RF)
		return false;
	for (unsigned i = 0; i < 4; i++)
		if (((s->dr[7] >> (2 * i)) & 3) && !((s->dr[7] >> (16 + 4 * i)) & 3) && s->dr[i] == la)
			hit |= BIT(i);
	if (hit)
		s->dr[6] = (s->dr[6] & ~UINT64_C(0xf)) | hit;
	return hit;
}

/* I/O breakpoints (SDM vol. 3, 17.2.4): DR0-3 that name a port which the instruction just used. */
static uint8_t io_breakpoints(const struct cpu_state *s, const struct insn *in)
{
	static const uint8_t size[4] = {1, 2, 8, 4};
	unsigned port, len = !(in->op & 1) ? 1 : in->osz == 2 ? 2 : 4;
	uint8_t hits = 0;

	switch (in->kind) {
	case INSN_IN_IMM: case INSN_OUT_IMM:
		port = in->imm & 0xff;
		break;
	case INSN_IN_DX: case INSN_OUT_DX: case INSN_INS: case INSN_OUTS:
		port = s->gpr[R_DX] & 0xffff;
		break;
	default:
		return 0;
	}
	for (unsigned i = 0; i < 4; i++) {
		unsigned n = size[(s->dr[7] >> (18 + 4 * i)) & 3];
		uint64_t at = s->dr[i] & ~(uint64_t)(n - 1);

		if (((s->dr[7] >> (2 * i)) & 3) && ((s->dr[7] >> (16 + 4 * i)) & 3) == 2 && port < at + n && at < port + len)
			hits |= (uint8_t)BIT(i);
	}
	return hits;
}

/* Nothing that hflags and the choice of the context depend on. */
static bool keeps_mode(unsigned kind)
{
	switch (kind) {
	case INSN_MOV_RM_SEG: case INSN_MOV_R_CR: case INSN_CPUID: case INSN_RDTSC: case INSN_RDTSCP: case INSN_RDFSBASE: case INSN_RDGSBASE:
		return true;
	default:
		return false;
	}
}

/* One instruction with all that hangs on instruction boundaries: shadows, RF, TF, breakpoints. */
void soft_step(struct soft_vcpu *sv)
{
	struct cpu_state *s = &sv->v.s;
	bool tf = s->rflags & FL_TF;
	uint64_t rip = s->rip;
	struct insn in;

	if ((s->dr[7] & 0xff) && code_breakpoint(sv)) {
		vcpu_raise(&sv->v, EXC_DB);
		deliver(sv, EVENT_EXCEPTION, EXC_DB);
		return;
	}
	s->shadow_sti = s->shadow_mov_ss = 0;
	sv->data_hits = 0;
	in.kind = INSN_NATIVE;
	if (!step_insn(sv, &in)) {
		if (!sv->v.fatal)
			deliver(sv, EVENT_EXCEPTION, sv->v.exc.vector);
		return;
	}
	if (in.kind != INSN_NATIVE && !keeps_mode(in.kind))
		sv->hflags_stale = true;
	if (s->rip != rip || in.kind == INSN_JMP_REL) {
		if (in.kind != INSN_IRET && in.kind != INSN_POPF)
			s->rflags &= ~FL_RF;
	}
	if ((s->dr[7] & 0xff) && (s->cr4 & CR4_DE))
		sv->data_hits |= io_breakpoints(s, &in);
	tf = tf && !traps_itself(&in);
	if ((tf || sv->data_hits) && !s->shadow_mov_ss && !sv->v.fatal && !sv->v.triple_fault) {
		s->dr[6] = (s->dr[6] & ~UINT64_C(0xf)) | sv->data_hits | (tf ? BIT(14) : 0);
		sv->v.exc = (struct vcpu_exc){.vector = EXC_DB, .is_db_trap = true};
		deliver(sv, EVENT_EXCEPTION, EXC_DB);
	}
}

/* ---- requests from outside ---- */

void soft_stop_world(struct soft_vcpu *sv)
{
	vec_save(&sv->v);
	if (!sv->v.engine->steps_only)
		rendezvous_stop(&sv->v.engine->rendezvous, (int)sv->v.index);
}

void soft_start_world(struct soft_vcpu *sv)
{
	if (!sv->v.engine->steps_only)
		rendezvous_start(&sv->v.engine->rendezvous, (int)sv->v.index);
}

static void run_timers(struct soft_vcpu *sv)
{
	pthread_mutex_lock(sv->v.cfg->lock);
	timer_queue_run(&sv->v.engine->lapic_timers[sv->v.index], clock_now());
	if (sv->v.index == 0)
		timer_queue_run(sv->v.cfg->timers, clock_now());
	pthread_mutex_unlock(sv->v.cfg->lock);
}

/* SDM vol. 3, 8.4.4: the vector names the page where the processor starts, in real mode. */
static void start_up(struct soft_vcpu *sv)
{
	struct cpu_state *s = &sv->v.s;
	unsigned vector = atomic_load(&sv->sipi_vector);

	if (s->run_state != CPU_WAIT_SIPI)
		return;
	s->seg[SEG_CS].sel = (uint16_t)(vector << 8);
	s->seg[SEG_CS].base = vector << 12;
	s->rip = 0;
	s->run_state = CPU_RUNNING;
	sv->hflags_stale = true;
}

/* True: engine_run returns EXIT_KICKED. */
static bool handle_requests(struct soft_vcpu *sv, unsigned req)
{
	if (req & REQ_PAUSE)
		rendezvous_pause(&sv->v.engine->rendezvous, sv->v.index);
	if (req & REQ_TIMER) {
		run_timers(sv);
		kvmpv_resume(&sv->v, stolen(sv));
	}
	if (req & REQ_HOT)
		cache_promote(sv, sv->hot_block);
	if ((req & REQ_NMI) && sv->v.s.run_state < CPU_WAIT_INIT)
		sv->v.s.nmi_pending = 1;
	if (req & REQ_INIT) {
		cpu_state_init(&sv->v.s);
		mmu_flush_all(&sv->v);
		mmu_context_changed(&sv->v);
	}
	if (req & REQ_SIPI)
		start_up(sv);
	return req & REQ_KICK;
}

/* True: an event was delivered, or the vCPU's state changed. */
static bool handle_interrupts(struct soft_vcpu *sv)
{
	struct cpu_state *s = &sv->v.s;
	int vector;

	if (s->shadow_sti || s->shadow_mov_ss || s->run_state >= CPU_WAIT_INIT)
		return false;
	if (s->nmi_pending && !s->nmi_masked) {
		s->nmi_pending = 0;
		s->nmi_masked = 1;
		s->run_state = CPU_RUNNING;
		deliver(sv, EVENT_NMI, EXC_NMI);
		return true;
	}
	if (!irqchip_hint(sv->v.irqchip, sv->v.index))
		return false;
	if (!(s->rflags & FL_IF)) {
		atomic_store(&sv->irq_poll_ptr, sv->bad_page);
		return false;
	}
	vec_save(&sv->v);
	pthread_mutex_lock(sv->v.cfg->lock);
	vector = irqchip_ack(sv->v.irqchip, sv->v.index);
	pthread_mutex_unlock(sv->v.cfg->lock);
	if (vector < 0)
		return false;
	s->run_state = CPU_RUNNING;
	sv->stats.interrupts++;
	deliver(sv, EVENT_INTERRUPT, (uint8_t)vector);
	return true;
}

/* ---- blocks ---- */

static bool linear_is_offset(const struct soft_vcpu *sv)
{
	return (sv->hflags & HF_MODE) == MODE_64 || ((sv->hflags >> (HF_FLAT_SHIFT + SEG_CS)) & 1);
}

/* A crossing block is good while its second page is the same. False: #PF there. */
static bool second_page(struct soft_vcpu *sv, const struct block *b, gva_t la, gpa_t *gpa, bool *global)
{
	gva_t second = (la & ~(PAGE_SIZE - 1)) + PAGE_SIZE;
	bool global2;

	if (!mmu_fetch(sv, cpu_long_mode(&sv->v.s) ? second : (uint32_t)second, gpa, &global2))
		return false;
	*global &= global2;
	return true;
}

/* The block at rip, translated if need be; NULL: exception raised, or there is no room. Lock of the cache held. */
static struct block *find_block_locked(struct soft_vcpu *sv, gva_t la, gpa_t gpa, bool *global)
{
	struct code_cache *c = sv->cache;
	struct block *b = cache_lookup_locked(c, sv->v.s.rip, gpa, sv->hflags);

	if (b && b->crossing) {
		gpa_t gpa2;

		if (!second_page(sv, b, la, &gpa2, global))
			return NULL;
		if (gpa2 != b->gpa2) {
			block_kill_locked(c, b);
			b = NULL;
		}
	}
	if (b)
		return b;
	vec_save(&sv->v);
	if (translate_room(c))
		return translate_locked(sv, sv->v.s.rip, gpa);
	c->flush_wanted = true;
	return NULL;
}

/* Host code for rip; NULL: exception raised. link: the exit that led here, or -1. */
static const void *find_code(struct soft_vcpu *sv, int64_t link)
{
	struct code_cache *c = sv->cache;
	const void *host = link < 0 && linear_is_offset(sv) ? view_find(sv, sv->v.s.rip) : NULL;
	struct block *b;
	bool global, full;
	gva_t la;
	gpa_t gpa;

	if (host)
		return host;
	for (unsigned tries = 0; tries < MAX_FLUSHES; tries++) {
		if (!fetch_address(sv, &la) || !mmu_fetch(sv, la, &gpa, &global))
			return NULL;
		cache_lock(c);
		b = find_block_locked(sv, la, gpa, &global);
		full = !b && c->flush_wanted;
		if (b && link >= 0)
			cache_link_locked(sv, (uint32_t)link, b);
		if (b && linear_is_offset(sv))
			view_add(sv, b, sv->v.s.rip, global);
		if (b)
			host = c->rx + b->host_off;
		cache_unlock(c);
		if (!full)
			return host;
		cache_flush(sv);
		link = -1;
	}
	sv->v.fatal = "the host's limit of memory mappings leaves no room for code (sysctl vm.max_map_count)";
	return NULL;
}

/*
 * An indirect branch to a target that is not canonical: #GP belongs to the branch (SDM vol. 2, CALL, JMP, RET), which has
 * moved rsp by then. at: host address in the branch.
 */
static void undo_branch(struct soft_vcpu *sv, uint64_t at)
{
	struct cpu_state *s = &sv->v.s;
	struct block *b = cache_contains(sv->cache, at) ? cache_find_host(sv->cache, at) : NULL;
	uint64_t target = s->rip;
	uint8_t bytes[16];
	struct insn in;

	vec_save(&sv->v);
	if (!b)
		return;
	s->rip = block_pc(sv, b) + cache_insn_at(sv->cache, b, at)->guest_off;
	if (!soft_fetch_insn(sv, &in, bytes)) {
		s->rip = target;
		return;
	}
	if (in.kind == INSN_RET || in.kind == INSN_RET_IMM)
		s->gpr[R_SP] -= 8 + (in.kind == INSN_RET_IMM ? (uint16_t)in.imm : 0);
	else if (in.kind == INSN_CALL_IND)
		s->gpr[R_SP] += 8;
	else if (in.kind != INSN_JMP_IND)
		s->rip = target;
	vcpu_raise_gp(&sv->v, 0);
	deliver(sv, EVENT_EXCEPTION, EXC_GP);
}

/* Run translated code from rip until it leaves. link: the exit that led here, or -1. */
static void run_blocks(struct soft_vcpu *sv, int64_t *link)
{
	const void *host = find_code(sv, *link);

	*link = -1;
	if (!host) {
		if (!sv->v.fatal)
			deliver(sv, EVENT_EXCEPTION, sv->v.exc.vector);
		return;
	}
	enter(sv, host);
	switch (sv->exit_reason) {
	case SX_CHAIN:
		sv->stats.chains++;
		*link = (int64_t)sv->exit_arg;
		break;
	case SX_LOOKUP:
		sv->stats.lookups++;
		if (!cpu_canonical(sv->v.s.rip) && cpu_is_64bit(&sv->v.s))
			undo_branch(sv, sv->exit_arg);
		break;
	case SX_SLOW:
		soft_step(sv);
		break;
	case SX_POLL:
		sv->stats.polls++;
		break;
	default:
		sv->stats.faults++;
		if (!sv->v.fatal)
			deliver(sv, EVENT_EXCEPTION, sv->v.exc.vector);
		break;
	}
}

static __attribute__((noinline)) enum engine_exit report(struct soft_vcpu *sv)
{
	size_t n;

	vec_save(&sv->v);
	if (sv->v.fatal) {
		snprintf(sv->error, sizeof(sv->error), "soft engine: %s (rip %#lx)", sv->v.fatal, (unsigned long)sv->v.s.rip);
		return EXIT_ERROR;
	}
	n = (size_t)snprintf(sv->error, sizeof(sv->error), "last exceptions, oldest first (vector error rip cr2):\n");
	for (unsigned i = sv->exc_count < 8 ? 0 : sv->exc_count - 8; i < sv->exc_count && n < sizeof(sv->error); i++)
		n += (size_t)snprintf(sv->error + n, sizeof(sv->error) - n, "  %u %#x %#lx %#lx\n", sv->exc_log[i % 8].vector,
				      sv->exc_log[i % 8].error, (unsigned long)sv->exc_log[i % 8].rip, (unsigned long)sv->exc_log[i % 8].cr2);
	return EXIT_TRIPLE_FAULT;
}

/* Blocks (MAX_BLOCK_INSNS long at most) are not cut at the code segment's limit: near it instructions run one by one. */
static bool near_code_limit(const struct cpu_state *s)
{
	uint32_t limit = s->seg[SEG_CS].limit;

	return limit != UINT32_MAX && !cpu_is_64bit(s) && s->rip + 48 * INSN_MAX_LEN > limit;
}

/*
 * Whoever requests sets its bit first and poisons the poll words then: so a word that is readable may be left alone, and one that
 * is not must be made so before the bits are taken. irq_poll_ptr is set again while an interrupt waits: see handle_interrupts.
 */
static unsigned take_requests(struct soft_vcpu *sv)
{
	const void *ok = &sv->poll_ok_word;

	if (!atomic_load(&sv->requests) && atomic_load(&sv->poll_ptr) == ok && atomic_load(&sv->irq_poll_ptr) == ok)
		return 0;
	atomic_store(&sv->poll_ptr, ok);
	atomic_store(&sv->irq_poll_ptr, ok);
	return atomic_exchange(&sv->requests, 0);
}

/*
 * Back at an instruction that had a page fault. What it wanted is likely to be there now: filled in here, it costs no signal.
 * And RF, which the fault's frame had set, means nothing without breakpoints: the instruction need not run alone for it.
 */
static void restart(struct soft_vcpu *sv)
{
	struct cpu_state *s = &sv->v.s;

	if (!(s->dr[7] & 0xff) && !(s->rflags & FL_TF))
		s->rflags &= ~FL_RF;
	if (!sv->faulted.valid || s->rip != sv->faulted.rip || s->cr3 != sv->faulted.cr3)
		return;
	sv->faulted.valid = false;
	table_prefill(sv, sv->faulted.la);
}

static enum engine_exit run_inside(struct soft_vcpu *sv)
{
	struct cpu_state *s = &sv->v.s;
	int64_t link = -1;

	for (;;) {
		unsigned req;

		req = take_requests(sv);
		if (req) {
			link = -1;
			vec_save(&sv->v);
			if (handle_requests(sv, req))
				return EXIT_KICKED;
		}
		if (handle_interrupts(sv))
			link = -1;
		if (sv->v.triple_fault || sv->v.fatal)
			return report(sv);
		if (s->run_state == CPU_HALTED && atomic_exchange(&sv->unhalted, false))
			s->run_state = CPU_RUNNING;
		if (s->run_state != CPU_RUNNING) {
			sv->stats.halts++;
			vec_save(&sv->v);
			wait_for_request(sv, NULL);
			continue;
		}
		if (sv->hflags_stale)
			refresh(sv);
		if (s->rflags & FL_RF)
			restart(sv);
		if ((s->rflags & (FL_TF | FL_RF)) || s->shadow_sti || s->shadow_mov_ss || (s->dr[7] & 0xff) ||
		    near_code_limit(s)) {
			link = -1;
			soft_step(sv);
			continue;
		}
		run_blocks(sv, &link);
	}
}

enum engine_exit soft_run(struct soft_vcpu *sv)
{
	struct rendezvous *w = &sv->v.engine->rendezvous;
	enum engine_exit why;

	rendezvous_enter(w, sv->v.index);
	why = run_inside(sv);
	vec_save(&sv->v);
	rendezvous_leave(w, sv->v.index);
	return why;
}
