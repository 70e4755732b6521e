/*
 * What a running machine answers on its control socket.
 *
 *   status   name, pid, engine, cpus, memory, uptime, disks (paths), forwards (ports of the host that lead into the guest)
 *   stat     counters: "machine", "total" (sum over vCPUs) and "vcpus", each {name: value}; "about": {name: {unit, help, gauge}}
 *   stop     presses the power button
 *   kill     ends the run as SIGTERM does
 */
#ifndef CONTROL_VM_H
#define CONTROL_VM_H

#include "control/registry.h"
#include "control/server.h"
#include "machine/machine.h"

struct control_vm;

/* Serves m in the directory of e until freed (before the machine, with its loop at rest). */
struct control_vm *control_vm_new(struct machine *m, struct registry_entry *e, struct error *err);
void control_vm_free(struct control_vm *c);

#endif
