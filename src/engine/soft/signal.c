/*
 * Host signals as the traps of translated code: what the CPU refuses lands here, is told apart, and either repaired (an
 * addend is filled in and the instruction restarted) or turned into an exit to the dispatcher.
 *
 * The handler runs on its own stack, as the guest's stack pointer is in rsp. SS_AUTODISARM, because the guest may point
 * rsp into that very stack, and the kernel would otherwise take it for a nested signal.
 */
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#include "engine/soft/cache/cache_int.h"
#include "engine/soft/mmu/mmu.h"
#include "engine/soft/soft_int.h"

#ifndef SS_AUTODISARM
#define SS_AUTODISARM (1U << 31)
#endif
#define ALTSTACK_SIZE (128 * 1024)
#define MAX_REFILLS 16

/* The vCPU of this thread: signal handlers get no argument. */
static _Thread_local struct soft_vcpu *this_vcpu;

/* Who handled the traps before: dispositions belong to the process, and so does this. */
static struct sigaction previous[NSIG];

static const int reg_of[16] = {
	REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI, REG_R8, REG_R9, REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15,
};

static void leave(struct soft_vcpu *sv, ucontext_t *uc, enum soft_exit_reason reason, uint64_t guest_pc)
{
	sv->exit_reason = reason;
	sv->v.s.rip = guest_pc;
	uc->uc_mcontext.gregs[REG_RIP] = (greg_t)((uintptr_t)sv->cache->rx + sv->cache->exit_signal);
}

static void leave_exc(struct soft_vcpu *sv, ucontext_t *uc, uint64_t guest_pc, uint8_t vector)
{
	vcpu_raise(&sv->v, vector);
	leave(sv, uc, SX_FAULT, guest_pc);
}

/* Linear address of the access that faulted. False: cannot be told here, the slow path will. */
static bool fault_address(struct soft_vcpu *sv, const ucontext_t *uc, const struct insn *in, bool write, uint64_t next, gva_t *la)
{
	const struct cpu_state *s = &sv->v.s;
	bool wide = in->mode == MODE_64, stack_access = false;
	unsigned width = wide ? 8 : 4;
	uint64_t gpr[16];

	for (unsigned i = 0; i < 16; i++) /* find_insn has put r9-r11 there */
		gpr[i] = i >= T2 && i <= T0 ? s->gpr[i] : (uint64_t)uc->uc_mcontext.gregs[reg_of[i]];
	switch (in->kind) {
	case INSN_CALL_REL: case INSN_PUSH_R: case INSN_PUSH_IMM: case INSN_PUSHF:
		stack_access = true;
		break;
	case INSN_CALL_IND: case INSN_PUSH_M:
		stack_access = write;
		break;
	case INSN_RET: case INSN_RET_IMM: case INSN_POP_R:
		*la = wide ? gpr[R_SP] : (uint32_t)gpr[R_SP];
		return true;
	case INSN_LEAVE:
		*la = wide ? gpr[R_BP] : (uint32_t)gpr[R_BP];
		return true;
	case INSN_NATIVE: case INSN_JMP_IND: case INSN_BT_MEM:
		break;
	case INSN_STOS: case INSN_MOVS:
		*la = write ? gpr[R_DI] : gpr[R_SI];
		return true;
	default:
		return false;
	}
	if (stack_access) {
		*la = wide ? gpr[R_SP] - width : (uint32_t)(gpr[R_SP] - width);
		return true;
	}
	if (in->mem == MEM_NONE)
		return false;
	*la = insn_mem_offset(in, gpr, next);
	if (in->kind == INSN_BT_MEM) /* flow.c, bit_in_memory */
		*la += in->osz == 8 ? (uint64_t)((int64_t)gpr[in->reg] >> 6) * 8 : (uint64_t)(int64_t)((int32_t)gpr[in->reg] >> 5) * 4;
	if (!wide)
		*la = (uint32_t)(*la + s->seg[in->seg].base);
	else if (in->seg == SEG_FS || in->seg == SEG_GS)
		*la += s->seg[in->seg].base;
	return true;
}

static void note_slow_site(struct soft_vcpu *sv, struct block *b, uint64_t guest_pc, bool misaligned)
{
	gpa_t gpa = b->gpa + (guest_pc - block_pc(sv, b));
	struct site *s = site_of(sv, gpa);

	cache_lock(sv->cache);
	if (s->gpa != gpa)
		*s = (struct site){.gpa = gpa};
	if (misaligned)
		s->misaligned = true;
	else
		s->slow_hits++;
	if (misaligned || s->slow_hits >= SITE_SLOW_HITS)
		block_kill_locked(sv->cache, b);
	cache_unlock(sv->cache);
}

/* The same access was repaired again and again, and nothing came of it: no host state may make a loop of that. */
static bool refilled_in_vain(struct soft_vcpu *sv, uint64_t insn_host, gva_t la)
{
	if (sv->refill.host != insn_host || sv->refill.la != la) {
		sv->refill.host = insn_host;
		sv->refill.la = la;
		sv->refill.times = 0;
	}
	return ++sv->refill.times > MAX_REFILLS;
}

/* A data access of the guest instruction at guest_pc. */
static void memory_fault(struct soft_vcpu *sv, ucontext_t *uc, const siginfo_t *si, struct block *b, uint64_t guest_pc, uint64_t insn_host,
			 bool reused)
{
	bool write = uc->uc_mcontext.gregs[REG_ERR] & 2;
	uint8_t bytes[16];
	struct insn in;
	gva_t la;

	if (atomic_load(&sv->requests)) {
		leave(sv, uc, SX_POLL, guest_pc);
		return;
	}
	sv->v.s.rip = guest_pc;
	if (!soft_fetch_insn(sv, &in, bytes) || !fault_address(sv, uc, &in, write, guest_pc + in.len, &la) || !cpu_canonical(la)) {
		leave(sv, uc, SX_SLOW, guest_pc);
		return;
	}
	if (in.mem_masked) /* the first element that is not masked off is what faults */
		la = (la & ~(PAGE_SIZE - 1)) | ((uintptr_t)si->si_addr & (PAGE_SIZE - 1));
	switch (table_fill(sv, la, write)) {
	case FILL_OK:
		if (refilled_in_vain(sv, insn_host, la)) {
			leave(sv, uc, SX_SLOW, guest_pc);
			return;
		}
		if (reused) /* its addend is that of the table no more */
			leave(sv, uc, SX_POLL, guest_pc);
		else
			uc->uc_mcontext.gregs[REG_RIP] = (greg_t)insn_host;
		return;
	case FILL_FAULT: /* a pending x87 exception comes first, and the code may have been written meanwhile: the slow path looks */
		leave(sv, uc, in.x87_wait || !cache_block_intact(sv->cache, b) ? SX_SLOW : SX_FAULT, guest_pc);
		return;
	case FILL_MMIO:
		note_slow_site(sv, b, guest_pc, false);
		leave(sv, uc, SX_SLOW, guest_pc);
		return;
	case FILL_CODE: /* a store that happened to hit code, maybe of a shared memcpy: the site stays fast */
		leave(sv, uc, SX_SLOW, guest_pc);
		return;
	}
}

/*
 * A REP MOVS or REP STOS made by the translator (flow.c, rep_string) has host addresses in rdi and rsi: make them the guest's
 * again, whatever becomes of the fault. Told by the host code, as the guest's may have changed meanwhile.
 */
static void unbase_string(ucontext_t *uc)
{
	const uint8_t *p = (const uint8_t *)uc->uc_mcontext.gregs[REG_RIP];

	p += *p == 0x66;
	if (*p++ != 0xf3)
		return;
	p += *p == 0x48;
	if (*p != 0xa4 && *p != 0xa5 && *p != 0xaa && *p != 0xab)
		return;
	uc->uc_mcontext.gregs[REG_RDI] -= uc->uc_mcontext.gregs[reg_of[T1]];
	if (*p < 0xaa)
		uc->uc_mcontext.gregs[REG_RSI] -= uc->uc_mcontext.gregs[reg_of[T2]];
}

/* The instruction at host pc in b: its place, after what the host's registers hold of r9-r11 was put in its place too. */
static uint64_t find_insn(struct soft_vcpu *sv, const ucontext_t *uc, const struct block *b, uint64_t pc, uint64_t *insn_host, bool *reused)
{
	const struct insn_map *m = cache_insn_at(sv->cache, b, pc);

	for (unsigned i = T2; i <= T0; i++)
		if (m->dirty & (1u << (i - T2)))
			sv->v.s.gpr[i] = (uint64_t)uc->uc_mcontext.gregs[reg_of[i]];
	*reused = m->reused;
	*insn_host = (uintptr_t)sv->cache->rx + b->host_off + m->host_off;
	return block_pc(sv, b) + m->guest_off;
}

static void on_segv(struct soft_vcpu *sv, ucontext_t *uc, const siginfo_t *si)
{
	uint64_t pc = (uint64_t)uc->uc_mcontext.gregs[REG_RIP], addr = (uintptr_t)si->si_addr, insn_host = 0, guest_pc;
	bool has_addr = si->si_signo == SIGSEGV && (si->si_code == SEGV_MAPERR || si->si_code == SEGV_ACCERR);
	uint64_t hole = (uintptr_t)sv->ctx->gs - VCPU_OFF - HOLE_SIZE;
	bool reused;
	struct block *b;

	if (sv->stepping) { /* an element on an inaccessible page of a masked operand, or #GP of the instruction itself */
		sv->step_fault = has_addr ? addr : 0;
		vcpu_raise_gp(&sv->v, 0);
		leave(sv, uc, SX_FAULT, sv->v.s.rip);
		return;
	}
	b = cache_find_host(sv->cache, pc);
	if (!b) { /* the poll of the jump-cache look-up: T0 is the guest pc; not canonical, and the fault is the branch's (undo_branch) */
		uint64_t to = (uint64_t)uc->uc_mcontext.gregs[reg_of[T0]];

		sv->exit_arg = (uint64_t)uc->uc_mcontext.gregs[reg_of[T2]];
		leave(sv, uc, cpu_canonical(to) ? SX_POLL : SX_LOOKUP, to);
		return;
	}
	guest_pc = find_insn(sv, uc, b, pc, &insn_host, &reused);
	if (has_addr && addr - (uintptr_t)sv->bad_page < PAGE_SIZE) {
		leave(sv, uc, SX_POLL, guest_pc);
	} else if (has_addr && addr - hole < HOLE_SIZE) {
		note_slow_site(sv, b, guest_pc, true);
		leave(sv, uc, SX_SLOW, guest_pc);
	} else if (has_addr && table_touch(sv, addr)) {
		return;
	} else if (has_addr) {
		memory_fault(sv, uc, si, b, guest_pc, insn_host, reused);
	} else { /* #GP: not canonical, or misaligned for an aligned form; by the load of an addend: the alignment check */
		if (*(const uint8_t *)pc == 0x65)
			note_slow_site(sv, b, guest_pc, true);
		leave(sv, uc, SX_SLOW, guest_pc);
	}
}

static void on_trap(int sig, siginfo_t *si, void *context)
{
	struct soft_vcpu *sv = this_vcpu;
	ucontext_t *uc = context;
	uint64_t pc = (uint64_t)uc->uc_mcontext.gregs[REG_RIP], guest_pc, insn_host;
	bool reused;
	struct block *b;

	if (!sv || !cache_contains(sv->cache, pc)) {
		sigaction(sig, &previous[sig], NULL); /* our own bug: die as usual when the instruction is run again */
		return;
	}
	sv->stats.sig_segv++;
	ctx_sync(sv);
	unbase_string(uc);
	if (sig == SIGSEGV || uc->uc_mcontext.gregs[REG_TRAPNO] == EXC_SS) { /* #SS: not canonical, based on rsp or rbp */
		on_segv(sv, uc, si);
		return;
	}
	guest_pc = sv->v.s.rip;
	if (!sv->stepping && (b = cache_find_host(sv->cache, pc)))
		guest_pc = find_insn(sv, uc, b, pc, &insn_host, &reused);
	if (sig == SIGBUS) {
		sv->v.fatal = "the host has no memory for a page of guest RAM";
		leave(sv, uc, SX_FAULT, guest_pc);
		return;
	}
	switch (uc->uc_mcontext.gregs[REG_TRAPNO]) {
	case EXC_DE:
		leave_exc(sv, uc, guest_pc, EXC_DE);
		break;
	case EXC_MF:
		leave_exc(sv, uc, guest_pc, EXC_MF);
		break;
	case EXC_XM:
		leave_exc(sv, uc, guest_pc, (sv->v.s.cr4 & CR4_OSXMMEXCPT) ? EXC_XM : EXC_UD);
		break;
	default:
		leave_exc(sv, uc, guest_pc, EXC_UD);
		break;
	}
}

/* The timer of this thread's CPU time: a block that it finds running is worth a region. */
static void sample(struct soft_vcpu *sv, uint64_t pc)
{
	struct block *b = cache_contains(sv->cache, pc) ? cache_find_host(sv->cache, pc) : NULL;

	time_sample(sv, (const void *)pc);
	if (!b || b->region || (atomic_load(&sv->requests) & REQ_HOT))
		return;
	sv->hot_block = b;
	sv->hot_flushes = sv->cache->flushes;
	soft_request(sv, REQ_HOT);
}

static void on_kick(int sig, siginfo_t *si, void *context)
{
	struct soft_vcpu *sv = this_vcpu;

	if (!sv || si->si_code != SI_TIMER)
		return;
	if (si->si_value.sival_ptr == &sv->time)
		sample(sv, (uint64_t)((ucontext_t *)context)->uc_mcontext.gregs[REG_RIP]);
	else
		soft_request(sv, REQ_TIMER);
}

static void arm(void *ctx, int64_t deadline)
{
	struct vcpu_timer *t = ctx;
	struct itimerspec its = {0};

	if (deadline != TIMER_NEVER) {
		if (deadline < 1)
			deadline = 1; /* zero would disarm */
		its.it_value.tv_sec = deadline / 1000000000;
		its.it_value.tv_nsec = deadline % 1000000000;
	}
	timer_settime(t->timer, TIMER_ABSTIME, &its, NULL);
}

/* Let the queue's next deadline send a signal to this thread. */
static void drive(struct soft_vcpu *sv, struct vcpu_timer *t, struct timer_queue *q)
{
	struct sigevent ev = {.sigev_notify = SIGEV_THREAD_ID, .sigev_signo = SOFT_SIGNAL};

	ev._sigev_un._tid = (int)syscall(SYS_gettid);
	if (timer_create(CLOCK_MONOTONIC, &ev, &t->timer)) {
		sv->v.fatal = "timer_create failed: no timers on this host";
		return;
	}
	pthread_mutex_lock(sv->v.cfg->lock);
	t->ok = true;
	timer_queue_set_notify(q, arm, t);
	arm(t, timer_queue_deadline(q));
	pthread_mutex_unlock(sv->v.cfg->lock);
}

static void undrive(struct vcpu_timer *t, struct timer_queue *q)
{
	if (!t->ok)
		return;
	timer_delete(t->timer);
	timer_queue_set_notify(q, NULL, NULL);
	t->ok = false;
}

static const int traps[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL};

/* Once per process suffices, but it does no harm twice. */
bool signals_init(struct soft_vcpu *sv, struct error *err)
{
	struct sigaction sa = {.sa_sigaction = on_trap, .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER};

	sigemptyset(&sa.sa_mask);
	for (unsigned i = 0; i < ARRAY_LEN(traps); i++) {
		struct sigaction old;

		if (sigaction(traps[i], &sa, &old))
			return error_set(err, "soft engine: cannot install signal handlers");
		if (old.sa_sigaction != on_trap)
			previous[traps[i]] = old;
	}
	sa.sa_sigaction = on_kick;
	sa.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_RESTART;
	sigaction(SOFT_SIGNAL, &sa, NULL);
	sv->altstack = mmap(NULL, ALTSTACK_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	return sv->altstack != MAP_FAILED || error_set(err, "soft engine: out of memory for a signal stack");
}

static void attach(struct soft_vcpu *sv, stack_t *old)
{
	stack_t ss = {.ss_sp = sv->altstack, .ss_size = ALTSTACK_SIZE, .ss_flags = (int)SS_AUTODISARM};

	this_vcpu = sv;
	sigaltstack(&ss, old);
}

void signals_borrow(struct soft_vcpu *sv, struct signals_saved *old)
{
	sigset_t set;

	sigfillset(&set);
	for (unsigned i = 0; i < ARRAY_LEN(traps); i++)
		sigdelset(&set, traps[i]);
	pthread_sigmask(SIG_SETMASK, &set, &old->mask);
	attach(sv, &old->stack);
}

void signals_return(const struct signals_saved *old)
{
	this_vcpu = NULL;
	sigaltstack(&old->stack, NULL);
	pthread_sigmask(SIG_SETMASK, &old->mask, NULL);
}

/* In the vCPU's thread, before its first instruction. */
void signals_thread_init(struct soft_vcpu *sv)
{
	sigset_t set;

	attach(sv, NULL);
	/* other threads take the process's signals; here only the traps and our own */
	sigfillset(&set);
	sigdelset(&set, SIGSEGV);
	sigdelset(&set, SIGBUS);
	sigdelset(&set, SIGFPE);
	sigdelset(&set, SIGILL);
	sigdelset(&set, SIGTRAP);
	sigdelset(&set, SIGABRT);
	sigdelset(&set, SIGPROF);
	sigdelset(&set, SOFT_SIGNAL);
	pthread_sigmask(SIG_SETMASK, &set, NULL);
	time_start(sv);
	drive(sv, &sv->lapic_timer, &sv->v.engine->lapic_timers[sv->v.index]);
	if (sv->v.index == 0)
		drive(sv, &sv->device_timer, sv->v.cfg->timers);
}

void signals_thread_fini(struct soft_vcpu *sv)
{
	time_stop(sv);
	if (sv->lapic_timer.ok)
		undrive(&sv->lapic_timer, &sv->v.engine->lapic_timers[sv->v.index]);
	undrive(&sv->device_timer, sv->v.cfg->timers);
}
