/*
 * Counters of a machine: those of its own, of its board's bus and of its engine.
 *
 * Threads: any, while the machine runs or stands; takes the machine lock for a moment.
 */
#ifndef MACHINE_STATS_H
#define MACHINE_STATS_H

#include <stdio.h>

#include "base/counter.h"
#include "machine/machine.h"

/* What belongs to no vCPU; those of one vCPU come from engine_ops.stats. */
void machine_stats(struct machine *m, const struct counter_sink *out);
/* Everything, as lines "name value unit", one part of the machine after the other. */
void machine_stats_print(struct machine *m, FILE *out);

#endif
