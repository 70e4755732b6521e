/* The completer on hand-made states: one instruction each, without /dev/kvm and without a soft engine around it. */
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <cmocka.h>

#include "engine/soft/complete.h"

#define GUEST(name, text)                                                                                              \
	extern const uint8_t name[], name##_end[];                                                                     \
	__asm__(".pushsection .rodata\n" #name ":\n" text "\n" #name "_end:\n.popsection\n")
#define LEN(name) ((size_t)(name##_end - name))

enum { PML4 = 0x10000, PDPT = 0x11000, PD0 = 0x12000, PD3 = 0x13000, PT = 0x14000 };
enum { IDT = 0x2000, GDT = 0x3000, TSS = 0x4000, HANDLER = 0x9000, CODE = 0x20000, DATA = 0x30000, OTHER = 0x31000, STACK = 0x40000 };
#define WINDOW UINT64_C(0x400000)   /* one 4 KiB page, at DATA at first */
#define UNMAPPED UINT64_C(0x600000)
#define DEVICE UINT64_C(0xd0000000)
#define LAPIC UINT64_C(0xfee00000)
#define IOAPIC UINT64_C(0xfec00000)

struct vm {
	pthread_mutex_t lock;
	struct ram *ram;
	struct bus *bus;
	struct cpuid_policy cpuid;
	struct completer *completer;
	struct cpu_state s;
	uint64_t last_off, last_value;
	unsigned writes;
	bool signal_on_write;
};

static struct vm vm;
static volatile sig_atomic_t in_device, signals_in_device, signals_seen;

static void on_usr1(int sig)
{
	signals_seen++;
	signals_in_device += in_device;
}

static uint64_t dev_read(void *dev, uint64_t off, unsigned size) { return 0x1122334455667788; }

static void dev_write(void *dev, uint64_t off, unsigned size, uint64_t value)
{
	struct vm *v = dev;

	in_device = 1;
	v->last_off = off;
	v->last_value = value;
	v->writes++;
	if (v->signal_on_write)
		raise(SIGUSR1);
	in_device = 0;
}

static const struct bus_ops dev_ops = {.read = dev_read, .write = dev_write};

static void put64(gpa_t at, uint64_t value) { assert_true(ram_write(vm.ram, at, &value, 8)); }

static uint64_t get64(gpa_t at)
{
	uint64_t value = 0;

	assert_true(ram_read(vm.ram, at, &value, 8));
	return value;
}

static void make_tables(void)
{
	put64(PML4, PDPT | 7);
	put64(PDPT, PD0 | 7);
	put64(PDPT + 3 * 8, PD3 | 7);
	put64(PD0, 0x87); /* 0-2 MiB */
	put64(PD0 + 8 * (WINDOW >> 21), PT | 7);
	put64(PT, DATA | 7);
	for (uint64_t i = 0; i < 512; i++)
		put64(PD3 + 8 * i, (0xc0000000 + (i << 21)) | 0x87);
	for (uint64_t i = 0; i < 32; i++) { /* interrupt gates, DPL 3 */
		uint64_t to = HANDLER + 16 * i;

		put64(IDT + 16 * i, (to & 0xffff) | 0x10 << 16 | UINT64_C(0xee00) << 32 | (to >> 16) << 48);
		put64(IDT + 16 * i + 8, 0);
	}
	put64(GDT + 0x10, UINT64_C(0x00af9b000000ffff));
	put64(GDT + 0x18, UINT64_C(0x00cf93000000ffff));
	put64(TSS + 4, STACK);
}

static struct cpu_seg flat(uint16_t sel, uint32_t attr, unsigned ring)
{
	return (struct cpu_seg){.sel = (uint16_t)(sel | ring), .limit = UINT32_MAX, .attr = attr | SEG_S | SEG_P | SEG_G | ring << SEG_DPL_SHIFT};
}

static void make_state(struct cpu_state *s, unsigned ring)
{
	cpu_state_reset(s, 0);
	for (unsigned i = 0; i < SEG_COUNT; i++)
		s->seg[i] = flat(0x18, SEG_DB | 3, ring);
	s->seg[SEG_CS] = flat(0x10, SEG_L | 11, ring);
	s->tr = (struct cpu_seg){.sel = 0x28, .base = TSS, .limit = 0x67, .attr = SEG_P | 11};
	s->idt = (struct cpu_dtr){.base = IDT, .limit = 32 * 16 - 1};
	s->gdt = (struct cpu_dtr){.base = GDT, .limit = 0x1f};
	s->cr0 = CR0_PE | CR0_MP | CR0_ET | CR0_NE | CR0_WP | CR0_PG;
	s->cr3 = PML4;
	s->cr4 = CR4_PAE | CR4_OSFXSR | CR4_OSXMMEXCPT | CR4_OSXSAVE;
	s->efer = EFER_LME | EFER_LMA | EFER_NXE;
	s->xcr0 = vm.cpuid.xcr0_allowed;
	s->rflags = FL_FIXED;
	s->rip = CODE;
	s->gpr[R_SP] = STACK;
}

/* In each test itself: the library of the tests puts its own signal handlers in place around fixtures. */
static void start(void)
{
	struct engine_config cfg = {.ncpus = 2, .lock = &vm.lock, .cpuid = &vm.cpuid};
	struct error err = {0};

	memset(&vm, 0, sizeof(vm));
	pthread_mutex_init(&vm.lock, NULL);
	cfg.ram = vm.ram = ram_new(4 * MIB, &err);
	cfg.bus = vm.bus = bus_new();
	assert_non_null(vm.ram);
	assert_true(cpuid_policy_init(&vm.cpuid, CPU_MAX, 2, 2000000, &err));
	assert_true(bus_map(vm.bus, BUS_MMIO, DEVICE, 0x1000, &dev_ops, &vm, "device", &err));
	assert_true(bus_map(vm.bus, BUS_PIO, 0x60, 16, &dev_ops, &vm, "device", &err));
	vm.completer = completer_new(&cfg, &err);
	assert_non_null(vm.completer);
	make_tables();
	make_state(&vm.s, 0);
}

static void finish(void)
{
	completer_free(vm.completer);
	bus_free(vm.bus);
	ram_free(vm.ram);
	pthread_mutex_destroy(&vm.lock);
}

static bool run(const uint8_t *code, size_t len)
{
	assert_true(ram_write(vm.ram, CODE, code, len));
	return completer_run(vm.completer, 0, &vm.s);
}
#define RUN(name) run(name, LEN(name))

static void expect_done(const uint8_t *code, size_t len)
{
	assert_true(run(code, len));
	assert_int_equal(vm.s.rip, CODE + len);
	assert_null(completer_refusal(vm.completer, 0));
}
#define DONE(name) expect_done(name, LEN(name))

/* The fault was delivered: at the handler, with this frame. */
static void expect_fault(unsigned vector, bool has_error, uint64_t error, uint64_t rip)
{
	uint64_t sp = vm.s.gpr[R_SP];

	assert_int_equal(vm.s.rip, HANDLER + 16 * vector);
	if (has_error) {
		assert_int_equal(get64(sp), error);
		sp += 8;
	}
	assert_int_equal(get64(sp), rip);
	assert_int_equal(sp + 40, STACK);
}

GUEST(cx16, "lock cmpxchg16b (%rdi)");

static void cmpxchg16b(void **state)
{
	start();
	assert_null(completer_refusal(vm.completer, 0));
	put64(DATA, 1);
	put64(DATA + 8, 2);
	vm.s.gpr[R_DI] = WINDOW;
	vm.s.gpr[R_AX] = 1;
	vm.s.gpr[R_DX] = 2;
	vm.s.gpr[R_BX] = 3;
	vm.s.gpr[R_CX] = 4;
	DONE(cx16);
	assert_int_equal(get64(DATA), 3);
	assert_int_equal(get64(DATA + 8), 4);
	assert_true(vm.s.rflags & FL_ZF);
	vm.s.rip = CODE; /* not equal now: loads */
	DONE(cx16);
	assert_int_equal(vm.s.gpr[R_AX], 3);
	assert_int_equal(vm.s.gpr[R_DX], 4);
	assert_false(vm.s.rflags & FL_ZF);
	vm.s.rip = CODE;
	vm.s.gpr[R_DI]++;
	assert_true(RUN(cx16));
	expect_fault(EXC_GP, true, 0, CODE);
	finish();
}

GUEST(xrstor_rdi, "xrstor64 (%rdi)");

static void xrstor(void **state)
{
	start();
	memset(ram_ptr(vm.ram, DATA, PAGE_SIZE), 0, PAGE_SIZE);
	put64(DATA + 24, 0x1f80);
	put64(DATA + 160 + 16, 0x0123456789abcdef); /* XMM1 */
	put64(DATA + 512, 2);                       /* SSE; x87 to its initial state */
	vm.s.gpr[R_DI] = WINDOW;
	vm.s.gpr[R_AX] = 3;
	DONE(xrstor_rdi);
	assert_true(get_le64(vm.s.xsave + 512) & 2);
	assert_int_equal(get_le64(vm.s.xsave + 160 + 16), 0x0123456789abcdef);
	vm.s.rip = CODE;
	put64(DATA + 512, BIT(62));
	assert_true(RUN(xrstor_rdi));
	expect_fault(EXC_GP, true, 0, CODE);
	finish();
}

GUEST(movaps_load, "movaps (%rdi), %xmm3");
GUEST(movaps_store, "movaps %xmm3, 16(%rdi)");

static void movaps(void **state)
{
	start();
	put64(DATA, 0x1111);
	put64(DATA + 8, 0x2222);
	vm.s.gpr[R_DI] = WINDOW;
	DONE(movaps_load);
	assert_int_equal(get_le64(vm.s.xsave + 160 + 3 * 16), 0x1111);
	vm.s.rip = CODE;
	DONE(movaps_store);
	assert_int_equal(get64(DATA + 24), 0x2222);
	vm.s.rip = CODE;
	vm.s.gpr[R_DI] += 4;
	assert_true(RUN(movaps_store));
	expect_fault(EXC_GP, true, 0, CODE);
	finish();
}

GUEST(int3, "int3");
GUEST(ud2, "ud2");
GUEST(div_rcx, "div %rcx");

static void traps(void **state)
{
	start();
	assert_true(RUN(int3));
	expect_fault(EXC_BP, false, 0, CODE + 1);
	assert_int_equal(vm.s.seg[SEG_CS].sel, 0x10);
	make_state(&vm.s, 3);
	vm.s.gpr[R_SP] = 0x50000;
	assert_true(RUN(int3));
	expect_fault(EXC_BP, false, 0, CODE + 1); /* on the stack of the TSS */
	assert_int_equal(cpu_cpl(&vm.s), 0);
	assert_int_equal(get64(STACK - 16), 0x50000);
	make_state(&vm.s, 0);
	assert_true(RUN(ud2));
	expect_fault(EXC_UD, false, 0, CODE);
	make_state(&vm.s, 0);
	assert_true(RUN(div_rcx)); /* the host's own fault */
	expect_fault(EXC_DE, false, 0, CODE);
	finish();
}

GUEST(nop, "nop");

static void single_step(void **state)
{
	start();
	vm.s.rflags |= FL_TF;
	assert_true(RUN(nop));
	expect_fault(EXC_DB, false, 0, CODE + 1);
	assert_true(vm.s.dr[6] & BIT(14));
	finish();
}

GUEST(push_rax, "push %rax");
GUEST(store_rdi, "mov %rax, (%rdi)");
GUEST(load_rdi, "mov (%rdi), %rax");

static void page_fault(void **state)
{
	start();
	vm.s.gpr[R_DI] = UNMAPPED + 0x123;
	assert_true(RUN(store_rdi));
	expect_fault(EXC_PF, true, PF_W, CODE);
	assert_int_equal(vm.s.cr2, UNMAPPED + 0x123);
	make_state(&vm.s, 3);
	vm.s.gpr[R_SP] = UNMAPPED + 8;
	assert_true(RUN(push_rax));
	expect_fault(EXC_PF, true, PF_W | PF_U, CODE);
	assert_int_equal(vm.s.cr2, UNMAPPED);
	assert_int_equal(get64(STACK - 16), UNMAPPED + 8); /* rsp as before the push */
	make_state(&vm.s, 0);
	vm.s.rip = UNMAPPED;
	assert_true(completer_run(vm.completer, 0, &vm.s));
	assert_int_equal(vm.s.rip, HANDLER + 16 * EXC_PF);
	assert_int_equal(vm.s.cr2, UNMAPPED);
	finish();
}

/* The guest changed its page tables between two completions. */
static void tables_change(void **state)
{
	start();
	put64(DATA, 10);
	put64(OTHER, 20);
	vm.s.gpr[R_DI] = WINDOW;
	DONE(load_rdi);
	assert_int_equal(vm.s.gpr[R_AX], 10);
	put64(PT, OTHER | 7);
	vm.s.rip = CODE;
	DONE(load_rdi);
	assert_int_equal(vm.s.gpr[R_AX], 20);
	finish();
}

GUEST(out_64h, "outb %al, $0x64");
GUEST(in_64h, "inl $0x64, %eax");

static void devices(void **state)
{
	start();
	vm.s.gpr[R_AX] = 0x55aa;
	vm.s.gpr[R_DI] = DEVICE + 0x18;
	DONE(store_rdi);
	assert_int_equal(vm.writes, 1);
	assert_int_equal(vm.last_off, 0x18);
	assert_int_equal(vm.last_value, 0x55aa);
	vm.s.rip = CODE;
	DONE(load_rdi);
	assert_int_equal(vm.s.gpr[R_AX], 0x1122334455667788);
	vm.s.rip = CODE;
	DONE(out_64h);
	assert_int_equal(vm.last_off, 4);
	assert_int_equal(vm.last_value, 0x88);
	vm.s.rip = CODE;
	DONE(in_64h);
	assert_int_equal(vm.s.gpr[R_AX], 0x55667788);
	vm.s.rip = CODE;
	vm.s.gpr[R_DI] = DEVICE + 0x100000; /* nobody */
	DONE(load_rdi);
	assert_int_equal(vm.s.gpr[R_AX], UINT64_MAX);
	finish();
}

static void refuse(const uint8_t *code, size_t len)
{
	struct cpu_state before = vm.s;

	assert_false(run(code, len));
	assert_non_null(completer_refusal(vm.completer, 0));
	assert_memory_equal(&before, &vm.s, sizeof(before));
}
#define REFUSED(name) refuse(name, LEN(name))

GUEST(movups_rdi, "movups (%rdi), %xmm0");
GUEST(in_pic, "in $0x21, %al");
GUEST(out_pit, "out %al, $0x43");
GUEST(rdmsr, "rdmsr");
GUEST(wrmsr, "wrmsr");
GUEST(from_cr8, "mov %cr8, %rax");
GUEST(to_cr8, "mov %rax, %cr8");
GUEST(to_cr3, "mov %rax, %cr3");
GUEST(invlpg, "invlpg (%rdi)");
GUEST(hlt, "hlt");
GUEST(vmcall, "vmcall");

static void refusals(void **state)
{
	start();
	vm.s.gpr[R_DI] = LAPIC + 0x20;
	REFUSED(load_rdi);
	REFUSED(store_rdi);
	REFUSED(movups_rdi);
	vm.s.gpr[R_DI] = IOAPIC + 0x10;
	REFUSED(load_rdi);
	vm.s.gpr[R_DI] = LAPIC;
	REFUSED(invlpg);
	REFUSED(in_pic);
	REFUSED(out_pit);
	REFUSED(from_cr8);
	REFUSED(to_cr8);
	REFUSED(to_cr3);
	REFUSED(hlt);
	REFUSED(vmcall);
	vm.s.gpr[R_CX] = 0x808;
	REFUSED(rdmsr);
	vm.s.gpr[R_CX] = 0x6e0;
	REFUSED(wrmsr);
	vm.s.gpr[R_CX] = 0x4b564d01;
	REFUSED(wrmsr);
	vm.s.gpr[R_CX] = 0x1b;
	REFUSED(wrmsr);
	vm.s.int_pending = 1;
	REFUSED(nop);
	vm.s.int_pending = 0;
	vm.s.idt.limit = 0;
	REFUSED(ud2); /* triple fault */
	/* and goes on after that */
	DONE(nop);
	finish();
}

/* What is refused at ring 0 faults at ring 3; a LAPIC that is off or elsewhere does not own its page. */
static void not_refused(void **state)
{
	start();
	make_state(&vm.s, 3);
	assert_true(RUN(hlt));
	expect_fault(EXC_GP, true, 0, CODE);
	make_state(&vm.s, 3);
	assert_true(RUN(to_cr8));
	expect_fault(EXC_GP, true, 0, CODE);
	make_state(&vm.s, 0);
	vm.s.gpr[R_CX] = 0xc0000081;
	vm.s.gpr[R_AX] = 0x1234;
	vm.s.gpr[R_DX] = 0;
	DONE(wrmsr);
	assert_int_equal(vm.s.star, 0x1234);
	make_state(&vm.s, 0);
	vm.s.apic_base &= ~BIT(11);
	vm.s.gpr[R_DI] = LAPIC;
	DONE(load_rdi);
	assert_int_equal(vm.s.gpr[R_AX], UINT64_MAX);
	finish();
}

/* A signal that comes meanwhile waits: its handler would run on the guest's stack. The thread is as it was afterwards. */
static void signals(void **state)
{
	struct sigaction sa = {.sa_handler = on_usr1}, old;
	stack_t ss_before, ss_after;
	sigset_t before, after;

	start();
	sigaction(SIGUSR1, &sa, &old);
	pthread_sigmask(SIG_SETMASK, NULL, &before);
	sigaltstack(NULL, &ss_before);
	vm.signal_on_write = true;
	vm.s.gpr[R_DI] = DEVICE;
	DONE(store_rdi);
	assert_int_equal(signals_seen, 1);
	assert_int_equal(signals_in_device, 0);
	pthread_sigmask(SIG_SETMASK, NULL, &after);
	sigaltstack(NULL, &ss_after);
	for (int i = 1; i < NSIG; i++)
		assert_int_equal(sigismember(&before, i), sigismember(&after, i));
	assert_ptr_equal(ss_before.ss_sp, ss_after.ss_sp);
	assert_int_equal(ss_before.ss_flags, ss_after.ss_flags);
	sigaction(SIGUSR1, &old, NULL);
	finish();
}

#define ROUNDS 2000

GUEST(add_one, "lock addq $1, (%rdi)");
GUEST(divide, "divq %rcx");

static void *cpu1(void *arg)
{
	struct cpu_state s;

	for (unsigned i = 0; i < ROUNDS; i++) {
		make_state(&s, 0);
		s.gpr[R_DI] = WINDOW;
		if (!completer_run(vm.completer, 1, &s) || s.rip != CODE + LEN(add_one))
			return arg;
		make_state(&s, 0); /* host faults in both threads */
		s.gpr[R_SP] = STACK - 0x1000;
		s.rip = CODE + 0x100;
		if (!completer_run(vm.completer, 1, &s) || s.rip != HANDLER)
			return arg;
	}
	return NULL;
}

static void two_cpus(void **state)
{
	pthread_t t;
	void *failed;

	start();
	put64(DATA, 0);
	assert_true(ram_write(vm.ram, CODE, add_one, LEN(add_one)));
	assert_true(ram_write(vm.ram, CODE + 0x100, divide, LEN(divide)));
	assert_int_equal(pthread_create(&t, NULL, cpu1, &vm), 0);
	for (unsigned i = 0; i < ROUNDS; i++) {
		make_state(&vm.s, 0);
		vm.s.gpr[R_DI] = WINDOW;
		assert_true(completer_run(vm.completer, 0, &vm.s));
		make_state(&vm.s, 0);
		vm.s.rip = CODE + 0x100;
		assert_true(completer_run(vm.completer, 0, &vm.s));
		assert_int_equal(vm.s.rip, HANDLER);
	}
	pthread_join(t, &failed);
	assert_null(failed);
	assert_int_equal(get64(DATA), 2 * ROUNDS);
	finish();
}

/* More different instructions than the cache of stubs holds. */
static void many_stubs(void **state)
{
	uint8_t code[] = {0x48, 0x05, 0, 0, 0, 0}; /* add rax, imm32 */

	start();
	for (uint32_t i = 1; i <= 70000; i++) {
		make_state(&vm.s, 0);
		put_le32(code + 2, i);
		if (!run(code, sizeof(code)) || vm.s.gpr[R_AX] != i)
			fail_msg("add of %u gave %lu", i, (unsigned long)vm.s.gpr[R_AX]);
	}
	finish();
}

static uint64_t rnd(uint64_t *x)
{
	*x ^= *x << 13;
	*x ^= *x >> 7;
	return *x ^= *x << 17;
}

/* Any bytes in any mode with registers that point anywhere: it ends, and what it calls done is a vCPU that runs. */
static void any_bytes(void **state)
{
	static const uint64_t places[] = {0, CODE, DATA, WINDOW, WINDOW + PAGE_SIZE - 3, UNMAPPED, DEVICE, DEVICE + 0xffe, LAPIC, IOAPIC,
					  BIT(47) - 4, BIT(63) | 1, UINT64_MAX - 7, PD0, IDT};
	uint64_t x = 88172645463325252, done = 0;
	uint8_t code[16];

	start();
	for (unsigned i = 0; i < 100000; i++) {
		if (i % 64 == 0)
			make_tables(); /* they lie in the guest's reach */
		make_state(&vm.s, (rnd(&x) & 1) ? 3 : 0);
		if (rnd(&x) % 4 == 0)
			vm.s.seg[SEG_CS].attr = (vm.s.seg[SEG_CS].attr & ~(uint32_t)SEG_L) | SEG_DB;
		for (unsigned r = 0; r < 16; r++)
			if (rnd(&x) % 4)
				vm.s.gpr[r] = places[rnd(&x) % ARRAY_LEN(places)];
		vm.s.rflags |= rnd(&x) & (FL_TF | FL_DF | FL_AC | FL_CF | FL_IOPL);
		for (unsigned b = 0; b < sizeof(code); b++)
			code[b] = (uint8_t)(rnd(&x) >> 24);
		if (rnd(&x) & 1)
			code[0] = 0x0f;
		if (run(code, sizeof(code))) {
			done++;
			assert_int_equal(vm.s.run_state, CPU_RUNNING);
			assert_int_equal(vm.s.exc_pending, 0);
		} else {
			assert_non_null(completer_refusal(vm.completer, 0));
		}
	}
	assert_true(done > 50000);
	finish();
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(cmpxchg16b), cmocka_unit_test(xrstor), cmocka_unit_test(movaps), cmocka_unit_test(traps),
		cmocka_unit_test(single_step), cmocka_unit_test(page_fault), cmocka_unit_test(tables_change), cmocka_unit_test(devices),
		cmocka_unit_test(refusals), cmocka_unit_test(not_refused), cmocka_unit_test(signals), cmocka_unit_test(two_cpus),
		cmocka_unit_test(many_stubs), cmocka_unit_test(any_bytes),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
