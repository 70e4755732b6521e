/*
 * The sensitive instructions of x86-64, and what each does in user mode on this CPU: measured by running it.
 *
 * After Popek and Goldberg (1974): an instruction is privileged when it traps in user mode and not in supervisor
 * mode; sensitive when it changes the machine's resources or mode (control), or when its effect depends on them
 * (behaviour); critical when it is sensitive and not privileged; innocuous when it is not sensitive.
 * Which instructions are sensitive is read from the manuals (SDM vol. 2 and 3, APM vol. 3); whether they trap in user
 * mode is measured.
 */
#ifndef CLI_ISA_H
#define CLI_ISA_H

#include "base/bits.h"
#include "base/error.h"

enum isa_kind {
	ISA_PLAIN,     /* not sensitive */
	ISA_CONTROL,   /* changes resources or mode */
	ISA_BEHAVIOUR, /* shows them, or acts by them */
	ISA_GATE,      /* enters the supervisor in every mode: it always traps, by design */
};

enum isa_class { ISA_ABSENT, ISA_PRIVILEGED, ISA_SENSITIVE /* a gate */, ISA_CRITICAL, ISA_INNOCUOUS, ISA_CLASSES };

/* CPUID bit that says whether the CPU has it; leaf 0: every x86-64 CPU does. */
struct isa_feature {
	uint32_t leaf, subleaf;
	char reg; /* 'a' to 'd' */
	uint8_t bit;
	char vendor; /* 'A' AMD only, 'I' all but AMD, 0 any */
};

struct isa_insn {
	const char *name;
	enum isa_kind kind;
	struct isa_feature needs;
	uint64_t (*code)(void *scratch); /* runs it in 64-bit mode */
	const char *end;		 /* of the code */
	const char *shows;		 /* what the code returns; NULL: nothing of interest */
	const char *why;		 /* why it is sensitive */
};

struct isa_result {
	enum isa_class class;
	bool trapped;
	bool gated;	 /* went to the supervisor and came back elsewhere, or by another signal */
	bool emulated;	 /* UMIP: the CPU trapped, the kernel emulated it with dummy values */
	bool stuck;	 /* did not come back in time */
	unsigned vector; /* of the exception, when trapped */
	uint64_t value;	 /* what `shows` says, when not trapped */
};

extern const struct isa_insn isa_table[];
extern const unsigned isa_count;

/* Run every instruction of the table, each in a child process. out: isa_count results. */
bool isa_measure(struct isa_result *out, struct error *err);
/* "#GP" ... */
const char *isa_vector_name(unsigned vector);

#endif
