/*
 * Makes inputs of the jobs that are not taken from Debian's packages: sound, pictures and video, always the same.
 *
 * usage: inputs DIRECTORY     writes sound.wav, picture.ppm, video.y4m
 */
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#define RATE 44100

static uint32_t noise(uint32_t *state)
{
	*state = *state * 1664525 + 1013904223;
	return *state >> 16;
}

static FILE *create(const char *dir, const char *name)
{
	char path[4096];
	FILE *f;

	snprintf(path, sizeof path, "%s/%s", dir, name);
	f = fopen(path, "wb");
	if (!f) {
		perror(path);
		exit(1);
	}
	return f;
}

static void put(FILE *f, uint32_t value, int bytes)
{
	for (int i = 0; i < bytes; i++)
		fputc((int)(value >> (8 * i) & 0xff), f);
}

/* Chords that change twice a second, with attacks, a little noise, and a wider second channel. */
static void sound(const char *dir, uint32_t seconds)
{
	static const double tones[] = {1, 1.26, 1.5, 2, 2.52, 3.36};
	FILE *f = create(dir, "sound.wav");
	uint32_t state = 1, samples = seconds * RATE;

	fputs("RIFF", f);
	put(f, 36 + samples * 4, 4);
	fputs("WAVEfmt ", f);
	put(f, 16, 4);
	put(f, 1, 2);
	put(f, 2, 2);
	put(f, RATE, 4);
	put(f, RATE * 4, 4);
	put(f, 4, 2);
	put(f, 16, 2);
	fputs("data", f);
	put(f, samples * 4, 4);
	for (uint32_t i = 0; i < samples; i++) {
		uint32_t chord = i / (RATE / 2);
		double t = (double)i / RATE, decay = exp(-4 * (t - chord * 0.5)), base = 110 * pow(1.0595, chord * 5 % 12);

		for (int c = 0; c < 2; c++) {
			double v = 0;

			for (int k = 0; k < 6; k++)
				v += sin(2 * M_PI * base * tones[k] * t + c * k * 0.3) / (k + 1);
			put(f, (uint32_t)(int32_t)(6000 * v * decay + (noise(&state) & 0x1ff) - 256), 2);
		}
	}
	fclose(f);
}

/* Soft gradients, edges and grain: not too easy to compress. `t` moves it. */
static int pixel(uint32_t x, uint32_t y, uint32_t t, int channel, uint32_t *state)
{
	double v = 128 + 60 * sin((x + 3 * t) * 0.021 + channel) + 50 * cos((y + t) * 0.034 - channel * 0.7);

	if (((x + 5 * t) / 32 + y / 24) % 5 == 0)
		v = 255 - v;
	v += noise(state) % 13;
	return v < 0 ? 0 : v > 255 ? 255 : (int)v;
}

static void picture(const char *dir, uint32_t width, uint32_t height)
{
	FILE *f = create(dir, "picture.ppm");
	uint32_t state = 2;

	fprintf(f, "P6\n%u %u\n255\n", width, height);
	for (uint32_t y = 0; y < height; y++)
		for (uint32_t x = 0; x < width; x++)
			for (int c = 0; c < 3; c++)
				fputc(pixel(x, y, 0, c, &state), f);
	fclose(f);
}

static void video(const char *dir, uint32_t width, uint32_t height, uint32_t frames)
{
	FILE *f = create(dir, "video.y4m");
	uint32_t state = 3;

	fprintf(f, "YUV4MPEG2 W%u H%u F25:1 Ip A1:1 C420jpeg\n", width, height);
	for (uint32_t t = 0; t < frames; t++) {
		fputs("FRAME\n", f);
		for (int c = 0; c < 3; c++)
			for (uint32_t y = 0; y < height; y += c ? 2 : 1)
				for (uint32_t x = 0; x < width; x += c ? 2 : 1)
					fputc(pixel(x, y, t, c, &state), f);
	}
	fclose(f);
}

int main(int argc, char **argv)
{
	if (argc != 2) {
		fprintf(stderr, "usage: inputs DIRECTORY\n");
		return 2;
	}
	sound(argv[1], 120);
	picture(argv[1], 1600, 1200);
	video(argv[1], 352, 288, 100);
	return 0;
}
