#include "cli/session.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include "control/registry.h"
#include "control/vm.h"

struct session {
	struct registry_entry *entry;
	struct control_vm *control;
};

static json_t *text_or_null(const char *s)
{
	return (s ? json_string(s) : NULL) ?: json_null(); /* a path need not be UTF-8 */
}

static bool write_config(struct session *s, int argc, char **argv, const struct machine_config *cfg, struct error *err)
{
	json_t *args = json_array();
	json_t *root;
	char *text;
	bool ok;

	for (int i = 0; i < argc; i++)
		json_array_append_new(args, text_or_null(argv[i]));
	root = json_pack("{s:s, s:i, s:I, s:s, s:i, s:I, s:o, s:o}", "name", registry_entry_name(s->entry), "pid", (int)getpid(),
			 "started", (json_int_t)time(NULL), "engine", cfg->engine->name, "cpus", (int)cfg->ncpus, "memory",
			 (json_int_t)cfg->ram_bytes, "kernel", text_or_null(cfg->kernel), "args", args);
	text = json_dumps(root, JSON_INDENT(2));
	ok = text ? registry_write(s->entry, "config.json", text, err) : error_set(err, "out of memory");
	free(text);
	json_decref(root);
	return ok;
}

bool session_begin(struct session **out, const char *name, int argc, char **argv, const struct machine_config *cfg, struct error *err)
{
	struct registry *r = registry_open(true, err);
	struct session *s = r ? calloc(1, sizeof(*s)) : NULL;

	*out = NULL;
	if (s)
		s->entry = registry_take(r, name, err);
	registry_close(r);
	if (s && s->entry && write_config(s, argc, argv, cfg, err)) {
		*out = s;
		return true;
	}
	session_end(s);
	return !name;
}

bool session_serve(struct session *s, struct machine *m, struct error *err)
{
	s->control = control_vm_new(m, s->entry, err);
	return s->control;
}

void session_end(struct session *s)
{
	if (!s)
		return;
	control_vm_free(s->control);
	registry_release(s->entry);
	free(s);
}

const char *session_name(const struct session *s) { return registry_entry_name(s->entry); }

char *session_path(const struct session *s, const char *file)
{
	char *path;

	return asprintf(&path, "%s/%s", registry_entry_path(s->entry), file) < 0 ? NULL : path;
}
