/* acpi_dump NCPUS DIR: write each table that acpi_build makes to DIR/<signature>.dat */
#include <stdio.h>
#include <stdlib.h>

#include "acpi_fixture.h"

static int dump(const struct ram *ram, const char *dir, gpa_t at)
{
	const uint8_t *t = ram_ptr(ram, at, 36);
	char path[512];
	uint32_t len;
	FILE *f;

	if (!t)
		return 1;
	len = get_le32(t + 4);
	snprintf(path, sizeof(path), "%s/%.4s.dat", dir, (const char *)t);
	f = fopen(path, "wb");
	if (!f || !ram_ptr(ram, at, len) || fwrite(t, 1, len, f) != len || fclose(f))
		return 1;
	return 0;
}

int main(int argc, char **argv)
{
	struct acpi_config cfg = acpi_fixture(argc == 3 ? (unsigned)atoi(argv[1]) : 0);
	struct error err;
	struct ram *ram = ram_new(2 * MIB, &err);
	const uint8_t *xsdt;
	gpa_t rsdp = 0;
	int bad = 0;

	if (argc != 3 || !ram || !acpi_build(ram, &cfg, E820_ROM, E820_ROM_END - E820_ROM, &rsdp, &err))
		return 1;
	bad |= dump(ram, argv[2], get_le64((const uint8_t *)ram_ptr(ram, rsdp, 36) + 24));
	xsdt = ram_ptr(ram, get_le64((const uint8_t *)ram_ptr(ram, rsdp, 36) + 24), 64);
	for (unsigned i = 36; i < get_le32(xsdt + 4); i += 8) {
		const uint8_t *t = ram_ptr(ram, get_le64(xsdt + i), 276);

		bad |= dump(ram, argv[2], get_le64(xsdt + i));
		if (t[0] == 'F') {
			bad |= dump(ram, argv[2], get_le32(t + 36));
			bad |= dump(ram, argv[2], get_le32(t + 40));
		}
	}
	ram_free(ram);
	return bad;
}
