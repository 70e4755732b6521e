/*
 * Asking a running VM: one request, one reply, within a time limit. Blocks the caller.
 */
#ifndef CONTROL_CLIENT_H
#define CONTROL_CLIENT_H

#include <jansson.h>

#include "control/registry.h"

#define CONTROL_TIMEOUT_MS 5000

struct control_client;

struct control_client *control_connect(struct registry *r, const char *name, struct error *err);
void control_disconnect(struct control_client *c);
/* Takes over request. NULL: err says why, also when the VM refused. */
json_t *control_ask(struct control_client *c, json_t *request, int timeout_ms, struct error *err);

#endif
