#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "rig.h"

/* Guest code in the file's own assembler: name is its bytes, name_len their number. */
#define GUEST(name, mode, text)                                                                                        \
	extern const uint8_t name[], name##_end[];                                                                     \
	__asm__(".pushsection .rodata\n" mode "\n" #name ":\n" text "\n" #name "_end:\n.code64\n.popsection\n")
#define GUEST_LEN(name) ((size_t)(name##_end - name))

#define EXIT_16 "mov $0x5f0, %dx\n out %al, %dx\n hlt\n"
#define EXIT_64 "mov $0x5f0, %edx\n out %al, %dx\n hlt\n"

static void expect(const struct rig *r, unsigned i, enum bus_space space, bool write, uint64_t off, unsigned size,
		   uint64_t value)
{
	const struct rig_access *a = &r->log[i];

	assert_true(i < r->count);
	assert_int_equal(a->space, space);
	assert_int_equal(a->write, write);
	assert_int_equal(a->off, off);
	assert_int_equal(a->size, size);
	assert_int_equal(a->value, value);
}

static struct cpu_state state_of(struct rig *r)
{
	struct cpu_state s;

	engine_kvm.get_state(r->engine, 0, &s);
	return s;
}

static void run_to_exit(struct rig *r)
{
	enum engine_exit why = engine_kvm.run(r->engine, 0);

	if (why != EXIT_KICKED)
		fail_msg("exit %d: %s", why, engine_kvm.last_error(r->engine, 0));
	assert_int_equal(r->exits, 1);
}

GUEST(out_sizes, ".code16",
      "mov $0x500, %dx\n mov $0x87654321, %eax\n out %al, %dx\n inc %dx\n out %ax, %dx\n inc %dx\n out %eax, %dx\n"
      "mov $0x600, %dx\n in %dx, %ax\n" EXIT_16);

static void pio_sizes(void **state)
{
	struct rig r;

	rig_make(&r, 1);
	rig_real(&r, out_sizes, GUEST_LEN(out_sizes));
	run_to_exit(&r);
	assert_int_equal(r.count, 3);
	expect(&r, 0, BUS_PIO, true, 0, 1, 0x21);
	expect(&r, 1, BUS_PIO, true, 1, 2, 0x4321);
	expect(&r, 2, BUS_PIO, true, 2, 4, 0x87654321);
	struct cpu_state s = state_of(&r);
	assert_int_equal(s.gpr[R_AX], 0x8765ffff);		    /* nobody at port 0x600 */
	assert_int_equal(s.rip, 0x8000 + GUEST_LEN(out_sizes) - 1); /* the OUT is complete: only HLT is left */
	rig_free(&r);
}

GUEST(strings, ".code16",
      "cld\n mov $0x500, %dx\n mov $0x9000, %si\n mov $5, %cx\n rep outsb\n"
      "mov $0x502, %dx\n mov $0xa000, %di\n mov $3, %cx\n rep insw\n" EXIT_16);

static void pio_strings(void **state)
{
	uint16_t words[4] = {0};
	struct rig r;

	rig_make(&r, 1);
	assert_true(ram_write(r.ram, 0x9000, "hello", 5));
	r.read_value = 0x1100;
	rig_real(&r, strings, GUEST_LEN(strings));
	run_to_exit(&r);
	for (unsigned i = 0; i < 5; i++)
		expect(&r, i, BUS_PIO, true, 0, 1, (uint64_t) "hello"[i]);
	for (unsigned i = 0; i < 3; i++)
		expect(&r, 5 + i, BUS_PIO, false, 2, 2, 0);
	assert_true(ram_read(r.ram, 0xa000, words, sizeof(words)));
	assert_int_equal(words[0], 0x1100);
	assert_int_equal(words[2], 0x1102);
	assert_int_equal(words[3], 0);
	struct cpu_state s = state_of(&r);
	assert_int_equal(s.gpr[R_SI], 0x9005);
	assert_int_equal(s.gpr[R_DI], 0xa006);
	assert_int_equal(s.gpr[R_CX], 0);
	rig_free(&r);
}

GUEST(mmio_code, ".code64",
      "mov $0xd0000000, %edi\n movabs $0x1122334455667788, %rax\n"
      "mov %al, 1(%rdi)\n mov %ax, 2(%rdi)\n mov %eax, 4(%rdi)\n mov %rax, 8(%rdi)\n"
      "mov (%rdi), %rbx\n movzbl 3(%rdi), %ecx\n movl $0x55, 16(%rdi)\n"
      "mov %rax, 0xffb(%rdi)\n mov 0x2000(%rdi), %rsi\n" EXIT_64);

static void mmio(void **state)
{
	struct rig r;

	rig_make(&r, 1);
	r.read_value = 0xa1a2a3a4a5a6a7a8;
	rig_long(&r, mmio_code, GUEST_LEN(mmio_code), 0);
	run_to_exit(&r);
	expect(&r, 0, BUS_MMIO, true, 1, 1, 0x88);
	expect(&r, 1, BUS_MMIO, true, 2, 2, 0x7788);
	expect(&r, 2, BUS_MMIO, true, 4, 4, 0x55667788);
	expect(&r, 3, BUS_MMIO, true, 8, 8, 0x1122334455667788);
	expect(&r, 4, BUS_MMIO, false, 0, 8, 0);
	expect(&r, 5, BUS_MMIO, false, 3, 1, 0);
	expect(&r, 6, BUS_MMIO, true, 16, 4, 0x55);
	/* Five bytes on the page, three behind it where nobody is. */
	expect(&r, 7, BUS_MMIO, true, 0xffb, 4, 0x55667788);
	expect(&r, 8, BUS_MMIO, true, 0xfff, 1, 0x44);
	assert_int_equal(r.count, 9);
	struct cpu_state s = state_of(&r);
	assert_int_equal(s.gpr[R_BX], 0xa1a2a3a4a5a6a7a8);
	assert_int_equal(s.gpr[R_CX], 0xa8);
	assert_int_equal(s.gpr[R_SI], UINT64_MAX);
	rig_free(&r);
}

GUEST(undefined, ".code64", "ud2\n");

static void triple_fault(void **state)
{
	struct rig r;

	rig_make(&r, 1);
	rig_long(&r, undefined, GUEST_LEN(undefined), 0);
	assert_int_equal(engine_kvm.run(r.engine, 0), EXIT_TRIPLE_FAULT);
	/* The engine survives it: the VM starts again after a reset. */
	engine_kvm.reset(r.engine);
	rig_real(&r, out_sizes, GUEST_LEN(out_sizes));
	run_to_exit(&r);
	rig_free(&r);
}

GUEST(spin, ".code16", "cli\n 1: inc %eax\n jmp 1b\n");
GUEST(sleep_forever, ".code16", "cli\n 1: hlt\n jmp 1b\n");

static void *kicker(void *ctx)
{
	struct rig *r = ctx;

	usleep(20000);
	engine_kvm.kick(r->engine, 0);
	return NULL;
}

static void kicked_by_thread(struct rig *r)
{
	pthread_t t;

	assert_int_equal(pthread_create(&t, NULL, kicker, r), 0);
	assert_int_equal(engine_kvm.run(r->engine, 0), EXIT_KICKED);
	pthread_join(t, NULL);
}

static void kick(void **state)
{
	struct cpu_state s;
	struct rig r;

	rig_make(&r, 1);
	rig_real(&r, spin, GUEST_LEN(spin));
	do /* a busy host may not let it run before the first kick */
		kicked_by_thread(&r);
	while (state_of(&r).gpr[R_AX] == 0);
	for (unsigned i = 0; i < 20; i++) { /* before run: nothing of it is lost */
		engine_kvm.kick(r.engine, 0);
		assert_int_equal(engine_kvm.run(r.engine, 0), EXIT_KICKED);
	}
	rig_real(&r, sleep_forever, GUEST_LEN(sleep_forever));
	kicked_by_thread(&r);
	s = state_of(&r);
	assert_int_equal(s.run_state, CPU_HALTED);
	kicked_by_thread(&r);
	rig_free(&r);
}

/* 8259: vectors from 0x20, only IRQ 4 unmasked; the handler at 0x24 and the one at 0x31 report the vector. */
GUEST(irq_code, ".code16",
      "cli\n movw $0x8000 + (h24 - irq_code), 4*0x24\n movw $0, 4*0x24+2\n"
      "movw $0x8000 + (h31 - irq_code), 4*0x31\n movw $0, 4*0x31+2\n"
      "mov $0x11, %al\n out %al, $0x20\n mov $0x20, %al\n out %al, $0x21\n mov $4, %al\n out %al, $0x21\n"
      "mov $1, %al\n out %al, $0x21\n mov $0xef, %al\n out %al, $0x21\n"
      "mov $0x501, %dx\n out %al, %dx\n"
      "1: sti\n hlt\n jmp 1b\n"
      "h24: mov $0x24, %al\n jmp 2f\n"
      "h31: mov $0x31, %al\n"
      "2: mov $0x500, %dx\n out %al, %dx\n" EXIT_16);

static void *interrupter(void *ctx)
{
	struct rig *r = ctx;
	const struct irq_sink *sink = engine_kvm.irq_sink(r->engine);
	struct irq_line line = {.sink = sink, .gsi = 4};

	usleep(20000);
	pthread_mutex_lock(&r->lock);
	irq_set(&line, true);
	pthread_mutex_unlock(&r->lock);
	return NULL;
}

static void *messenger(void *ctx)
{
	struct rig *r = ctx;
	const struct irq_sink *sink = engine_kvm.irq_sink(r->engine);

	usleep(20000);
	pthread_mutex_lock(&r->lock);
	irq_msi(sink, 0xfee00000, 0x31);
	pthread_mutex_unlock(&r->lock);
	return NULL;
}

static void interrupt_by(void *(*fn)(void *), uint64_t vector)
{
	uint8_t lapic[1024];
	pthread_t t;
	struct rig r;

	rig_make(&r, 1);
	assert_true(kvm_engine_get_lapic(r.engine, 0, lapic));
	put_le32(lapic + 0xf0, 0x1ff);	/* enabled */
	put_le32(lapic + 0x350, 0x700); /* LINT0: ExtINT */
	assert_true(kvm_engine_set_lapic(r.engine, 0, lapic));
	rig_real(&r, irq_code, GUEST_LEN(irq_code));
	assert_int_equal(pthread_create(&t, NULL, fn, &r), 0);
	run_to_exit(&r);
	pthread_join(t, NULL);
	expect(&r, 1, BUS_PIO, true, 0, 1, vector);
	rig_free(&r);
}

static void line_interrupt(void **state) { interrupt_by(interrupter, 0x24); }
static void message_interrupt(void **state) { interrupt_by(messenger, 0x31); }

static void nobody_addressed(void **state)
{
	struct rig r;

	rig_make(&r, 1);
	/* No CPU has APIC id 0x55, and the LAPIC of CPU 0 is off. */
	assert_false(irq_msi(engine_kvm.irq_sink(r.engine), 0xfee55000, 0x31));
	rig_free(&r);
}

/* The boot CPU sends INIT and SIPI (page 9) to APIC id 1, which answers on port 0x500. */
GUEST(start_ap, ".code64",
      "mov $0xfee00000, %edi\n movl $0x1ff, 0xf0(%rdi)\n movl $0x01000000, 0x310(%rdi)\n movl $0x4500, 0x300(%rdi)\n"
      "movl $0x01000000, 0x310(%rdi)\n movl $0x4609, 0x300(%rdi)\n"
      "1: cmpb $0, 0x9800\n je 1b\n" EXIT_64);
GUEST(ap_code, ".code16", "mov $0x77, %al\n mov $0x500, %dx\n out %al, %dx\n movb $1, 0x800 + 0x9000\n cli\n hlt\n");

static void *ap_thread(void *ctx)
{
	struct rig *r = ctx;

	return (void *)(uintptr_t)engine_kvm.run(r->engine, 1);
}

/* DS of the AP is 0: its store goes to 0x9800, where the boot CPU looks. */
static void second_cpu(void **state)
{
	pthread_t t;
	struct rig r;
	void *why;

	rig_make(&r, 2);
	assert_true(ram_write(r.ram, 0x9000, ap_code, GUEST_LEN(ap_code)));
	rig_long(&r, start_ap, GUEST_LEN(start_ap), 0);
	assert_int_equal(pthread_create(&t, NULL, ap_thread, &r), 0);
	run_to_exit(&r);
	engine_kvm.kick(r.engine, 1);
	pthread_join(t, &why);
	assert_int_equal((uintptr_t)why, EXIT_KICKED);
	expect(&r, 0, BUS_PIO, true, 0, 1, 0x77);
	struct cpu_state s;
	engine_kvm.get_state(r.engine, 1, &s);
	assert_int_equal(s.seg[SEG_CS].sel, 0x900);
	rig_free(&r);
}

/* PADDB with an operand on a device: no KVM's emulator knows it. */
GUEST(paddb, ".code64", "mov $0xd0000000, %edi\n paddb (%rdi), %xmm0\n 1: mov %eax, (%rdi)\n jmp 1b\n");

#define XMM0 160 /* in the XSAVE area */

struct completion {
	unsigned calls;
	struct rig *rig;
	bool answer;
};

static bool completer(void *ctx, unsigned vcpu, struct cpu_state *s)
{
	struct completion *c = ctx;

	c->calls++;
	assert_int_equal(vcpu, 0);
	assert_int_equal(s->rip, 0x8005);
	assert_int_equal(s->gpr[R_DI], RIG_MMIO);
	assert_int_equal(s->exc_pending, 0);
	s->rip += 4;
	s->gpr[R_AX] = 0xc0de;
	s->lstar = 0xffffffff81234000;
	s->cr2 = 0x1234;
	s->dr[0] = 0x5678;
	memset(s->xsave + XMM0, 0x5a, 16);
	put_le64(s->xsave + 512, get_le64(s->xsave + 512) | 2);
	engine_kvm.kick(c->rig->engine, 0);
	return c->answer;
}

static void complete(void **state)
{
	for (unsigned ring = 0; ring <= 3; ring += 3) {
		struct completion c = {.answer = true};
		struct rig r;

		rig_make(&r, 1);
		c.rig = &r;
		kvm_engine_set_completer(r.engine, completer, &c);
		rig_long(&r, paddb, GUEST_LEN(paddb), ring);
		assert_int_equal(engine_kvm.run(r.engine, 0), EXIT_KICKED);
		assert_int_equal(c.calls, 1);
		struct cpu_state s = state_of(&r);
		assert_int_equal(s.gpr[R_AX], 0xc0de);
		assert_int_equal(s.lstar, 0xffffffff81234000);
		assert_int_equal(s.cr2, 0x1234);
		assert_int_equal(s.dr[0], 0x5678);
		assert_int_equal(get_le64(s.xsave + XMM0), 0x5a5a5a5a5a5a5a5a);
		assert_int_equal(s.seg[SEG_CS].sel, 8 | ring);
		assert_true(s.rip >= 0x8009);
		rig_free(&r);
	}
}

static void report(void **state)
{
	struct completion c = {.answer = false};
	struct rig r;

	rig_make(&r, 1);
	c.rig = &r;
	for (unsigned with = 0; with < 2; with++) {
		if (with)
			kvm_engine_set_completer(r.engine, completer, &c);
		rig_long(&r, paddb, GUEST_LEN(paddb), 0);
		assert_int_equal(engine_kvm.run(r.engine, 0), EXIT_ERROR);
		const char *why = engine_kvm.last_error(r.engine, 0);
		assert_non_null(strstr(why, "suberror 1"));
		assert_non_null(strstr(why, "0008:0000000000008005"));
		assert_non_null(strstr(why, "code 66 0f fc 07 89 07"));
	}
	assert_int_equal(c.calls, 1);
	rig_free(&r);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(pio_sizes),
		cmocka_unit_test(pio_strings),
		cmocka_unit_test(mmio),
		cmocka_unit_test(triple_fault),
		cmocka_unit_test(kick),
		cmocka_unit_test(line_interrupt),
		cmocka_unit_test(message_interrupt),
		cmocka_unit_test(nobody_addressed),
		cmocka_unit_test(second_cpu),
		cmocka_unit_test(complete),
		cmocka_unit_test(report),
	};

	rig_need_kvm();
	return cmocka_run_group_tests(tests, NULL, NULL);
}
