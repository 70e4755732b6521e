/*
 * What an image is and what lies where: `doppel disk info` and `doppel disk map`. Both look without a lock, so that a
 * running VM's disk can be looked at; what a writer changes at the same moment may be seen half done.
 */
#include "cli/disk.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "backend/block/part.h"
#include "cli/cli.h"
#include "cli/progress.h"

#define SNAPSHOTS_MAX 1024u

struct facts {
	struct block *b;
	struct block_info info;
	struct part_table *parts; /* NULL: part_error */
	struct error part_error;
	struct block_snapshot *snapshots;
	unsigned nsnapshots;
};

static void gather(struct facts *f)
{
	const struct block_format *fmt = f->b->format;

	f->info.format = fmt->name;
	f->info.size = f->b->size;
	if (fmt->info)
		fmt->info(f->b, &f->info);
	f->parts = part_list(f->b, &f->part_error);
	f->snapshots = calloc(SNAPSHOTS_MAX, sizeof(*f->snapshots));
	if (fmt->snapshot_list && f->snapshots)
		f->nsnapshots = (unsigned)min_u64(fmt->snapshot_list(f->b, f->snapshots, SNAPSHOTS_MAX), SNAPSHOTS_MAX);
}

static void drop(struct facts *f)
{
	part_table_free(f->parts);
	free(f->snapshots);
	block_close(f->b);
}

/* ---- JSON ---- */

/* Text out of an image need not be UTF-8. */
static json_t *text(const char *s)
{
	json_t *j = json_string(s);
	char safe[1100];

	if (j)
		return j;
	for (char *p = strcpy(safe, disk_safe_text(s, safe, sizeof(safe))); *p; p++)
		if (*p & 0x80)
			*p = '?';
	return json_string(safe);
}

static json_t *json_parts(const struct part_table *t)
{
	json_t *list = json_array();
	char guid[37];

	for (unsigned i = 0; i < t->n; i++) {
		const struct part *p = &t->parts[i];
		json_t *o = json_pack("{s:i, s:I, s:I, s:s, s:b}", "number", (int)p->number, "start",
				      (json_int_t)p->start, "length", (json_int_t)p->len, "type_name",
				      part_type_name(t, p), "bootable", p->active);

		if (t->scheme == PART_GPT) {
			part_guid_text(p->type_guid, guid);
			json_object_set_new(o, "type", json_string(guid));
			part_guid_text(p->guid, guid);
			json_object_set_new(o, "uuid", json_string(guid));
			json_object_set_new(o, "name", text(p->name));
		} else {
			snprintf(guid, sizeof(guid), "%x", p->mbr_type);
			json_object_set_new(o, "type", json_string(guid));
		}
		json_array_append_new(list, o);
	}
	return list;
}

static json_t *json_table(const struct part_table *t)
{
	json_t *o = json_pack("{s:s, s:i, s:o}", "scheme", t->scheme == PART_GPT ? "gpt" : "mbr", "sector_size",
			      (int)t->sector_size, "partitions", json_parts(t));
	char id[37];

	if (t->scheme == PART_GPT)
		part_guid_text(t->disk_guid, id);
	else
		snprintf(id, sizeof(id), "%08x", t->disk_id);
	json_object_set_new(o, "id", json_string(id));
	json_object_set_new(o, "from_backup", json_boolean(t->backup));
	json_object_set_new(o, "ignored", json_integer(t->nbad));
	return o;
}

static json_t *json_snapshots(const struct facts *f)
{
	json_t *list = json_array();

	for (unsigned i = 0; i < f->nsnapshots; i++) {
		const struct block_snapshot *s = &f->snapshots[i];

		json_array_append_new(list, json_pack("{s:o, s:o, s:I, s:I, s:I}", "id", text(s->id), "name",
						      text(s->name), "size", (json_int_t)s->size, "date",
						      (json_int_t)s->date_s, "vm_state", (json_int_t)s->vm_state));
	}
	return list;
}

static void print_json(const struct facts *f, const char *path)
{
	const struct block_info *i = &f->info;
	json_t *o = json_pack("{s:o, s:s, s:I, s:I, s:I, s:b, s:b, s:b, s:b, s:o}", "file", text(path), "format",
			      i->format, "virtual_size", (json_int_t)i->size, "allocated", (json_int_t)i->allocated,
			      "cluster_size", (json_int_t)i->cluster_size, "dirty", i->dirty, "corrupt", i->corrupt,
			      "encrypted", i->encrypted, "compressed", i->compressed, "snapshots", json_snapshots(f));

	if (i->backing) {
		json_object_set_new(o, "backing", text(i->backing));
		json_object_set_new(o, "backing_format", i->backing_format ? text(i->backing_format) : json_null());
	}
	if (!f->parts)
		json_object_set_new(o, "partition_error", text(f->part_error.msg));
	else if (f->parts->scheme != PART_NONE)
		json_object_set_new(o, "partition_table", json_table(f->parts));
	json_dumpf(o, stdout, JSON_INDENT(2));
	putchar('\n');
	json_decref(o);
}

/* ---- table ---- */

static void print_parts(const struct part_table *t)
{
	char size[32];

	if (t->scheme == PART_NONE)
		return;
	printf("partitions     %s%s\n", t->scheme == PART_GPT ? "GPT" : "MBR",
	       t->backup ? ", from the backup: the table at the start is damaged" : "");
	if (t->n)
		printf("  %3s  %15s  %10s  %s\n", "#", "START", "SIZE", "TYPE");
	for (unsigned i = 0; i < t->n; i++) {
		const struct part *p = &t->parts[i];

		printf("  %3u  %15llu  %10s  %s%s%s%s%s\n", p->number, (unsigned long long)p->start,
		       size_text(p->len, size), part_type_name(t, p), p->active ? ", bootable" : "",
		       p->name[0] ? " \"" : "", p->name, p->name[0] ? "\"" : "");
	}
	if (t->nbad)
		printf("  %u entries lie outside of the disk or are damaged\n", t->nbad);
}

static void print_table(const struct facts *f, const char *path)
{
	const struct block_info *i = &f->info;
	char size[32], safe[1100];

	printf("file           %s\nformat         %s%s\n", path, i->format, i->compressed ? ", compressed" : "");
	printf("virtual size   %s (%llu bytes)\n", size_text(i->size, size), (unsigned long long)i->size);
	printf("on the host    %s\n", size_text(i->allocated, size));
	if (i->cluster_size)
		printf("cluster size   %s\n", size_text(i->cluster_size, size));
	if (i->backing) {
		printf("backing file   %s", disk_safe_text(i->backing, safe, sizeof(safe)));
		printf(i->backing_format ? " (%s)\n" : "\n",
		       i->backing_format ? disk_safe_text(i->backing_format, safe, sizeof(safe)) : "");
	}
	if (i->dirty || i->corrupt)
		printf("state          %s\n", i->corrupt ? "corrupt: see doppel disk check" : "was not closed cleanly");
	if (i->encrypted)
		printf("encryption     yes\n");
	for (unsigned k = 0; k < f->nsnapshots; k++)
		printf("%-14s %s\n", k ? "" : "snapshots", disk_safe_text(f->snapshots[k].name, safe, sizeof(safe)));
	if (f->parts)
		print_parts(f->parts);
	else
		printf("partitions     %s\n", disk_safe_text(f->part_error.msg, safe, sizeof(safe)));
}

int disk_info(const struct disk_args *a)
{
	struct error err = {0};
	struct facts f = {.b = disk_open(a->names[0], a->format, true, true, &err)};

	if (!f.b)
		return cli_fail(&err);
	gather(&f);
	if (a->json)
		print_json(&f, a->names[0]);
	else
		print_table(&f, a->names[0]);
	drop(&f);
	return CLI_OK;
}

/* ---- map ---- */

/* A run of one kind, extents joined. */
struct run {
	uint64_t off;
	struct block_extent e;
};

static bool joins(const struct run *r, const struct block_extent *e)
{
	return r->e.len && r->e.kind == e->kind && r->e.depth == e->depth &&
	       (e->kind != EXTENT_DATA || (r->e.fd == e->fd && r->e.host_off + r->e.len == e->host_off));
}

static void print_run(const struct run *r, bool json, unsigned *n)
{
	/* In the order of enum block_extent_kind. */
	static const char *const kinds[] = {"data", "encoded", "zero", "unallocated"};
	const char *kind = kinds[r->e.kind];
	bool data = r->e.kind == EXTENT_DATA;

	if (!r->e.len)
		return;
	if (json) {
		printf("%s{\"start\": %llu, \"length\": %llu, \"kind\": \"%s\", \"depth\": %u", (*n)++ ? ",\n" : "",
		       (unsigned long long)r->off, (unsigned long long)r->e.len, kind, r->e.depth);
		if (data)
			printf(", \"offset\": %llu", (unsigned long long)r->e.host_off);
		printf("}");
	} else {
		printf("%16llu %16llu  %-11s %5u", (unsigned long long)r->off, (unsigned long long)r->e.len, kind,
		       r->e.depth);
		printf(data ? " %16llu\n" : "\n", (unsigned long long)r->e.host_off);
	}
}

static int map_error(const struct block *b, uint64_t off, int r)
{
	struct error err;

	error_set(&err, "disk %s: cannot read its map at offset %llu: %s", b->path, (unsigned long long)off,
		  strerror(-r));
	error_hint(&err, "the image may be damaged; try doppel disk check");
	return cli_fail(&err);
}

int disk_map(const struct disk_args *a)
{
	struct error err = {0};
	struct block *b = disk_open(a->names[0], a->format, true, true, &err);
	struct run run = {0};
	unsigned n = 0;
	int r = 0;

	if (!b)
		return cli_fail(&err);
	if (a->json)
		putchar('[');
	else
		printf("%16s %16s  %-11s %5s %16s\n", "START", "LENGTH", "KIND", "DEPTH", "OFFSET");
	for (uint64_t off = 0; off < b->size;) {
		struct block_extent e;

		r = block_map(b, off, b->size - off, &e);
		if (r)
			break;
		if (joins(&run, &e)) {
			run.e.len += e.len;
		} else {
			print_run(&run, a->json, &n);
			run = (struct run){off, e};
		}
		off += e.len;
	}
	print_run(&run, a->json, &n);
	if (a->json)
		puts("]");
	r = r ? map_error(b, run.off + run.e.len, r) : CLI_OK;
	block_close(b);
	return r;
}
