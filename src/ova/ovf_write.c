/*
 * An OVF 1.1 envelope that VMware, VirtualBox and others read: one SCSI controller with all disks, one NAT network.
 */
#include "ova/ova_int.h"

#include <libxml/tree.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define NS_OVF "http://schemas.dmtf.org/ovf/envelope/1"
#define NS_RASD "http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData"
#define NS_VSSD "http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_VirtualSystemSettingData"
#define STREAM "http://www.vmware.com/interfaces/specifications/vmdk.html#streamOptimized"

enum { CONTROLLER = 3 }; /* its InstanceID: 1 is the CPU, 2 the memory */

struct writer {
	xmlNs *ovf, *rasd, *vssd;
	xmlNode *hardware;
	unsigned id; /* the last InstanceID */
};

static xmlNode *add(xmlNode *parent, xmlNs *ns, const char *name, const char *text)
{
	return xmlNewTextChild(parent, ns, (const xmlChar *)name, (const xmlChar *)text);
}

__attribute__((format(printf, 4, 5))) static void put(const struct writer *w, xmlNode *n, const char *name,
						      const char *fmt, ...)
{
	char text[512];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	xmlNewNsProp(n, w->ovf, (const xmlChar *)name, (const xmlChar *)text);
}

__attribute__((format(printf, 4, 5))) static void field(const struct writer *w, xmlNode *item, const char *name,
							const char *fmt, ...)
{
	char text[512];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	add(item, w->rasd, name, text);
}

/* The schema wants the elements of an Item in the order of their names. */
static void cpu_and_memory(struct writer *w, const struct ova_machine *m)
{
	xmlNode *item = add(w->hardware, w->ovf, "Item", NULL);

	field(w, item, "AllocationUnits", "hertz * 10^6");
	field(w, item, "ElementName", "%u virtual CPUs", m->cpus);
	field(w, item, "InstanceID", "1");
	field(w, item, "ResourceType", "3");
	field(w, item, "VirtualQuantity", "%u", m->cpus);
	item = add(w->hardware, w->ovf, "Item", NULL);
	field(w, item, "AllocationUnits", "byte * 2^20");
	field(w, item, "ElementName", "%llu MB of memory", (unsigned long long)(m->memory / MIB));
	field(w, item, "InstanceID", "2");
	field(w, item, "ResourceType", "4");
	field(w, item, "VirtualQuantity", "%llu", (unsigned long long)(m->memory / MIB));
}

static void disks(struct writer *w, const struct ova_machine *m)
{
	xmlNode *item = add(w->hardware, w->ovf, "Item", NULL);

	field(w, item, "Address", "0");
	field(w, item, "ElementName", "SCSI controller");
	field(w, item, "InstanceID", "%u", CONTROLLER);
	field(w, item, "ResourceSubType", "lsilogic");
	field(w, item, "ResourceType", "6");
	w->id = CONTROLLER;
	for (unsigned i = 0; i < m->ndisks; i++) {
		item = add(w->hardware, w->ovf, "Item", NULL);
		field(w, item, "AddressOnParent", "%u", i < 7 ? i : i + 1); /* 7 is the controller's own */
		field(w, item, "ElementName", "disk%u", i + 1);
		field(w, item, "HostResource", "ovf:/disk/vmdisk%u", i + 1);
		field(w, item, "InstanceID", "%u", ++w->id);
		field(w, item, "Parent", "%u", CONTROLLER);
		field(w, item, "ResourceType", "17");
	}
}

static void nics(struct writer *w, const struct ova_machine *m)
{
	for (unsigned i = 0; i < m->nnics; i++) {
		xmlNode *item = add(w->hardware, w->ovf, "Item", NULL);

		if (m->nics[i].mac[0])
			field(w, item, "Address", "%s", m->nics[i].mac);
		field(w, item, "AutomaticAllocation", "true");
		field(w, item, "Connection", "NAT");
		field(w, item, "ElementName", "network card %u", i + 1);
		field(w, item, "InstanceID", "%u", ++w->id);
		field(w, item, "ResourceSubType", "E1000");
		field(w, item, "ResourceType", "10");
	}
}

static void references(const struct writer *w, xmlNode *root, const struct ova_machine *m, const struct ovf_file *files)
{
	xmlNode *refs = add(root, w->ovf, "References", NULL), *section;

	for (unsigned i = 0; i < m->ndisks; i++) {
		xmlNode *f = add(refs, w->ovf, "File", NULL);

		put(w, f, "href", "%s", files[i].name);
		put(w, f, "id", "file%u", i + 1);
		put(w, f, "size", "%llu", (unsigned long long)files[i].size);
	}
	section = add(root, w->ovf, "DiskSection", NULL);
	add(section, w->ovf, "Info", "The disks of the machine");
	for (unsigned i = 0; i < m->ndisks; i++) {
		xmlNode *d = add(section, w->ovf, "Disk", NULL);

		put(w, d, "capacity", "%llu", (unsigned long long)m->disks[i].capacity);
		put(w, d, "capacityAllocationUnits", "byte");
		put(w, d, "diskId", "vmdisk%u", i + 1);
		put(w, d, "fileRef", "file%u", i + 1);
		put(w, d, "format", "%s", STREAM);
	}
	section = add(root, w->ovf, "NetworkSection", NULL);
	add(section, w->ovf, "Info", "The networks");
	if (m->nnics) {
		xmlNode *net = add(section, w->ovf, "Network", NULL);

		put(w, net, "name", "NAT");
		add(net, w->ovf, "Description", "Address translation by the host");
	}
}

static void system_of(struct writer *w, xmlNode *root, const struct ova_machine *m)
{
	xmlNode *system = add(root, w->ovf, "VirtualSystem", NULL), *section, *s;

	put(w, system, "id", "%s", m->name);
	add(system, w->ovf, "Info", "A virtual machine");
	add(system, w->ovf, "Name", m->name);
	section = add(system, w->ovf, "OperatingSystemSection", NULL);
	put(w, section, "id", "101"); /* CIM: Linux, 64 bits */
	add(section, w->ovf, "Info", "The guest's operating system");
	w->hardware = add(system, w->ovf, "VirtualHardwareSection", NULL);
	add(w->hardware, w->ovf, "Info", "The hardware");
	s = add(w->hardware, w->ovf, "System", NULL);
	add(s, w->vssd, "ElementName", "Virtual hardware");
	add(s, w->vssd, "InstanceID", "0");
	add(s, w->vssd, "VirtualSystemIdentifier", m->name);
	add(s, w->vssd, "VirtualSystemType", "vmx-10");
	cpu_and_memory(w, m);
	disks(w, m);
	nics(w, m);
}

bool ovf_write(const struct ova_machine *m, const struct ovf_file *files, char **text, size_t *len, struct error *err)
{
	xmlDoc *doc = xmlNewDoc((const xmlChar *)"1.0");
	xmlNode *root = doc ? xmlNewNode(NULL, (const xmlChar *)"Envelope") : NULL;
	struct writer w = {0};
	xmlChar *out = NULL;
	int n = 0;

	if (root) {
		xmlDocSetRootElement(doc, root);
		w.ovf = xmlNewNs(root, (const xmlChar *)NS_OVF, (const xmlChar *)"ovf");
		w.rasd = xmlNewNs(root, (const xmlChar *)NS_RASD, (const xmlChar *)"rasd");
		w.vssd = xmlNewNs(root, (const xmlChar *)NS_VSSD, (const xmlChar *)"vssd");
		xmlSetNs(root, w.ovf);
		references(&w, root, m, files);
		system_of(&w, root, m);
		xmlDocDumpFormatMemoryEnc(doc, &out, &n, "UTF-8", 1);
	}
	xmlFreeDoc(doc);
	*text = out ? malloc((size_t)n) : NULL;
	if (*text)
		memcpy(*text, out, (size_t)n);
	*len = (size_t)n;
	xmlFree(out);
	return *text != NULL || error_set(err, "out of memory");
}
