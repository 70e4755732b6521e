/*
 * The value of --share: "DIR:TAG[,ro]". The tag, by which the guest mounts it, is up to 31 letters, digits, _ . and -.
 */
#ifndef CLI_OPT_SHARE_H
#define CLI_OPT_SHARE_H

#include "machine/machine.h"

/* Fills *share; its path is to be freed. */
bool opt_share_parse(const char *spec, struct machine_share *share, struct error *err);

#endif
