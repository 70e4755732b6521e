#include "machine/machine.h"

#include <inttypes.h>

#include "engine/soft/complete.h"

static void print_seg(FILE *out, const char *name, const struct cpu_seg *s)
{
	fprintf(out, "%-3s %04x base %016" PRIx64 " limit %08x attr %05x\n", name, s->sel, s->base, s->limit, s->attr);
}

static void print_gprs(FILE *out, const struct cpu_state *s)
{
	static const char names[16][4] = {"rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi",
					  "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15"};

	for (unsigned i = 0; i < 16; i++)
		fprintf(out, "%-3s %016" PRIx64 "%s", names[i], s->gpr[i], i % 4 == 3 ? "\n" : "  ");
	fprintf(out, "rip %016" PRIx64 "  rflags %08" PRIx64 "  cpl %u  %s\n", s->rip, s->rflags, cpu_cpl(s),
		cpu_is_64bit(s)   ? "64-bit"
		: cpu_long_mode(s) ? "compatibility"
		: cpu_is_v86(s)    ? "virtual-8086"
		: cpu_is_real(s)   ? "real"
				   : "protected");
}

/* The bytes at CS:RIP where the address is RAM without translation (paging off). */
static void print_code(FILE *out, const struct machine *m, const struct cpu_state *s)
{
	const uint8_t *p;

	if (s->cr0 & CR0_PG)
		return;
	p = ram_ptr(m->ram, (uint32_t)(s->seg[SEG_CS].base + s->rip), 16);
	if (!p)
		return;
	fprintf(out, "code");
	for (unsigned i = 0; i < 16; i++)
		fprintf(out, " %02x", p[i]);
	fputc('\n', out);
}

void machine_report_vcpu(struct machine *m, unsigned vcpu, FILE *out)
{
	static const char seg_names[SEG_COUNT][3] = {"es", "cs", "ss", "ds", "fs", "gs"};
	const char *words = m->engine->ops->last_error(m->engine, vcpu);
	struct cpu_state *s = &(struct cpu_state){0};
	const char *why;

	m->engine->ops->get_state(m->engine, vcpu, s);
	fprintf(out, "vCPU %u (%s engine):\n", vcpu, m->engine->ops->name);
	print_gprs(out, s);
	for (unsigned i = 0; i < SEG_COUNT; i++)
		print_seg(out, seg_names[i], &s->seg[i]);
	print_seg(out, "ldt", &s->ldt);
	print_seg(out, "tr", &s->tr);
	fprintf(out, "gdt base %016" PRIx64 " limit %04x\nidt base %016" PRIx64 " limit %04x\n", s->gdt.base,
		s->gdt.limit, s->idt.base, s->idt.limit);
	fprintf(out, "cr0 %08" PRIx64 "  cr2 %016" PRIx64 "  cr3 %016" PRIx64 "  cr4 %08" PRIx64 "  efer %04" PRIx64 "\n",
		s->cr0, s->cr2, s->cr3, s->cr4, s->efer);
	print_code(out, m, s);
	why = m->completer ? completer_refusal(m->completer, vcpu) : NULL;
	if (why)
		fprintf(out, "the soft engine did not complete the instruction: %s\n", why);
	if (words && *words)
		fprintf(out, "%s%s", words, words[0] && words[__builtin_strlen(words) - 1] == '\n' ? "" : "\n");
}
