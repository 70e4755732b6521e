/*
 * Compare one decoded instruction with Zydis, an independent decoder, field by field.
 */
#ifndef TESTS_UNIT_DECODE_ZYDIS_COMPARE_H
#define TESTS_UNIT_DECODE_ZYDIS_COMPARE_H

#include <stddef.h>

#include "engine/soft/translate/decode.h"

enum compare_result {
	CMP_SAME,    /* both valid, all fields agree */
	CMP_INVALID, /* both say invalid */
	CMP_ALLOWED, /* a difference with a known reason */
	CMP_DIFFERS, /* why says what */
};

/* bytes[0..len), len at least 15. */
enum compare_result zydis_compare(const uint8_t *bytes, unsigned len, enum insn_cpu_mode mode, char *why,
				  size_t why_size);

#endif
