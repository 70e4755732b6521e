#include "rig.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bus/bus.h"

static void die(const char *what, const struct error *err)
{
	fprintf(stderr, "rig: %s: %s\n", what, err->msg);
	exit(1);
}

void rig_init(struct rig *r, uint64_t ram_bytes)
{
	struct error err = {0};

	memset(r, 0, sizeof(*r));
	pthread_mutex_init(&r->lock, NULL);
	timer_queue_init(&r->timers);
	r->ram = ram_new(ram_bytes, &err);
	if (!r->ram || !cpuid_policy_init(&r->cpuid, CPU_MAX, 1, 2000000, &err))
		die("ram or cpuid", &err);
	r->bus = bus_new();
	r->cfg = (struct engine_config){.ram = r->ram, .bus = r->bus, .cpuid = &r->cpuid, .ncpus = 1, .lock = &r->lock, .timers = &r->timers};
	r->engine = engine_soft.create(&r->cfg, &err);
	if (!r->engine)
		die("engine", &err);
	r->sv = ((struct soft_engine *)r->engine)->vcpus[0];
	r->cr3 = 0x10000;
	r->next_table = 0x11000;
}

void rig_fini(struct rig *r)
{
	engine_soft.destroy(r->engine);
	bus_free(r->bus);
	ram_free(r->ram);
	pthread_mutex_destroy(&r->lock);
}

void rig_map(struct rig *r, gva_t gva, gpa_t gpa, unsigned flags)
{
	uint64_t table = r->cr3;

	for (int shift = 39; shift > 12; shift -= 9) {
		uint64_t *e = ram_ptr(r->ram, table + ((gva >> shift) & 511) * 8, 8);

		if (!(*e & 1)) {
			*e = r->next_table | 7;
			r->next_table += PAGE_SIZE;
		}
		table = *e & 0x000ffffffffff000;
	}
	*(uint64_t *)ram_ptr(r->ram, table + ((gva >> 12) & 511) * 8, 8) =
		gpa | 1 | ((flags & RIG_W) ? 2 : 0) | ((flags & RIG_U) ? 4 : 0) | ((flags & RIG_NX) ? BIT(63) : 0);
}

static void segment(struct cpu_seg *s, uint16_t sel, uint32_t attr)
{
	*s = (struct cpu_seg){.sel = sel, .attr = attr, .limit = UINT32_MAX};
}

void rig_state(struct rig *r, struct cpu_state *s, unsigned cpl)
{
	cpu_state_reset(s, 0);
	s->cr0 = CR0_PE | CR0_MP | CR0_ET | CR0_NE | CR0_WP | CR0_PG;
	s->cr4 = CR4_PAE | CR4_PGE | CR4_OSFXSR | CR4_OSXMMEXCPT | CR4_OSXSAVE | CR4_FSGSBASE;
	s->cr3 = r->cr3;
	s->efer = EFER_SCE | EFER_LME | EFER_LMA | EFER_NXE;
	s->xcr0 = r->cpuid.xcr0_allowed;
	segment(&s->seg[SEG_CS], (uint16_t)(0x10 | cpl), 0xa09b | cpl << 5);
	for (unsigned i = 0; i < SEG_COUNT; i++)
		if (i != SEG_CS)
			segment(&s->seg[i], (uint16_t)(0x18 | cpl), 0xc093 | cpl << 5);
	s->idt = (struct cpu_dtr){0};
	s->gdt = (struct cpu_dtr){0};
	s->rflags = FL_FIXED;
}

struct rig_result rig_run(struct rig *r, struct cpu_state *s)
{
	struct rig_result res = {0};
	struct error err;

	if (!engine_soft.set_state(r->engine, 0, s, &err))
		die("set_state", &err);
	r->sv->exc_count = 0;
	res.exit = engine_soft.run(r->engine, 0);
	engine_soft.get_state(r->engine, 0, s);
	if (r->sv->exc_count) {
		res.vector = r->sv->exc_log[0].vector;
		res.error = r->sv->exc_log[0].error;
		res.rip = r->sv->exc_log[0].rip;
		res.cr2 = r->sv->exc_log[0].cr2;
	}
	return res;
}
