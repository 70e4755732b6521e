/* Instructions that KVM's emulator lacks, finished by the soft engine: on any KVM those with an operand on a device. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "engine/soft/complete.h"
#include "rig.h"

#define GUEST(name, text)                                                                                              \
	extern const uint8_t name[], name##_end[];                                                                     \
	__asm__(".pushsection .rodata\n.code64\n" #name ":\n" text "\n" #name "_end:\n.popsection\n")
#define GUEST_LEN(name) ((size_t)(name##_end - name))
#define EXIT "mov $0x5f0, %edx\n out %al, %dx\n 1: hlt\n jmp 1b\n"

enum { DATA = 0xa000, IDT = 0xb000, GDT = 0xc000 };

struct vm {
	struct rig rig;
	struct completer *completer;
	unsigned calls;
};

static bool counted(void *ctx, unsigned vcpu, struct cpu_state *s)
{
	struct vm *vm = ctx;

	vm->calls++;
	return completer_run(vm->completer, vcpu, s);
}

static void start(struct vm *vm)
{
	struct engine_config cfg = {.ncpus = 1};
	struct error err = {0};

	memset(vm, 0, sizeof(*vm));
	rig_make(&vm->rig, 1);
	cfg.lock = &vm->rig.lock;
	cfg.ram = vm->rig.ram;
	cfg.bus = vm->rig.bus;
	cfg.cpuid = &vm->rig.cpuid;
	vm->completer = completer_new(&cfg, &err);
	if (!vm->completer)
		fail_msg("%s", err.msg);
	kvm_engine_set_completer(vm->rig.engine, counted, vm);
}

static void finish(struct vm *vm)
{
	completer_free(vm->completer);
	rig_free(&vm->rig);
}

static struct cpu_state run_to_exit(struct vm *vm)
{
	enum engine_exit why = engine_kvm.run(vm->rig.engine, 0);
	struct cpu_state s;

	if (why != EXIT_KICKED)
		fail_msg("exit %d: %s", why, engine_kvm.last_error(vm->rig.engine, 0));
	assert_int_equal(vm->rig.exits, 1);
	engine_kvm.get_state(vm->rig.engine, 0, &s);
	return s;
}

GUEST(cmpxchg16b, "mov $0xa000, %edi\n mov $1, %eax\n mov $2, %edx\n mov $3, %ebx\n mov $4, %ecx\n"
		  "lock cmpxchg16b (%rdi)\n setz %sil\n" EXIT);

static void ring0_cmpxchg16b(void **state)
{
	const uint64_t before[2] = {1, 2};
	uint64_t after[2];
	struct vm vm;

	start(&vm);
	assert_true(ram_write(vm.rig.ram, DATA, before, sizeof(before)));
	rig_long(&vm.rig, cmpxchg16b, GUEST_LEN(cmpxchg16b), 0);
	struct cpu_state s = run_to_exit(&vm);
	assert_true(ram_read(vm.rig.ram, DATA, after, sizeof(after)));
	assert_int_equal(after[0], 3);
	assert_int_equal(after[1], 4);
	assert_int_equal(s.gpr[R_SI] & 0xff, 1);
	finish(&vm);
}

GUEST(device_operands, "mov $0xd0000000, %edi\n mov $100, %ecx\n pxor %xmm0, %xmm0\n 2: paddb (%rdi), %xmm0\n"
		       "movq %xmm0, %rbx\n movups %xmm0, 0x10(%rdi)\n dec %ecx\n jnz 2b\n" EXIT);

static void device(void **state)
{
	struct vm vm;

	start(&vm);
	vm.rig.read_value = 0x0101010101010102;
	rig_long(&vm.rig, device_operands, GUEST_LEN(device_operands), 0);
	struct cpu_state s = run_to_exit(&vm);
	assert_in_range(vm.calls, 100, 1000);
	assert_int_equal(s.gpr[R_BX], 0x64646464646464c8);
	assert_int_equal(vm.rig.log[0].size, 8);
	assert_false(vm.rig.log[0].write);
	finish(&vm);
}

GUEST(int3_code, "int3\n 1: hlt\n jmp 1b\n");
GUEST(int3_handler, "pop %rbx\n" EXIT);

/* A fault or trap comes out of the completer already delivered; here the operand of the faulting one is on a device. */
GUEST(fault_code, "mov $0xd0000001, %edi\n paddb (%rdi), %xmm0\n 1: hlt\n jmp 1b\n"); /* misaligned: #GP */
GUEST(fault_handler, "pop %rax\n pop %rbx\n" EXIT);

static uint64_t through_idt(unsigned vector, const uint8_t *code, size_t len, const uint8_t *handler, size_t handler_len)
{
	const uint64_t gate[2] = {0x9000 | 0x08 << 16 | UINT64_C(0x8e00) << 32, 0};
	const uint64_t gdt[2] = {0, UINT64_C(0x00af9b000000ffff)};
	struct error err = {0};
	struct cpu_state s;
	struct vm vm;

	start(&vm);
	assert_true(ram_write(vm.rig.ram, IDT + 16 * vector, gate, sizeof(gate)));
	assert_true(ram_write(vm.rig.ram, GDT, gdt, sizeof(gdt)));
	assert_true(ram_write(vm.rig.ram, 0x9000, handler, handler_len));
	assert_true(ram_write(vm.rig.ram, 0x8000, code, len));
	rig_long_state(&vm.rig, &s, 0);
	s.idt.base = IDT;
	s.idt.limit = 0xfff;
	s.gdt.base = GDT;
	s.gdt.limit = sizeof(gdt) - 1;
	assert_true(engine_kvm.set_state(vm.rig.engine, 0, &s, &err));
	s = run_to_exit(&vm);
	finish(&vm);
	return s.gpr[R_BX];
}

static void faults(void **state)
{
	assert_int_equal(through_idt(EXC_BP, int3_code, GUEST_LEN(int3_code), int3_handler, GUEST_LEN(int3_handler)), 0x8001);
	assert_int_equal(through_idt(EXC_GP, fault_code, GUEST_LEN(fault_code), fault_handler, GUEST_LEN(fault_handler)), 0x8005);
}

GUEST(lapic_operand, "mov $0xd0000000, %edi\n paddb (%rdi), %xmm0\n mov $0xfee00000, %edi\n paddb (%rdi), %xmm0\n 1: jmp 1b\n");

static void refused(void **state)
{
	struct vm vm;

	start(&vm);
	rig_long(&vm.rig, lapic_operand, GUEST_LEN(lapic_operand), 0);
	assert_int_equal(engine_kvm.run(vm.rig.engine, 0), EXIT_ERROR);
	assert_int_equal(vm.calls, 2);
	const char *why = engine_kvm.last_error(vm.rig.engine, 0);
	assert_non_null(strstr(why, "code 66 0f fc 07"));
	assert_non_null(strstr(why, "1 instruction"));
	assert_non_null(strstr(completer_refusal(vm.completer, 0), "APIC"));
	finish(&vm);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(ring0_cmpxchg16b),
		cmocka_unit_test(device),
		cmocka_unit_test(faults),
		cmocka_unit_test(refused),
	};

	rig_need_kvm();
	return cmocka_run_group_tests(tests, NULL, NULL);
}
