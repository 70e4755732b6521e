/*
 * image_fuzz [SECONDS [SEED]]: damaged VMDKs (descriptors, sparse and stream extents), partition tables, OVFs and
 * manifests. Opening succeeds or fails with one line; what opens can be read, mapped, checked and written without a
 * crash, a hang, or a byte outside of the image's files (run it with the sanitizers).
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "../../src/ova/ova_int.h"
#include "backend/block/part.h"

#define SIZE (9 * MIB + 512)
#define HEAD (96 * KIB) /* of a file: where its tables are */

struct rng {
	uint64_t s;
};

static uint64_t next(struct rng *r)
{
	r->s ^= r->s << 13;
	r->s ^= r->s >> 7;
	r->s ^= r->s << 17;
	return r->s;
}

static unsigned below(struct rng *r, unsigned n) { return (unsigned)((next(r) >> 16) % n); }

struct fuzz {
	char dir[64];
	uint64_t cases, good, seed;
	struct rng r;
};

/* ---- samples ---- */

static const char *const kinds[] = {"monolithicSparse", "monolithicFlat", "twoGbMaxExtentSparse", "streamOptimized"};

static void path_of(const struct fuzz *f, const char *name, char out[128])
{
	snprintf(out, 128, "%s/%s", f->dir, name);
}

static bool make_sample(struct fuzz *f, unsigned kind)
{
	struct block_create c = {.size = SIZE};
	struct block_options o = {0};
	char name[32], path[128], options[64];
	uint8_t *data = calloc(1, SIZE);
	struct block *b = NULL;
	bool ok = false;

	snprintf(name, sizeof(name), "s%u.vmdk", kind);
	path_of(f, name, path);
	snprintf(options, sizeof(options), "subformat=%s", kinds[kind]);
	c.path = o.path = path;
	c.options = options;
	for (unsigned i = 0; i < SIZE; i += 4096)
		memset(data + i, (int)(i >> 16), i % (256 * KIB) ? 4096 : 0);
	if (block_create("vmdk", &c, NULL))
		b = block_open(&o, NULL);
	if (b)
		ok = (kind == 3 ? b->format->write_compressed(b, 0, SIZE, data) : block_write(b, 0, data, SIZE / 2)) ==
			     0 &&
		     block_flush(b) == 0;
	block_close(b);
	free(data);
	return ok;
}

static uint8_t *load(const char *path, size_t *len)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	struct stat st;
	uint8_t *p = NULL;

	if (fd >= 0 && fstat(fd, &st) == 0) {
		*len = (size_t)st.st_size;
		p = malloc(*len + 64);
		if (p && pread(fd, p, *len, 0) != (ssize_t)*len) {
			free(p);
			p = NULL;
		}
	}
	if (fd >= 0)
		close(fd);
	return p;
}

static bool save(const char *path, const uint8_t *p, size_t len)
{
	int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	bool ok = fd >= 0 && write(fd, p, len) == (ssize_t)len;

	if (fd >= 0)
		close(fd);
	return ok;
}

/* Values at the borders of things, mostly where tables are. */
static void damage(struct rng *r, uint8_t *p, size_t *len, size_t head)
{
	static const uint64_t edges[] = {0,
					 1,
					 2,
					 3,
					 0x7f,
					 0x80,
					 0xff,
					 0x200,
					 0x1ff,
					 0x1000,
					 0xffff,
					 0x10000,
					 0x7fffffff,
					 0x80000000,
					 0xfffffffe,
					 0xffffffff,
					 0x100000000,
					 0x7fffffffffffffff,
					 0x8000000000000000,
					 0xfffffffffffffffe,
					 UINT64_MAX};

	for (unsigned n = below(r, 6); n > 0 && *len > 8; n--) {
		size_t window = below(r, 3) ? 100 : below(r, 3) ? min_u64(head, *len) : *len;
		size_t at = below(r, 4) ? below(r, (unsigned)min_u64(window, *len - 8))
					: *len - 8 - below(r, (unsigned)min_u64(2000, *len - 8));
		uint64_t v = below(r, 3) ? edges[below(r, ARRAY_LEN(edges))] : next(r) >> below(r, 64);

		memcpy(p + at, &v, 1u << below(r, 4));
	}
	if (!below(r, 8))
		*len = below(r, (unsigned)*len + 1);
}

/* Text: lines and words lost, doubled, or made strange. */
static void damage_text(struct rng *r, uint8_t *p, size_t *len, size_t room)
{
	static const char *const bits[] = {"\"",
					   "=",
					   "\n",
					   " ",
					   "RW 1 ZERO\n",
					   "RW 18446744073709551615 FLAT \"x\" 0\n",
					   "\0",
					   "../",
					   "/etc/passwd",
					   "99999999999999999999",
					   "-1",
					   "0",
					   "<!DOCTYPE a [<!ENTITY b \"c\">]>",
					   "&b;",
					   "<Item>",
					   "</Item>",
					   ")",
					   "(",
					   "SHA256",
					   "createType=\"x\"\n",
					   "parentCID=0\n",
					   "parentFileNameHint=\"s0.vmdk\"\n",
					   "<![CDATA[",
					   "\xff\xfe"};

	for (unsigned n = below(r, 5); n > 0; n--) {
		size_t at = below(r, (unsigned)*len + 1), cut = below(r, 40);
		const char *bit = bits[below(r, ARRAY_LEN(bits))];
		size_t add = bit[0] ? strlen(bit) : 1;

		cut = min_u64(cut, *len - at);
		if (below(r, 2)) {
			memmove(p + at, p + at + cut, *len - at - cut);
			*len -= cut;
		}
		if (*len + add < room) {
			memmove(p + at + add, p + at, *len - at);
			memcpy(p + at, bit, add);
			*len += add;
		}
	}
}

/* ---- what is done with them ---- */

static bool one_line(const struct error *e) { return e->msg[0] && !strchr(e->msg, '\n') && !strchr(e->hint, '\n'); }

static void use(struct fuzz *f, struct block *b)
{
	static uint8_t buf[128 * KIB];
	struct block_check c = {0};
	struct block_extent e;
	uint64_t off = 0;

	for (unsigned i = 0; i < 64 && off < b->size && block_map(b, off, b->size - off, &e) == 0; i++)
		off += e.len;
	for (unsigned i = 0; i < 12; i++) {
		uint64_t len = 1 + below(&f->r, sizeof(buf)), at = next(&f->r) % b->size;

		len = min_u64(len, b->size - at);
		if (b->readonly || below(&f->r, 2))
			block_read(b, at, buf, len);
		else if (below(&f->r, 4))
			block_write(b, at, buf, len);
		else
			block_write_zeroes(b, at, len, true);
	}
	if (b->format->check)
		b->format->check(b, !b->readonly && below(&f->r, 2), &c, NULL);
	block_flush(b);
	part_table_free(part_list(b, NULL));
}

static bool open_damaged(struct fuzz *f, const char *path)
{
	struct block_options o = {
		.path = path, .format = "vmdk", .readonly = below(&f->r, 2), .cache = BLOCK_CACHE_UNSAFE};
	struct error err = {0};
	struct block *b = block_open(&o, &err);

	if (!b)
		return one_line(&err);
	f->good++;
	use(f, b);
	block_close(b);
	return true;
}

static bool fuzz_vmdk(struct fuzz *f)
{
	unsigned kind = below(&f->r, ARRAY_LEN(kinds));
	char from[32], path[128], victim[128];
	size_t len;
	uint8_t *p;
	bool ok;

	/* The extent of a split image is damaged in its place, and put right afterwards. */
	snprintf(from, sizeof(from), kind == 2 && below(&f->r, 2) ? "s%u-s001.vmdk" : "s%u.vmdk", kind);
	path_of(f, from, path);
	p = load(path, &len);
	if (!p)
		return false;
	if (len < 4096) {
		p = realloc(p, 16384);
		damage_text(&f->r, p, &len, 16000);
	} else {
		damage(&f->r, p, &len, HEAD);
	}
	if (strstr(from, "-s001")) {
		uint8_t *whole;
		size_t n;

		whole = load(path, &n);
		path_of(f, "s2.vmdk", victim);
		ok = whole && save(path, p, len) && open_damaged(f, victim) && save(path, whole, n);
		free(whole);
	} else {
		path_of(f, "victim.vmdk", victim);
		ok = save(victim, p, len) && open_damaged(f, victim);
	}
	free(p);
	return ok;
}

/* GPT and MBR from nothing: the fields are few. */
static bool fuzz_part(struct fuzz *f)
{
	struct block_options o = {.format = "raw", .readonly = true};
	static uint8_t p[MIB];
	struct error err = {0};
	size_t len = sizeof(p);
	struct part_table *t;
	struct block *b;
	char path[128];
	bool ok;

	memset(p, 0, sizeof(p));
	p[510] = 0x55;
	p[511] = 0xaa;
	for (unsigned i = 0; i < 4; i++) {
		p[446 + 16 * i + 4] = "\x83\x05\xee\x0f\0"[below(&f->r, 5)];
		put_le32(p + 446 + 16 * i + 8, below(&f->r, 2048));
		put_le32(p + 446 + 16 * i + 12, below(&f->r, 2048));
	}
	for (unsigned i = 1; i < 2048; i += 1 + below(&f->r, 8)) {
		memcpy(p + 512 * i + 446, p + 446, 66);
		memcpy(p + 512 * i, "EFI PART\0\0\1\0\x5c\0\0\0", below(&f->r, 2) ? 16 : 0);
	}
	damage(&f->r, p, &len, 4096);
	path_of(f, "part.raw", path);
	if (!len || !save(path, p, len))
		return true;
	o.path = path;
	b = block_open(&o, NULL);
	if (!b)
		return false;
	t = part_list(b, &err);
	ok = t || one_line(&err);
	for (unsigned i = 0; t && i < t->n; i++)
		ok = ok && t->parts[i].len && range_ok(t->parts[i].start, t->parts[i].len, b->size);
	f->good += t && t->n;
	part_table_free(t);
	block_close(b);
	return ok;
}

static bool fuzz_ovf(struct fuzz *f)
{
	struct ova_machine *m = calloc(1, sizeof(*m));
	struct ovf_file files[2] = {{"a-disk1.vmdk", 1000}, {"a-disk2.vmdk", 2000}};
	struct ovf *out = calloc(1, sizeof(*out));
	struct error err = {0};
	char *text = NULL;
	uint8_t *p;
	size_t len;
	bool ok, read;

	strcpy(m->name, "a");
	m->memory = GIB;
	m->cpus = m->nnics = m->ndisks = 2;
	m->disks[0].capacity = m->disks[1].capacity = GIB;
	if (!ovf_write(m, files, &text, &len, &err))
		return false;
	p = malloc(len + 4096);
	memcpy(p, text, len);
	damage_text(&f->r, p, &len, len + 4000);
	read = ovf_read("a.ova", p, len, out, &err);
	ok = read ? out->ndisks <= OVA_DISKS_MAX && out->machine.nnics <= OVA_NICS_MAX : one_line(&err);
	for (unsigned i = 0; i < out->ndisks && read; i++)
		ok = ok && (!out->disks[i].href[0] || ova_name_ok(out->disks[i].href));
	f->good += read;
	free(p);
	free(text);
	free(m);
	free(out);
	return ok;
}

static bool fuzz_manifest(struct fuzz *f)
{
	uint8_t text[1024] = "SHA1(a.ovf)= 0123456789012345678901234567890123456789\r\n"
			     "SHA256 (b.vmdk) = 0123456789012345678901234567890123456789012345678901234567890123\n";
	size_t len = strlen((char *)text);
	struct manifest *m = calloc(1, sizeof(*m));
	struct error err = {0};
	uint8_t *exact;
	bool read, ok;

	damage_text(&f->r, text, &len, sizeof(text));
	exact = malloc(len + !len);
	memcpy(exact, text, len);
	read = manifest_parse("a.ova", (char *)exact, len, m, &err);
	ok = read ? m->n <= OVA_MEMBERS_MAX : one_line(&err);
	f->good += read;
	free(exact);
	free(m);
	return ok;
}

int main(int argc, char **argv)
{
	static bool (*const fuzzers[])(struct fuzz *) = {fuzz_vmdk, fuzz_vmdk, fuzz_vmdk,
							 fuzz_part, fuzz_ovf,  fuzz_manifest};
	double seconds = argc > 1 ? atof(argv[1]) : 2;
	struct fuzz f = {.seed = argc > 2 ? strtoull(argv[2], NULL, 0) : 1};
	clock_t end = clock() + (clock_t)(seconds * CLOCKS_PER_SEC);
	char cmd[128];
	bool ok;

	/* In memory where that is: thousands of small files a second. */
	strcpy(f.dir, access("/dev/shm", W_OK) ? "/tmp/doppel-fuzz.XXXXXX" : "/dev/shm/doppel-fuzz.XXXXXX");
	ok = mkdtemp(f.dir) != NULL;
	for (unsigned i = 0; i < ARRAY_LEN(kinds) && ok; i++)
		ok = make_sample(&f, i);
	if (!ok)
		printf("no samples\n");
	while (ok && clock() < end) {
		f.r = (struct rng){(f.seed << 32 | ++f.cases) * UINT64_C(0x9e3779b97f4a7c15)};
		ok = fuzzers[below(&f.r, ARRAY_LEN(fuzzers))](&f);
		if (!ok)
			printf("seed %llu, case %llu: wrong\n", (unsigned long long)f.seed,
			       (unsigned long long)f.cases);
	}
	printf("%llu cases, %llu good\n", (unsigned long long)f.cases, (unsigned long long)f.good);
	snprintf(cmd, sizeof(cmd), "rm -rf %s", f.dir);
	return system(cmd) || !ok || f.good == 0 ||
	       f.good == f.cases; /* a run that only fails, or never, tests nothing */
}
