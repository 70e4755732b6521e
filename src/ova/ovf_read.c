/*
 * The OVF envelope. Namespaces differ between versions and writers; elements and attributes are found by their local
 * names.
 */
#include "ova/ova_int.h"

#include <errno.h>
#include <stdio.h>
#include <libxml/parser.h>
#include <libxml/tree.h>
#include <stdlib.h>
#include <string.h>

#define REFERENCES_MAX 64u
#define CPUS_MAX 4096u
#define MEMORY_MAX (64 * 1024 * GIB)

/* CIM_ResourceAllocationSettingData.ResourceType (DSP1041). */
enum { RES_CPU = 3, RES_MEMORY = 4, RES_IDE = 5, RES_SCSI = 6, RES_NIC = 10, RES_DISK = 17, RES_SATA = 20 };

struct reader {
	const char *path;
	xmlNode *envelope;
	struct ovf *out;
	struct error *err;
};

static bool bad(struct reader *r, const char *what, const char *name)
{
	error_set(r->err, "%s: its OVF is not usable: %s%s%.64s", r->path, what, name ? " " : "", name ? name : "");
	return error_hint(r->err, "the archive is damaged, or uses what doppel does not know");
}

bool ova_name_ok(const char *s)
{
	size_t n = strlen(s);

	if (!n || n > OVA_NAME_MAX || s[0] == '.')
		return false;
	for (; *s; s++)
		if (*s == '/' || *s == '\\' || (uint8_t)*s < 0x20 || *s == 0x7f)
			return false;
	return true;
}

static bool is(const xmlNode *n, const char *name)
{
	return n->type == XML_ELEMENT_NODE && !strcmp((const char *)n->name, name);
}

static xmlNode *child(const xmlNode *parent, const char *name)
{
	xmlNode *n;

	for (n = parent ? parent->children : NULL; n && !is(n, name); n = n->next)
		;
	return n;
}

/* Text of an attribute or element into out; false: not there, too long, or with control characters. */
static bool take(xmlChar *text, char *out, size_t size)
{
	const char *s = (const char *)text;
	size_t n;
	bool ok;

	if (!text)
		return false;
	while (*s == ' ' || *s == '\n' || *s == '\t' || *s == '\r')
		s++;
	n = strlen(s);
	while (n && (s[n - 1] == ' ' || s[n - 1] == '\n' || s[n - 1] == '\t' || s[n - 1] == '\r'))
		n--;
	ok = n < size;
	for (size_t i = 0; ok && i < n; i++)
		ok = (uint8_t)s[i] >= 0x20 && s[i] != 0x7f;
	if (ok) {
		memcpy(out, s, n);
		out[n] = 0;
	}
	xmlFree(text);
	return ok;
}

static bool attribute(const xmlNode *n, const char *name, char *out, size_t size)
{
	for (xmlAttr *a = n->properties; a; a = a->next)
		if (!strcmp((const char *)a->name, name))
			return take(xmlNodeListGetString(n->doc, a->children, 1), out, size);
	return false;
}

static bool element(const xmlNode *parent, const char *name, char *out, size_t size)
{
	const xmlNode *n = child(parent, name);

	return n && take(xmlNodeGetContent(n), out, size);
}

static bool number(const char *s, uint64_t *out)
{
	char *end;

	errno = 0;
	*out = strtoull(s, &end, 10);
	return s[0] >= '0' && s[0] <= '9' && !*end && !errno;
}

/* "byte * 2^20", and the names of older writers. */
static bool unit(const char *s, uint64_t *out)
{
	static const struct {
		const char *name;
		unsigned shift;
	} names[] = {{"byte", 0}, {"bytes", 0},	     {"KB", 10}, {"KiloBytes", 10},
		     {"MB", 20},  {"MegaBytes", 20}, {"GB", 30}, {"GigaBytes", 30}};
	unsigned shift;
	char rest;

	for (size_t i = 0; i < ARRAY_LEN(names); i++) {
		if (!strcasecmp(s, names[i].name)) {
			*out = BIT(names[i].shift);
			return true;
		}
	}
	if (sscanf(s, "byte * 2^%2u%c", &shift, &rest) != 1 || shift > 50)
		return false;
	*out = BIT(shift);
	return true;
}

static bool scaled(struct reader *r, const char *value, const char *units, uint64_t max, uint64_t *out,
		   const char *what)
{
	uint64_t n, u;

	if (!number(value, &n) || !unit(units, &u) || !n || n > max / u)
		return bad(r, "an impossible", what);
	*out = n * u;
	return true;
}

/* ---- disks ---- */

static bool file_of(struct reader *r, const char *id, char href[OVA_NAME_MAX + 1])
{
	const xmlNode *refs = child(r->envelope, "References");
	unsigned seen = 0;
	char text[256];

	for (const xmlNode *n = refs ? refs->children : NULL; n; n = n->next) {
		if (!is(n, "File"))
			continue;
		if (++seen > REFERENCES_MAX)
			return bad(r, "too many files", NULL);
		if (!attribute(n, "id", text, sizeof(text)) || strcmp(text, id))
			continue;
		if (attribute(n, "compression", text, sizeof(text)) && text[0] && strcmp(text, "identity"))
			return bad(r, "a disk is compressed as a file, with", text);
		if (attribute(n, "chunkSize", text, sizeof(text)))
			return bad(r, "a disk is split into chunks", NULL);
		if (!attribute(n, "href", text, sizeof(text)) || !ova_name_ok(text))
			return bad(r, "a disk's file is not a plain name in the archive", NULL);
		strcpy(href, text);
		return true;
	}
	return bad(r, "a disk names a file that is not in its list:", id);
}

static bool add_disk(struct reader *r, const char *id)
{
	const xmlNode *section = child(r->envelope, "DiskSection"), *n;
	struct ovf_disk *d = &r->out->disks[r->out->ndisks];
	char text[256], units[64];

	if (r->out->ndisks == OVA_DISKS_MAX)
		return bad(r, "more than 15 disks", NULL);
	for (n = section ? section->children : NULL; n; n = n->next)
		if (is(n, "Disk") && attribute(n, "diskId", text, sizeof(text)) && !strcmp(text, id))
			break;
	if (!n)
		return bad(r, "no disk", id);
	*d = (struct ovf_disk){0};
	if (attribute(n, "parentRef", text, sizeof(text)))
		return bad(r, "a disk stands on another one", NULL);
	if (!attribute(n, "capacityAllocationUnits", units, sizeof(units)))
		strcpy(units, "byte");
	if (!attribute(n, "capacity", text, sizeof(text)) ||
	    !scaled(r, text, units, 64 * 1024 * GIB, &d->capacity, "disk size"))
		return bad(r, "an impossible disk size", NULL);
	if (attribute(n, "fileRef", text, sizeof(text)) && !file_of(r, text, d->href))
		return false;
	for (unsigned i = 0; i < r->out->ndisks; i++)
		if (d->href[0] && !strcmp(r->out->disks[i].href, d->href))
			return bad(r, "two disks have one file", d->href);
	r->out->ndisks++;
	return true;
}

/* ---- hardware ---- */

static bool add_nic(struct reader *r, const xmlNode *item)
{
	struct ova_machine *m = &r->out->machine;
	char mac[32] = "";
	unsigned b[6];
	char rest;

	if (m->nnics == OVA_NICS_MAX)
		return bad(r, "more than 8 network cards", NULL);
	element(item, "Address", mac, sizeof(mac));
	if (sscanf(mac, "%2x:%2x:%2x:%2x:%2x:%2x%c", &b[0], &b[1], &b[2], &b[3], &b[4], &b[5], &rest) == 6 &&
	    !(b[0] & 1))
		snprintf(m->nics[m->nnics].mac, sizeof(m->nics[0].mac), "%02x:%02x:%02x:%02x:%02x:%02x", b[0] & 0xff,
			 b[1] & 0xff, b[2] & 0xff, b[3] & 0xff, b[4] & 0xff, b[5] & 0xff);
	m->nnics++;
	return true;
}

static bool add_memory(struct reader *r, const xmlNode *item)
{
	char value[64], units[64];

	if (!element(item, "AllocationUnits", units, sizeof(units)))
		strcpy(units, "MegaBytes");
	return element(item, "VirtualQuantity", value, sizeof(value))
		       ? scaled(r, value, units, MEMORY_MAX, &r->out->machine.memory, "memory size")
		       : bad(r, "no memory size", NULL);
}

static bool add_cpus(struct reader *r, const xmlNode *item)
{
	char value[64];
	uint64_t n;

	if (!element(item, "VirtualQuantity", value, sizeof(value)) || !number(value, &n) || !n || n > CPUS_MAX)
		return bad(r, "an impossible number of CPUs", NULL);
	r->out->machine.cpus = (unsigned)n;
	return true;
}

static bool add_item(struct reader *r, const xmlNode *item)
{
	char text[256];
	const char *id;
	uint64_t type;

	if (!element(item, "ResourceType", text, sizeof(text)) || !number(text, &type))
		return bad(r, "a device has no type", NULL);
	switch (type) {
	case RES_CPU:
		return add_cpus(r, item);
	case RES_MEMORY:
		return add_memory(r, item);
	case RES_NIC:
		return add_nic(r, item);
	case RES_DISK:
		if (!element(item, "HostResource", text, sizeof(text)))
			return bad(r, "a disk drive without a disk", NULL);
		id = strrchr(text, '/');
		return (id && (!strncmp(text, "ovf:/disk/", 10) || !strncmp(text, "/disk/", 6)))
			       ? add_disk(r, id + 1)
			       : bad(r, "a disk drive has", text);
	case RES_IDE:
	case RES_SCSI:
	case RES_SATA:
		return true;
	default:
		if (!r->out->ignored[0] && !element(item, "ElementName", r->out->ignored, sizeof(r->out->ignored)))
			snprintf(r->out->ignored, sizeof(r->out->ignored), "of type %llu", (unsigned long long)type);
		return true;
	}
}

static bool read_system(struct reader *r, const xmlNode *system)
{
	const xmlNode *hardware = child(system, "VirtualHardwareSection");
	struct ova_machine *m = &r->out->machine;

	if (!hardware)
		return bad(r, "no VirtualHardwareSection", NULL);
	if (!element(system, "Name", m->name, sizeof(m->name)))
		attribute(system, "id", m->name, sizeof(m->name));
	for (const xmlNode *n = hardware->children; n; n = n->next)
		if ((is(n, "Item") || is(n, "StorageItem") || is(n, "EthernetPortItem")) && !add_item(r, n))
			return false;
	return true;
}

static bool read_envelope(struct reader *r)
{
	const xmlNode *system = NULL;

	if (!r->envelope || !is(r->envelope, "Envelope"))
		return bad(r, "no Envelope", NULL);
	if (child(r->envelope, "VirtualSystemCollection"))
		return bad(r, "it holds several machines", NULL);
	for (const xmlNode *n = r->envelope->children; n; n = n->next) {
		if (!is(n, "VirtualSystem"))
			continue;
		if (system)
			return bad(r, "it holds several machines", NULL);
		system = n;
	}
	return system ? read_system(r, system) : bad(r, "no VirtualSystem", NULL);
}

bool ovf_read(const char *path, const void *text, size_t len, struct ovf *out, struct error *err)
{
	struct reader r = {.path = path, .out = out, .err = err};
	xmlDoc *doc;
	bool ok;

	memset(out, 0, sizeof(*out));
	if (len > OVA_OVF_MAX)
		return bad(&r, "it is too large", NULL);
	/* Entities need a document type; without one there is nothing to expand. */
	if (memmem(text, len, "<!DOCTYPE", 9) || memmem(text, len, "<!ENTITY", 8) || memchr(text, 0, len))
		return bad(&r, "it has a document type, which an OVF does not", NULL);
	doc = xmlReadMemory(text, (int)len, "ovf.xml", "UTF-8",
			    XML_PARSE_NONET | XML_PARSE_NOERROR | XML_PARSE_NOWARNING | XML_PARSE_NOCDATA);
	if (!doc)
		return bad(&r, "not well-formed XML", NULL);
	r.envelope = xmlDocGetRootElement(doc);
	ok = doc->intSubset || doc->extSubset ? bad(&r, "it has a document type, which an OVF does not", NULL)
					      : read_envelope(&r);
	xmlFreeDoc(doc);
	return ok;
}
