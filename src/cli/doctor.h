/*
 * The parts of `doppel doctor`: the host (doctor_host.c), the instruction set (doctor_isa.c), and the report
 * (doctor.c).
 */
#ifndef CLI_DOCTOR_H
#define CLI_DOCTOR_H

#include "base/bits.h"

struct host {
	char cpu[64], vendor[16], kernel[160];
	bool hypervisor; /* the host is itself a virtual machine */
	unsigned threads;
	uint64_t memory, available; /* bytes */
};

struct answer {
	bool ok;
	char value[96];
};

/* What the soft engine stands on. */
struct check {
	const char *name;
	bool needed; /* it cannot run without */
	struct answer (*look)(void);
	const char *why;
};
#define DOCTOR_CHECKS 9
extern const struct check doctor_checks[DOCTOR_CHECKS];

struct host doctor_host(void);

/* Run the sensitive instructions and print the classes, as a table or as JSON. Returns the exit status. */
int doctor_isa(bool json);

#endif
