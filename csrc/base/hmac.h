/* HMAC-SHA256 (RFC 2104): proof that a message comes from someone who knows a key. */
#ifndef NIB_HMAC_H
#define NIB_HMAC_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

void nib_hmac_sha256(const void *key, size_t key_length, const void *message, size_t length, uint8_t mac[32]);
/* Compares in a time that does not depend on where they differ. */
bool nib_equal_in_constant_time(const void *a, const void *b, size_t length);

#endif
