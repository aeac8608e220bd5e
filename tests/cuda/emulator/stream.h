/* Streams that run late on purpose.
 *
 * What is asked of a stream is queued; it is done when somebody must wait for it: a synchronising call, or a stream
 * that waits for an event. Code that reads a result, or gives a buffer away, without waiting finds it missing. A test
 * may have all streams but the first do at once what they are asked for: what they should have waited for is not done
 * yet. The default stream and blocking streams wait for each other, as CUDA's legacy default stream does.
 */
#ifndef NIB_EMULATOR_STREAM_H
#define NIB_EMULATOR_STREAM_H

#include "include/cuda_runtime.h"

#include <deque>
#include <memory>
#include <string>

namespace nib_emulator
{

using Task = std::function<cudaError_t()>;

} // namespace nib_emulator

struct nib_emulator_graph {
    std::vector<nib_emulator::Task> tasks;
};

struct nib_emulator_stream {
    std::deque<nib_emulator::Task> queue;
    uint64_t pushed = 0, done = 0;
    bool blocking = true, capturing = false, spoiled = false; /* spoiled: a call that may not be captured was made */
    bool early = false;                                       /* what it is asked for is done at once */
    std::vector<nib_emulator::Task> captured;
};

struct nib_emulator_event {
    nib_emulator_stream *stream = nullptr; /* where it was recorded last, nullptr: never */
    uint64_t position = 0;                 /* reached when that many of its tasks are done */
    bool captured = false;                 /* recorded last in a stream that was capturing: nobody can wait for it */
    std::shared_ptr<uint64_t> time;        /* on the device's clock */
};

namespace nib_emulator
{

/* The stream itself, for nullptr the default one; nullptr if there is no such stream. */
nib_emulator_stream *resolve(cudaStream_t stream);
cudaError_t enqueue(cudaStream_t stream, Task task);
/* Runs what was asked of a stream, up to its `position`-th task. */
cudaError_t run_to(nib_emulator_stream *stream, uint64_t position);
cudaError_t drain(nib_emulator_stream *stream);
/* The device's clock, in nanoseconds: a task takes 1000, and what it adds itself. The same work takes the same time. */
void spend_time(uint64_t nanoseconds);
/* All that the default stream would wait for; all there is. */
cudaError_t drain_blocking();
cudaError_t drain_all();
/* Counts a call that is about to drain what is not done yet. */
void note_wait(const char *function, uint64_t left = 0);
bool all_done();
/* Any of them: calls that would wait are forbidden, and spoil what is being captured. */
bool capturing();
cudaError_t spoil_captures(cudaError_t error);
void forget_streams();

/* The error that stays, and its text. A task that fails sets it; nothing runs after it. */
cudaError_t sticky_error();
cudaError_t fail_device(cudaError_t error, const std::string &what);
/* Has a test broken what begins with this name (a kernel, or a library's call)? *error: what is to come of it instead.
 */
bool is_broken(const std::string &what, cudaError_t *error);
/* Returns `error` and keeps it for cudaGetLastError. */
cudaError_t remember(cudaError_t error, const std::string &what = "");

} // namespace nib_emulator

#endif
