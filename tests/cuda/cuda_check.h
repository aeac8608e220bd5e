/* What every test of cuda/ includes first: cmocka, buffers on the device that free themselves, and checks. */
#ifndef NIB_CUDA_CHECK_H
#define NIB_CUDA_CHECK_H

#include "check.h"

#include "c_headers.h"

#include <cuda_runtime.h>

#include <string>
#include <vector>

/* A failed call is a failed test, with the message. */
inline void check_ok(nib_status status)
{
    if (status != NIB_OK) fail_msg("%s", nib_error_message());
}
inline void check_cuda(cudaError_t error)
{
    if (error != cudaSuccess) fail_msg("%s: %s", cudaGetErrorName(error), cudaGetErrorString(error));
}

/* n values on the device: poisoned with NaN, or a copy of the host's. */
template <class T> class device_buffer
{
  public:
    explicit device_buffer(size_t n) : n_(n) { check_cuda(cudaMalloc(&data_, n * sizeof(T))); }
    explicit device_buffer(const std::vector<T> &values) : device_buffer(values.size()) { upload(values); }
    ~device_buffer()
    {
        if (data_ != nullptr) cudaFree(data_);
    }
    device_buffer(const device_buffer &) = delete;
    device_buffer &operator=(const device_buffer &) = delete;

    T *data() const { return data_; }
    size_t size() const { return n_; }
    void upload(const std::vector<T> &values)
    {
        if (values.empty()) return; /* no pointer to copy from: the part of rank 0 */
        check_cuda(cudaMemcpy(data_, values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice));
    }
    /* Waits for all that was asked for. */
    std::vector<T> download() const
    {
        std::vector<T> values(n_);
        check_cuda(cudaDeviceSynchronize());
        if (n_ == 0) return values;
        check_cuda(cudaMemcpy(values.data(), data_, n_ * sizeof(T), cudaMemcpyDeviceToHost));
        return values;
    }

  private:
    T *data_ = nullptr;
    size_t n_;
};

#ifdef NIB_CUDA_EMULATED
#include "emulator.h"

/* A cmocka setup: a device as new, and every error of the last test forgotten. */
inline int reset_emulator(void **)
{
    nib_emulator::reset();
    return 0;
}

/* Waits, and fails unless a kernel failed with a message that holds `text`. */
inline void check_kernel_fails(const char *text)
{
    cudaError_t error = cudaDeviceSynchronize();
    std::string found = cudaGetErrorString(error);
    if (error == cudaSuccess) fail_msg("nothing failed, expected: %s", text);
    if (found.find(text) == std::string::npos) fail_msg("expected: %s, found: %s", text, found.c_str());
}
#else /* on a chip, whose order of warps is its own, and where nothing is counted */
namespace nib_emulator
{
inline void reset() {}
inline void set_seed(uint64_t) {}
} // namespace nib_emulator

inline int reset_emulator(void **) { return 0; }
#endif

#endif
