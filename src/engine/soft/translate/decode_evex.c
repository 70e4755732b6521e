/*
 * EVEX maps 1 (0F), 2 (0F 38), 3 (0F 3A), 5 and 6 (FP16).
 */
#include "engine/soft/translate/decode_int.h"

const struct opdesc decode_evex_0f[256][4] = {[0x00] = {{0}}};
const struct opdesc decode_evex_38[256][4] = {[0x00] = {{0}}};
const struct opdesc decode_evex_3a[256][4] = {[0x00] = {{0}}};
const struct opdesc decode_evex_5[256][4] = {[0x00] = {{0}}};
const struct opdesc decode_evex_6[256][4] = {[0x00] = {{0}}};
