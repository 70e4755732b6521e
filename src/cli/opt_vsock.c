#include "cli/opt_vsock.h"

#include <stdlib.h>
#include <string.h>

#define CID_FIRST 3 /* below are the hypervisor, loopback and the host */

static bool bad(const char *spec, const char *what, struct error *err)
{
	error_set(err, "--vsock '%.200s': %s", spec, what);
	return error_hint(err, "write --vsock=CID or --vsock=CID,uds=PATH; a CID is a number from 3 to 4294967294");
}

bool opt_vsock_parse(const char *spec, struct machine_vsock *v, struct error *err)
{
	unsigned long long cid;
	char *end;

	free(v->path);
	*v = (struct machine_vsock){.cid = CID_FIRST};
	if (!spec)
		return true;
	if (*spec && *spec != ',') {
		cid = strtoull(spec, &end, 10);
		if (*spec < '0' || *spec > '9' || (*end && *end != ',') || cid < CID_FIRST || cid > UINT32_MAX - 1)
			return bad(spec, "not a CID", err);
		v->cid = cid;
	} else {
		end = (char *)(uintptr_t)spec;
	}
	if (!*end)
		return true;
	if (strncmp(end, ",uds=", 5) || !end[5])
		return bad(spec, "unknown option behind the CID", err);
	v->path = strdup(end + 5);
	return v->path || error_set(err, "out of memory");
}
