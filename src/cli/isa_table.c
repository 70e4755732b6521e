#include "cli/isa.h"

#define ALWAYS {0}
#define BIT_OF(leaf, sub, reg, bit) {leaf, sub, reg, bit, 0}
#define INTEL {0, 0, 0, 0, 'I'}
#define INTEL_BIT(leaf, sub, reg, bit) {leaf, sub, reg, bit, 'I'}
#define AMD_BIT(leaf, sub, reg, bit) {leaf, sub, reg, bit, 'A'}
#define VMX BIT_OF(1, 0, 'c', 5)
#define SVM BIT_OF(0x80000001, 0, 'c', 2)
#define SNP BIT_OF(0x8000001f, 0, 'a', 4)
#define WAITPKG BIT_OF(7, 0, 'c', 5)
#define CET_SS BIT_OF(7, 0, 'c', 7)
#define UINTR BIT_OF(7, 0, 'd', 5)
#define XSAVES_BIT BIT_OF(0xd, 1, 'a', 3)
#define MONITORX_BIT BIT_OF(0x80000001, 0, 'c', 29)
#define FSGSBASE_BIT BIT_OF(7, 0, 'b', 0)
#define MSRLIST BIT_OF(7, 1, 'a', 27)
#define FRED BIT_OF(7, 1, 'a', 17)
#define LOAD_AX "xor %eax, %eax\n"

/* The code of each row, then a global label behind it. */
#define ISA(id, name, kind, needs, text, shows, why) \
	uint64_t isa_code_##id(void *scratch); \
	extern const char isa_end_##id[]; \
	__asm__(".pushsection .text\n.globl isa_code_" #id ", isa_end_" #id "\nisa_code_" #id ":\n" text "\n" \
		"isa_end_" #id ":\nret\n.popsection\n");
#include "cli/isa_list.inc"
#undef ISA

const struct isa_insn isa_table[] = {
#define ISA(id, name, kind, needs, text, shows, why) {name, ISA_##kind, needs, isa_code_##id, isa_end_##id, shows, why},
#include "cli/isa_list.inc"
#undef ISA
};
const unsigned isa_count = ARRAY_LEN(isa_table);
