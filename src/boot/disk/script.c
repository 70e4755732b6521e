#include "boot/disk/script.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define TOKENS_MAX 65536

enum token_kind { TOKEN_WORD, TOKEN_SEPARATOR };

struct token {
	enum token_kind kind;
	uint32_t start, len; /* with its quotes */
};

struct text {
	char *s;
	size_t len;
	struct token *tokens;
	unsigned ntokens;
};

struct var {
	char *name, *value;
};

/* Arguments of one command, expanded. */
struct args {
	char *v[SCRIPT_ARGS_MAX + 1];
	unsigned n;
};

struct script {
	script_command *command;
	void *ctx;
	struct text texts[SCRIPT_TEXTS_MAX];
	unsigned ntexts;
	struct var vars[SCRIPT_VARS_MAX];
	unsigned nvars;
	struct script_entry entries[SCRIPT_ENTRIES_MAX];
	unsigned nentries;
	unsigned submenu; /* index + 1 of the one that runs */
	unsigned depth, steps;
	uint64_t bytes;
	bool lost;
};

/* A place in a text. */
struct at {
	unsigned text, i, end;
};

struct script *script_new(script_command *command, void *ctx)
{
	struct script *s = calloc(1, sizeof(*s));

	if (s) {
		s->command = command;
		s->ctx = ctx;
	}
	return s;
}

void script_free(struct script *s)
{
	if (!s)
		return;
	for (unsigned i = 0; i < s->ntexts; i++) {
		free(s->texts[i].s);
		free(s->texts[i].tokens);
	}
	for (unsigned i = 0; i < s->nvars; i++) {
		free(s->vars[i].name);
		free(s->vars[i].value);
	}
	free(s);
}

const char *script_get(const struct script *s, const char *name)
{
	for (unsigned i = 0; i < s->nvars; i++)
		if (!strcmp(s->vars[i].name, name))
			return s->vars[i].value;
	return "";
}

void script_set(struct script *s, const char *name, const char *value)
{
	char *v = strdup(value);
	unsigned i = 0;

	while (i < s->nvars && strcmp(s->vars[i].name, name))
		i++;
	if (!v || i == SCRIPT_VARS_MAX || (i == s->nvars && !(s->vars[i].name = strdup(name)))) {
		free(v);
		return;
	}
	if (i == s->nvars)
		s->nvars++;
	free(s->vars[i].value);
	s->vars[i].value = v;
}

/* ---- words ------------------------------------------------------------------------------------------------------- */

static bool is_blank(char c) { return c == ' ' || c == '\t' || c == '\r'; }
static bool is_separator(char c) { return c == '\n' || c == ';' || c == '&' || c == '|'; }

/* Where the word that starts at i ends. */
static size_t word_end(const char *s, size_t len, size_t i)
{
	char quote = 0;

	for (; i < len; i++) {
		if (quote) {
			if (s[i] == '\\' && quote == '"')
				i++;
			else if (s[i] == quote)
				quote = 0;
		} else if (s[i] == '\\') {
			i++;
		} else if (s[i] == '\'' || s[i] == '"') {
			quote = s[i];
		} else if (is_blank(s[i]) || is_separator(s[i]) || !s[i]) {
			break;
		}
	}
	return i < len ? i : len;
}

static bool tokenize(struct text *t)
{
	t->tokens = malloc(TOKENS_MAX * sizeof(*t->tokens));
	if (!t->tokens)
		return false;
	for (size_t i = 0; i < t->len;) {
		struct token *k = &t->tokens[t->ntokens];

		if (is_blank(t->s[i]) || !t->s[i]) {
			i++;
			continue;
		}
		if (t->s[i] == '\\' && i + 1 < t->len && t->s[i + 1] == '\n') {
			i += 2;
			continue;
		}
		if (t->s[i] == '#') {
			while (i < t->len && t->s[i] != '\n')
				i++;
			continue;
		}
		if (t->ntokens == TOKENS_MAX)
			return false;
		*k = (struct token){.kind = TOKEN_SEPARATOR, .start = (uint32_t)i, .len = 1};
		if (!is_separator(t->s[i])) {
			k->kind = TOKEN_WORD;
			k->len = (uint32_t)(word_end(t->s, t->len, i) - i);
		}
		i += k->len;
		t->ntokens++;
	}
	return true;
}

struct word {
	char s[SCRIPT_WORD_MAX];
	size_t n;
	bool any; /* quoted or not empty: it counts as a word */
};

static void word_add(struct word *w, char c)
{
	if (w->n + 1 < sizeof(w->s))
		w->s[w->n++] = c;
	w->any = true;
}

/* Out of memory, too long and too many: the word is dropped. */
static void args_add(struct script *s, struct args *a, struct word *w)
{
	w->s[w->n] = 0;
	s->bytes += w->n;
	if (w->any && a->n < SCRIPT_ARGS_MAX && s->bytes <= SCRIPT_BYTES_MAX && w->n + 1 < sizeof(w->s) && (a->v[a->n] = strdup(w->s)))
		a->v[++a->n] = NULL;
	else if (w->any)
		s->lost = true;
	w->n = 0;
	w->any = false;
}

static void args_free(struct args *a)
{
	for (unsigned i = 0; i < a->n; i++)
		free(a->v[i]);
	a->n = 0;
}

static bool is_name(char c)
{
	return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' || c == '?';
}

/* The variable at p, behind its '$'; *used: how many characters name it. NULL: none. */
static const char *variable(const struct script *s, const char *p, size_t len, size_t *used)
{
	char name[64];
	size_t n = 0, start = len && *p == '{';

	while (start + n < len && n + 1 < sizeof(name) && is_name(p[start + n])) {
		name[n] = p[start + n];
		n++;
	}
	name[n] = 0;
	if (!n || (start && (start + n >= len || p[start + n] != '}')))
		return NULL;
	*used = start + n + start;
	return script_get(s, name);
}

/* One raw word becomes no, one or (by a variable outside of quotes) several arguments. */
static void expand(struct script *s, const char *p, size_t len, struct args *a, struct word *w)
{
	char quote = 0;

	w->n = 0;
	w->any = false;
	for (size_t i = 0; i < len && s->bytes <= SCRIPT_BYTES_MAX; i++) {
		size_t used = 0;
		const char *v;

		if (quote != '\'' && p[i] == '$' && (v = variable(s, p + i + 1, len - i - 1, &used))) {
			i += used;
			s->bytes += strlen(v) + 1;
			for (; *v && s->bytes <= SCRIPT_BYTES_MAX; v++)
				if (!quote && is_blank(*v))
					args_add(s, a, w);
				else
					word_add(w, *v);
		} else if (p[i] == '\\' && quote != '\'' && i + 1 < len) {
			i++;
			if (quote && p[i] != '"' && p[i] != '\\' && p[i] != '$' && p[i] != '\n')
				word_add(w, '\\');
			if (p[i] != '\n')
				word_add(w, p[i]);
		} else if (quote ? p[i] == quote : p[i] == '\'' || p[i] == '"') {
			quote = quote ? 0 : p[i];
			w->any = true;
		} else {
			word_add(w, p[i]);
		}
	}
	args_add(s, a, w);
}

void script_expand(struct script *s, const char *in, char *out, size_t len)
{
	size_t n = 0, all = strlen(in);

	for (size_t i = 0; i < all; i++) {
		size_t used = 0;
		const char *v = in[i] == '$' ? variable(s, in + i + 1, all - i - 1, &used) : NULL;

		if (!v) {
			if (n + 1 < len)
				out[n++] = in[i];
			continue;
		}
		i += used;
		for (; *v && n + 1 < len; v++)
			out[n++] = *v;
	}
	out[n] = 0;
}

/* ---- conditions -------------------------------------------------------------------------------------------------- */

struct test {
	struct script *s;
	char **v;
	unsigned n, i, depth;
};

static bool test_or(struct test *t);

static bool test_binary(const char *a, const char *op, const char *b, bool *known)
{
	long x = strtol(a, NULL, 10), y = strtol(b, NULL, 10);

	*known = true;
	if (!strcmp(op, "=") || !strcmp(op, "=="))
		return !strcmp(a, b);
	if (!strcmp(op, "!="))
		return strcmp(a, b);
	if (!strcmp(op, "<") || !strcmp(op, ">"))
		return *op == '<' ? strcmp(a, b) < 0 : strcmp(a, b) > 0;
	if (!strcmp(op, "-eq") || !strcmp(op, "-ne"))
		return (x == y) == (op[1] == 'e');
	if (!strcmp(op, "-lt") || !strcmp(op, "-le"))
		return x < y || (op[2] == 'e' && x == y);
	if (!strcmp(op, "-gt") || !strcmp(op, "-ge"))
		return x > y || (op[2] == 'e' && x == y);
	*known = false;
	return false;
}

static bool test_primary(struct test *t)
{
	const char *a = t->i < t->n ? t->v[t->i] : "";
	bool known = false, r;

	if (t->i >= t->n || ++t->depth > SCRIPT_ARGS_MAX)
		return false;
	if (t->i + 2 < t->n) {
		r = test_binary(a, t->v[t->i + 1], t->v[t->i + 2], &known);
		if (known) {
			t->i += 3;
			return r;
		}
	}
	t->i++;
	if (!strcmp(a, "!"))
		return !test_primary(t);
	if (!strcmp(a, "(")) {
		r = test_or(t);
		t->i++;
		return r;
	}
	if (a[0] == '-' && a[1] && !a[2] && strchr("zndefs", a[1]) && t->i < t->n) {
		char *argv[] = {(char *)a, t->v[t->i++], NULL};

		if (a[1] == 'z' || a[1] == 'n')
			return !*argv[1] == (a[1] == 'z');
		return t->s->command(t->s->ctx, t->s, 2, argv); /* -e FILE and the like */
	}
	return *a;
}

static bool test_and(struct test *t)
{
	bool r = test_primary(t);

	while (t->i < t->n && strcmp(t->v[t->i], "-o") && strcmp(t->v[t->i], ")")) {
		t->i += !strcmp(t->v[t->i], "-a");
		r &= test_primary(t);
	}
	return r;
}

static bool test_or(struct test *t)
{
	bool r = test_and(t);

	while (t->i < t->n && !strcmp(t->v[t->i], "-o")) {
		t->i++;
		r |= test_and(t);
	}
	return r;
}

/* ---- commands ---------------------------------------------------------------------------------------------------- */

static bool run_list(struct script *s, struct at *at, bool run);

static const struct token *token_at(const struct script *s, const struct at *at)
{
	return at->i < at->end ? &s->texts[at->text].tokens[at->i] : NULL;
}

static bool token_is(const struct script *s, const struct at *at, const char *word)
{
	const struct token *k = token_at(s, at);

	return k && k->kind == TOKEN_WORD && k->len == strlen(word) && !memcmp(s->texts[at->text].s + k->start, word, k->len);
}

/* Past the bracket that closes the one at `at`; *inside: what lies between. False: there is none. */
static bool skip_block(const struct script *s, struct at *at, const char *open, const char *close, struct at *inside)
{
	unsigned depth = 0;

	*inside = *at;
	inside->i++;
	for (; at->i < at->end; at->i++) {
		if (token_is(s, at, open)) {
			depth++;
		} else if (token_is(s, at, close) && !--depth) {
			inside->end = at->i++;
			return true;
		}
	}
	return false;
}

/* The same from the next opening one on; to the end when there is none. */
static void skip_from(const struct script *s, struct at *at, const char *open, const char *close)
{
	struct at inside;

	while (at->i < at->end && !token_is(s, at, open))
		at->i++;
	if (!skip_block(s, at, open, close, &inside))
		at->i = at->end;
}

static void take_args(struct script *s, struct at *at, struct args *a, bool block)
{
	struct word *w = malloc(sizeof(*w));
	const struct token *k;

	while ((k = token_at(s, at)) && (k->kind == TOKEN_WORD || block)) {
		if (block && token_is(s, at, "{"))
			break;
		if (w && k->kind == TOKEN_WORD)
			expand(s, s->texts[at->text].s + k->start, k->len, a, w);
		at->i++;
	}
	free(w);
}

static void add_entry(struct script *s, const struct args *a, const struct at *body)
{
	struct script_entry *e = &s->entries[s->nentries];

	if (s->nentries == SCRIPT_ENTRIES_MAX || a->n < 2)
		return;
	*e = (struct script_entry){.submenu = !strcmp(a->v[0], "submenu"), .parent = s->submenu, .text = body->text,
				   .start = body->i, .end = body->end};
	for (unsigned i = 1; i < a->n; i++) {
		if (!strncmp(a->v[i], "--id=", 5))
			snprintf(e->id, sizeof(e->id), "%s", a->v[i] + 5);
		else if (!strcmp(a->v[i], "--id") && i + 1 < a->n)
			snprintf(e->id, sizeof(e->id), "%s", a->v[++i]);
		else if (!strncmp(a->v[i], "--", 2) && !strchr(a->v[i], '=') && strcmp(a->v[i], "--unrestricted"))
			i++; /* --class, --users, --hotkey and their values */
		else if (a->v[i][0] != '-' && !*e->title)
			snprintf(e->title, sizeof(e->title), "%s", a->v[i]);
	}
	s->nentries++;
	if (e->submenu && s->depth < SCRIPT_DEPTH_MAX) {
		struct at inside = *body;
		unsigned outer = s->submenu;

		s->submenu = s->nentries;
		run_list(s, &inside, true);
		s->submenu = outer;
	}
}

static void run_menuentry(struct script *s, struct at *at, bool run)
{
	struct args a = {.n = 0};
	struct at inside;

	take_args(s, at, &a, true);
	if (!skip_block(s, at, "{", "}", &inside))
		at->i = at->end;
	else if (run)
		add_entry(s, &a, &inside);
	args_free(&a);
}

static bool run_if(struct script *s, struct at *at, bool run)
{
	bool done = false, status = true;

	do {
		bool yes;

		at->i++; /* if, elif */
		yes = run_list(s, at, run && !done);
		if (!token_is(s, at, "then"))
			break;
		at->i++;
		if (run && yes && !done)
			status = run_list(s, at, true);
		else
			run_list(s, at, false);
		done |= yes;
	} while (token_is(s, at, "elif"));
	if (token_is(s, at, "else")) {
		at->i++;
		run_list(s, at, run && !done);
	}
	if (token_is(s, at, "fi"))
		at->i++;
	else
		at->i = at->end;
	return status;
}

static bool run_args(struct script *s, struct args *a)
{
	const char *equals = strchr(a->v[0], '=');
	unsigned n = a->n;

	if (!strcmp(a->v[0], "set") || !strcmp(a->v[0], "export")) {
		for (unsigned i = 1; i < n; i++)
			if ((equals = strchr(a->v[i], '='))) {
				a->v[i][equals - a->v[i]] = 0;
				script_set(s, a->v[i], equals + 1);
			}
		return true;
	}
	if (!strcmp(a->v[0], "[") || !strcmp(a->v[0], "test")) {
		struct test t = {.s = s, .v = a->v + 1, .n = n - 1};

		if (a->v[0][0] == '[' && t.n && !strcmp(t.v[t.n - 1], "]"))
			t.n--;
		return test_or(&t);
	}
	if (!strcmp(a->v[0], "true") || !strcmp(a->v[0], "false"))
		return a->v[0][0] == 't';
	if (equals && equals != a->v[0]) {
		a->v[0][equals - a->v[0]] = 0;
		script_set(s, a->v[0], equals + 1);
		return true;
	}
	return s->command(s->ctx, s, n, a->v);
}

static bool run_simple(struct script *s, struct at *at, bool run)
{
	struct args a = {.n = 0};
	bool status = true, negate = false;

	if (!run || s->bytes > SCRIPT_BYTES_MAX) {
		const struct token *k;

		while ((k = token_at(s, at)) && k->kind == TOKEN_WORD)
			at->i++;
		return false;
	}
	if (token_is(s, at, "!")) {
		negate = true;
		at->i++;
	}
	take_args(s, at, &a, false);
	if (a.n)
		status = run_args(s, &a);
	args_free(&a);
	return status != negate;
}

/* Up to a word that ends a list; false words of conditions and then-branches are passed over with run == false. */
static bool run_list(struct script *s, struct at *at, bool run)
{
	static const char *const ends[] = {"then", "elif", "else", "fi", "}", "do", "done"};
	const struct token *k;
	bool status = true;

	if (++s->depth > SCRIPT_DEPTH_MAX)
		at->i = at->end;
	while ((k = token_at(s, at))) {
		bool end = false;

		if (k->kind == TOKEN_SEPARATOR) {
			at->i++;
			continue;
		}
		for (unsigned i = 0; i < ARRAY_LEN(ends); i++)
			end |= token_is(s, at, ends[i]);
		if (end)
			break;
		if (run && ++s->steps > SCRIPT_STEPS_MAX) {
			s->lost = true;
			at->i = at->end;
		} else if (token_is(s, at, "if"))
			status = run_if(s, at, run);
		else if (token_is(s, at, "menuentry") || token_is(s, at, "submenu"))
			run_menuentry(s, at, run);
		else if (token_is(s, at, "function"))
			skip_from(s, at, "{", "}");
		else if (token_is(s, at, "for") || token_is(s, at, "while") || token_is(s, at, "until"))
			skip_from(s, at, "do", "done");
		else
			status = run_simple(s, at, run);
	}
	s->depth--;
	return status;
}

bool script_run(struct script *s, char *text, size_t len)
{
	struct text *t = &s->texts[s->ntexts];
	struct at at = {.text = s->ntexts};

	if (s->ntexts == SCRIPT_TEXTS_MAX || s->depth >= SCRIPT_DEPTH_MAX) {
		free(text);
		return false;
	}
	*t = (struct text){.s = text, .len = len};
	s->ntexts++;
	if (!tokenize(t))
		return false;
	/* A word that ends nothing is passed over. */
	for (at.end = t->ntokens; at.i < at.end; at.i++)
		run_list(s, &at, true);
	return true;
}

void script_run_entry(struct script *s, const struct script_entry *e)
{
	struct at at = {.text = e->text, .i = e->start, .end = e->end};

	s->steps = 0;
	s->lost = false;
	run_list(s, &at, true);
}

/* ---- the menu ---------------------------------------------------------------------------------------------------- */

bool script_lost(const struct script *s) { return s->lost; }
unsigned script_entries(const struct script *s) { return s->nentries; }
const struct script_entry *script_entry(const struct script *s, unsigned i) { return &s->entries[i]; }

static const struct script_entry *child(const struct script *s, unsigned parent, const char *which, size_t len)
{
	char *end;
	unsigned long number;
	char name[160];

	snprintf(name, sizeof(name), "%.*s", (int)min_u64(len, sizeof(name) - 1), which);
	number = strtoul(name, &end, 10);
	for (unsigned i = 0, n = 0; i < s->nentries; i++) {
		const struct script_entry *e = &s->entries[i];

		if (e->parent != parent)
			continue;
		if (!strcmp(e->id, name) || !strcmp(e->title, name) || (*name && !*end && n == number))
			return e;
		n++;
	}
	return NULL;
}

const struct script_entry *script_choose(const struct script *s, const char *which)
{
	const struct script_entry *e = NULL;
	unsigned parent = 0;

	do {
		size_t len = strcspn(which, ">");

		e = len ? child(s, parent, which, len) : NULL;
		if (!e)
			e = child(s, parent, "0", 1);
		which += len + (which[len] == '>');
		parent = e && e->submenu ? (unsigned)(e - s->entries) + 1 : 0;
	} while (parent);
	return e;
}
