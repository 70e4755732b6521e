/*
 * Writes ACPI Machine Language (ACPI 6.5, 20.2) into a buffer. What does not fit is dropped and `full` set: check at
 * the end. The buffer is below 1 MiB. Names are given as paths of 4-character segments ("_SB_"); aml_end closes the
 * innermost open object.
 */
#ifndef BOOT_AML_H
#define BOOT_AML_H

#include "base/bits.h"

#define AML_DEPTH 8

struct aml {
	uint8_t *buf;
	size_t len, size;
	bool full;
	unsigned depth;
	size_t open[AML_DEPTH]; /* where the PkgLength of an open object belongs */
};

void aml_init(struct aml *a, void *buf, size_t size);

void aml_scope(struct aml *a, const char *path);
void aml_device(struct aml *a, const char *name);
void aml_package(struct aml *a, uint8_t elements);
void aml_end(struct aml *a);

/* Name (name, the object that is written next) */
void aml_name(struct aml *a, const char *name);
void aml_int(struct aml *a, uint64_t v);
void aml_string(struct aml *a, const char *s);
void aml_eisaid(struct aml *a, const char *id); /* "PNP0A08" */
void aml_buffer(struct aml *a, const void *data, size_t len);

/* Resource templates (ACPI 6.5, 6.4): descriptors into a small buffer, then aml_resources names it _CRS. */
struct aml_res {
	uint8_t buf[512];
	size_t len;
};

enum aml_space { AML_MEMORY = 0, AML_IO = 1, AML_BUS = 2 };

void aml_res_io(struct aml_res *r, uint16_t base, uint8_t len);
void aml_res_irq(struct aml_res *r, uint8_t irq); /* edge, active high; irq 0-15 */
/* Address space descriptor of 16, 32 or 64 bits; produced by a bridge, or consumed by the device itself. */
void aml_res_window(struct aml_res *r, enum aml_space space, unsigned bits, bool produced, uint64_t base,
		    uint64_t size);
void aml_resources(struct aml *a, struct aml_res *r);

#endif
