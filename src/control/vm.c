#include "control/vm.h"

#include <arpa/inet.h>
#include <signal.h>
#include <stdlib.h>
#include <unistd.h>

#include "machine/disk.h"
#include "machine/stats.h"

struct control_vm {
	struct machine *m;
	struct registry_entry *entry;
	struct control_server *server;
	json_t *disks; /* looked up once: a file system may be slow */
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

static json_t *forwards(const struct machine_config *cfg)
{
	json_t *list = json_array();

	for (unsigned i = 0; i < cfg->nnics; i++) {
		const struct net_options *net = &cfg->nics[i].net;

		for (unsigned k = 0; k < net->nforwards; k++) {
			const struct net_forward *f = &net->forwards[k];
			char address[INET_ADDRSTRLEN] = "";

			inet_ntop(AF_INET, &f->host, address, sizeof(address));
			json_array_append_new(list, json_pack("{s:s, s:s, s:i, s:i}", "protocol", f->udp ? "udp" : "tcp", "address", address,
							      "host_port", f->host_port, "guest_port", f->guest_port));
		}
	}
	return list;
}

/* Absolute; a path that is no text is left out. */
static json_t *disk_paths(const struct machine_config *cfg)
{
	json_t *list = json_array(), *text;

	for (unsigned i = 0; i < cfg->ndisks; i++) {
		char *path = realpath(cfg->disks[i].image.path, NULL);

		text = path ? json_string(path) : NULL;
		if (text)
			json_array_append_new(list, text);
		free(path);
	}
	return list;
}

static bool on_status(void *ctx, const json_t *request, json_t *reply, struct error *err)
{
	struct control_vm *c = ctx;

	json_object_set_new(reply, "name", json_string(registry_entry_name(c->entry)));
	json_object_set_new(reply, "pid", json_integer(getpid()));
	json_object_set_new(reply, "engine", json_string(c->m->engine->ops->name));
	json_object_set_new(reply, "cpus", json_integer(c->m->cfg.ncpus));
	json_object_set_new(reply, "memory", json_integer((json_int_t)c->m->cfg.ram_bytes));
	json_object_set(reply, "disks", c->disks);
	json_object_set_new(reply, "forwards", forwards(&c->m->cfg));
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
	c->disks = disk_paths(&m->cfg);
	c->server = control_server_new(m->loop, registry_entry_dir(e), "control.sock", commands, c, err);
	if (c->server)
		return c;
	json_decref(c->disks);
	free(c);
	return NULL;
}

void control_vm_free(struct control_vm *c)
{
	if (!c)
		return;
	control_server_free(c->server);
	json_decref(c->disks);
	free(c);
}
