#include "formats/ggml_blocks.h"

#include <string.h>

/* A block type's function turns one block into nib_dtype_block(dtype) values. */
typedef void (*block_function)(const uint8_t *block, float *out);

static float f16(const uint8_t *bytes)
{
    nib_f16 x;
    memcpy(&x, bytes, 2);
    return nib_f16_to_float(x);
}

static uint32_t u32(const uint8_t *bytes)
{
    uint32_t x;
    memcpy(&x, bytes, 4);
    return x;
}

/* 32 values: fp16 scale, nibbles (low: first half, high: second half), offset by 8. */
static void q4_0(const uint8_t *block, float *out)
{
    float d = f16(block);
    for (int j = 0; j < 16; j++) {
        out[j] = d * (float)((block[2 + j] & 15) - 8);
        out[j + 16] = d * (float)((block[2 + j] >> 4) - 8);
    }
}

static void q4_1(const uint8_t *block, float *out)
{
    float d = f16(block), m = f16(block + 2);
    for (int j = 0; j < 16; j++) {
        out[j] = d * (float)(block[4 + j] & 15) + m;
        out[j + 16] = d * (float)(block[4 + j] >> 4) + m;
    }
}

/* As Q4, with the fifth bits in a 32-bit word. */
static void q5_0(const uint8_t *block, float *out)
{
    float d = f16(block);
    uint32_t high = u32(block + 2);
    for (int j = 0; j < 16; j++) {
        int low_value = (int)((block[6 + j] & 15u) | (high >> j & 1) << 4);
        int high_value = (int)((block[6 + j] >> 4u) | (high >> (j + 16) & 1) << 4);
        out[j] = d * (float)(low_value - 16);
        out[j + 16] = d * (float)(high_value - 16);
    }
}

static void q5_1(const uint8_t *block, float *out)
{
    float d = f16(block), m = f16(block + 2);
    uint32_t high = u32(block + 4);
    for (int j = 0; j < 16; j++) {
        out[j] = d * (float)((block[8 + j] & 15u) | (high >> j & 1) << 4) + m;
        out[j + 16] = d * (float)((block[8 + j] >> 4u) | (high >> (j + 16) & 1) << 4) + m;
    }
}

static void q8_0(const uint8_t *block, float *out)
{
    float d = f16(block);
    for (int j = 0; j < 32; j++) out[j] = d * (float)(int8_t)block[2 + j];
}

/* 256 values: 16 scale/min nibble pairs, 2-bit values, fp16 d and dmin. */
static void q2_k(const uint8_t *block, float *out)
{
    const uint8_t *scales = block, *q = block + 16;
    float d = f16(block + 80), dmin = f16(block + 82);
    for (int half = 0; half < 2; half++, q += 32)
        for (int shift = 0; shift < 8; shift += 2)
            for (int part = 0; part < 2; part++, scales++) {
                float dl = d * (float)(*scales & 15), ml = dmin * (float)(*scales >> 4);
                for (int l = 0; l < 16; l++) *out++ = dl * (float)(q[16 * part + l] >> shift & 3) - ml;
            }
}

/* 256 values: high bits, 2-bit values, 16 six-bit scales in 12 bytes, fp16 d. */
static void q3_k(const uint8_t *block, float *out)
{
    const uint8_t *high = block, *q = block + 32, *packed = block + 96;
    float d = f16(block + 108);
    int8_t scales[16];
    for (int i = 0; i < 16; i++) {
        int low = i < 8 ? packed[i] & 15 : packed[i - 8] >> 4;
        scales[i] = (int8_t)((low | (packed[8 + i % 4] >> (2 * (i / 4)) & 3) << 4) - 32);
    }
    int s = 0;
    uint8_t mask = 1;
    for (int half = 0; half < 2; half++, q += 32)
        for (int shift = 0; shift < 8; shift += 2, mask = (uint8_t)(mask << 1))
            for (int part = 0; part < 2; part++, s++) {
                float dl = d * (float)scales[s];
                for (int l = 16 * part; l < 16 * part + 16; l++)
                    *out++ = dl * (float)((q[l] >> shift & 3) - (high[l] & mask ? 0 : 4));
            }
}

/* Six-bit scale and min of sub-block j of Q4_K and Q5_K. */
static void k_scale_min(int j, const uint8_t *packed, uint8_t *scale, uint8_t *min)
{
    if (j < 4) {
        *scale = packed[j] & 63;
        *min = packed[j + 4] & 63;
    } else {
        *scale = (uint8_t)((packed[j + 4] & 15) | (packed[j - 4] >> 6) << 4);
        *min = (uint8_t)((packed[j + 4] >> 4) | (packed[j] >> 6) << 4);
    }
}

static void q4_k(const uint8_t *block, float *out)
{
    float d = f16(block), dmin = f16(block + 2);
    const uint8_t *q = block + 16;
    for (int j = 0; j < 8; j++) {
        uint8_t scale, min;
        k_scale_min(j, block + 4, &scale, &min);
        float dl = d * (float)scale, ml = dmin * (float)min;
        for (int l = 0; l < 32; l++) *out++ = dl * (float)(q[32 * (j / 2) + l] >> (4 * (j % 2)) & 15) - ml;
    }
}

static void q5_k(const uint8_t *block, float *out)
{
    float d = f16(block), dmin = f16(block + 2);
    const uint8_t *high = block + 16, *q = block + 48;
    for (int j = 0; j < 8; j++) {
        uint8_t scale, min;
        k_scale_min(j, block + 4, &scale, &min);
        float dl = d * (float)scale, ml = dmin * (float)min;
        for (int l = 0; l < 32; l++) {
            int value = (q[32 * (j / 2) + l] >> (4 * (j % 2)) & 15) + (high[l] >> j & 1 ? 16 : 0);
            *out++ = dl * (float)value - ml;
        }
    }
}

/* 256 values: low nibbles, high bit pairs, 16 signed scales, fp16 d. */
static void q6_k(const uint8_t *block, float *out)
{
    const uint8_t *low = block, *high = block + 128;
    const int8_t *scales = (const int8_t *)block + 192;
    float d = f16(block + 208);
    for (int half = 0; half < 2; half++, low += 64, high += 32, scales += 8)
        for (int quarter = 0; quarter < 4; quarter++)
            for (int l = 0; l < 32; l++) {
                int nibble = low[32 * (quarter % 2) + l] >> (4 * (quarter / 2)) & 15;
                int value = (nibble | (high[l] >> (2 * quarter) & 3) << 4) - 32;
                *out++ = d * (float)scales[2 * quarter + l / 16] * (float)value;
            }
}

static const int8_t iq4_values[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

static void iq4_nl(const uint8_t *block, float *out)
{
    float d = f16(block);
    for (int j = 0; j < 16; j++) {
        out[j] = d * (float)iq4_values[block[2 + j] & 15];
        out[j + 16] = d * (float)iq4_values[block[2 + j] >> 4];
    }
}

static void iq4_xs(const uint8_t *block, float *out)
{
    float d = f16(block);
    uint32_t high = (uint32_t)block[2] | (uint32_t)block[3] << 8;
    for (int ib = 0; ib < 8; ib++, out += 32) {
        int scale = (block[4 + ib / 2] >> (4 * (ib % 2)) & 15) | (int)(high >> (2 * ib) & 3) << 4;
        float dl = d * (float)(scale - 32);
        const uint8_t *q = block + 8 + 16 * ib;
        for (int j = 0; j < 16; j++) {
            out[j] = dl * (float)iq4_values[q[j] & 15];
            out[j + 16] = dl * (float)iq4_values[q[j] >> 4];
        }
    }
}

bool nib_ggml_dequantize(nib_dtype dtype, const uint8_t *data, int64_t count, float *out)
{
    static const block_function functions[NIB_DTYPE_COUNT] = {
        [NIB_DTYPE_Q4_0] = q4_0, [NIB_DTYPE_Q4_1] = q4_1, [NIB_DTYPE_Q5_0] = q5_0,     [NIB_DTYPE_Q5_1] = q5_1,
        [NIB_DTYPE_Q8_0] = q8_0, [NIB_DTYPE_Q2_K] = q2_k, [NIB_DTYPE_Q3_K] = q3_k,     [NIB_DTYPE_Q4_K] = q4_k,
        [NIB_DTYPE_Q5_K] = q5_k, [NIB_DTYPE_Q6_K] = q6_k, [NIB_DTYPE_IQ4_NL] = iq4_nl, [NIB_DTYPE_IQ4_XS] = iq4_xs,
    };
    block_function function = functions[dtype];
    if (function == NULL) return false;
    int64_t block = nib_dtype_block(dtype), bytes = nib_dtype_block_bytes(dtype);
    for (int64_t i = 0; i < count; i += block, data += bytes) function(data, out + i);
    return true;
}
