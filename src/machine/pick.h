/*
 * Which engine runs a machine. `auto` takes kvm where /dev/kvm works and hardware backs it, else soft, and says why;
 * an engine that was asked for by name is taken or refused, never replaced.
 */
#ifndef MACHINE_PICK_H
#define MACHINE_PICK_H

#include "base/error.h"
#include "engine/engine.h"

struct engine_choice {
	const struct engine_ops *ops;
	char why[256]; /* one line without a newline */
};

bool engine_pick(enum engine_kind wanted, struct engine_choice *out, struct error *err);

#endif
