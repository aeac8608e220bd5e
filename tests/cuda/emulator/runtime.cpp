/* The CUDA runtime's calls about errors, the device, memory and launches; streams are in stream.cpp. */
#include "grid.h"
#include "include/cuda.h"
#include "include/emulator.h"
#include "memory.h"
#include "stream.h"

#include <cstring>
#include <map>

namespace nib_emulator
{

static uint64_t first_seed = 1; /* of a device as new */

/* The device as one thing, so that reset() is one assignment. */
struct Device {
    int count = 1, current = 0, major = 9, minor = 0, multiprocessors = 4;
    size_t memory = size_t{2} << 30;
    cudaError_t sticky = cudaSuccess, last = cudaSuccess;
    std::string text; /* of the sticky error, or of the last one */
    uint64_t seed = first_seed, launches = 0;
    std::map<const void *, std::string> names;
    std::map<const void *, int> shared_limits;
    struct Injection {
        int after;
        cudaError_t error;
    };
    std::map<std::string, Injection> injections;
    std::map<std::string, cudaError_t> broken; /* kernels, by the beginning of their names */
    Counters counters;
};
static Device device;

cudaError_t sticky_error() { return device.sticky; }

cudaError_t remember(cudaError_t error, const std::string &what)
{
    device.last = error;
    if (device.sticky == cudaSuccess) device.text = what;
    return error;
}

cudaError_t fail_device(cudaError_t error, const std::string &what)
{
    if (device.sticky != cudaSuccess) return device.sticky;
    device.text = what;
    device.last = device.sticky = error;
    return error;
}

/* What every call begins with: the error that stays, or one that a test asked for. */
static cudaError_t enter(const char *function)
{
    read_environment();
    if (device.sticky != cudaSuccess) return device.sticky;
    cudaError_t error = injected_error(function);
    return error != cudaSuccess ? remember(error, "injected by a test") : cudaSuccess;
}

cudaError_t injected_error(const char *function)
{
    auto found = device.injections.find(function);
    if (found == device.injections.end() || found->second.after-- > 0) return cudaSuccess;
    cudaError_t error = found->second.error;
    device.injections.erase(found);
    return error;
}

void reset()
{
    forget_streams();
    release_all();
    std::map<const void *, std::string> names = std::move(device.names);
    device = Device{};
    device.names = std::move(names);
    set_device_memory_capacity(device.memory);
}

void set_seed(uint64_t seed)
{
    device.seed = seed;
    device.launches = 0;
}

void set_first_seed(uint64_t seed)
{
    first_seed = seed;
    set_seed(seed);
}

void set_device(int major, int minor, int multiprocessors, size_t memory)
{
    device.major = major;
    device.minor = minor;
    device.multiprocessors = multiprocessors;
    device.memory = memory;
    set_device_memory_capacity(memory);
}

void set_device_count(int count) { device.count = count; }

void inject_error(const char *function, int after, cudaError_t error) { device.injections[function] = {after, error}; }

void break_kernel(const char *name, cudaError_t error) { device.broken[name] = error; }

Counters counters() { return device.counters; }
void reset_counters() { device.counters = Counters{}; }

/* ---- launches ---- */

void watch_piece(cudaStream_t stream, void *piece, size_t bytes, size_t gap)
{
    enqueue(stream, [=] {
        const std::string damage = watch_piece(static_cast<uint8_t *>(piece), bytes, gap);
        return damage.empty() ? cudaSuccess : fail_device(cudaErrorLaunchFailure, damage);
    });
}

void name_kernel(const void *kernel, const char *name, int length)
{
    device.names[kernel] = std::string(name, static_cast<size_t>(length));
}

static size_t shared_memory_limit()
{
    return (device.major == 8 && device.minor != 0 ? 99 : device.major == 8 ? 163 : 227) * size_t{1024};
}

static cudaError_t check_configuration(const cudaLaunchConfig_t &config, const void *kernel)
{
    dim3 grid = config.gridDim, block = config.blockDim;
    uint64_t threads = uint64_t{block.x} * block.y * block.z;
    if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535)
        return remember(cudaErrorInvalidConfiguration, "the grid is empty or too large");
    if (threads == 0 || threads > 1024 || block.z > 64)
        return remember(cudaErrorInvalidConfiguration, "the block is empty or has more than 1024 threads");
    auto limit = device.shared_limits.find(kernel);
    size_t allowed = limit == device.shared_limits.end() ? 48 * 1024 : static_cast<size_t>(limit->second);
    if (config.dynamicSmemBytes > allowed)
        return remember(cudaErrorInvalidValue, "more shared memory than cudaFuncSetAttribute allowed");
    return cudaSuccess;
}

/* A pointer may lead to the end of a buffer: it need not be followed. */
static std::string check_pointers(const std::vector<const void *> &pointers)
{
    for (const void *pointer : pointers) {
        Buffer buffer;
        bool found = pointer == nullptr || find_buffer(pointer, &buffer) ||
                     find_buffer(static_cast<const uint8_t *>(pointer) - 1, &buffer);
        if (!found) return "an argument leads to " + describe_address(pointer) + ": host memory?";
    }
    return "";
}

bool is_broken(const std::string &what, cudaError_t *error)
{
    for (const auto &[name, wanted] : device.broken)
        if (what.compare(0, name.size(), name) == 0) {
            *error = wanted == cudaSuccess ? cudaSuccess : fail_device(wanted, what + ": broken by a test");
            return true;
        }
    return false;
}

/* ns of a warp's or a warp group's product in a kernel, beside the start of each: a kernel of ours is slower than the
 * stand-ins of a library, as long as a test does not slow these down. */
constexpr uint64_t kernel_product_time = 10000;

static cudaError_t run_kernel(const Launch &kernel, const std::vector<const void *> &pointers)
{
    cudaError_t error;
    if (is_broken(kernel.name, &error)) return error;
    std::string failure = check_pointers(pointers);
    if (!failure.empty()) failure = kernel.name + ": " + failure;
    const uint64_t before = device.counters.matrix_products;
    if (failure.empty()) failure = run_grid(kernel, device.counters);
    spend_time(kernel_product_time * (device.counters.matrix_products - before));
    if (failure.empty()) {
        failure = check_sentinels();
        if (!failure.empty()) failure = kernel.name + ": " + failure;
    }
    return failure.empty() ? cudaSuccess : fail_device(cudaErrorLaunchFailure, failure);
}

cudaError_t launch(const cudaLaunchConfig_t &config, const void *kernel, std::vector<const void *> pointers,
                   std::function<void()> body)
{
    cudaError_t error = enter("cudaLaunchKernelEx");
    if (error != cudaSuccess) return error;
    error = check_configuration(config, kernel);
    if (error != cudaSuccess) return error;
    Launch what;
    auto name = device.names.find(kernel);
    what.name = name == device.names.end() ? "kernel" : name->second;
    what.grid = config.gridDim;
    what.block = config.blockDim;
    what.shared_bytes = config.dynamicSmemBytes;
    what.seed = device.seed * 0x9E3779B97F4A7C15ull + ++device.launches;
    what.architecture = 10 * device.major + device.minor;
    what.kernel = std::move(body);
    return enqueue(config.stream,
                   [what = std::move(what), pointers = std::move(pointers)] { return run_kernel(what, pointers); });
}

} // namespace nib_emulator

using namespace nib_emulator;

cudaError_t cudaFuncSetAttribute(const void *kernel, cudaFuncAttribute attribute, int value)
{
    cudaError_t error = enter("cudaFuncSetAttribute");
    if (error != cudaSuccess || attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return error;
    if (value < 0 || static_cast<size_t>(value) > shared_memory_limit())
        return remember(cudaErrorInvalidValue, "more shared memory than a block can have");
    device.shared_limits[kernel] = value;
    return cudaSuccess;
}

/* The driver's functions that the runtime hands out. */
cudaError_t cudaGetDriverEntryPointByVersion(const char *symbol, void **function, unsigned, unsigned long long,
                                             cudaDriverEntryPointQueryResult *result)
{
    bool known = std::strcmp(symbol, "cuTensorMapEncodeTiled") == 0;
    *function = known ? reinterpret_cast<void *>(&cuTensorMapEncodeTiled) : nullptr;
    *result = known ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
    return enter("cudaGetDriverEntryPointByVersion");
}

/* ---- errors ---- */

static const struct {
    cudaError_t error;
    const char *name, *text;
} errors[] = {
    {cudaSuccess, "cudaSuccess", "no error"},
    {cudaErrorInvalidValue, "cudaErrorInvalidValue", "invalid argument"},
    {cudaErrorMemoryAllocation, "cudaErrorMemoryAllocation", "out of memory"},
    {cudaErrorInvalidConfiguration, "cudaErrorInvalidConfiguration", "invalid configuration argument"},
    {cudaErrorInsufficientDriver, "cudaErrorInsufficientDriver",
     "CUDA driver version is insufficient for CUDA runtime version"},
    {cudaErrorDevicesUnavailable, "cudaErrorDevicesUnavailable", "CUDA-capable device(s) is/are busy or unavailable"},
    {cudaErrorDeviceAlreadyInUse, "cudaErrorDeviceAlreadyInUse",
     "exclusive-thread device already in use by a different thread"},
    {cudaErrorNoDevice, "cudaErrorNoDevice", "no CUDA-capable device is detected"},
    {cudaErrorInvalidDevice, "cudaErrorInvalidDevice", "invalid device ordinal"},
    {cudaErrorNoKernelImageForDevice, "cudaErrorNoKernelImageForDevice",
     "no kernel image is available for execution on the device"},
    {cudaErrorECCUncorrectable, "cudaErrorECCUncorrectable", "uncorrectable ECC error encountered"},
    {cudaErrorInvalidResourceHandle, "cudaErrorInvalidResourceHandle", "invalid resource handle"},
    {cudaErrorNotReady, "cudaErrorNotReady", "device not ready"},
    {cudaErrorIllegalAddress, "cudaErrorIllegalAddress", "an illegal memory access was encountered"},
    {cudaErrorLaunchFailure, "cudaErrorLaunchFailure", "unspecified launch failure"},
    {cudaErrorNotSupported, "cudaErrorNotSupported", "operation not supported"},
    {cudaErrorStreamCaptureUnsupported, "cudaErrorStreamCaptureUnsupported",
     "operation not permitted when stream is capturing"},
    {cudaErrorCapturedEvent, "cudaErrorCapturedEvent",
     "operation not permitted on an event last recorded in a capturing stream"},
    {cudaErrorStreamCaptureInvalidated, "cudaErrorStreamCaptureInvalidated",
     "operation failed due to a previous error during capture"},
};

const char *cudaGetErrorName(cudaError_t error)
{
    for (const auto &known : errors)
        if (known.error == error) return known.name;
    return "unrecognized error code";
}

/* CUDA's text; for the latest error also what is known about it. Valid until the next call in this thread. */
const char *cudaGetErrorString(cudaError_t error)
{
    static thread_local std::string text;
    text = "unrecognized error code";
    for (const auto &known : errors)
        if (known.error == error) text = known.text;
    if (error != cudaSuccess && error == device.last && !device.text.empty()) text += ": " + device.text;
    return text.c_str();
}

cudaError_t cudaGetLastError()
{
    cudaError_t error = device.last;
    device.last = device.sticky;
    return error;
}

cudaError_t cudaPeekAtLastError() { return device.last; }

/* ---- device ---- */

cudaError_t cudaGetDeviceCount(int *count)
{
    *count = 0;
    cudaError_t error = enter("cudaGetDeviceCount");
    if (error != cudaSuccess) return error;
    *count = device.count;
    return device.count == 0 ? remember(cudaErrorNoDevice) : cudaSuccess;
}

cudaError_t cudaSetDevice(int number)
{
    cudaError_t error = enter("cudaSetDevice");
    if (error != cudaSuccess) return error;
    if (number < 0 || number >= device.count) return remember(cudaErrorInvalidDevice);
    device.current = number;
    return cudaSuccess;
}

cudaError_t cudaGetDevice(int *number)
{
    *number = device.current;
    return enter("cudaGetDevice");
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp *properties, int number)
{
    cudaError_t error = enter("cudaGetDeviceProperties");
    if (error != cudaSuccess) return error;
    if (number < 0 || number >= device.count) return remember(cudaErrorInvalidDevice);
    *properties = cudaDeviceProp{};
    std::snprintf(properties->name, sizeof properties->name, number == 0 ? "emulated" : "emulated %d", number);
    properties->totalGlobalMem = device.memory;
    properties->sharedMemPerBlock = 48 << 10;
    properties->sharedMemPerBlockOptin = shared_memory_limit();
    properties->sharedMemPerMultiprocessor = shared_memory_limit() + 1024;
    properties->major = device.major;
    properties->minor = device.minor;
    properties->multiProcessorCount = device.multiprocessors;
    properties->maxThreadsPerBlock = 1024;
    properties->maxThreadsPerMultiProcessor = 2048;
    properties->regsPerBlock = 65536;
    properties->warpSize = 32;
    properties->l2CacheSize = 1 << 20;
    return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr attribute, int number)
{
    cudaDeviceProp properties;
    cudaError_t error = cudaGetDeviceProperties(&properties, number);
    if (error != cudaSuccess) return error;
    switch (attribute) {
    case cudaDevAttrMultiProcessorCount:
        *value = properties.multiProcessorCount;
        break;
    case cudaDevAttrComputeCapabilityMajor:
        *value = properties.major;
        break;
    case cudaDevAttrComputeCapabilityMinor:
        *value = properties.minor;
        break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
        *value = static_cast<int>(properties.sharedMemPerBlockOptin);
        break;
    case cudaDevAttrL2CacheSize:
        *value = properties.l2CacheSize;
        break;
    case cudaDevAttrClockRate:
    case cudaDevAttrMemoryClockRate:
        *value = 1000000; /* kHz */
        break;
    }
    return cudaSuccess;
}

cudaError_t cudaDriverGetVersion(int *version)
{
    *version = CUDART_VERSION;
    return enter("cudaDriverGetVersion");
}

cudaError_t cudaRuntimeGetVersion(int *version)
{
    *version = CUDART_VERSION;
    return enter("cudaRuntimeGetVersion");
}

cudaError_t cudaDeviceSynchronize()
{
    cudaError_t error = enter("cudaDeviceSynchronize");
    if (error != cudaSuccess) return error;
    if (capturing()) return spoil_captures(cudaErrorStreamCaptureUnsupported);
    if (!all_done()) note_wait("cudaDeviceSynchronize");
    return drain_all();
}

cudaError_t cudaDeviceReset()
{
    reset();
    return cudaSuccess;
}

/* ---- memory ---- */

static cudaError_t take(const char *function, Space space, void **block, size_t bytes)
{
    *block = nullptr;
    cudaError_t error = enter(function);
    if (error != cudaSuccess) return error;
    if (capturing()) return spoil_captures(cudaErrorStreamCaptureUnsupported);
    *block = allocate(space, bytes);
    return *block == nullptr ? remember(cudaErrorMemoryAllocation) : cudaSuccess;
}

static cudaError_t give_back(Space space, void *block)
{
    std::string damage;
    if (block == nullptr) return cudaSuccess;
    if (!release(space, block, &damage)) return remember(cudaErrorInvalidValue, "not a buffer, or freed twice");
    return damage.empty() ? cudaSuccess : fail_device(cudaErrorIllegalAddress, damage);
}

cudaError_t cudaMalloc(void **block, size_t bytes) { return take("cudaMalloc", Space::device, block, bytes); }
cudaError_t cudaMallocHost(void **block, size_t bytes) { return take("cudaMallocHost", Space::pinned, block, bytes); }
cudaError_t cudaHostAlloc(void **block, size_t bytes, unsigned)
{
    return take("cudaHostAlloc", Space::pinned, block, bytes);
}
cudaError_t cudaMallocAsync(void **block, size_t bytes, cudaStream_t stream)
{
    if (resolve(stream) == nullptr) return remember(cudaErrorInvalidResourceHandle);
    return take("cudaMallocAsync", Space::device, block, bytes);
}

/* Waits for everything, as CUDA does; so does cudaFreeHost. */
cudaError_t cudaFree(void *block)
{
    if (capturing()) return spoil_captures(cudaErrorStreamCaptureUnsupported);
    cudaError_t error = enter("cudaFree");
    if (!all_done()) note_wait("cudaFree");
    if (error == cudaSuccess) error = drain_all();
    return error == cudaSuccess ? give_back(Space::device, block) : error;
}

cudaError_t cudaFreeHost(void *block)
{
    cudaError_t error = enter("cudaFreeHost");
    if (!all_done()) note_wait("cudaFreeHost");
    if (error == cudaSuccess) error = drain_all();
    return error == cudaSuccess ? give_back(Space::pinned, block) : error;
}

cudaError_t cudaFreeAsync(void *block, cudaStream_t stream)
{
    cudaError_t error = enter("cudaFreeAsync");
    if (error != cudaSuccess) return error;
    return enqueue(stream, [block] { return give_back(Space::device, block); });
}

cudaError_t cudaMemGetInfo(size_t *free, size_t *total)
{
    *total = device.memory;
    *free = device.memory - device_memory_used();
    return enter("cudaMemGetInfo");
}

/* Rows of `width` bytes. "" or why not: device memory is bounded, host memory must be host memory. */
struct Copy {
    uint8_t *to;
    const uint8_t *from;
    size_t to_pitch, from_pitch, width, rows;

    size_t to_bytes() const { return rows == 0 ? 0 : (rows - 1) * to_pitch + width; }
    size_t from_bytes() const { return rows == 0 ? 0 : (rows - 1) * from_pitch + width; }
    void run() const
    {
        for (size_t row = 0; row < rows; row++) std::memmove(to + row * to_pitch, from + row * from_pitch, width);
    }
};

static std::string check_end(const char *which, const void *at, size_t bytes, bool on_device)
{
    Buffer buffer;
    bool found = find_buffer(at, &buffer), is_device = found && buffer.space == Space::device;
    if (bytes == 0) return "";
    if (is_device != on_device)
        return std::string(which) + (on_device ? " is not device memory" : " is device memory, host memory expected");
    if (found && !buffer.holds(at, bytes))
        return std::string(which) + ": " + std::to_string(bytes) + " bytes do not fit at " + describe_address(at);
    return "";
}

static bool is_pinned(const void *at)
{
    Buffer buffer;
    return find_buffer(at, &buffer) && buffer.space == Space::pinned;
}

static bool is_device(const void *at)
{
    Buffer buffer;
    return find_buffer(at, &buffer) && buffer.space == Space::device;
}

static cudaError_t check_copy(const Copy &copy, cudaMemcpyKind kind)
{
    bool to_device = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
    bool from_device = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
    if (kind == cudaMemcpyDefault) {
        to_device = is_device(copy.to);
        from_device = is_device(copy.from);
    }
    std::string problem = check_end("destination", copy.to, copy.to_bytes(), to_device);
    if (problem.empty()) problem = check_end("source", copy.from, copy.from_bytes(), from_device);
    if (problem.empty() && (copy.width > copy.to_pitch || copy.width > copy.from_pitch) && copy.rows > 1)
        problem = "rows are longer than their pitch";
    return problem.empty() ? cudaSuccess : remember(cudaErrorInvalidValue, problem);
}

/* Pageable host memory, as CUDA documents it: read before the call returns (a copy to the device), or the call waits
 * for the copy (from the device). Only pinned memory is read and written later. */
static cudaError_t copy_async(const char *function, Copy copy, cudaMemcpyKind kind, cudaStream_t stream)
{
    cudaError_t error = enter(function);
    if (error == cudaSuccess) error = check_copy(copy, kind);
    if (error != cudaSuccess) return error;
    if (!is_device(copy.from) && !is_pinned(copy.from) && is_device(copy.to)) {
        auto staged = std::make_shared<std::vector<uint8_t>>(copy.from, copy.from + copy.from_bytes());
        return enqueue(stream, [copy, staged]() mutable {
            copy.from = staged->data();
            copy.run();
            return cudaSuccess;
        });
    }
    error = enqueue(stream, [copy] {
        copy.run();
        return cudaSuccess;
    });
    if (error != cudaSuccess || is_device(copy.to) || is_pinned(copy.to)) return error;
    return cudaStreamSynchronize(stream);
}

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, cudaMemcpyKind kind, cudaStream_t stream)
{
    Copy copy{static_cast<uint8_t *>(to), static_cast<const uint8_t *>(from), bytes, bytes, bytes, 1};
    return copy_async("cudaMemcpyAsync", copy, kind, stream);
}

cudaError_t cudaMemcpy2DAsync(void *to, size_t to_pitch, const void *from, size_t from_pitch, size_t width, size_t rows,
                              cudaMemcpyKind kind, cudaStream_t stream)
{
    Copy copy{static_cast<uint8_t *>(to), static_cast<const uint8_t *>(from), to_pitch, from_pitch, width, rows};
    return copy_async("cudaMemcpy2DAsync", copy, kind, stream);
}

cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes, cudaMemcpyKind kind)
{
    Copy copy{static_cast<uint8_t *>(to), static_cast<const uint8_t *>(from), bytes, bytes, bytes, 1};
    cudaError_t error = copy_async("cudaMemcpy", copy, kind, nullptr);
    return error != cudaSuccess ? error : cudaStreamSynchronize(nullptr);
}

cudaError_t cudaMemsetAsync(void *block, int value, size_t bytes, cudaStream_t stream)
{
    cudaError_t error = enter("cudaMemsetAsync");
    if (error != cudaSuccess) return error;
    std::string problem = check_end("destination", block, bytes, true);
    if (!problem.empty()) return remember(cudaErrorInvalidValue, problem);
    return enqueue(stream, [=] {
        std::memset(block, value, bytes);
        return cudaSuccess;
    });
}

cudaError_t cudaMemset(void *block, int value, size_t bytes) { return cudaMemsetAsync(block, value, bytes, nullptr); }
