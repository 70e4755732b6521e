#include "cli/isa.h"

#include <cpuid.h>
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <ucontext.h>
#include <unistd.h>

#define PATIENCE_SECONDS 2
#define ALT_STACK 65536
#define FAR_JMP_PTR 0x100
#define FAR_CALL_PTR 0x108
#define FAR_JMP_CODE 0x800
#define FAR_CALL_CODE 0x810
/* What Linux gives for SGDT when the CPU trapped it (arch/x86/kernel/umip.c, "dummy" values). */
#define UMIP_DUMMY_GDT UINT64_C(0xfffffffffffe0000)

/* Shared between the child that runs the instruction and us. */
struct observation {
	bool returned, trapped, elsewhere;
	unsigned vector;
	uint64_t value;
};

/* At the bottom of the child's signal stack: all that its handler needs, without a global. */
struct child {
	const struct isa_insn *insn;
	struct observation *seen;
};

static void on_trap(int sig, siginfo_t *info, void *ctx)
{
	const ucontext_t *uc = ctx;
	const struct child *c = uc->uc_stack.ss_sp;
	uintptr_t rip = (uintptr_t)uc->uc_mcontext.gregs[REG_RIP];

	c->seen->trapped = true;
	c->seen->vector = (unsigned)uc->uc_mcontext.gregs[REG_TRAPNO];
	c->seen->elsewhere = rip < (uintptr_t)c->insn->code || rip > (uintptr_t)c->insn->end;
	_exit(0);
}

static bool has_feature(const struct isa_feature *f)
{
	uint32_t r[4] = {0};

	if (f->vendor) {
		__get_cpuid(0, &r[0], &r[1], &r[2], &r[3]);
		bool amd = r[1] == 0x68747541 || r[1] == 0x6f677948; /* "Auth"enticAMD, "Hygo"nGenuine */
		if (amd != (f->vendor == 'A'))
			return false;
	}
	if (!f->leaf)
		return true;
	return __get_cpuid_count(f->leaf, f->subleaf, &r[0], &r[1], &r[2], &r[3]) && (r[f->reg - 'a'] >> f->bit & 1);
}

/* A page below 4 GiB: far pointers have 32-bit offsets. Far targets: jmp *%r11, also after dropping 8 bytes of stack.
 */
static uint8_t *make_scratch(void)
{
	static const uint8_t jmp_back[] = {0x41, 0xff, 0xe3};
	static const uint8_t drop_and_jmp_back[] = {0x48, 0x83, 0xc4, 0x08, 0x41, 0xff, 0xe3};
	int prot = PROT_READ | PROT_WRITE | PROT_EXEC;
	uint8_t *p = mmap(NULL, PAGE_SIZE, prot, MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
	uint16_t cs;

	if (p == MAP_FAILED)
		return NULL;
	__asm__("mov %%cs, %0" : "=r"(cs));
	memcpy(p + FAR_JMP_CODE, jmp_back, sizeof(jmp_back));
	memcpy(p + FAR_CALL_CODE, drop_and_jmp_back, sizeof(drop_and_jmp_back));
	put_le32(p + FAR_JMP_PTR, (uint32_t)(uintptr_t)p + FAR_JMP_CODE);
	put_le16(p + FAR_JMP_PTR + 4, cs);
	put_le32(p + FAR_CALL_PTR, (uint32_t)(uintptr_t)p + FAR_CALL_CODE);
	put_le16(p + FAR_CALL_PTR + 4, cs);
	return p;
}

static void run_child(const struct isa_insn *insn, struct observation *seen, uint8_t *scratch, void *stack)
{
	static const int signals[] = {SIGSEGV, SIGILL, SIGBUS, SIGTRAP, SIGFPE};
	struct sigaction sa = {.sa_sigaction = on_trap, .sa_flags = SA_SIGINFO | SA_ONSTACK};
	stack_t alt = {.ss_sp = stack, .ss_size = ALT_STACK};
	sigset_t none;

	*(struct child *)stack = (struct child){.insn = insn, .seen = seen};
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	sigaltstack(&alt, NULL);
	for (size_t i = 0; i < ARRAY_LEN(signals); i++)
		sigaction(signals[i], &sa, NULL);
	signal(SIGALRM, SIG_DFL);
	alarm(PATIENCE_SECONDS);
	seen->value = insn->code(scratch);
	seen->returned = true;
	_exit(0);
}

static bool observe(const struct isa_insn *insn, struct observation *seen, uint8_t *scratch, void *stack,
		    struct error *err)
{
	int status;

	memset(seen, 0, sizeof(*seen));
	pid_t pid = fork();
	if (pid < 0)
		return error_set(err, "cannot start a process to run %s in: %s", insn->name, strerror(errno));
	if (pid == 0)
		run_child(insn, seen, scratch, stack);
	while (waitpid(pid, &status, 0) < 0)
		if (errno != EINTR)
			return error_set(err, "the process that ran %s is lost: %s", insn->name, strerror(errno));
	return true;
}

static enum isa_class classify(enum isa_kind kind, const struct isa_result *r)
{
	if (kind == ISA_PLAIN)
		return ISA_INNOCUOUS;
	if (kind == ISA_GATE)
		return ISA_SENSITIVE;
	return r->trapped || r->emulated ? ISA_PRIVILEGED : ISA_CRITICAL;
}

static struct isa_result judge(const struct isa_insn *insn, const struct observation *seen)
{
	struct isa_result r = {
		.trapped = seen->trapped && !seen->elsewhere,
		.gated = seen->trapped && seen->elsewhere,
		.vector = seen->vector,
		.stuck = !seen->trapped && !seen->returned,
		.value = seen->value,
	};

	r.class = classify(insn->kind, &r);
	return r;
}

/* CR4.UMIP covers five instructions: when SGDT gave the kernel's dummy, the CPU trapped all that came back. */
static void find_umip(struct isa_result *out)
{
	static const char *const covered[] = {"SGDT", "SIDT", "SLDT", "STR", "SMSW"};
	bool on = false;

	for (unsigned i = 0; i < isa_count; i++)
		if (!strcmp(isa_table[i].name, "SGDT"))
			on = !out[i].trapped && out[i].value == UMIP_DUMMY_GDT;
	for (unsigned i = 0; i < isa_count && on; i++) {
		for (size_t c = 0; c < ARRAY_LEN(covered); c++) {
			if (strcmp(isa_table[i].name, covered[c]) || out[i].trapped)
				continue;
			out[i].emulated = true;
			out[i].class = classify(isa_table[i].kind, &out[i]);
		}
	}
}

bool isa_measure(struct isa_result *out, struct error *err)
{
	int prot = PROT_READ | PROT_WRITE;
	struct observation *seen = mmap(NULL, PAGE_SIZE, prot, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	void *stack = mmap(NULL, ALT_STACK, prot, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	uint8_t *scratch = make_scratch();
	bool ok = seen != MAP_FAILED && stack != MAP_FAILED && scratch;

	if (!ok)
		error_set(err, "cannot map memory to run instructions in: %s", strerror(errno));
	for (unsigned i = 0; ok && i < isa_count; i++) {
		out[i] = (struct isa_result){.class = ISA_ABSENT};
		if (!has_feature(&isa_table[i].needs))
			continue;
		ok = observe(&isa_table[i], seen, scratch, stack, err);
		out[i] = judge(&isa_table[i], seen);
	}
	if (ok)
		find_umip(out);
	if (seen != MAP_FAILED)
		munmap(seen, PAGE_SIZE);
	if (stack != MAP_FAILED)
		munmap(stack, ALT_STACK);
	if (scratch)
		munmap(scratch, PAGE_SIZE);
	return ok;
}

const char *isa_vector_name(unsigned vector)
{
	static const char *const names[] = {"#DE", "#DB", "NMI", "#BP", "#OF", "#BR", "#UD", "#NM", "#DF", "?",
					    "#TS", "#NP", "#SS", "#GP", "#PF", "?",   "#MF", "#AC", "#MC", "#XM"};

	return vector < ARRAY_LEN(names) ? names[vector] : "?";
}
