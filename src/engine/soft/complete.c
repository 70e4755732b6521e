#include "engine/soft/complete.h"

#include <stdlib.h>
#include <string.h>

#include "engine/soft/cache/cache_int.h"
#include "engine/soft/interp/interp.h"
#include "engine/soft/mmu/mmu.h"
#include "engine/soft/soft_int.h"

#define CACHE_BYTES (1 * MIB) /* step stubs only; touched as it fills */
#define IOAPIC_PAGE UINT64_C(0xfec00000)

struct complete_vcpu {
	struct soft_engine e; /* each has its own code cache: vCPUs complete at the same time */
	struct soft_vcpu *sv; /* made at the first completion */
	struct bus *bus; /* what the instruction sees: the machine's, less the interrupt chips */
	struct bus *machine;
	const char *refusal;
};

struct completer {
	struct engine_config cfg;
	struct complete_vcpu *vcpus; /* cfg.ncpus */
};

/* ---- the bus ---- */

static bool chip_page(struct complete_vcpu *c, gpa_t gpa)
{
	gpa_t page = gpa & ~(PAGE_SIZE - 1);
	uint64_t base = c->sv->v.s.apic_base;
	bool lapic = (base & BIT(11)) && !(base & BIT(10)) && page == (base & UINT64_C(0xffffff000));

	if (lapic || page == IOAPIC_PAGE)
		c->refusal = "an access to the local APIC or IOAPIC";
	return c->refusal;
}

static bool chip_port(struct complete_vcpu *c, uint64_t port, unsigned size)
{
	static const struct {
		uint16_t first, last;
	} chips[] = {{0x20, 0x21}, {0xa0, 0xa1}, {0x4d0, 0x4d1}, {0x40, 0x43}, {0x61, 0x61}};

	for (unsigned i = 0; i < ARRAY_LEN(chips); i++)
		if (port <= chips[i].last && port + size > chips[i].first)
			c->refusal = "an access to the interrupt controllers' or timer's ports";
	return c->refusal;
}

static uint64_t mmio_read(void *dev, uint64_t off, unsigned size)
{
	struct complete_vcpu *c = dev;

	return chip_page(c, off) ? UINT64_MAX : bus_read(c->machine, BUS_MMIO, off, size);
}

static void mmio_write(void *dev, uint64_t off, unsigned size, uint64_t value)
{
	struct complete_vcpu *c = dev;

	if (!chip_page(c, off))
		bus_write(c->machine, BUS_MMIO, off, size, value);
}

static uint64_t pio_read(void *dev, uint64_t off, unsigned size)
{
	struct complete_vcpu *c = dev;

	return chip_port(c, off, size) ? UINT64_MAX : bus_read(c->machine, BUS_PIO, off, size);
}

static void pio_write(void *dev, uint64_t off, unsigned size, uint64_t value)
{
	struct complete_vcpu *c = dev;

	if (!chip_port(c, off, size))
		bus_write(c->machine, BUS_PIO, off, size, value);
}

static const struct bus_ops mmio_ops = {.read = mmio_read, .write = mmio_write};
static const struct bus_ops pio_ops = {.read = pio_read, .write = pio_write};

/* ---- life ---- */

static void vcpu_fini(struct complete_vcpu *c)
{
	if (c->sv)
		soft_vcpu_free(c->sv);
	cache_free(c->e.cache);
	bus_free(c->bus);
	c->sv = NULL;
	c->e.cache = NULL;
	c->bus = NULL;
}

static bool vcpu_init(struct complete_vcpu *c, const struct engine_config *cfg, unsigned index)
{
	struct error err;

	c->machine = cfg->bus;
	c->bus = bus_new();
	c->e.cfg = *cfg;
	c->e.cfg.bus = c->bus;
	c->e.steps_only = true;
	c->e.slots = 1;
	c->e.ram_rw = ram_view(cfg->ram); /* no page is ever protected */
	c->e.watch = ram_watch_map(cfg->ram);
	if (c->bus && bus_map(c->bus, BUS_MMIO, 0, UINT64_MAX, &mmio_ops, c, "machine", &err) &&
	    bus_map(c->bus, BUS_PIO, 0, 0x10000, &pio_ops, c, "machine", &err) && (c->e.cache = cache_new(&c->e, CACHE_BYTES, &err)) &&
	    (c->sv = soft_vcpu_new(&c->e, index, &err)))
		return true;
	vcpu_fini(c);
	return false;
}

struct completer *completer_new(const struct engine_config *cfg, struct error *err)
{
	struct completer *c;

	if (!soft_host_ok(err))
		return NULL;
	c = calloc(1, sizeof(*c));
	if (!c || !(c->vcpus = calloc(cfg->ncpus, sizeof(*c->vcpus)))) {
		free(c);
		error_set(err, "out of memory");
		return NULL;
	}
	c->cfg = *cfg;
	return c;
}

void completer_free(struct completer *c)
{
	if (!c)
		return;
	for (unsigned i = 0; i < c->cfg.ncpus; i++)
		vcpu_fini(&c->vcpus[i]);
	free(c->vcpus);
	free(c);
}

/* ---- one instruction ---- */

/* MSRs that are the other engine's: APIC, TSC deadline, and those that start a page which it keeps up to date. */
static bool foreign_msr(uint32_t msr, bool write)
{
	if (msr == 0x6e0 || (msr >= 0x800 && msr <= 0x8ff))
		return true;
	return write && (msr == 0x1b || msr == 0x11 || msr == 0x12 || (msr >= 0x4b564d00 && msr <= 0x4b564dff));
}

/* At CPL 3 the privileged ones fault, which is the guest's own affair. */
static const char *foreign(const struct cpu_state *s, const struct insn *in)
{
	if (in->kind == INSN_VMCALL || in->kind == INSN_VMMCALL)
		return "a hypercall";
	if (!cpu_is_real(s) && cpu_cpl(s))
		return NULL;
	switch (in->kind) {
	case INSN_HLT: case INSN_MWAIT:
		return "HLT or MWAIT";
	case INSN_INVLPG: case INSN_INVPCID:
		return "a TLB invalidation";
	case INSN_MOV_CR_R:
		if (in->reg == 3)
			return "a TLB invalidation";
		return in->reg == 8 ? "an access to CR8" : NULL;
	case INSN_MOV_R_CR:
		return in->reg == 8 ? "an access to CR8" : NULL;
	case INSN_RDMSR: case INSN_WRMSR:
		return foreign_msr((uint32_t)s->gpr[R_CX], in->kind == INSN_WRMSR) ? "an MSR of the APIC or the paravirtual clock" : NULL;
	default:
		return NULL;
	}
}

/* Take the state over; *components: those that the guest owns and this engine never loads. */
static void load(struct soft_vcpu *sv, const struct cpu_state *s, uint64_t *components)
{
	struct cpu_state *own = &sv->v.s;
	uint64_t bv = get_le64(s->xsave + 512);

	*own = *s;
	/* what XRSTOR would refuse */
	memset(own->xsave + 520, 0, 56);
	put_le32(own->xsave + 24, get_le32(own->xsave + 24) & (0xffff | (sv->cache->misaligned_sse ? BIT(17) : 0)));
	put_le64(own->xsave + 512, bv & sv->xsave_mask);
	*components = bv & ~sv->xsave_mask;
	sv->v.triple_fault = false;
	sv->v.fatal = NULL;
	sv->ctlb_gen++; /* the guest ran: what is cached of its page tables is old */
	sv->hflags = soft_hflags(&sv->v);
}

static const char *step(struct soft_vcpu *sv)
{
	struct signals_saved signals;
	uint8_t bytes[16];
	struct insn in;
	const char *why;

	if (soft_fetch_insn(sv, &in, bytes) && (why = foreign(&sv->v.s, &in)))
		return why;
	signals_borrow(sv, &signals);
	soft_step(sv);
	vec_save(&sv->v);
	signals_return(&signals);
	if (sv->v.fatal)
		return sv->v.fatal;
	if (sv->v.triple_fault)
		return "a triple fault";
	return sv->v.s.run_state != CPU_RUNNING ? "a halt" : NULL;
}

bool completer_run(void *completer, unsigned vcpu, struct cpu_state *s)
{
	struct completer *all = completer;
	struct complete_vcpu *c = &all->vcpus[vcpu];
	uint64_t components;

	c->refusal = NULL;
	if (!c->sv && !vcpu_init(c, &all->cfg, vcpu)) {
		c->refusal = "no memory for a vCPU of the soft engine";
		return false;
	}
	if (s->exc_pending || s->int_pending || s->run_state != CPU_RUNNING) {
		c->refusal = "an event that was only half delivered";
		return false;
	}
	load(c->sv, s, &components);
	const char *why = step(c->sv);
	if (why)
		c->refusal = why;
	if (c->refusal)
		return false;
	*s = c->sv->v.s;
	put_le64(s->xsave + 512, get_le64(s->xsave + 512) | components);
	return true;
}

const char *completer_refusal(const struct completer *c, unsigned vcpu)
{
	return c->vcpus[vcpu].refusal;
}
