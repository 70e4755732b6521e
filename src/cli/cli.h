/*
 * The commands of `doppel`. Each takes the arguments from its own name on (argv[0] is the command) and returns the
 * exit status; messages go to stderr, results to stdout.
 */
#ifndef CLI_CLI_H
#define CLI_CLI_H

#include "base/bits.h"
#include "base/error.h"

/* Exit statuses (README.md lists them). 128 + n: ended by signal n. With --debug-exit, odd ones come from the guest. */
enum {
	CLI_OK = 0,           /* the guest powered off; the command did what was asked */
	CLI_GUEST_RESET = 2,  /* the guest reset, with --no-reboot */
	CLI_TRIPLE_FAULT = 4, /* the guest's CPU shut down */
	CLI_ESCAPE = 6,       /* ^] on the console */
	CLI_ERROR = 125,      /* an error of our own */
	CLI_SIGNAL = 128,     /* + signal number */
};

int cli_run(int argc, char **argv);
int cli_disk(int argc, char **argv);
int cli_import(int argc, char **argv);
int cli_export(int argc, char **argv);
int cli_ps(int argc, char **argv);
int cli_stat(int argc, char **argv);
int cli_ssh(int argc, char **argv);
int cli_stop(int argc, char **argv);
int cli_resize(int argc, char **argv);
int cli_kill(int argc, char **argv);
int cli_doctor(int argc, char **argv);
int cli_version(int argc, char **argv);
int cli_help(int argc, char **argv);

/* Find and run the command of argv[1]. */
int cli_main(int argc, char **argv);

/* Print "doppel: msg" and the hint on one line each kind; returns CLI_ERROR. */
int cli_fail(const struct error *err);

/* "512M", "2G", "65536K", "0x100000" (bytes) -> bytes. */
bool cli_parse_size(const char *s, uint64_t *out, struct error *err);

#endif
