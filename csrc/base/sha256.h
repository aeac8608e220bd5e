/* SHA-256 (FIPS 180-4), streaming. */
#ifndef NIB_SHA256_H
#define NIB_SHA256_H

#include <stddef.h>
#include <stdint.h>

typedef struct {
    uint32_t state[8];
    uint64_t length;
    uint8_t block[64];
} nib_sha256;

void nib_sha256_begin(nib_sha256 *hash);
void nib_sha256_update(nib_sha256 *hash, const void *bytes, size_t length);
void nib_sha256_end(nib_sha256 *hash, uint8_t digest[32]);
void nib_sha256_hex(const uint8_t digest[32], char hex[65]);
/* One call: hex digest of bytes. */
void nib_sha256_of(const void *bytes, size_t length, char hex[65]);

#endif
