#include "stream.h"
#include "include/emulator.h"

#include "memory.h"

#include <algorithm>
#include <cstdio>
#include <set>

namespace nib_emulator
{

static nib_emulator_stream default_stream;
static uint64_t device_clock;
static bool early;

void set_early(bool value) { early = value; }

void spend_time(uint64_t nanoseconds) { device_clock += nanoseconds; }

static std::set<nib_emulator_stream *> &streams()
{
    static std::set<nib_emulator_stream *> all;
    return all;
}

nib_emulator_stream *resolve(cudaStream_t stream)
{
    if (stream == nullptr || stream == &default_stream) return &default_stream;
    return streams().count(stream) != 0 ? stream : nullptr;
}

/* Makes `stream` wait for what was asked of `other` so far. */
static void push_wait(nib_emulator_stream *stream, nib_emulator_stream *other)
{
    if (other->done == other->pushed) return;
    stream->queue.push_back([other, position = other->pushed] { return run_to(other, position); });
    stream->pushed++;
}

cudaError_t enqueue(cudaStream_t handle, Task task)
{
    if (sticky_error() != cudaSuccess) return sticky_error();
    nib_emulator_stream *stream = resolve(handle);
    if (stream == nullptr) return remember(cudaErrorInvalidResourceHandle);
    if (stream->capturing) {
        stream->captured.push_back(std::move(task));
        return cudaSuccess;
    }
    if (stream == &default_stream) {
        for (nib_emulator_stream *other : streams())
            if (other->blocking) push_wait(stream, other);
    } else if (stream->blocking) {
        push_wait(stream, &default_stream);
    }
    stream->queue.push_back(std::move(task));
    stream->pushed++;
    return stream->early ? drain(stream) : cudaSuccess;
}

cudaError_t run_to(nib_emulator_stream *stream, uint64_t position)
{
    open_device_memory();
    while (stream->done < position && sticky_error() == cudaSuccess) {
        Task task = std::move(stream->queue.front());
        stream->queue.pop_front();
        stream->done++;
        spend_time(1000);
        task();
    }
    close_device_memory();
    return sticky_error();
}

cudaError_t drain(nib_emulator_stream *stream) { return run_to(stream, stream->pushed); }

static uint64_t waits;
static FILE *waits_log;

uint64_t host_waits() { return waits; }
void log_host_waits(const char *path) { waits_log = std::fopen(path, "a"); }

void note_wait(const char *function, uint64_t left)
{
    waits++;
    if (waits_log == nullptr) return;
    std::fprintf(waits_log, "%s %llu\n", function, static_cast<unsigned long long>(left));
    std::fflush(waits_log);
}

bool all_done()
{
    return default_stream.done == default_stream.pushed &&
           std::all_of(streams().begin(), streams().end(), [](auto *stream) { return stream->done == stream->pushed; });
}

cudaError_t drain_blocking()
{
    for (nib_emulator_stream *stream : streams())
        if (stream->blocking) drain(stream);
    return drain(&default_stream);
}

cudaError_t drain_all()
{
    for (nib_emulator_stream *stream : streams()) drain(stream);
    return drain(&default_stream);
}

bool capturing()
{
    return std::any_of(streams().begin(), streams().end(), [](auto *stream) { return stream->capturing; });
}

cudaError_t spoil_captures(cudaError_t error)
{
    for (nib_emulator_stream *stream : streams()) stream->spoiled = stream->spoiled || stream->capturing;
    return remember(error);
}

void forget_streams()
{
    for (nib_emulator_stream *stream : streams()) {
        stream->queue.clear();
        stream->capturing = false;
        stream->done = stream->pushed;
    }
    default_stream.queue.clear();
    default_stream.done = default_stream.pushed;
}

} // namespace nib_emulator

using namespace nib_emulator;

/* ---- streams ---- */

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned flags)
{
    if (sticky_error() != cudaSuccess) return sticky_error();
    if (cudaError_t error = injected_error("cudaStreamCreateWithFlags"); error != cudaSuccess) return error;
    *stream = new nib_emulator_stream;
    (*stream)->blocking = (flags & cudaStreamNonBlocking) == 0;
    (*stream)->early = early && !streams().empty();
    streams().insert(*stream);
    return cudaSuccess;
}

cudaError_t cudaStreamCreate(cudaStream_t *stream) { return cudaStreamCreateWithFlags(stream, cudaStreamDefault); }

/* What is still in it is done first: CUDA lets it finish, too. */
cudaError_t cudaStreamDestroy(cudaStream_t stream)
{
    if (stream == nullptr || resolve(stream) == nullptr) return remember(cudaErrorInvalidResourceHandle);
    cudaError_t error = drain(stream);
    streams().erase(stream);
    delete stream;
    return error;
}

static cudaError_t check_waitable(nib_emulator_stream *stream)
{
    if (sticky_error() != cudaSuccess) return sticky_error();
    if (stream == nullptr) return remember(cudaErrorInvalidResourceHandle);
    if (stream->capturing) return spoil_captures(cudaErrorStreamCaptureUnsupported);
    return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t handle)
{
    nib_emulator_stream *stream = resolve(handle);
    cudaError_t error = check_waitable(stream);
    if (error != cudaSuccess) return error;
    if (handle == nullptr ? !all_done() : stream->done < stream->pushed) note_wait("cudaStreamSynchronize");
    return handle == nullptr ? drain_blocking() : drain(stream);
}

/* Never ready at the first question: somebody who polls gets one task further. */
cudaError_t cudaStreamQuery(cudaStream_t handle)
{
    nib_emulator_stream *stream = resolve(handle);
    cudaError_t error = check_waitable(stream);
    if (error != cudaSuccess || stream->done == stream->pushed) return error;
    error = run_to(stream, stream->done + 1);
    return error != cudaSuccess ? error : cudaErrorNotReady;
}

cudaError_t cudaLaunchHostFunc(cudaStream_t stream, void (*function)(void *), void *user)
{
    return enqueue(stream, [=] {
        function(user);
        return cudaSuccess;
    });
}

/* ---- events ---- */

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned)
{
    if (sticky_error() != cudaSuccess) return sticky_error();
    *event = new nib_emulator_event;
    (*event)->time = std::make_shared<uint64_t>();
    return cudaSuccess;
}

cudaError_t cudaEventCreate(cudaEvent_t *event) { return cudaEventCreateWithFlags(event, cudaEventDefault); }

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t handle)
{
    nib_emulator_stream *stream = resolve(handle);
    if (event == nullptr || stream == nullptr) return remember(cudaErrorInvalidResourceHandle);
    cudaError_t error = enqueue(handle, [time = event->time] {
        *time = device_clock;
        return cudaSuccess;
    });
    if (error != cudaSuccess) return error;
    event->stream = stream;
    event->position = stream->pushed;
    event->captured = stream->capturing;
    return cudaSuccess;
}

static bool reached(cudaEvent_t event)
{
    return event->stream == nullptr || resolve(event->stream) == nullptr || event->stream->done >= event->position;
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned)
{
    if (event == nullptr) return remember(cudaErrorInvalidResourceHandle);
    if (reached(event) || event->stream == resolve(stream)) return sticky_error();
    return enqueue(stream, [other = event->stream, position = event->position] { return run_to(other, position); });
}

cudaError_t cudaEventSynchronize(cudaEvent_t event)
{
    if (event == nullptr) return remember(cudaErrorInvalidResourceHandle);
    if (event->captured) return spoil_captures(cudaErrorCapturedEvent);
    if (reached(event)) return sticky_error();
    note_wait("cudaEventSynchronize", event->stream->pushed - event->position);
    return run_to(event->stream, event->position);
}

cudaError_t cudaEventQuery(cudaEvent_t event)
{
    if (event == nullptr) return remember(cudaErrorInvalidResourceHandle);
    if (event->captured) return spoil_captures(cudaErrorCapturedEvent);
    if (sticky_error() != cudaSuccess || reached(event)) return sticky_error();
    cudaError_t error = run_to(event->stream, event->stream->done + 1);
    return error != cudaSuccess ? error : cudaErrorNotReady;
}

cudaError_t cudaEventElapsedTime(float *milliseconds, cudaEvent_t begin, cudaEvent_t end)
{
    if (begin->stream == nullptr || end->stream == nullptr) return remember(cudaErrorInvalidResourceHandle);
    if (!reached(begin) || !reached(end)) return remember(cudaErrorNotReady);
    *milliseconds = static_cast<float>(static_cast<double>(*end->time - *begin->time) * 1e-6);
    return sticky_error();
}

cudaError_t cudaEventDestroy(cudaEvent_t event)
{
    delete event;
    return cudaSuccess;
}

/* ---- graphs ---- */

cudaError_t cudaStreamBeginCapture(cudaStream_t handle, cudaStreamCaptureMode)
{
    nib_emulator_stream *stream = resolve(handle);
    cudaError_t error = check_waitable(stream);
    if (error != cudaSuccess) return error;
    if (handle == nullptr) return remember(cudaErrorStreamCaptureUnsupported); /* as CUDA: not the default stream */
    stream->capturing = true;
    stream->spoiled = false;
    stream->captured.clear();
    return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t handle, cudaGraph_t *graph)
{
    nib_emulator_stream *stream = resolve(handle);
    if (stream == nullptr || !stream->capturing) return remember(cudaErrorInvalidValue);
    stream->capturing = false;
    if (stream->spoiled) {
        stream->captured.clear();
        *graph = nullptr;
        return remember(cudaErrorStreamCaptureInvalidated);
    }
    *graph = new nib_emulator_graph{std::move(stream->captured)};
    stream->captured.clear();
    return sticky_error();
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t *executable, cudaGraph_t graph, unsigned long long)
{
    *executable = new nib_emulator_graph(*graph);
    return sticky_error();
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t stream)
{
    for (const Task &task : executable->tasks) {
        cudaError_t error = enqueue(stream, task);
        if (error != cudaSuccess) return error;
    }
    return cudaSuccess;
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph)
{
    delete graph;
    return cudaSuccess;
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable)
{
    delete executable;
    return cudaSuccess;
}
