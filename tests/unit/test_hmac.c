/* HMAC-SHA256 against the vectors of RFC 4231. */
#include "check.h"

#include "base/hmac.h"
#include "base/sha256.h"

#include <string.h>

static void expect(const void *key, size_t key_length, const void *message, size_t length, const char *want)
{
    uint8_t mac[32];
    char hex[65];
    nib_hmac_sha256(key, key_length, message, length, mac);
    nib_sha256_hex(mac, hex);
    assert_string_equal(hex, want);
}

static void vectors_of_rfc_4231(void **state)
{
    (void)state;
    uint8_t key[131], data[50];
    memset(key, 0x0b, sizeof key);
    expect(key, 20, "Hi There", 8, "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7");
    expect("Jefe", 4, "what do ya want for nothing?", 28,
           "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843");
    memset(key, 0xaa, sizeof key);
    memset(data, 0xdd, sizeof data);
    expect(key, 20, data, 50, "773ea91e36800e46854db8ebd09181a72959098b3ef8c122d9635514ced565fe");
    expect(key, 131, "Test Using Larger Than Block-Size Key - Hash Key First", 54,
           "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54");
}

static void equality_looks_at_every_byte(void **state)
{
    (void)state;
    uint8_t a[32] = {1}, b[32] = {1};
    assert_true(nib_equal_in_constant_time(a, b, 32));
    for (int i = 0; i < 32; i++) {
        b[i] ^= 0x80;
        assert_false(nib_equal_in_constant_time(a, b, 32));
        b[i] ^= 0x80;
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(vectors_of_rfc_4231),
        cmocka_unit_test(equality_looks_at_every_byte),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
