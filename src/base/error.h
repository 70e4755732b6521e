/*
 * Set-up errors (kind 3 of ARCHITECTURE.md): made where they are detected, printed once by main, with a hint.
 * A function that can fail so returns bool (false: *err is filled) and takes `struct error *err` last.
 */
#ifndef BASE_ERROR_H
#define BASE_ERROR_H

#include <stdbool.h>

struct error {
	char msg[512];  /* one line: what, where */
	char hint[256]; /* one line: what to do; may be empty */
};

/* Fill err->msg (and clear the hint). Always returns false, so that callers can `return error_set(...)`. err may be NULL. */
bool error_set(struct error *err, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* Set the hint of an error that is already set. Always returns false. */
bool error_hint(struct error *err, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

#endif
