/* The numbers of e4m3 (OCP 8-bit floating point, 2023) by their definition, and rounding to them by a search through
 * all 127, not by a conversion. */
#ifndef NIB_CUDA_E4M3_NUMBERS_H
#define NIB_CUDA_E4M3_NUMBERS_H

#include <cmath>
#include <cstdint>

/* Exponent bias 7, three bits of mantissa, no infinity; 127 is not a number. The high bit is the sign. */
inline float e4m3_number(uint8_t bits)
{
    const int code = bits & 127, exponent = code / 8, mantissa = code % 8;
    const float size = code == 127     ? NAN
                       : exponent == 0 ? std::ldexp((float)mantissa, -9)
                                       : std::ldexp((float)(8 + mantissa), exponent - 10);
    return bits & 128 ? -size : size;
}

/* The nearest, of two equally near ones the even code. */
inline uint8_t nearest_e4m3(float x)
{
    int best = 0;
    for (int code = 1; code < 127; code++) {
        const double off = std::fabs(std::fabs((double)x) - (double)e4m3_number((uint8_t)code));
        const double least = std::fabs(std::fabs((double)x) - (double)e4m3_number((uint8_t)best));
        if (off < least || (off == least && code % 2 == 0)) best = code;
    }
    return (uint8_t)(best | (std::signbit(x) ? 128 : 0));
}

/* The smallest power of two, not below 2^-126, with which `largest` is 448 or less. */
inline float e4m3_scale(float largest)
{
    int exponent = -126;
    while ((double)largest > 448.0 * std::ldexp(1.0, exponent)) exponent++;
    return std::ldexp(1.0f, exponent);
}

#endif
