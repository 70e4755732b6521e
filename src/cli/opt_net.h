/*
 * The value of --net: "user[,KEY[=VALUE]]...", "tap:NAME[,...]", "link:PATH[,...]" or "null[,...]".
 */
#ifndef CLI_OPT_NET_H
#define CLI_OPT_NET_H

#include "machine/machine.h"

/* Fills all of *nic. A MAC address that is not given is random, locally administered. */
bool opt_net_parse(const char *spec, struct machine_nic *nic, struct error *err);

#endif
