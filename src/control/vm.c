#include "control/vm.h"

#include <signal.h>
#include <stdlib.h>
#include <unistd.h>

#include "machine/stats.h"

struct control_vm {
	struct machine *m;
	struct registry_entry *entry;
	struct control_server *server;
};

/* Collects counters into `values`; sums into `total` and explains in `about` where there are such. */
struct collector {
	json_t *values, *total, *about;
};

static void collect(void *ctx, const struct counter *c)
{
	struct collector *k = ctx;
	json_t *old;

	json_object_set_new(k->values, c->name, json_integer((json_int_t)c->value));
	if (k->total) {
		old = json_object_get(k->total, c->name);
		json_object_set_new(k->total, c->name, json_integer(json_integer_value(old) + (json_int_t)c->value));
	}
	if (!json_object_get(k->about, c->name))
		json_object_set_new(k->about, c->name,
				    json_pack("{s:s, s:s, s:b}", "unit", c->unit, "help", c->help, "gauge", c->gauge));
}

static bool on_stat(void *ctx, const json_t *request, json_t *reply, struct error *err)
{
	struct control_vm *c = ctx;
	struct collector k = {.values = json_object(), .about = json_object()};
	struct counter_sink sink = {.put = collect, .ctx = &k};
	json_t *vcpus = json_array();

	machine_stats(c->m, &sink);
	json_object_set_new(reply, "machine", k.values);
	k.total = json_object();
	for (unsigned i = 0; i < c->m->cfg.ncpus; i++) {
		k.values = json_object();
		c->m->engine->ops->stats(c->m->engine, i, &sink);
		json_array_append_new(vcpus, k.values);
	}
	json_object_set_new(reply, "total", k.total);
	json_object_set_new(reply, "vcpus", vcpus);
	json_object_set_new(reply, "about", k.about);
	return true;
}

static bool on_status(void *ctx, const json_t *request, json_t *reply, struct error *err)
{
	struct control_vm *c = ctx;

	json_object_set_new(reply, "name", json_string(registry_entry_name(c->entry)));
	json_object_set_new(reply, "pid", json_integer(getpid()));
	json_object_set_new(reply, "engine", json_string(c->m->engine->ops->name));
	json_object_set_new(reply, "cpus", json_integer(c->m->cfg.ncpus));
	json_object_set_new(reply, "memory", json_integer((json_int_t)c->m->cfg.ram_bytes));
	json_object_set_new(reply, "uptime", json_real((double)(clock_now() - c->m->started) / 1e9));
	return true;
}

static bool on_stop(void *ctx, const json_t *request, json_t *reply, struct error *err)
{
	struct machine *m = ((struct control_vm *)ctx)->m;

	pthread_mutex_lock(&m->lock);
	m->cfg.board->power_button(m);
	pthread_mutex_unlock(&m->lock);
	return true;
}

static bool on_kill(void *ctx, const json_t *request, json_t *reply, struct error *err)
{
	struct machine *m = ((struct control_vm *)ctx)->m;

	pthread_mutex_lock(&m->lock);
	machine_stop(m, STOP_SIGNAL, SIGTERM);
	pthread_mutex_unlock(&m->lock);
	return true;
}

static bool on_resize_disk(void *ctx, const json_t *request, json_t *reply, struct error *err)
{
	struct machine *m = ((struct control_vm *)ctx)->m;
	json_int_t disk = -1, size = 0;
	bool ok;

	if (json_unpack((json_t *)request, "{s:I, s:I}", "disk", &disk, "size", &size) || disk < 0 || disk > INT32_MAX || size <= 0)
		return error_set(err, "resize-disk: it needs a disk's number and a size in bytes");
	pthread_mutex_lock(&m->lock);
	ok = m->cfg.board->resize_disk(m, (unsigned)disk, (uint64_t)size, err);
	pthread_mutex_unlock(&m->lock);
	return ok;
}

static const struct control_command commands[] = {
	{"status", on_status},
	{"stat", on_stat},
	{"stop", on_stop},
	{"kill", on_kill},
	{"resize-disk", on_resize_disk},
	{0},
};

struct control_vm *control_vm_new(struct machine *m, struct registry_entry *e, struct error *err)
{
	struct control_vm *c = calloc(1, sizeof(*c));

	if (!c) {
		error_set(err, "out of memory");
		return NULL;
	}
	c->m = m;
	c->entry = e;
	c->server = control_server_new(m->loop, registry_entry_dir(e), "control.sock", commands, c, err);
	if (c->server)
		return c;
	free(c);
	return NULL;
}

void control_vm_free(struct control_vm *c)
{
	if (!c)
		return;
	control_server_free(c->server);
	free(c);
}
