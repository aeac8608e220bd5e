#include "tcp_handshake.h"
#include "base/hmac.h"
#include "version.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>

/* Offsets within a hello. */
enum { RANK = 0, SIZE = 4, ATTEMPT = 8, CHANNEL = 12, PORT = 16, VERSION = 32, NONCE = 72, MAC = 104 };
static const uint8_t magic[8] = "nibble\r\n";

static void put(uint8_t *at, int value)
{
    for (int i = 0; i < 4; i++) at[i] = (uint8_t)((uint32_t)value >> (8 * i));
}

/* Negative for what does not fit, and so never a rank, size or port. */
static int get(const uint8_t *at)
{
    uint32_t value = 0;
    for (int i = 0; i < 4; i++) value |= (uint32_t)at[i] << (8 * i);
    return value <= INT32_MAX ? (int)value : -1;
}

static nib_status fill_random(uint8_t *bytes, size_t length)
{
    if (getrandom(bytes, length, 0) == (ssize_t)length) return NIB_OK;
    return NIB_FAIL(NIB_ERROR_INTERNAL, "the system gives no random numbers: %s", strerror(errno));
}

static void own_version(char version[40]) { snprintf(version, 40, "%s %s", nib_version(), nib_commit()); }

nib_status nib_greeting_make(uint8_t greeting[NIB_GREETING_BYTES])
{
    memcpy(greeting, magic, sizeof magic);
    return fill_random(greeting + sizeof magic, NIB_GREETING_BYTES - sizeof magic);
}

bool nib_greeting_is_ours(const uint8_t greeting[NIB_GREETING_BYTES])
{
    return memcmp(greeting, magic, sizeof magic) == 0;
}

static void caller_mac(const nib_ranks *self, const uint8_t *greeting, const uint8_t *hello, uint8_t mac[32])
{
    uint8_t message[6 + NIB_GREETING_BYTES + MAC] = "caller";
    memcpy(message + 6, greeting, NIB_GREETING_BYTES);
    memcpy(message + 6 + NIB_GREETING_BYTES, hello, MAC);
    nib_hmac_sha256(self->token, sizeof self->token, message, sizeof message, mac);
}

static void listener_mac(const nib_ranks *self, const uint8_t *hello, const uint8_t *answer, uint8_t mac[32])
{
    uint8_t message[8 + NIB_HELLO_BYTES + 40] = "listener";
    memcpy(message + 8, hello, NIB_HELLO_BYTES);
    memcpy(message + 8 + NIB_HELLO_BYTES, answer, 40);
    nib_hmac_sha256(self->token, sizeof self->token, message, sizeof message, mac);
}

nib_status nib_hello_make(const nib_ranks *self, const uint8_t greeting[NIB_GREETING_BYTES], nib_channel channel,
                          int port, uint8_t hello[NIB_HELLO_BYTES])
{
    memset(hello, 0, NIB_HELLO_BYTES);
    put(hello + RANK, self->rank);
    put(hello + SIZE, self->size);
    put(hello + ATTEMPT, self->attempt);
    put(hello + CHANNEL, (int)channel);
    put(hello + PORT, port);
    own_version((char *)hello + VERSION);
    NIB_TRY(fill_random(hello + NONCE, MAC - NONCE));
    caller_mac(self, greeting, hello, hello + MAC);
    return NIB_OK;
}

bool nib_hello_read(const nib_ranks *self, const uint8_t greeting[NIB_GREETING_BYTES],
                    const uint8_t bytes[NIB_HELLO_BYTES], nib_hello *hello)
{
    uint8_t mac[32];
    caller_mac(self, greeting, bytes, mac);
    if (!nib_equal_in_constant_time(mac, bytes + MAC, sizeof mac)) return false;
    int channel = get(bytes + CHANNEL);
    *hello = (nib_hello){.rank = get(bytes + RANK),
                         .size = get(bytes + SIZE),
                         .attempt = get(bytes + ATTEMPT),
                         .channel = channel == 0 ? NIB_CHANNEL_CONTROL : NIB_CHANNEL_DATA,
                         .port = get(bytes + PORT)};
    memcpy(hello->version, bytes + VERSION, sizeof hello->version);
    hello->version[sizeof hello->version - 1] = 0;
    return hello->rank >= 0 && hello->rank < hello->size && hello->attempt >= 0 && hello->port >= 0 &&
           hello->port <= 65535 && (channel == 0 || channel == 1);
}

nib_verdict nib_hello_judge(const nib_ranks *self, const nib_hello *hello)
{
    char version[40];
    own_version(version);
    if (strcmp(version, hello->version) != 0) return NIB_OTHER_VERSION;
    if (hello->size != self->size || hello->rank == self->rank) return NIB_OTHER_WORLD;
    return hello->attempt == self->attempt ? NIB_WELCOME : NIB_OTHER_ATTEMPT;
}

void nib_answer_make(const nib_ranks *self, const uint8_t hello[NIB_HELLO_BYTES], nib_verdict verdict,
                     uint8_t answer[NIB_ANSWER_BYTES])
{
    memset(answer, 0, NIB_ANSWER_BYTES);
    answer[0] = (uint8_t)verdict;
    if (verdict == NIB_OTHER_VERSION) {
        char version[40];
        own_version(version);
        memcpy(answer + 1, version, 39);
    } else {
        put(answer + 4, self->size);
        put(answer + 8, self->attempt);
    }
    listener_mac(self, hello, answer, answer + 40);
}

nib_status nib_answer_read(const nib_ranks *self, const uint8_t hello[NIB_HELLO_BYTES],
                           const uint8_t answer[NIB_ANSWER_BYTES], bool *hopeless)
{
    uint8_t mac[32];
    char version[40];
    listener_mac(self, hello, answer, mac);
    *hopeless = false;
    if (!nib_equal_in_constant_time(mac, answer + 40, sizeof mac))
        return NIB_FAIL(NIB_ERROR_DEVICE, "the answer does not come from a rank of this job");
    own_version(version);
    int attempt = get(answer + 8);
    *hopeless = answer[0] != NIB_RANK_TAKEN && (answer[0] != NIB_OTHER_ATTEMPT || attempt > self->attempt);
    switch (answer[0]) {
    case NIB_WELCOME:
        return NIB_OK;
    case NIB_OTHER_VERSION:
        return NIB_FAIL(NIB_ERROR_DEVICE, "the ranks run different programs: this is %s, there is %.39s", version,
                        (const char *)answer + 1);
    case NIB_OTHER_WORLD:
        return NIB_FAIL(NIB_ERROR_DEVICE, "this is rank %d of %d, there the job has %d ranks", self->rank, self->size,
                        get(answer + 4));
    case NIB_OTHER_ATTEMPT:
        return NIB_FAIL(NIB_ERROR_DEVICE, "this is attempt %d of the job, there it is at attempt %d", self->attempt,
                        attempt);
    case NIB_RANK_TAKEN:
        return NIB_FAIL(NIB_ERROR_DEVICE, "another process is rank %d already", self->rank);
    default:
        return NIB_FAIL(NIB_ERROR_DEVICE, "a verdict that this program does not know: %d", answer[0]);
    }
}
