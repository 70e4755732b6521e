#include "cli/config.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <pwd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/file.h"

#define FILE_MAX (256 * KIB)

/* Options whose values begin with a path, or have one behind a word and a colon. */
static const char *const path_options[] = {"kernel", "initrd", "module", "disk", "share", NULL};
static const char *const spec_options[] = {"serial", "virtio-console", NULL};
/* Options that are written as a list even when there is one. */
static const char *const list_options[] = {"disk", "net", "share", "module", NULL};

static bool is_one_of(const char *s, const char *const *list)
{
	for (; *list; list++)
		if (!strcmp(s, *list))
			return true;
	return false;
}

void config_fini(struct config *c)
{
	for (unsigned i = 0; i < c->n; i++) {
		free(c->items[i].option);
		free(c->items[i].value);
	}
	free(c->items);
	*c = (struct config){0};
}

bool config_add(struct config *c, const char *option, const char *value, struct error *err)
{
	struct config_item *items, *i;

	if (c->n == CONFIG_ITEMS_MAX)
		return error_set(err, "more than %u options", CONFIG_ITEMS_MAX);
	items = realloc(c->items, (c->n + 1) * sizeof(*items));
	if (!items)
		return error_set(err, "out of memory");
	c->items = items;
	i = &items[c->n];
	*i = (struct config_item){strdup(option), value ? strdup(value) : NULL};
	c->n++;
	return (i->option && (i->value || !value)) || error_set(err, "out of memory");
}

const char *config_get(const struct config *c, const char *option)
{
	for (unsigned i = c->n; i > 0; i--)
		if (!strcmp(c->items[i - 1].option, option))
			return c->items[i - 1].value;
	return NULL;
}

/* ---- reading ---- */

static bool option_ok(const char *s)
{
	size_t n = strspn(s, "abcdefghijklmnopqrstuvwxyz0123456789-");

	return n >= 2 && n <= 32 && !s[n] && s[0] != '-';
}

static bool value_ok(const char *s)
{
	for (; *s; s++)
		if ((uint8_t)*s < 0x20 || *s == 0x7f)
			return false;
	return true;
}

/* Makes a relative path count from the directory `dir` ("" or "some/dir/"). */
static bool add_value(struct config *c, const char *dir, const char *option, const char *value, struct error *err)
{
	const char *rest = value, *scheme = strstr(value, "://");
	char full[2 * PATH_MAX];
	int n;

	if (is_one_of(option, spec_options))
		rest = !strncmp(value, "file:", 5) || !strncmp(value, "unix:", 5) ? value + 5 : NULL;
	else if (!is_one_of(option, path_options) || (scheme && !memchr(value, '/', (size_t)(scheme - value))))
		rest = NULL;
	if (!rest || rest[0] == '/')
		return config_add(c, option, value, err);
	n = snprintf(full, sizeof(full), "%.*s", (int)(rest - value), value);
	for (; *dir && n < (int)sizeof(full) - 2; dir++) {
		full[n++] = *dir;
		if (*dir == ',' && !strcmp(option, "disk")) /* in --disk a comma ends the path; two are one */
			full[n++] = ',';
	}
	if (snprintf(full + n, sizeof(full) - (size_t)n, "%s", rest) >= (int)sizeof(full) - n)
		return error_set(err, "the value is too long");
	return config_add(c, option, full, err);
}

static bool add_json(struct config *c, const char *dir, const char *option, const json_t *v, struct error *err)
{
	char number[32];

	switch (json_typeof(v)) {
	case JSON_TRUE:
		return config_add(c, option, NULL, err);
	case JSON_FALSE:
		return true;
	case JSON_INTEGER:
		snprintf(number, sizeof(number), "%lld", (long long)json_integer_value(v));
		return config_add(c, option, number, err);
	case JSON_STRING:
		if (value_ok(json_string_value(v)))
			return add_value(c, dir, option, json_string_value(v), err);
		return error_set(err, "\"%s\" has control characters in it", option);
	default:
		error_set(err, "\"%s\" has a value of the wrong kind", option);
		return error_hint(err, "it is a string, a number, true, or a list of strings");
	}
}

static bool add_all(struct config *c, const char *dir, json_t *root, struct error *err)
{
	const char *option;
	json_t *v, *one;
	size_t i;

	json_object_foreach(root, option, v)
	{
		if (!option_ok(option)) {
			error_set(err, "'%.32s' is no option", option);
			return error_hint(err, "the keys are the long options of doppel run, without the dashes");
		}
		if (!json_is_array(v)) {
			if (!add_json(c, dir, option, v, err))
				return false;
			continue;
		}
		json_array_foreach(v, i, one) if (!add_json(c, dir, option, one, err)) return false;
	}
	return true;
}

bool config_read(struct config *c, const char *path, struct error *err)
{
	struct error why = {0};
	const char *slash = strrchr(path, '/');
	char dir[PATH_MAX];
	struct file_data f;
	json_error_t je;
	json_t *root;
	bool ok;

	*c = (struct config){0};
	snprintf(dir, sizeof(dir), "%.*s", slash ? (int)(slash - path) + 1 : 0, path);
	if (!file_read(&f, path, "configuration", FILE_MAX, err))
		return false;
	root = json_loadb((const char *)f.data, f.size, JSON_REJECT_DUPLICATES, &je);
	file_free(&f);
	if (!root)
		ok = error_set(&why, "line %d: %s", je.line, je.text);
	else
		ok = (json_is_object(root) || error_set(&why, "not a JSON object")) && add_all(c, dir, root, &why);
	json_decref(root);
	if (ok)
		return true;
	config_fini(c);
	error_set(err, "configuration %s: %s", path, why.msg);
	return error_hint(err, "%s", why.hint[0] ? why.hint : "see docs/config.md");
}

/* ---- writing ---- */

static json_t *to_json(const char *value)
{
	size_t digits = strspn(value, "0123456789");

	if (digits && digits < 16 && !value[digits] && (value[0] != '0' || digits == 1))
		return json_integer(strtoll(value, NULL, 10));
	return json_string(value);
}

static json_t *as_object(const struct config *c)
{
	json_t *root = json_object();

	for (unsigned i = 0; root && i < c->n; i++) {
		const struct config_item *it = &c->items[i];
		json_t *old = json_object_get(root, it->option), *v = it->value ? to_json(it->value) : json_true(),
		       *list;

		if (!v) {
			json_decref(root);
			return NULL;
		}
		if (!old && !is_one_of(it->option, list_options)) {
			json_object_set_new(root, it->option, v);
			continue;
		}
		if (!json_is_array(old)) {
			list = json_array();
			if (old)
				json_array_append(list, old);
			json_object_set_new(root, it->option, list);
			old = list;
		}
		json_array_append_new(old, v);
	}
	return root;
}

static bool write_all(int fd, const char *text, size_t len)
{
	while (len) {
		ssize_t n = write(fd, text, len);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return false;
		text += n;
		len -= (size_t)n;
	}
	return true;
}

bool config_write(const struct config *c, const char *path, struct error *err)
{
	json_t *root = as_object(c);
	char *text = root ? json_dumps(root, JSON_INDENT(2)) : NULL, temp[PATH_MAX];
	bool ok = false;
	int fd = -1;

	json_decref(root);
	if (!text)
		return error_set(err, "configuration %s: a value is not UTF-8, or memory is short", path);
	if (snprintf(temp, sizeof(temp), "%s.XXXXXX", path) < (int)sizeof(temp))
		fd = mkostemp(temp, O_CLOEXEC);
	if (fd >= 0) {
		ok = write_all(fd, text, strlen(text)) && write_all(fd, "\n", 1) && fchmod(fd, 0644) == 0 &&
		     fsync(fd) == 0;
		ok = close(fd) == 0 && ok && rename(temp, path) == 0;
		if (!ok)
			error_set(err, "configuration %s: %s", path, strerror(errno));
		if (!ok)
			unlink(temp);
	} else {
		error_set(err, "configuration %s: %s", path, strerror(errno));
	}
	free(text);
	return ok;
}

/* ---- for getopt ---- */

char **config_args(const struct config *c, const char *argv0, int *argc)
{
	size_t bytes = (c->n + 2) * sizeof(char *) + strlen(argv0) + 1, left;
	char **argv, *p;

	for (unsigned i = 0; i < c->n; i++)
		bytes += strlen(c->items[i].option) + (c->items[i].value ? strlen(c->items[i].value) : 0) + 4;
	argv = malloc(bytes);
	if (!argv)
		return NULL;
	p = (char *)(argv + c->n + 2);
	left = bytes - (c->n + 2) * sizeof(char *);
	for (unsigned i = 0; i <= c->n; i++) {
		const struct config_item *it = i ? &c->items[i - 1] : NULL;
		int n;

		if (!it)
			n = snprintf(p, left, "%s", argv0);
		else
			n = snprintf(p, left, "--%s%s%s", it->option, it->value ? "=" : "", it->value ? it->value : "");
		argv[i] = p;
		p += n + 1;
		left -= (size_t)n + 1;
	}
	argv[c->n + 1] = NULL;
	*argc = (int)c->n + 1;
	return argv;
}

/* ---- machines ---- */

bool config_machines_dir(char out[PATH_MAX], struct error *err)
{
	const char *data = getenv("XDG_DATA_HOME"), *home = getenv("HOME");
	struct passwd *pw;
	int n;

	if (geteuid() == 0) {
		n = snprintf(out, PATH_MAX, "/var/lib/doppel/machines");
	} else if (data && data[0] == '/') {
		n = snprintf(out, PATH_MAX, "%s/doppel/machines", data);
	} else {
		if (!home || home[0] != '/') {
			pw = getpwuid(geteuid());
			home = pw ? pw->pw_dir : NULL;
		}
		if (!home) {
			error_set(err, "no home directory to keep machines in");
			return error_hint(err, "set XDG_DATA_HOME or HOME");
		}
		n = snprintf(out, PATH_MAX, "%s/.local/share/doppel/machines", home);
	}
	return n < PATH_MAX || error_set(err, "the name of the home directory is too long");
}

bool config_name_ok(const char *s)
{
	size_t n = strspn(s, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.-");

	return n && n <= CONFIG_NAME_MAX && !s[n] && s[0] != '.' && s[0] != '-';
}

bool config_machine_dir(const char *name, char out[PATH_MAX], struct error *err)
{
	size_t n;

	if (!config_name_ok(name)) {
		error_set(err, "'%.64s' cannot be the name of a machine", name);
		return error_hint(err, "use letters, digits, '_', '.' and '-', at most %u", CONFIG_NAME_MAX);
	}
	if (!config_machines_dir(out, err))
		return false;
	n = strlen(out);
	return snprintf(out + n, PATH_MAX - n, "/%s", name) < (int)(PATH_MAX - n) ||
	       error_set(err, "the name is too long");
}
