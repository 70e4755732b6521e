/* Machines as files: what is read is what was written; what is no configuration is refused with one line. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "cli/config.h"

static char dir[] = "/tmp/doppel-config.XXXXXX";
static char path[64];

static bool read_text(struct config *c, const char *text, struct error *err)
{
	FILE *f = fopen(path, "w");

	assert_non_null(f);
	fputs(text, f);
	assert_int_equal(fclose(f), 0);
	*err = (struct error){0};
	return config_read(c, path, err);
}

static void must_read(struct config *c, const char *text)
{
	struct error err;

	if (!read_text(c, text, &err))
		fail_msg("%s (%s)", err.msg, err.hint);
}

static void must_refuse(const char *text, const char *word)
{
	struct config c;
	struct error err;

	assert_false(read_text(&c, text, &err));
	assert_int_equal(c.n, 0);
	if (!strstr(err.msg, word) || strchr(err.msg, '\n') || !err.hint[0])
		fail_msg("wanted '%s': %s (%s)", word, err.msg, err.hint);
}

static void test_command_line(void **state)
{
	struct config c;
	char **argv, disk[128];
	int argc;

	must_read(&c, "{\"memory\": \"2G\", \"cpus\": 2, \"disk\": [\"a.qcow2,ro\", \"/b.raw\", \"nbd://h/x\"], "
		      "\"no-reboot\": true, \"quiet\": false,"
		      " \"serial\": \"file:log\", \"append\": \"a=b c\"}");
	argv = config_args(&c, "run", &argc);
	assert_non_null(argv);
	snprintf(disk, sizeof(disk), "--disk=%s/a.qcow2,ro", dir);
	assert_int_equal(argc, 9);
	assert_string_equal(argv[0], "run");
	assert_string_equal(argv[1], "--memory=2G");
	assert_string_equal(argv[2], "--cpus=2");
	assert_string_equal(argv[3], disk);
	assert_string_equal(argv[4], "--disk=/b.raw");
	assert_string_equal(argv[5], "--disk=nbd://h/x");
	assert_string_equal(argv[6], "--no-reboot");
	snprintf(disk, sizeof(disk), "--serial=file:%s/log", dir);
	assert_string_equal(argv[7], disk);
	assert_string_equal(argv[8], "--append=a=b c");
	assert_null(argv[9]);
	free(argv);
	config_fini(&c);
}

static void test_round_trip(void **state)
{
	static const char *const items[][2] = {{"memory", "2G"},
					       {"cpus", "2"},
					       {"disk", "/d.qcow2"},
					       {"net", "user"},
					       {"net", "null"},
					       {"no-reboot", NULL},
					       {"append", "0x10 \"q\" \xc3\xa9"}};
	struct config c = {0}, back;
	struct error err = {0};

	for (size_t i = 0; i < ARRAY_LEN(items); i++)
		assert_true(config_add(&c, items[i][0], items[i][1], &err));
	assert_true(config_write(&c, path, &err));
	assert_true(config_read(&back, path, &err));
	assert_int_equal(back.n, c.n);
	for (unsigned i = 0; i < c.n; i++) {
		assert_string_equal(back.items[i].option, c.items[i].option);
		if (c.items[i].value)
			assert_string_equal(back.items[i].value, c.items[i].value);
		else
			assert_null(back.items[i].value);
	}
	assert_string_equal(config_get(&back, "net"), "null");
	assert_null(config_get(&back, "kernel"));
	config_fini(&c);
	config_fini(&back);
}

static void test_refused(void **state)
{
	struct config c;
	struct error err;
	char *big = malloc(300 * 1024);

	must_refuse("[]", "not a JSON object");
	must_refuse("{\"memory\": \"1G\", \"memory\": \"2G\"}", "duplicate");
	must_refuse("{\"memory\": {}}", "wrong kind");
	must_refuse("{\"memory\": null}", "wrong kind");
	must_refuse("{\"memory\": 1.5}", "wrong kind");
	must_refuse("{\"disk\": [[\"x\"]]}", "wrong kind");
	must_refuse("{\"--memory\": \"1G\"}", "no option");
	must_refuse("{\"a=b\": \"1G\"}", "no option");
	must_refuse("{\"\": \"1G\"}", "no option");
	must_refuse("{\"append\": \"a\\u0000b\"}", "line 1");
	must_refuse("{\"append\": \"a\\nb\"}", "control");
	must_refuse("{\"append\": \"a\"", "line 1");
	must_refuse("{\"append\": \"\xff\"}", "line 1");
	assert_non_null(big);
	strcpy(big, "{\"disk\": [");
	for (unsigned i = 0; i < 300; i++)
		strcat(big, "\"x\",");
	strcat(big, "\"x\"]}");
	must_refuse(big, "more than 256");
	memset(big, ' ', 290 * 1024);
	big[290 * 1024] = 0;
	assert_false(read_text(&c, big, &err));
	free(big);
}

static void test_names(void **state)
{
	char out[PATH_MAX];
	struct error err;

	assert_true(config_name_ok("web-1.a_B"));
	assert_false(config_name_ok(""));
	assert_false(config_name_ok("."));
	assert_false(config_name_ok(".."));
	assert_false(config_name_ok("-x"));
	assert_false(config_name_ok("a/b"));
	assert_false(config_name_ok("a b"));
	assert_false(config_name_ok("0123456789012345678901234567890123456789012345678901234567890123456789"));
	assert_false(config_machine_dir("../x", out, &err));
	assert_true(config_machine_dir("x", out, &err));
	assert_true(out[0] == '/' && strstr(out, "/doppel/machines/x"));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_command_line),
		cmocka_unit_test(test_round_trip),
		cmocka_unit_test(test_refused),
		cmocka_unit_test(test_names),
	};
	int r;

	if (!mkdtemp(dir))
		return 1;
	snprintf(path, sizeof(path), "%s/config.json", dir);
	r = cmocka_run_group_tests(tests, NULL, NULL);
	unlink(path);
	rmdir(dir);
	return r;
}
