#include "engine/kvm/kvm.h"

#include <errno.h>
#include <string.h>

#include "engine/kvm/kvm_int.h"

static bool ioeventfd(struct engine *e, enum bus_space space, uint64_t addr, unsigned len, const uint64_t *datamatch,
		      int fd, bool add, struct error *err)
{
	struct kvm_ioeventfd io = {
		.addr = addr,
		.len = len,
		.fd = fd,
		.datamatch = datamatch ? *datamatch : 0,
		.flags = (space == BUS_PIO ? KVM_IOEVENTFD_FLAG_PIO : 0) |
			 (datamatch ? KVM_IOEVENTFD_FLAG_DATAMATCH : 0) | (add ? 0 : KVM_IOEVENTFD_FLAG_DEASSIGN),
	};

	if (ioctl(kvm_engine_of(e)->vm_fd, KVM_IOEVENTFD, &io) < 0)
		return error_set(err, "KVM_IOEVENTFD at %s 0x%llx failed: %s", space == BUS_PIO ? "port" : "gpa",
				 (unsigned long long)addr, strerror(errno));
	return true;
}

bool kvm_ioeventfd_add(struct engine *e, enum bus_space space, uint64_t addr, unsigned len, const uint64_t *datamatch,
		       int fd, struct error *err)
{
	return ioeventfd(e, space, addr, len, datamatch, fd, true, err);
}

void kvm_ioeventfd_del(struct engine *e, enum bus_space space, uint64_t addr, unsigned len, const uint64_t *datamatch,
		       int fd)
{
	ioeventfd(e, space, addr, len, datamatch, fd, false, NULL);
}

static bool irqfd(struct engine *e, unsigned gsi, int fd, unsigned flags, struct error *err)
{
	struct kvm_irqfd q = {.fd = (uint32_t)fd, .gsi = gsi, .flags = flags};

	if (ioctl(kvm_engine_of(e)->vm_fd, KVM_IRQFD, &q) < 0)
		return error_set(err, "KVM_IRQFD on GSI %u failed: %s", gsi, strerror(errno));
	return true;
}

bool kvm_irqfd_add(struct engine *e, unsigned gsi, int fd, struct error *err) { return irqfd(e, gsi, fd, 0, err); }

void kvm_irqfd_del(struct engine *e, unsigned gsi, int fd) { irqfd(e, gsi, fd, KVM_IRQFD_FLAG_DEASSIGN, NULL); }
