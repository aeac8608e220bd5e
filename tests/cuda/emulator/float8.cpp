#include "include/cuda_fp8.h"

namespace nib_emulator
{

float e4m3_to_float(unsigned char bits)
{
    int exponent = bits >> 3 & 15, mantissa = bits & 7;
    float magnitude = exponent == 0 ? ldexpf(static_cast<float>(mantissa), -9)
                                    : ldexpf(static_cast<float>(8 + mantissa), exponent - 10);
    if ((bits & 0x7f) == 0x7f) magnitude = NAN;
    return bits & 0x80 ? -magnitude : magnitude;
}

unsigned char e4m3_from_float(float a, bool saturate)
{
    unsigned char sign = std::signbit(a) ? 0x80 : 0;
    float magnitude = fabsf(a);
    if (std::isnan(a)) return 0x7f;
    if (magnitude > 464.0f) return static_cast<unsigned char>(sign | (saturate ? 0x7e : 0x7f)); /* 464 ties to 448 */
    int exponent = -9;                                    /* of zero: any that is small */
    if (magnitude > 0) frexpf(magnitude, &exponent);      /* magnitude in [2^(exponent-1), 2^exponent) */
    int step = exponent - 1 < -6 ? -9 : exponent - 4;     /* of the last mantissa bit */
    float rounded = nearbyintf(ldexpf(magnitude, -step)); /* 0 to 16 steps: 16 carries into the exponent by itself */
    int code = step == -9 ? static_cast<int>(rounded) : ((step + 9) << 3) + static_cast<int>(rounded);
    return static_cast<unsigned char>(sign | code);
}

} // namespace nib_emulator
