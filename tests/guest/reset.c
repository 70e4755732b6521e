/* Asks for a reset by port 0xcf9 (ICH9 RST_CNT: 0x02 then 0x06). With --no-reboot the run ends; else it starts again. */
#include "guest.h"

int guest_main(void)
{
	print("ok about to reset\n");
	outb(0xcf9, 0x02);
	outb(0xcf9, 0x06);
	for (volatile u32 i = 0; i < 100000000; i++)
		;
	check(false, "still running after a reset");
	return 1;
}
