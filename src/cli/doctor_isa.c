#include "cli/doctor.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/cli.h"
#include "cli/isa.h"

#define WIDTH 100
#define TRANSLATION                                                                                                    \
	"A VMM that only runs the guest in user mode and waits for traps would miss the critical ones: they must be "  \
	"found and translated (the soft engine), or the CPU must trap them in a mode of its own (VT-x, AMD-V)."

static const char *const class_names[] = {"absent", "privileged", "sensitive", "critical", "innocuous"};
static const char *const kind_names[] = {"-", "control", "behaviour", "gate"};

struct verdict {
	unsigned count[ISA_CLASSES];
	unsigned emulated;
	bool holds; /* every sensitive instruction is privileged, or a gate */
	char text[512];
};

static struct verdict judge(const struct isa_result *r)
{
	struct verdict v = {0};

	for (unsigned i = 0; i < isa_count; i++) {
		v.count[r[i].class]++;
		v.emulated += r[i].emulated;
	}
	v.holds = v.count[ISA_CRITICAL] == 0;
	snprintf(v.text, sizeof(v.text),
		 "Popek and Goldberg, theorem 1: a VMM can be built by trap and emulate when every sensitive "
		 "instruction is "
		 "privileged. On this CPU, in 64-bit mode, %u of %u sensitive instructions are not: the theorem's "
		 "condition %s.",
		 v.count[ISA_CRITICAL], v.count[ISA_CRITICAL] + v.count[ISA_PRIVILEGED] + v.count[ISA_SENSITIVE],
		 v.holds ? "holds" : "does not hold, and the CPU is not classically virtualizable");
	return v;
}

/* What was seen, in words. */
static void evidence(const struct isa_insn *insn, const struct isa_result *r, char *buf, size_t size)
{
	const char *shows = insn->shows ? insn->shows : "";

	if (r->class == ISA_ABSENT)
		snprintf(buf, size, "not on this CPU");
	else if (r->trapped)
		snprintf(buf, size, "%s", isa_vector_name(r->vector));
	else if (r->gated)
		snprintf(buf, size, "left, and came back with %s elsewhere", isa_vector_name(r->vector));
	else if (r->stuck)
		snprintf(buf, size, "did not come back");
	else if (r->emulated)
		snprintf(buf, size, "#GP by UMIP, Linux made up %s = 0x%llx", shows, (unsigned long long)r->value);
	else if (insn->kind == ISA_GATE)
		snprintf(buf, size, "entered and came back, %s = 0x%llx", shows, (unsigned long long)r->value);
	else if (insn->shows)
		snprintf(buf, size, "no trap, %s = 0x%llx", shows, (unsigned long long)r->value);
	else
		snprintf(buf, size, "no trap");
}

/* Words of text in lines of at most WIDTH columns. */
static void print_wrapped(const char *text)
{
	for (int column = 0; *text;) {
		int word = (int)strcspn(text, " ");

		if (column && column + 1 + word > WIDTH) {
			putchar('\n');
			column = 0;
		}
		column += printf("%s%.*s", column ? " " : "", word, text);
		text += word + (text[word] == ' ');
	}
	putchar('\n');
}

static void print_table(const struct isa_result *r, const struct verdict *v)
{
	char seen[96];

	printf("%-13s %-11s %-10s %-52s %s\n", "INSTRUCTION", "CLASS", "KIND", "SEEN IN USER MODE", "WHY SENSITIVE");
	for (unsigned i = 0; i < isa_count; i++) {
		if (r[i].class == ISA_ABSENT)
			continue;
		evidence(&isa_table[i], &r[i], seen, sizeof(seen));
		printf("%-13s %-11s %-10s %-52s %s\n", isa_table[i].name, class_names[r[i].class],
		       kind_names[isa_table[i].kind], seen, isa_table[i].why);
	}
	printf("\nprivileged %u: trap in user mode\n", v->count[ISA_PRIVILEGED]);
	if (v->emulated)
		printf("           %u of them by UMIP only: Linux catches the trap and gives the program made-up "
		       "values\n",
		       v->emulated);
	printf("sensitive  %u: gates, which enter the supervisor in every mode; the VMM gets them all\n",
	       v->count[ISA_SENSITIVE]);
	printf("critical   %u: sensitive, and run in user mode without a trap\n", v->count[ISA_CRITICAL]);
	printf("innocuous  %u: some of the rest, to compare\n", v->count[ISA_INNOCUOUS]);
	printf("absent     %u: not on this CPU, by CPUID\n", v->count[ISA_ABSENT]);
	putchar('\n');
	print_wrapped(v->text);
	if (!v->holds)
		print_wrapped(TRANSLATION);
}

static json_t *insn_json(const struct isa_insn *insn, const struct isa_result *r)
{
	char seen[96], value[32];
	json_t *o = json_object();

	evidence(insn, r, seen, sizeof(seen));
	json_object_set_new(o, "name", json_string(insn->name));
	json_object_set_new(o, "class", json_string(class_names[r->class]));
	json_object_set_new(o, "kind", insn->kind == ISA_PLAIN ? json_null() : json_string(kind_names[insn->kind]));
	json_object_set_new(o, "why", json_string(insn->why));
	json_object_set_new(o, "seen", json_string(seen));
	json_object_set_new(o, "trap", r->trapped ? json_string(isa_vector_name(r->vector)) : json_null());
	json_object_set_new(o, "emulated", json_boolean(r->emulated));
	if (insn->shows && r->class != ISA_ABSENT && !r->trapped && !r->gated && !r->stuck) {
		snprintf(value, sizeof(value), "0x%llx", (unsigned long long)r->value);
		json_object_set_new(o, "shows", json_string(insn->shows));
		json_object_set_new(o, "value", json_string(value));
	}
	return o;
}

static void print_json(const struct isa_result *r, const struct verdict *v)
{
	json_t *root = json_object(), *list = json_array(), *counts = json_object();

	for (unsigned i = 0; i < isa_count; i++)
		json_array_append_new(list, insn_json(&isa_table[i], &r[i]));
	for (unsigned c = 0; c < ISA_CLASSES; c++)
		json_object_set_new(counts, class_names[c], json_integer(v->count[c]));
	json_object_set_new(root, "instructions", list);
	json_object_set_new(root, "counts", counts);
	json_object_set_new(root, "emulated_by_kernel", json_integer(v->emulated));
	json_object_set_new(root, "theorem_holds", json_boolean(v->holds));
	json_object_set_new(root, "theorem", json_string(v->text));
	json_dumpf(root, stdout, JSON_INDENT(2));
	putchar('\n');
	json_decref(root);
}

int doctor_isa(bool json)
{
	struct isa_result *r = calloc(isa_count, sizeof(*r));
	struct error err = {0};

	if (!r || !isa_measure(r, &err)) {
		if (!r)
			error_set(&err, "out of memory");
		free(r);
		return cli_fail(&err);
	}
	struct verdict v = judge(r);
	if (json)
		print_json(r, &v);
	else
		print_table(r, &v);
	free(r);
	return CLI_OK;
}
