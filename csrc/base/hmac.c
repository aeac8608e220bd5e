#include "base/hmac.h"
#include "base/sha256.h"

#include <string.h>

void nib_hmac_sha256(const void *key, size_t key_length, const void *message, size_t length, uint8_t mac[32])
{
    uint8_t block[64] = {0}, pad[64];
    nib_sha256 hash;
    if (key_length > sizeof block) {
        nib_sha256_begin(&hash);
        nib_sha256_update(&hash, key, key_length);
        nib_sha256_end(&hash, block);
    } else if (key_length > 0) {
        memcpy(block, key, key_length);
    }
    for (size_t i = 0; i < sizeof pad; i++) pad[i] = block[i] ^ 0x36;
    nib_sha256_begin(&hash);
    nib_sha256_update(&hash, pad, sizeof pad);
    nib_sha256_update(&hash, message, length);
    nib_sha256_end(&hash, mac);
    for (size_t i = 0; i < sizeof pad; i++) pad[i] = block[i] ^ 0x5c;
    nib_sha256_begin(&hash);
    nib_sha256_update(&hash, pad, sizeof pad);
    nib_sha256_update(&hash, mac, 32);
    nib_sha256_end(&hash, mac);
}

bool nib_equal_in_constant_time(const void *a, const void *b, size_t length)
{
    const volatile uint8_t *x = a, *y = b;
    uint8_t difference = 0;
    for (size_t i = 0; i < length; i++) difference |= (uint8_t)(x[i] ^ y[i]);
    return difference == 0;
}
