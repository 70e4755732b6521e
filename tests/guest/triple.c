/* Ends in a triple fault: the IDT is empty. The run must report it. */
#include "guest.h"

int guest_main(void)
{
	struct {
		u16 limit;
		ulong base;
	} __attribute__((packed)) idtr = {0, 0};

	print("ok about to triple fault\n");
	asm volatile("lidt %0; ud2" ::"m"(idtr));
	check(false, "still running after a triple fault");
	return 1;
}
