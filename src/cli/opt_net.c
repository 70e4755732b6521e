#include "cli/opt_net.h"

#include <arpa/inet.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#define SPEC_MAX 4096
#define HELP "see --net in man doppel-run"

static bool bad(struct error *err, const char *key, const char *value, const char *wanted)
{
	error_set(err, "--net: %s=%.64s is not %s", key, value, wanted);
	return error_hint(err, HELP);
}

static bool number(const char *key, const char *s, uint64_t min, uint64_t max, uint64_t *out, struct error *err)
{
	char *end;

	errno = 0;
	*out = strtoull(s, &end, 10);
	if (end != s && !*end && !errno && s[0] != '-' && *out >= min && *out <= max)
		return true;
	error_set(err, "--net: %s=%.64s is not a number from %llu to %llu", key, s, (unsigned long long)min, (unsigned long long)max);
	return error_hint(err, HELP);
}

/* "100M": bits a second, in powers of 1000. */
static bool bit_rate(const char *s, uint64_t *out, struct error *err)
{
	static const struct { char c; uint64_t unit; } units[] = {{'\0', 1}, {'K', 1000}, {'k', 1000}, {'M', 1000000}, {'G', 1000000000}};
	uint64_t n;
	char *end;

	errno = 0;
	n = strtoull(s, &end, 10);
	for (size_t i = 0; end != s && s[0] != '-' && !errno && i < ARRAY_LEN(units); i++) {
		if (*end != units[i].c || (*end && end[1]) || n > UINT64_C(1000000000000) / units[i].unit)
			continue;
		*out = n * units[i].unit;
		if (*out >= 8000)
			return true;
	}
	return bad(err, "bps", s, "a number of bits a second from 8K to 1000G");
}

static bool on_off(const char *key, const char *s, bool *out, struct error *err)
{
	if (s && strcmp(s, "on") && strcmp(s, "off"))
		return bad(err, key, s, "on or off");
	*out = !s || !strcmp(s, "on");
	return true;
}

static bool address(const char *key, const char *s, struct in_addr *out, struct error *err)
{
	if (inet_pton(AF_INET, s, out) == 1 && out->s_addr)
		return true;
	return bad(err, key, s, "an IPv4 address like 10.0.2.3");
}

static bool network(const char *s, struct net_options *o, struct error *err)
{
	char text[INET_ADDRSTRLEN];
	const char *slash = strchr(s, '/');
	uint64_t bits;

	if (!slash || (size_t)(slash - s) >= sizeof(text))
		return bad(err, "net", s, "a network like 10.0.2.0/24");
	memcpy(text, s, (size_t)(slash - s));
	text[slash - s] = '\0';
	if (!address("net", text, &o->network, err) || !number("net", slash + 1, 8, 29, &bits, err))
		return false;
	o->mask.s_addr = htonl((uint32_t)(UINT64_C(0xffffffff) << (32 - bits)));
	if (o->network.s_addr & ~o->mask.s_addr)
		return bad(err, "net", s, "a network: bits behind the prefix are set");
	return true;
}

static bool mac_address(const char *s, uint8_t *mac, struct error *err)
{
	const char *p = s;
	char *end;

	for (unsigned i = 0; i < 6; i++) {
		unsigned long v = strtoul(p, &end, 16);

		if (end - p < 1 || end - p > 2 || *end != (i < 5 ? ':' : '\0') || v > 255 || *p == '-' || *p == '+')
			return bad(err, "mac", s, "a MAC address like 02:00:00:12:34:56");
		mac[i] = (uint8_t)v;
		p = end + 1;
	}
	if (mac[0] & 1 || !(mac[0] | mac[1] | mac[2] | mac[3] | mac[4] | mac[5]))
		return bad(err, "mac", s, "the address of one machine: that is a multicast address or zero");
	return true;
}

/* PROTOCOL:[ADDRESS]:PORT:GUESTPORT */
static bool forward(const char *s, struct net_options *o, struct error *err)
{
	struct net_forward f = {.host.s_addr = htonl(INADDR_LOOPBACK)};
	char copy[128], *part[4], *p = copy;
	uint64_t port;

	if (strlen(s) >= sizeof(copy))
		return bad(err, "hostfwd", s, "like tcp:127.0.0.1:2222:22");
	strcpy(copy, s);
	for (unsigned i = 0; i < 4; i++)
		part[i] = strsep(&p, ":");
	if (!part[3] || p || (strcmp(part[0], "tcp") && strcmp(part[0], "udp")))
		return bad(err, "hostfwd", s, "like tcp:127.0.0.1:2222:22");
	f.udp = part[0][0] == 'u';
	if (!strcmp(part[1], "*"))
		f.host.s_addr = htonl(INADDR_ANY);
	else if (*part[1] && inet_pton(AF_INET, part[1], &f.host) != 1)
		return bad(err, "hostfwd", s, "with an IPv4 address, or *, before the port");
	if (!number("hostfwd port", part[2], 1, 65535, &port, err))
		return false;
	f.host_port = (uint16_t)port;
	if (!number("hostfwd port", part[3], 1, 65535, &port, err))
		return false;
	f.guest_port = (uint16_t)port;
	if (o->nforwards == NET_FORWARDS_MAX) {
		error_set(err, "--net: more than %u hostfwd=", NET_FORWARDS_MAX);
		return error_hint(err, "give the VM a tap interface");
	}
	o->forwards[o->nforwards++] = f;
	return true;
}

static bool set_user(struct net_options *o, const char *key, const char *value, bool *known, struct error *err)
{
	bool on;

	if (!strcmp(key, "restrict"))
		return on_off(key, value, &o->restricted, err);
	if (!strcmp(key, "ipv6"))
		return on_off(key, value, &o->ipv6, err);
	if (!strcmp(key, "host-loopback")) {
		if (!on_off(key, value, &on, err))
			return false;
		o->no_loopback = !on;
		return true;
	}
	if (value && !strcmp(key, "hostfwd"))
		return forward(value, o, err);
	if (value && !strcmp(key, "net"))
		return network(value, o, err);
	if (value && !strcmp(key, "host"))
		return address(key, value, &o->host, err);
	if (value && !strcmp(key, "dns"))
		return address(key, value, &o->dns, err);
	*known = false;
	return false;
}

static bool set(struct machine_nic *nic, const char *key, const char *value, struct error *err)
{
	struct net_options *o = &nic->net;
	bool known = true, ok;
	uint64_t n;

	if (value && !strcmp(key, "mac"))
		return mac_address(value, nic->mac, err);
	if (!strcmp(key, "mac-filter"))
		return on_off(key, value, &nic->mac_filter, err);
	if (value && !strcmp(key, "bps"))
		return bit_rate(value, &o->bps, err);
	if (value && !strcmp(key, "mtu")) {
		ok = number(key, value, NET_MTU_MIN, NET_MTU_MAX, &n, err);
		o->mtu = (unsigned)n;
		return ok;
	}
	if (value && !strcmp(key, "queues") && o->kind == NET_TAP) {
		ok = number(key, value, 1, NET_QUEUES_MAX, &n, err);
		o->queues = (unsigned)n;
		return ok;
	}
	if (o->kind == NET_USER) {
		ok = set_user(o, key, value, &known, err);
		if (ok || known)
			return ok;
	}
	error_set(err, "--net: '%.64s' is not known here, or lacks its value", key);
	return error_hint(err, HELP);
}

static bool set_kind(struct net_options *o, const char *kind, struct error *err)
{
	static const struct { const char *name; enum net_kind kind; } kinds[] = {
		{"user", NET_USER}, {"null", NET_NULL}, {"tap:", NET_TAP}, {"link:", NET_LINK},
	};

	for (size_t i = 0; i < ARRAY_LEN(kinds); i++) {
		size_t len = strlen(kinds[i].name);
		bool named = kinds[i].name[len - 1] == ':';

		if (named ? strncmp(kind, kinds[i].name, len) : strcmp(kind, kinds[i].name))
			continue;
		o->kind = kinds[i].kind;
		if (!named)
			return true;
		if (!kind[len] || strlen(kind + len) >= sizeof(o->name) || (o->kind == NET_TAP && strpbrk(kind + len, "%/ "))) {
			error_set(err, "--net: '%.64s': no usable name after the colon", kind);
			return error_hint(err, "it is --net tap:INTERFACE or link:PATH, the path below %zu characters", sizeof(o->name));
		}
		strcpy(o->name, kind + len);
		return true;
	}
	error_set(err, "--net: unknown network '%.64s'", kind);
	return error_hint(err, "it is one of: user, tap:INTERFACE, link:PATH, null");
}

bool opt_net_parse(const char *spec, struct machine_nic *nic, struct error *err)
{
	char copy[SPEC_MAX], *p = copy, *part;

	*nic = (struct machine_nic){.mac = {0x02}};
	if (getrandom(nic->mac + 1, 5, GRND_NONBLOCK) != 5)
		return error_set(err, "--net: no random numbers for a MAC address: give mac=");
	if (strlen(spec) >= sizeof(copy)) {
		error_set(err, "--net: longer than %d characters", SPEC_MAX);
		return error_hint(err, HELP);
	}
	strcpy(copy, spec);
	if (!set_kind(&nic->net, strsep(&p, ","), err))
		return false;
	while ((part = strsep(&p, ",")) != NULL) {
		char *value = strchr(part, '=');

		if (value)
			*value++ = '\0';
		if (!set(nic, part, value, err))
			return false;
	}
	return true;
}
