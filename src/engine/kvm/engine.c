#include "engine/kvm/kvm.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/log.h"
#include "engine/kvm/kvm_int.h"

/* Three pages for a TSS and one for a page table, which KVM wants on Intel hosts; in the hole below the firmware. */
#define IDENTITY_MAP_ADDR 0xfffbc000u
#define TSS_ADDR 0xfffbd000u

static void kick_handler(int sig) {}

int kvm_kick_signal(void) { return SIGRTMIN; }

bool kvm_kick_signal_install(struct error *err)
{
	struct sigaction sa = {.sa_handler = kick_handler};

	sigemptyset(&sa.sa_mask);
	if (sigaction(kvm_kick_signal(), &sa, NULL) < 0)
		return error_set(err, "cannot install the vCPU kick signal: %s", strerror(errno));
	return true;
}

static bool vm_ioctl(struct kvm_engine *k, unsigned long req, const char *name, unsigned long arg, struct error *err)
{
	if (ioctl(k->vm_fd, req, arg) < 0)
		return error_set(err, "%s failed: %s", name, strerror(errno));
	return true;
}
#define VM_IOCTL(k, req, arg, err) vm_ioctl(k, req, #req, (unsigned long)(arg), err)

bool kvm_set_slots(struct kvm_engine *k, bool log, struct error *err)
{
	const struct ram_region *r;
	unsigned n = ram_regions(k->cfg.ram, &r);

	for (unsigned i = 0; i < n; i++) {
		struct kvm_userspace_memory_region slot = {
			.slot = i,
			.flags = log ? KVM_MEM_LOG_DIRTY_PAGES : 0,
			.guest_phys_addr = r[i].gpa,
			.memory_size = r[i].size,
			.userspace_addr = (uintptr_t)ram_view(k->cfg.ram) + r[i].offset,
		};
		if (!VM_IOCTL(k, KVM_SET_USER_MEMORY_REGION, &slot, err))
			return false;
	}
	return true;
}

static void sink_set_gsi(void *ctx, unsigned gsi, bool level)
{
	struct kvm_engine *k = ctx;
	struct kvm_irq_level l = {.irq = gsi, .level = level};

	if (gsi < KVM_IOAPIC_NUM_PINS)
		ioctl(k->vm_fd, KVM_IRQ_LINE, &l);
}

static bool sink_msi(void *ctx, uint64_t addr, uint32_t data)
{
	struct kvm_engine *k = ctx;
	struct kvm_msi m = {.address_lo = (uint32_t)addr, .address_hi = (uint32_t)(addr >> 32), .data = data};

	return ioctl(k->vm_fd, KVM_SIGNAL_MSI, &m) > 0;
}

/*
 * GSI 0-15 to the 8259 pair and the IOAPIC, 16-23 to the IOAPIC; GSI 0 is IOAPIC pin 2, and the pair's own cascade no
 * line at all.
 */
static bool set_gsi_routing(struct kvm_engine *k, struct error *err)
{
	struct { /* struct kvm_irq_routing with room */
		uint32_t nr, flags;
		struct kvm_irq_routing_entry e[16 + KVM_IOAPIC_NUM_PINS];
	} t = {0};

	for (unsigned gsi = 0; gsi < KVM_IOAPIC_NUM_PINS; gsi++) {
		if (gsi == 2)
			continue;
		t.e[t.nr++] = (struct kvm_irq_routing_entry){
			.gsi = gsi,
			.type = KVM_IRQ_ROUTING_IRQCHIP,
			.u.irqchip = {.irqchip = KVM_IRQCHIP_IOAPIC, .pin = gsi == 0 ? 2 : gsi},
		};
		if (gsi >= 16)
			continue;
		t.e[t.nr++] = (struct kvm_irq_routing_entry){
			.gsi = gsi,
			.type = KVM_IRQ_ROUTING_IRQCHIP,
			.u.irqchip = {.irqchip = gsi < 8 ? KVM_IRQCHIP_PIC_MASTER : KVM_IRQCHIP_PIC_SLAVE,
				      .pin = gsi & 7},
		};
	}
	return VM_IOCTL(k, KVM_SET_GSI_ROUTING, &t, err);
}

static bool make_vm(struct kvm_engine *k, struct error *err)
{
	struct kvm_pit_config pit = {.flags = KVM_PIT_SPEAKER_DUMMY};
	uint64_t identity = IDENTITY_MAP_ADDR;

	k->dev_fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	if (k->dev_fd < 0) {
		error_set(err, "cannot open /dev/kvm: %s", strerror(errno));
		return error_hint(err, "use --engine soft, or load KVM and give this user access to /dev/kvm");
	}
	int version = ioctl(k->dev_fd, KVM_GET_API_VERSION, 0);
	if (version != KVM_API_VERSION)
		return error_set(err, "/dev/kvm has API version %d; %d is needed", version, KVM_API_VERSION);
	k->vm_fd = ioctl(k->dev_fd, KVM_CREATE_VM, 0);
	if (k->vm_fd < 0) {
		error_set(err, "KVM_CREATE_VM failed: %s", strerror(errno));
		return error_hint(err, "another hypervisor may hold the CPU's virtualization; try --engine soft");
	}
	int size = ioctl(k->dev_fd, KVM_GET_VCPU_MMAP_SIZE, 0);
	if (size < (int)sizeof(struct kvm_run))
		return error_set(err, "KVM_GET_VCPU_MMAP_SIZE failed");
	k->run_page_size = (size_t)size;
	return VM_IOCTL(k, KVM_SET_IDENTITY_MAP_ADDR, &identity, err) && VM_IOCTL(k, KVM_SET_TSS_ADDR, TSS_ADDR, err) &&
	       VM_IOCTL(k, KVM_CREATE_IRQCHIP, 0, err) && VM_IOCTL(k, KVM_CREATE_PIT2, &pit, err) &&
	       set_gsi_routing(k, err) && kvm_set_slots(k, false, err);
}

static bool make_vcpu(struct kvm_engine *k, unsigned i, struct error *err)
{
	struct kvm_vcpu *v = &k->vcpu[i];
	struct kvm_device_attr tsc = {.group = KVM_VCPU_TSC_CTRL, .attr = KVM_VCPU_TSC_OFFSET};

	v->fd = ioctl(k->vm_fd, KVM_CREATE_VCPU, (unsigned long)i);
	if (v->fd < 0)
		return error_set(err, "KVM_CREATE_VCPU %u failed: %s", i, strerror(errno));
	void *p = mmap(NULL, k->run_page_size, PROT_READ | PROT_WRITE, MAP_SHARED, v->fd, 0);
	if (p == MAP_FAILED)
		return error_set(err, "cannot map the run page of vCPU %u: %s", i, strerror(errno));
	v->run_page = p;
	v->kernel_stats = kvm_stats_open(v->fd);
	k->has_tsc_attr = ioctl(v->fd, KVM_HAS_DEVICE_ATTR, &tsc) == 0;
	if (ioctl(v->fd, KVM_GET_LAPIC, &k->lapic_reset[i]) < 0)
		return error_set(err, "KVM_GET_LAPIC failed: %s", strerror(errno));
	return kvm_set_cpuid(k, i, err);
}

static void engine_kvm_destroy(struct engine *e)
{
	struct kvm_engine *k = kvm_engine_of(e);

	for (unsigned i = 0; k->vcpu && i < k->cfg.ncpus; i++) {
		if (k->vcpu[i].run_page)
			munmap(k->vcpu[i].run_page, k->run_page_size);
		kvm_stats_close(k->vcpu[i].kernel_stats);
		if (k->vcpu[i].fd >= 0)
			close(k->vcpu[i].fd);
	}
	if (k->vm_fd >= 0)
		close(k->vm_fd);
	if (k->dev_fd >= 0)
		close(k->dev_fd);
	free(k->vcpu);
	free(k->lapic_reset);
	free(k);
}

static void engine_kvm_reset(struct engine *e)
{
	struct kvm_engine *k = kvm_engine_of(e);
	struct error err;

	if (!kvm_engine_set_irqchip(e, &k->irqchip_reset))
		log_warn("kvm: the interrupt chips could not be reset");
	for (unsigned i = 0; i < k->cfg.ncpus; i++) {
		struct cpu_state s;

		cpu_state_reset(&s, i);
		if (!kvm_set_state(e, i, &s, &err))
			log_warn("kvm: vCPU %u could not be reset: %s", i, err.msg);
		if (!kvm_engine_set_lapic(e, i, (const uint8_t *)k->lapic_reset[i].regs))
			log_warn("kvm: the LAPIC of vCPU %u could not be reset", i);
		k->vcpu[i].last_error[0] = 0;
	}
}

static struct engine *engine_kvm_create(const struct engine_config *cfg, struct error *err)
{
	struct kvm_engine *k = calloc(1, sizeof(*k));

	if (!k) {
		error_set(err, "out of memory");
		return NULL;
	}
	k->base.ops = &engine_kvm;
	k->cfg = *cfg;
	k->dev_fd = k->vm_fd = -1;
	k->sink = (struct irq_sink){.set_gsi = sink_set_gsi, .msi = sink_msi, .ctx = k};
	k->vcpu = calloc(cfg->ncpus, sizeof(*k->vcpu));
	k->lapic_reset = calloc(cfg->ncpus, sizeof(*k->lapic_reset));
	for (unsigned i = 0; k->vcpu && i < cfg->ncpus; i++)
		k->vcpu[i].fd = -1;
	if (!k->vcpu || !k->lapic_reset) {
		error_set(err, "out of memory");
		goto fail;
	}
	if (!kvm_kick_signal_install(err) || !make_vm(k, err))
		goto fail;
	for (unsigned i = 0; i < cfg->ncpus; i++)
		if (!make_vcpu(k, i, err))
			goto fail;
	if (!kvm_engine_get_irqchip(&k->base, &k->irqchip_reset)) {
		error_set(err, "cannot read KVM's interrupt chips: %s", strerror(errno));
		goto fail;
	}
	engine_kvm_reset(&k->base);
	return &k->base;
fail:
	engine_kvm_destroy(&k->base);
	return NULL;
}

static const struct irq_sink *engine_kvm_irq_sink(struct engine *e) { return &kvm_engine_of(e)->sink; }

/*
 * immediate_exit covers the time before KVM_RUN is entered, the signal the time inside it. `kicked` first: the vCPU
 * thread clears immediate_exit before it looks at `kicked`, so that no kick is lost (one may only come back twice).
 */
static void engine_kvm_kick(struct engine *e, unsigned vcpu)
{
	struct kvm_vcpu *v = &kvm_engine_of(e)->vcpu[vcpu];
	int saved = errno;

	atomic_store(&v->kicked, true);
	__atomic_store_n(&v->run_page->immediate_exit, 1, __ATOMIC_SEQ_CST);
	int tid = atomic_load(&v->tid);
	if (tid)
		syscall(SYS_tgkill, getpid(), tid, kvm_kick_signal());
	errno = saved;
}

static const char *engine_kvm_last_error(struct engine *e, unsigned vcpu)
{
	return kvm_engine_of(e)->vcpu[vcpu].last_error;
}

void kvm_engine_set_completer(struct engine *e, bool (*fn)(void *ctx, unsigned vcpu, struct cpu_state *s), void *ctx)
{
	struct kvm_engine *k = kvm_engine_of(e);
	/* Without this KVM gives user mode #UD for an instruction that it lacks, where it should be completed. */
	struct kvm_enable_cap cap = {.cap = KVM_CAP_EXIT_ON_EMULATION_FAILURE, .args = {fn != NULL}};

	ioctl(k->vm_fd, KVM_ENABLE_CAP, &cap);
	k->complete = fn;
	k->complete_ctx = ctx;
}

const struct engine_ops engine_kvm = {
	.name = "kvm",
	.create = engine_kvm_create,
	.destroy = engine_kvm_destroy,
	.irq_sink = engine_kvm_irq_sink,
	.get_state = kvm_get_state,
	.set_state = kvm_set_state,
	.run = kvm_run_vcpu,
	.kick = engine_kvm_kick,
	.last_error = engine_kvm_last_error,
	.reset = engine_kvm_reset,
	.stats = kvm_stats_put,
};
