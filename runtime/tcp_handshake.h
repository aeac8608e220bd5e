/* The first bytes of a connection between two ranks. Both prove that they know the job's token, neither sends it:
 *
 *   listener  greeting: "nibble\r\n", nonce[32]
 *   caller    hello:    what it is, nonce[32], HMAC(token, "caller", greeting, hello)
 *   listener  answer:   verdict, HMAC(token, "listener", hello, verdict)
 *
 * A caller that does not know the token is cut off. One that knows it, but is of another attempt, version or world, is
 * told so. What follows is neither encrypted nor signed: the network between ranks is trusted not to be altered.
 */
#ifndef NIB_TCP_HANDSHAKE_H
#define NIB_TCP_HANDSHAKE_H

#include "base/status.h"
#include "ranks.h"

#include <stdbool.h>
#include <stddef.h>

#define NIB_GREETING_BYTES 40
#define NIB_HELLO_BYTES    136
#define NIB_ANSWER_BYTES   72

typedef enum { NIB_CHANNEL_CONTROL, NIB_CHANNEL_DATA } nib_channel;

/* What the caller says of itself. */
typedef struct {
    int rank, size, attempt;
    nib_channel channel;
    int port;         /* where it listens for the ranks above it; 0: nowhere */
    char version[40]; /* of its program, with the commit; NUL-terminated */
} nib_hello;

typedef enum { NIB_WELCOME, NIB_OTHER_VERSION, NIB_OTHER_WORLD, NIB_OTHER_ATTEMPT, NIB_RANK_TAKEN } nib_verdict;

/* NIB_ERROR_INTERNAL if the system gives no random numbers. */
nib_status nib_greeting_make(uint8_t greeting[NIB_GREETING_BYTES]);
nib_status nib_hello_make(const nib_ranks *self, const uint8_t greeting[NIB_GREETING_BYTES], nib_channel channel,
                          int port, uint8_t hello[NIB_HELLO_BYTES]);
bool nib_greeting_is_ours(const uint8_t greeting[NIB_GREETING_BYTES]);
/* false: not from one who knows the token, or no rank that there can be. */
bool nib_hello_read(const nib_ranks *self, const uint8_t greeting[NIB_GREETING_BYTES],
                    const uint8_t bytes[NIB_HELLO_BYTES], nib_hello *hello);
/* Whether the caller belongs to this job, as `self` sees it. */
nib_verdict nib_hello_judge(const nib_ranks *self, const nib_hello *hello);
void nib_answer_make(const nib_ranks *self, const uint8_t hello[NIB_HELLO_BYTES], nib_verdict verdict,
                     uint8_t answer[NIB_ANSWER_BYTES]);
/* NIB_OK if welcome; NIB_ERROR_DEVICE and a message with what differs if not. *hopeless: calling again would not help;
 * it may where the listener is a stranger, or rank 0 of an earlier attempt that has not ended yet. */
nib_status nib_answer_read(const nib_ranks *self, const uint8_t hello[NIB_HELLO_BYTES],
                           const uint8_t answer[NIB_ANSWER_BYTES], bool *hopeless);

#endif
