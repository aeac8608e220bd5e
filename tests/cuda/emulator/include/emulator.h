/* What a test may ask of the emulator beyond CUDA's calls. */
#ifndef NIB_EMULATOR_H
#define NIB_EMULATOR_H

#include "../counters.h"
#include "cuda_runtime.h"

#include <vector>

namespace nib_emulator
{

/* Forgets all: errors, buffers, streams' work, injected errors, counters; the device is as at the start. */
void reset();

/* Another schedule. The same seed gives every block the same order of warps and lanes. */
void set_seed(uint64_t seed);
/* The same, and of the device after every reset() too. */
void set_first_seed(uint64_t seed);

/* The card that the emulator claims to be; the start is sm_90 with 4 multiprocessors and 2 GiB. */
void set_device(int major, int minor, int multiprocessors, size_t memory);
void set_device_count(int count);

/* The (after + 1)-th call of the named function from now on fails with `error`, once: "cudaMalloc",
 * "cudaLaunchKernelEx". */
void inject_error(const char *function, int after, cudaError_t error);
/* What such a call has to return now; cudaSuccess: nothing was asked for. */
cudaError_t injected_error(const char *function);
/* What ncclGetVersion says; and the rank to which the next bytes arrive damaged, -1: none. */
void set_nccl_version(int version);
void set_nccl_damage(int rank);
/* The `gap` bytes behind a piece of a buffer, which no kernel may write that is asked for later, until another piece
 * lies there. In the order of the stream, and again wherever what was captured is replayed. */
void watch_piece(cudaStream_t stream, void *piece, size_t bytes, size_t gap);
/* Whether streams that are made from now on, while there is another, run at once and not late. */
void set_early(bool early);
/* From now on kernels whose name begins so do nothing, their outputs stay as they were; or end with `error`. */
void break_kernel(const char *name, cudaError_t error);

/* Does as the variable NIBBLE_EMULATOR asks (environment.cpp), once; CUDA's calls begin with it. */
void read_environment();

/* cublasLt offers the first `offered` of its three algorithms, which take so long on the device's clock. */
void set_products(int offered, const std::vector<uint64_t> &nanoseconds);

/* Calls since the start that made the host wait for the device: they found something that was not done yet. */
uint64_t host_waits();
/* From now on each of them is written to this file, a line of its name and of how many of the stream's tasks it leaves
 * undone. */
void log_host_waits(const char *path);

/* Since the start or the last reset. Reads after the work has been waited for. */
Counters counters();
void reset_counters();

size_t device_memory_used(); /* bytes in buffers that have not been freed */
size_t device_memory_peak();

} // namespace nib_emulator

#endif
