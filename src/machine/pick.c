#include "machine/pick.h"

#include <stdio.h>

#include "engine/kvm/kvm.h"

#define PROBE_MS 20

static bool take(struct engine_choice *out, const struct engine_ops *ops, const char *why)
{
	out->ops = ops;
	snprintf(out->why, sizeof(out->why), "%s", why);
	return true;
}

static bool pick_kvm(struct engine_choice *out, struct error *err)
{
	struct kvm_probe p;

	kvm_probe(&p, NULL, PROBE_MS, false);
	if (p.usable)
		return take(out, &engine_kvm, "asked for");
	error_set(err, "the kvm engine cannot run here: %s", p.msg);
	return error_hint(err, "take --engine soft, or see doppel doctor");
}

bool engine_pick(enum engine_kind wanted, struct engine_choice *out, struct error *err)
{
	struct kvm_probe p;

	if (wanted == ENGINE_KVM)
		return pick_kvm(out, err);
	if (wanted == ENGINE_SOFT)
		return take(out, &engine_soft, "asked for");
	kvm_probe(&p, NULL, PROBE_MS, false);
	return p.take ? take(out, &engine_kvm, p.msg) : take(out, &engine_soft, p.msg);
}
