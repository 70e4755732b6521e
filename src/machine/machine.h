/*
 * A virtual machine: RAM, bus, engine, timers, event loop and the devices of its board, and its life.
 *
 * new -> run (blocks until a stop reason) -> free. A board (machine/micro.h) wires the devices; it is the only place
 * that names addresses, irq numbers and concrete devices.
 * Threads: machine_new, machine_run and machine_free belong to one thread, which also runs the event loop; each vCPU has a
 * thread of its own inside machine_run. machine_stop and machine_reset_request are called with the machine lock held.
 */
#ifndef MACHINE_MACHINE_H
#define MACHINE_MACHINE_H

#include <pthread.h>
#include <stdio.h>

#include "backend/net/net.h"
#include "base/counter.h"
#include "base/error.h"
#include "base/loop.h"
#include "base/signals.h"
#include "base/timer.h"
#include "bus/bus.h"
#include "cpu/cpuid.h"
#include "engine/engine.h"
#include "mem/ram.h"

#define MACHINE_MAX_CPUS 64

struct machine;
struct machine_disk; /* machine/disk.h */

enum machine_stop_reason {
	STOP_NONE,
	STOP_POWEROFF,     /* ACPI S5 */
	STOP_RESET,        /* only with no_reboot */
	STOP_TRIPLE_FAULT, /* value: vCPU */
	STOP_DEBUG_EXIT,   /* value: what the guest wrote */
	STOP_ESCAPE,       /* the user left the console */
	STOP_SIGNAL,       /* value: signal number */
	STOP_ENGINE,       /* the engine cannot go on; value: vCPU */
	STOP_ERROR,        /* text in machine_error */
};

struct machine_stop {
	enum machine_stop_reason reason;
	uint32_t value;
};

struct board {
	const char *name;
	/* Make the devices on m->bus; on failure what was made is freed by `free`. Lock held, as for reset. */
	bool (*build)(struct machine *m, struct error *err);
	/*
	 * Put kernel, initrd and tables into RAM and the boot vCPU at their entry. Once at start and after each reset, without
	 * the lock; no vCPU runs.
	 */
	bool (*load)(struct machine *m, struct error *err);
	void (*reset)(struct machine *m);
	void (*power_button)(struct machine *m); /* pressed; lock held */
	void (*free)(struct machine *m); /* no other thread is left */
	/* Grow disk number `disk`; lock held. */
	bool (*resize_disk)(struct machine *m, unsigned disk, uint64_t size, struct error *err);
	void (*resume)(struct machine *m); /* try again what back ends hold back after a host error; without the lock */
	/* Write out what back ends hold. A host error that one of them met, NULL when none. */
	const char *(*run_error)(struct machine *m);
	/* Lines for the user about what was taken, where the configuration leaves that open. After machine_new. */
	void (*describe)(struct machine *m, FILE *out);
	/* Counters of its back ends. Any thread. */
	void (*stats)(struct machine *m, const struct counter_sink *out);
};

#define MACHINE_MAX_NICS 8

struct machine_nic {
	struct net_options net;
	uint8_t mac[6];
	bool mac_filter; /* the guest cannot send from another address */
};

#define MACHINE_MAX_SHARES 4

struct machine_share {
	char *path; /* of a directory */
	char tag[32];
	bool readonly;
};

struct machine_vsock {
	uint64_t cid;
	char *path; /* of the host's socket */
};

/* Strings and arrays stay the caller's and live as long as the machine. */
struct machine_config {
	const struct board *board;
	const struct engine_ops *engine;
	uint64_t ram_bytes;
	unsigned ncpus;
	enum cpu_model cpu;
	const char *kernel; /* NULL: what the first disk would boot */
	const char *initrd; /* may be NULL */
	const char *append; /* kernel command line; may be NULL */
	const char *const *modules; /* Multiboot: "FILE" or "FILE=string" */
	unsigned nmodules;
	const char *serial;         /* chardev specification */
	const char *virtio_console; /* the same, or NULL: no such device */
	const struct machine_nic *nics;
	unsigned nnics;
	const struct machine_disk *disks;
	unsigned ndisks;
	const struct machine_share *shares;
	unsigned nshares;
	struct machine_vsock vsock; /* cid 0: no such device */
	bool debug_exit;
	uint16_t debug_exit_port;
	bool no_reboot;
};

struct machine_vcpu {
	struct machine *machine;
	unsigned index;
	pthread_t thread;
};

struct machine {
	struct machine_config cfg;
	pthread_mutex_t lock; /* the machine lock: bus, devices, irq chips, timers and the fields below */
	struct loop *loop;
	struct timer_queue timers;
	int timer_fd;  /* drives the timers from the loop; -1 when the engine does */
	struct signals *signals;
	struct ram *ram;
	struct bus *bus;
	struct cpuid_policy cpuid;
	struct engine *engine;
	struct completer *completer; /* kvm: executes what the kernel cannot; else NULL */
	void *devices; /* the board's */
	int64_t started; /* clock_now when it was made */

	struct machine_vcpu *vcpus;
	pthread_cond_t resume;   /* a reset is over, or the machine stops */
	bool reset_pending;
	unsigned parked;         /* vCPU threads that wait for the reset */
	uint64_t resets;
	struct machine_stop stop;
	struct error error;
};

struct machine *machine_new(const struct machine_config *cfg, struct error *err);
/*
 * Run until a stop reason. SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGUSR1 and SIGCONT must be blocked in the calling thread: the loop
 * reads them. SIGUSR1 prints the counters (machine/stats.h) to standard error, SIGCONT calls the board's resume.
 * When a vCPU does not leave its engine within some seconds, STOP_ERROR is returned and *stuck is set: the
 * process must then end without machine_free.
 */
struct machine_stop machine_run(struct machine *m, bool *stuck);
void machine_free(struct machine *m);

/* The first reason counts. Lock held, any thread. */
void machine_stop(struct machine *m, enum machine_stop_reason reason, uint32_t value);
/* Reset button, 0xcf9, keyboard controller, ACPI: stops with no_reboot. Lock held, any thread. */
void machine_reset_request(struct machine *m);

/* For STOP_ERROR. */
const struct error *machine_error(const struct machine *m);
/* What is known about the vCPU that ended the machine: registers, the engine's words. Only after machine_run. */
void machine_report_vcpu(struct machine *m, unsigned vcpu, FILE *out);

#endif
