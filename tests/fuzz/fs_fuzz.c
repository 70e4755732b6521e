/*
 * The 9P server under hostile messages: random ones, nearly right ones, and right ones with absurd values. It must not crash, hang or grow, each
 * message gets one well-formed reply, and nothing outside the shared directory changes.
 *
 *   fs_fuzz SECONDS SEED
 */
#include <dirent.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "backend/fs/fs.h"
#include "base/timer.h"

#define MAX_NS INT64_C(2000000000)
#define MSG 70000
#define SECRET "outside"

static uint64_t rnd(uint64_t *s)
{
	*s ^= *s << 13;
	*s ^= *s >> 7;
	*s ^= *s << 17;
	return *s * 0x2545f4914f6cdd1du;
}

static uint64_t below(uint64_t *s, uint64_t n) { return (rnd(s) >> 20) % n; }

/* Types and their arguments: fids f, integers by size, strings s, names of files n. */
static const struct {
	uint8_t type;
	const char *args;
} calls[] = {
	{8, "f"}, {12, "f4"}, {12, "fm"}, {14, "fn4m4"}, {16, "fns4"}, {16, "fns4"}, {18, "fnm444"}, {22, "f"}, {24, "f8"}, {26, "fv4448888" "8"}, {30, "ffx"}, {32, "fx84"},
	{40, "foc"}, {50, "f4"}, {52, "f14oo4s"}, {54, "f1oo4s"}, {70, "ffn"}, {72, "fn44"}, {74, "fnfn"}, {76, "fn4"}, {104, "fNss4"}, {108, "2"},
	{110, "ffw"}, {110, "ffw"}, {110, "ffw"}, {116, "foc"}, {118, "fod"}, {120, "f"}, {122, "f"}, {100, "cs"},
};

static const char *const names[] = {"a", "b", "c", "d", "e", ".", "..", "../secret", "/", "", "link", "up", "a/b", "\xff\xfe", "secret"};
static const char *const texts[] = {"user.a", "user.b", "user.", "security.capability", "9P2000.L", "9P2000", "", "/", "../secret", "/etc/passwd", "root"};

static uint32_t put(uint8_t *p, uint64_t v, unsigned n)
{
	memcpy(p, &v, n);
	return n;
}

static uint32_t put_str(uint8_t *p, const char *s)
{
	memcpy(p + 2, s, strlen(s));
	return put(p, strlen(s), 2) + (uint32_t)strlen(s);
}

static uint64_t odd(uint64_t *s)
{
	static const uint64_t values[] = {0, 1, 2, 7, 4096, 0xffff, 0x7fffffff, 0x80000000, 0xffffffff, INT64_MAX, UINT64_MAX};

	return below(s, 3) ? below(s, 5000) : below(s, 2) ? values[below(s, ARRAY_LEN(values))] : rnd(s);
}

static uint32_t put_arg(uint64_t *s, uint8_t *p, char a)
{
	static const unsigned modes[] = {S_IFREG, S_IFIFO, S_IFSOCK, S_IFCHR, S_IFDIR, 0};
	uint32_t n = 0, count;

	switch (a) {
	case 'f': return put(p, below(s, 20) ? below(s, 12) : odd(s), 4);
	case 'N': return put(p, UINT32_MAX, 4);
	case 'n': return put_str(p, names[below(s, ARRAY_LEN(names))]);
	case 's': return put_str(p, texts[below(s, ARRAY_LEN(texts))]);
	case 'x': return put_str(p, texts[below(s, 4)]);
	case 'm': return put(p, modes[below(s, ARRAY_LEN(modes))] | below(s, 010000), 4);
	case 'v': return put(p, below(s, 0x200), 4);
	case 'o': return put(p, odd(s), 8);
	case 'c': return put(p, odd(s), 4);
	case 'd':
		count = (uint32_t)below(s, 3000);
		put(p, below(s, 10) ? count : odd(s), 4);
		return 4 + count;
	case 'w':
		count = (uint32_t)below(s, 5);
		n = put(p, below(s, 10) ? count : odd(s), 2);
		while (count--)
			n += put_str(p + n, names[below(s, ARRAY_LEN(names))]);
		return n;
	default: return put(p, odd(s), (unsigned)(a - '0'));
	}
}

static uint32_t make(uint64_t *s, uint8_t *p)
{
	unsigned c = (unsigned)below(s, ARRAY_LEN(calls) - (below(s, 100) ? 1 : 0)); /* a new session is rare */
	uint32_t n = FS_HEADER;

	for (const char *a = calls[c].args; *a; a++)
		n += put_arg(s, p + n, *a);
	p[4] = below(s, 50) ? calls[c].type : (uint8_t)rnd(s);
	put(p + 5, rnd(s), 2);
	if (!below(s, 30))
		p[below(s, n)] = (uint8_t)rnd(s);
	if (!below(s, 30))
		n = (uint32_t)below(s, n + 1);
	put(p, below(s, 30) ? n : odd(s), 4);
	return n;
}

static bool sane(const uint8_t *request, uint32_t len, const uint8_t *reply, uint32_t n, uint32_t room)
{
	if (room < 11)
		return n == 0;
	if (n < FS_HEADER || n > room || get_le32(reply) != n)
		return false;
	if (reply[4] == 7)
		return n == 11 && get_le32(reply + 7) > 0 && get_le32(reply + 7) < 4096;
	return len >= FS_HEADER && reply[4] == (uint8_t)(request[4] + 1) && !memcmp(reply + 5, request + 5, 2);
}

/* What lies beside the shared directory: the one file, as it was. */
static bool untouched(const char *base)
{
	char path[128], text[32] = "";
	DIR *d = opendir(base);
	unsigned entries = 0;
	FILE *f;

	while (d && readdir(d))
		entries++;
	if (d)
		closedir(d);
	snprintf(path, sizeof(path), "%s/secret", base);
	f = fopen(path, "r");
	if (!f || !fgets(text, sizeof(text), f))
		text[0] = 0;
	if (f)
		fclose(f);
	return entries == 4 && !strcmp(text, SECRET);
}

static void hello(struct fs *fs, uint8_t *reply)
{
	static const uint8_t version[] = "\x15\0\0\0\x64\xff\xff\0\0\1\0\x08\0" "9P2000.L";
	static const uint8_t attach[] = "\x17\0\0\0\x68\1\0\0\0\0\0\xff\xff\xff\xff\0\0\0\0\0\0\0\0";

	fs_request(fs, version, 21, reply, MSG);
	fs_request(fs, attach, 23, reply, MSG);
}

int main(int argc, char **argv)
{
	int64_t seconds = argc > 1 ? strtoll(argv[1], NULL, 0) : 3, begin = clock_now(), now = begin;
	uint64_t seed = argc > 2 ? strtoull(argv[2], NULL, 0) : 1, s = seed * 0x9e3779b97f4a7c15u + 1, total = 0, good = 0;
	static uint8_t request[MSG], reply[MSG];
	char base[] = "/tmp/doppel-fsfuzz.XXXXXX", path[64];
	struct error err = {0};
	bool ok = mkdtemp(base);
	struct fs *fs;
	FILE *f;

	snprintf(path, sizeof(path), "%s/secret", base);
	f = fopen(path, "w");
	ok = ok && f && fputs(SECRET, f) >= 0;
	if (f)
		fclose(f);
	snprintf(path, sizeof(path), "%s/share", base);
	fs = ok && !mkdir(path, 0700) ? fs_open(&(struct fs_options){.path = path}, &err) : NULL;
	if (!fs) {
		fprintf(stderr, "fs_fuzz: %s\n", err.msg);
		return 1;
	}
	while (ok && now - begin < seconds * 1000000000) {
		uint32_t room, len, n;
		int64_t before = now;

		if (total % 2000 == 0)
			hello(fs, reply);
		len = make(&s, request);
		room = (uint32_t)(below(&s, 10) ? MSG : below(&s, MSG));
		n = fs_request(fs, request, len, reply, room);
		now = clock_now();
		good += n && reply[4] != 7;
		ok = sane(request, len, reply, n, room) && now - before < MAX_NS && (++total % 5000 || untouched(base));
	}
	if (!ok || !untouched(base)) {
		fprintf(stderr, "fs_fuzz: seed %" PRIu64 ": message %" PRIu64 " of type %u: bad reply, too long, or the outside was touched (%s)\n", seed, total,
			request[4], base);
		return 1;
	}
	fs_close(fs);
	snprintf((char *)request, 200, "rm -rf %s", base);
	if (system((char *)request))
		return 1;
	printf("fs_fuzz: %" PRIu64 " messages, %" PRIu64 " of them did something\n", total, good);
	return good > total / 20 ? 0 : 1;
}
