/*
 * memcpy, memset for what runs while the guest's vector state is in the host's registers (vec_save): libc's use vector registers.
 * The empty asm keeps compilers from making such calls of the loops.
 */
#ifndef ENGINE_SOFT_COPY_H
#define ENGINE_SOFT_COPY_H

#include <stdint.h>

typedef uint64_t copy_word __attribute__((may_alias, aligned(1)));

static inline void copy_bytes(void *to, const void *from, unsigned len)
{
	uint8_t *d = to;
	const uint8_t *s = from;

	if (len >= 256) {
		uint64_t n = len;

		__asm__ volatile("rep movsb" : "+D"(d), "+S"(s), "+c"(n) : : "memory");
		return;
	}
	for (; len >= 8; d += 8, s += 8, len -= 8) {
		*(copy_word *)d = *(const copy_word *)s;
		__asm__ volatile("" : : : "memory");
	}
	for (; len; d++, s++, len--) {
		*d = *s;
		__asm__ volatile("" : : : "memory");
	}
}

static inline void zero_bytes(void *to, uint64_t n)
{
	__asm__ volatile("rep stosb" : "+D"(to), "+c"(n) : "a"(0) : "memory");
}

#endif
