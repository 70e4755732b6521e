#include "engine/kvm/kvm.h"

#include <cpuid.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "engine/kvm/kvm_int.h"

#ifndef sigev_notify_thread_id
#define sigev_notify_thread_id _sigev_un._tid
#endif

struct cap {
	int number;
	const char *name;
};
/* What engine_kvm.create and run use. */
static const struct cap needed[] = {
	{KVM_CAP_USER_MEMORY, "KVM_CAP_USER_MEMORY"},
	{KVM_CAP_IRQCHIP, "KVM_CAP_IRQCHIP"},
	{KVM_CAP_PIT2, "KVM_CAP_PIT2"},
	{KVM_CAP_PIT_STATE2, "KVM_CAP_PIT_STATE2"},
	{KVM_CAP_IRQ_ROUTING, "KVM_CAP_IRQ_ROUTING"},
	{KVM_CAP_SIGNAL_MSI, "KVM_CAP_SIGNAL_MSI"},
	{KVM_CAP_EXT_CPUID, "KVM_CAP_EXT_CPUID"},
	{KVM_CAP_SET_TSS_ADDR, "KVM_CAP_SET_TSS_ADDR"},
	{KVM_CAP_SET_IDENTITY_MAP_ADDR, "KVM_CAP_SET_IDENTITY_MAP_ADDR"},
	{KVM_CAP_MP_STATE, "KVM_CAP_MP_STATE"},
	{KVM_CAP_VCPU_EVENTS, "KVM_CAP_VCPU_EVENTS"},
	{KVM_CAP_DEBUGREGS, "KVM_CAP_DEBUGREGS"},
	{KVM_CAP_XSAVE, "KVM_CAP_XSAVE"},
	{KVM_CAP_XCRS, "KVM_CAP_XCRS"},
	{KVM_CAP_SREGS2, "KVM_CAP_SREGS2"}, /* Linux 5.14 */
	{KVM_CAP_IMMEDIATE_EXIT, "KVM_CAP_IMMEDIATE_EXIT"},
};

/* The guest: identity-mapped by one 1 GiB of 2 MiB pages; code at CODE; `1: inc rax; jmp 1b`. */
enum { PML4 = 0x1000, PDPT = 0x2000, PD = 0x3000, CODE = 0x8000, STACK = 0x9000, GUEST_SIZE = 0x200000 };
static const uint8_t guest_loop[] = {0x48, 0xff, 0xc0, 0xeb, 0xfb};
#define LOOP_INSNS 2

struct guest {
	int vm, vcpu;
	struct kvm_run *run;
	size_t run_size;
	uint8_t *mem;
};

static bool guest_open(struct guest *g, int dev)
{
	uint64_t identity = 0xfffbc000;

	g->vm = ioctl(dev, KVM_CREATE_VM, 0);
	if (g->vm < 0)
		return false;
	g->mem = mmap(NULL, GUEST_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (g->mem == MAP_FAILED)
		return false;
	struct kvm_userspace_memory_region slot = {.memory_size = GUEST_SIZE, .userspace_addr = (uintptr_t)g->mem};
	ioctl(g->vm, KVM_SET_IDENTITY_MAP_ADDR, &identity);
	ioctl(g->vm, KVM_SET_TSS_ADDR, 0xfffbd000);
	if (ioctl(g->vm, KVM_SET_USER_MEMORY_REGION, &slot) < 0)
		return false;
	g->vcpu = ioctl(g->vm, KVM_CREATE_VCPU, 0);
	int size = ioctl(dev, KVM_GET_VCPU_MMAP_SIZE, 0);
	if (g->vcpu < 0 || size < (int)sizeof(struct kvm_run))
		return false;
	g->run_size = (size_t)size;
	g->run = mmap(NULL, g->run_size, PROT_READ | PROT_WRITE, MAP_SHARED, g->vcpu, 0);
	return g->run != MAP_FAILED;
}

static void guest_close(struct guest *g)
{
	if (g->run != MAP_FAILED)
		munmap(g->run, g->run_size);
	if (g->vcpu >= 0)
		close(g->vcpu);
	if (g->vm >= 0)
		close(g->vm);
	if (g->mem != MAP_FAILED)
		munmap(g->mem, GUEST_SIZE);
}

/* KVM wants to be told that the CPU has long mode. */
static bool guest_set_cpuid(const struct guest *g, int dev)
{
	struct {
		uint32_t nent, padding;
		struct kvm_cpuid_entry2 e[256];
	} c = {.nent = 256};

	return ioctl(dev, KVM_GET_SUPPORTED_CPUID, &c) == 0 && ioctl(g->vcpu, KVM_SET_CPUID2, &c) == 0;
}

static bool guest_set_state(const struct guest *g, unsigned ring)
{
	struct kvm_segment code = {.limit = ~0u,
				   .selector = (uint16_t)(8 | ring),
				   .type = 11,
				   .present = 1,
				   .dpl = (uint8_t)ring,
				   .s = 1,
				   .l = 1,
				   .g = 1};
	struct kvm_segment data = code;
	struct kvm_regs regs = {.rip = CODE, .rsp = STACK, .rflags = FL_FIXED};
	struct kvm_sregs sregs;

	for (unsigned i = 0; i < 512; i++)
		put_le64(g->mem + PD + 8 * i, (uint64_t)i << 21 | 0xe7); /* P, W, U, A, D, 2 MiB */
	put_le64(g->mem + PML4, PDPT | 0x27);
	put_le64(g->mem + PDPT, PD | 0x27);
	memcpy(g->mem + CODE, guest_loop, sizeof(guest_loop));

	if (ioctl(g->vcpu, KVM_GET_SREGS, &sregs) < 0)
		return false;
	data.type = 3;
	data.selector = (uint16_t)(16 | ring);
	data.l = 0;
	data.db = 1;
	sregs.cs = code;
	sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = data;
	sregs.cr0 = CR0_PE | CR0_ET | CR0_NE | CR0_WP | CR0_PG;
	sregs.cr3 = PML4;
	sregs.cr4 = CR4_PAE;
	sregs.efer = EFER_LME | EFER_LMA;
	return ioctl(g->vcpu, KVM_SET_SREGS, &sregs) == 0 && ioctl(g->vcpu, KVM_SET_REGS, &regs) == 0;
}

static int64_t now(clockid_t clock)
{
	struct timespec t;

	clock_gettime(clock, &t);
	return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* A signal to this thread after ms, and every ms after that should it have come too early; ends KVM_RUN. */
static bool deadline_start(timer_t *timer, unsigned ms)
{
	struct sigevent ev = {.sigev_notify = SIGEV_THREAD_ID, .sigev_signo = kvm_kick_signal()};
	struct itimerspec when = {.it_value.tv_nsec = (long)ms * 1000000, .it_interval.tv_nsec = (long)ms * 1000000};

	ev.sigev_notify_thread_id = (pid_t)syscall(SYS_gettid);
	return timer_create(CLOCK_MONOTONIC, &ev, timer) == 0 && timer_settime(*timer, 0, &when, NULL) == 0;
}

/* Instructions per second of CPU time; 0 with the reason in why. */
static uint64_t measure(int dev, unsigned ring, unsigned ms, char *why, size_t why_size)
{
	struct guest g = {.vm = -1, .vcpu = -1, .run = MAP_FAILED, .mem = MAP_FAILED};
	struct kvm_regs regs = {0};
	uint64_t ips = 0;
	timer_t timer;

	snprintf(why, why_size, "a test VM cannot be made: ");
	if (!guest_open(&g, dev) || !guest_set_cpuid(&g, dev) || !guest_set_state(&g, ring) ||
	    !deadline_start(&timer, ms)) {
		snprintf(why + strlen(why), why_size - strlen(why), "%s", strerror(errno));
		guest_close(&g);
		return 0;
	}
	int64_t start = now(CLOCK_THREAD_CPUTIME_ID);
	int r = ioctl(g.vcpu, KVM_RUN, 0);
	int64_t ns = now(CLOCK_THREAD_CPUTIME_ID) - start;
	timer_delete(timer);
	if (r < 0 && errno == EINTR && ns > 0 && ioctl(g.vcpu, KVM_GET_REGS, &regs) == 0)
		ips = mul_div_u64(regs.rax * LOOP_INSNS, 1000000000, (uint64_t)ns);
	if (!ips)
		snprintf(why, why_size, "a test loop in guest ring %u did not run (exit reason %u)", ring,
			 g.run->exit_reason);
	guest_close(&g);
	return ips;
}

static bool cpu_has_virtualization(void)
{
	uint32_t a, b, c, d;

	if (__get_cpuid(1, &a, &b, &c, &d) && (c & 1u << 5)) /* VMX */
		return true;
	return __get_cpuid(0x80000001, &a, &b, &c, &d) && (c & 1u << 2); /* SVM */
}

static int open_kvm(struct kvm_probe *p, const char *path)
{
	int fd = open(path, O_RDWR | O_CLOEXEC);

	p->present = fd >= 0 || access(path, F_OK) == 0;
	p->opens = fd >= 0;
	if (!p->present)
		snprintf(p->msg, sizeof(p->msg), "%s does not exist", path);
	else if (fd < 0)
		snprintf(p->msg, sizeof(p->msg), "%s cannot be opened: %s", path, strerror(errno));
	return fd;
}

static bool check_api(struct kvm_probe *p, int fd)
{
	p->api_version = ioctl(fd, KVM_GET_API_VERSION, 0);
	if (p->api_version != KVM_API_VERSION) {
		snprintf(p->msg, sizeof(p->msg), "KVM's API version is %d, not %d", p->api_version, KVM_API_VERSION);
		return false;
	}
	for (size_t i = 0; i < ARRAY_LEN(needed) && !p->missing; i++)
		if (ioctl(fd, KVM_CHECK_EXTENSION, needed[i].number) <= 0)
			p->missing = needed[i].name;
	if (p->missing)
		snprintf(p->msg, sizeof(p->msg), "this KVM lacks %s", p->missing);
	return !p->missing;
}

static void judge(struct kvm_probe *p)
{
	p->usable = p->ring0_ips != 0;
	p->take = p->ring0_ips >= KVM_MIN_RING0_IPS;
	if (p->take)
		snprintf(p->msg, sizeof(p->msg), "KVM works and runs guest ring 0 at %.0f million instructions/s",
			 (double)p->ring0_ips / 1e6);
	else if (p->usable)
		snprintf(p->msg, sizeof(p->msg), "KVM runs guest ring 0 at %.1f million instructions/s, under %.0f: %s",
			 (double)p->ring0_ips / 1e6, (double)KVM_MIN_RING0_IPS / 1e6,
			 p->hardware_flag ? "slow in spite of the CPU's virtualization"
					  : "it is emulated, not hardware-backed");
}

void kvm_probe(struct kvm_probe *out, const char *path, unsigned ms, bool ring3)
{
	char why[128];
	sigset_t kick, old;
	int fd;

	memset(out, 0, sizeof(*out));
	out->api_version = -1;
	out->hardware_flag = cpu_has_virtualization();
	fd = open_kvm(out, path ? path : "/dev/kvm");
	if (fd < 0)
		return;
	sigemptyset(&kick);
	sigaddset(&kick, kvm_kick_signal());
	if (kvm_kick_signal_install(NULL) && check_api(out, fd)) {
		pthread_sigmask(SIG_UNBLOCK, &kick, &old);
		out->ring0_ips = measure(fd, 0, ms, out->msg, sizeof(out->msg));
		if (ring3)
			out->ring3_ips = measure(fd, 3, ms, why, sizeof(why));
		pthread_sigmask(SIG_SETMASK, &old, NULL);
		judge(out);
	}
	close(fd);
}
