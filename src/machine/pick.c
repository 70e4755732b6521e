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

static bool pick_soft(struct engine_choice *out, unsigned ncpus, const char *why, struct error *err)
{
	if (ncpus == 1)
		return take(out, &engine_soft, why);
	error_set(err, "the soft engine runs one CPU in this release, not %u", ncpus);
	return error_hint(err, "take --cpus 1, or --engine kvm; more come with the next release");
}

bool engine_pick(enum engine_kind wanted, unsigned ncpus, struct engine_choice *out, struct error *err)
{
	struct kvm_probe p;

	if (wanted == ENGINE_KVM)
		return pick_kvm(out, err);
	if (wanted == ENGINE_SOFT)
		return pick_soft(out, ncpus, "asked for", err);
	kvm_probe(&p, NULL, PROBE_MS, false);
	return p.take ? take(out, &engine_kvm, p.msg) : pick_soft(out, ncpus, p.msg, err);
}
