#include "cuda/adamw.h"
#include "cuda/adamw_8bit.h"
#include "cuda/attention.h"
#include "cuda/backend.h"
#include "cuda/choice.h"
#include "cuda/convert.h"
#include "cuda/dora.h"
#include "cuda/embedding.h"
#include "cuda/global_norm.h"
#include "cuda/glu.h"
#include "cuda/head_rows_backward.h"
#include "cuda/launch.cuh"
#include "cuda/layernorm.h"
#include "cuda/linear.h"
#include "cuda/linear_cross_entropy.h"
#include "cuda/matmul.h"
#include "cuda/nf4_dequantize.h"
#include "cuda/nf4_quantize.h"
#include "cuda/recording.h"
#include "cuda/rmsnorm.h"
#include "cuda/rotary.h"
#include "cuda/sample.h"
#include "cuda/staging.h"
#include "cuda/status.cuh"
#include "cuda/tree_sum.h"

#include <cublasLt.h>
#include <stdio.h>
#include <string.h>

#ifdef NIB_CUDA_EMULATED
#include <emulator.h>
#define BACKEND_NAME "emulated"
#else
#define BACKEND_NAME "cuda"
#endif
#define OLDEST_ARCHITECTURE 80 /* bf16 tensor cores, cp.async */
#define FP8_ARCHITECTURE    89 /* 8-bit floating point on tensor cores */
#define MOST_SPILLS         16
#define SHAPE_STEP          128 /* rows of a matrix product's tile, which is computed whole anyway */

/* A piece of scratch that the block had no room for, until the block is replaced by a larger one. */
typedef struct {
    void *block;
    size_t first; /* arena->used when it was taken: stale once the arena is back there */
} spilled_piece;

typedef struct {
    nib_arena scratch; /* first, so that grow_scratch finds the rest */
    spilled_piece spill[MOST_SPILLS];
    int spills;
    cudaStream_t stream;
    cudaStream_t side[NIB_SIDES]; /* NULL until they are asked for */
    cudaStream_t asked;           /* the one of all these that ops go to */
    cudaEvent_t reached;          /* NULL until then */
    nib_cuda_device device;
    nib_cuda_staging staging;
    nib_cuda_matmul_cache *matmul;
    char description[256];
} cuda_context;

static cuda_context *context_of(nib_ops *ops) { return (cuda_context *)ops->context; }
cudaStream_t nib_cuda_stream(nib_ops *ops) { return context_of(ops)->asked; }
const nib_cuda_device *nib_cuda_device_of(nib_ops *ops) { return &context_of(ops)->device; }
nib_cuda_matmul_cache *nib_cuda_matmul_cache_of(nib_ops *ops) { return context_of(ops)->matmul; }

bool nib_cuda_is_plain(nib_ops *ops, nib_cuda_choice choice) { return (ops->plain >> choice & 1) != 0; }

static void cuda_use_plain(nib_ops *ops, uint32_t mask) { ops->plain = mask; }

static double gib(size_t bytes) { return (double)bytes / (1 << 30); }

static nib_status device_memory(const char *name, size_t bytes, void **block)
{
    *block = NULL;
    if (bytes == 0) return NIB_OK;
    cudaError_t error = cudaMalloc(block, bytes);
    if (error == cudaErrorMemoryAllocation) {
        size_t left = 0, total = 0;
        cudaGetLastError(); /* such a failure stays until it is read */
        cudaMemGetInfo(&left, &total);
        return NIB_FAIL(NIB_ERROR_MEMORY, "no memory on the device for %s: %.2f GiB asked for, %.2f of %.2f GiB left",
                        name, gib(bytes), gib(left), gib(total));
    }
    NIB_CHECK_CUDA(error);
    return NIB_OK;
}

static nib_status cuda_allocate(nib_ops *ops, const char *name, size_t bytes, void **block)
{
    (void)ops;
    return device_memory(name, bytes, block);
}

/* cudaFree waits for the device, so nothing that runs still reads the block. */
static void cuda_release(nib_ops *ops, void *block, size_t bytes)
{
    (void)ops;
    (void)bytes;
    if (block != NULL) cudaFree(block);
}

/* Drops spilled pieces that were taken at or behind `used`: the arena has been reset since. */
static void drop_spills(cuda_context *context, size_t used)
{
    while (context->spills > 0 && context->spill[context->spills - 1].first >= used)
        cudaFree(context->spill[--context->spills].block);
}

/* nib_arena.grow: between ops the block is replaced by one of the peak; in the middle of one the piece gets memory of
 * its own, once. */
static nib_status grow_scratch(nib_arena *arena, size_t bytes, void **piece)
{
    cuda_context *context = (cuda_context *)arena;
    drop_spills(context, arena->used);
    if (arena->used > 0) {
        if (context->spills == MOST_SPILLS)
            return NIB_FAIL(NIB_ERROR_INTERNAL, "scratch: more than %d pieces do not fit its %zu bytes", MOST_SPILLS,
                            arena->capacity);
        NIB_TRY(device_memory("scratch", bytes, piece));
        context->spill[context->spills++] = {*piece, arena->used};
        return NIB_OK;
    }
    cudaFree(arena->block);
    arena->block = NULL;
    arena->capacity = 0;
    NIB_TRY(device_memory("scratch", arena->peak, piece));
    arena->block = (char *)*piece;
    arena->capacity = arena->peak;
    return NIB_OK;
}

#ifdef NIB_CUDA_EMULATED
#define SCRATCH_GAP NIB_ARENA_ALIGNMENT

static void watch_piece(nib_arena *arena, void *piece, size_t bytes)
{
    const size_t room = (bytes + SCRATCH_GAP + NIB_ARENA_ALIGNMENT - 1) / NIB_ARENA_ALIGNMENT * NIB_ARENA_ALIGNMENT;
    nib_emulator::watch_piece(((cuda_context *)arena)->stream, piece, bytes, room - bytes);
}
#endif

/* On a chip pieces lie side by side; the emulator watches over what lies between them. */
static void name_scratch(nib_arena *scratch, bool watched)
{
    scratch->name = "scratch";
#ifdef NIB_CUDA_EMULATED
    scratch->gap = SCRATCH_GAP;
    if (watched) scratch->given = watch_piece;
#else
    (void)watched;
#endif
}

static nib_status cuda_upload(nib_ops *ops, void *to, const void *host, size_t bytes)
{
    return nib_cuda_staging_upload(&context_of(ops)->staging, to, host, bytes);
}

static nib_status cuda_download(nib_ops *ops, void *host, const void *from, size_t bytes)
{
    nib_cuda_staging *staging = &context_of(ops)->staging;
    NIB_TRY(nib_cuda_staging_fetch(staging, host, from, bytes));
    return nib_cuda_staging_finish(staging, staging->taken);
}

static nib_status cuda_fetch(nib_ops *ops, void *host, const void *from, size_t bytes)
{
    return nib_cuda_staging_fetch(&context_of(ops)->staging, host, from, bytes);
}

static nib_status cuda_zero(nib_ops *ops, void *block, size_t bytes)
{
    if (bytes > 0) NIB_CHECK_CUDA(cudaMemsetAsync(block, 0, bytes, nib_cuda_stream(ops)));
    return NIB_OK;
}

static nib_status cuda_synchronize(nib_ops *ops)
{
    nib_cuda_staging *staging = &context_of(ops)->staging;
    NIB_CHECK_CUDA(cudaStreamSynchronize(nib_cuda_stream(ops)));
    return nib_cuda_staging_finish(staging, staging->taken);
}

static uint64_t cuda_mark(nib_ops *ops) { return context_of(ops)->staging.taken; }

static nib_status cuda_await(nib_ops *ops, uint64_t mark)
{
    return nib_cuda_staging_finish(&context_of(ops)->staging, mark);
}

static nib_status make_side_queues(cuda_context *context)
{
    for (int i = 0; i < NIB_SIDES; i++)
        if (context->side[i] == NULL)
            NIB_CHECK_CUDA(cudaStreamCreateWithFlags(&context->side[i], cudaStreamNonBlocking));
    NIB_CHECK_CUDA(cudaEventCreateWithFlags(&context->reached, cudaEventDisableTiming));
    return NIB_OK;
}

/* What is asked of `later` from now on comes after all that was asked of `earlier`. */
static nib_status follow(cuda_context *context, cudaStream_t later, cudaStream_t earlier)
{
    NIB_CHECK_CUDA(cudaEventRecord(context->reached, earlier));
    NIB_CHECK_CUDA(cudaStreamWaitEvent(later, context->reached, 0));
    return NIB_OK;
}

static nib_status cuda_fork(nib_ops *ops, nib_side side, void **queue)
{
    cuda_context *context = context_of(ops);
    if (context->reached == NULL) NIB_TRY(make_side_queues(context));
    NIB_TRY(follow(context, context->side[side], context->stream));
    for (int i = 0; i < NIB_SIDES; i++)
        if (i != (int)side) NIB_TRY(follow(context, context->side[side], context->side[i]));
    *queue = context->side[side];
    return NIB_OK;
}

static nib_status cuda_join(nib_ops *ops, nib_side side)
{
    cuda_context *context = context_of(ops);
    return follow(context, context->stream, context->side[side]);
}

static void cuda_aside(nib_ops *ops, void *queue)
{
    cuda_context *context = context_of(ops);
    context->asked = queue != NULL ? (cudaStream_t)queue : context->stream;
}

static void close_backend(nib_ops *ops)
{
    if (ops == NULL) return;
    cuda_context *context = context_of(ops);
    drop_spills(context, 0);
    cudaFree(context->scratch.block);
    nib_cuda_matmul_cache_free(context->matmul);
    nib_cuda_staging_free(&context->staging);
    for (int i = 0; i < NIB_SIDES; i++)
        if (context->side[i] != NULL) cudaStreamDestroy(context->side[i]);
    if (context->reached != NULL) cudaEventDestroy(context->reached);
    if (context->stream != NULL) cudaStreamDestroy(context->stream);
    delete context;
    delete ops;
}

static nib_status cuda_memory_left(nib_ops *ops, size_t *bytes)
{
    size_t total;
    (void)ops;
    NIB_CHECK_CUDA(cudaMemGetInfo(bytes, &total));
    return NIB_OK;
}

static nib_status cuda_rehearse(nib_ops *ops, nib_ops **dry);

static void fill_table(nib_ops *ops)
{
    ops->name = BACKEND_NAME;
    ops->bf16_only = true;
    ops->uses_room = true;
    ops->shape_step = SHAPE_STEP;
    ops->record_begin = nib_cuda_record_begin;
    ops->record_end = nib_cuda_record_end;
    ops->replay = nib_cuda_replay;
    ops->recording_free = nib_cuda_recording_free;
    ops->fork = cuda_fork;
    ops->join = cuda_join;
    ops->aside = cuda_aside;
    ops->choices = NIB_CUDA_CHOICES;
    ops->choice = nib_cuda_choice_names;
    ops->use_plain = cuda_use_plain;
    ops->keep_algorithms = nib_cuda_keep_algorithms;
    ops->close = close_backend;
    ops->rehearse = cuda_rehearse;
    ops->memory_left = cuda_memory_left;
    ops->allocate = cuda_allocate;
    ops->release = cuda_release;
    ops->upload = cuda_upload;
    ops->download = cuda_download;
    ops->fetch = cuda_fetch;
    ops->zero = cuda_zero;
    ops->synchronize = cuda_synchronize;
    ops->mark = cuda_mark;
    ops->await = cuda_await;
    ops->convert = nib_cuda_convert;
    ops->tree_sum = nib_cuda_tree_sum;
    ops->embedding_forward = nib_cuda_embedding_forward;
    ops->embedding_backward = nib_cuda_embedding_backward;
    ops->rmsnorm_forward = nib_cuda_rmsnorm_forward;
    ops->rmsnorm_backward = nib_cuda_rmsnorm_backward;
    ops->layernorm_forward = nib_cuda_layernorm_forward;
    ops->layernorm_backward = nib_cuda_layernorm_backward;
    ops->rotary_table = nib_cuda_rotary_table;
    ops->rotary = nib_cuda_rotary;
    ops->attention_forward = nib_cuda_attention_forward;
    ops->attention_backward = nib_cuda_attention_backward;
    ops->attention_cached = nib_cuda_attention_cached;
    ops->linear_forward = nib_cuda_linear_forward;
    ops->linear_backward = nib_cuda_linear_backward;
    ops->dora_norm = nib_cuda_dora_norm;
    ops->glu_forward = nib_cuda_glu_forward;
    ops->glu_backward = nib_cuda_glu_backward;
    ops->linear_cross_entropy = nib_cuda_linear_cross_entropy;
    ops->head_rows_backward = nib_cuda_head_rows_backward;
    ops->logits = nib_cuda_logits;
    ops->sample = nib_cuda_sample;
    ops->nf4_quantize = nib_cuda_nf4_quantize;
    ops->nf4_quantize_absmax = nib_cuda_nf4_quantize_absmax;
    ops->nf4_dequantize = nib_cuda_nf4_dequantize;
    ops->global_norm = nib_cuda_global_norm;
    ops->adamw = nib_cuda_adamw;
    ops->adamw_8bit = nib_cuda_adamw_8bit;
}

static nib_status dry_zero(nib_ops *ops, void *block, size_t bytes)
{
    (void)ops;
    (void)block;
    (void)bytes;
    return NIB_OK;
}

static void close_dry(nib_ops *ops)
{
    delete context_of(ops);
    delete ops;
}

/* The launchers themselves, in a stream that nothing is launched in. */
static nib_status cuda_rehearse(nib_ops *ops, nib_ops **out)
{
    nib_ops *dry = new nib_ops();
    cuda_context *context = new cuda_context();
    fill_table(dry);
    dry->rehearsal = true;
    dry->close = close_dry;
    dry->zero = dry_zero;
    dry->context = context;
    dry->scratch = &context->scratch;
    name_scratch(&context->scratch, false);
    context->device = context_of(ops)->device;
    dry->fp8 = ops->fp8;
    dry->plain = ops->plain; /* plain kernels take other scratch */
    context->stream = context->asked = nib_cuda_dry_stream();
    *out = dry;
    return NIB_OK;
}

/* The number of devices, or why there are none. */
static nib_status count_devices(int *count)
{
    int driver = 0, runtime = 0;
    cudaError_t error = cudaGetDeviceCount(count);
    if (error == cudaSuccess && *count > 0) return NIB_OK;
    cudaGetLastError();
    cudaDriverGetVersion(&driver);
    cudaRuntimeGetVersion(&runtime);
    if (driver == 0) return NIB_FAIL(NIB_ERROR_DEVICE, "no NVIDIA driver is installed");
    if (error == cudaErrorInsufficientDriver)
        return NIB_FAIL(NIB_ERROR_DEVICE,
                        "the NVIDIA driver is too old: it supports CUDA %d.%d, needed is %d.%d; update it",
                        driver / 1000, driver % 1000 / 10, runtime / 1000, runtime % 1000 / 10);
    if (error == cudaErrorNoDevice || error == cudaSuccess)
        return NIB_FAIL(NIB_ERROR_DEVICE, "the NVIDIA driver finds no GPU (is CUDA_VISIBLE_DEVICES empty?)");
    return NIB_FAIL(NIB_ERROR_DEVICE, "the GPU cannot be used: %s", cudaGetErrorString(error));
}

static nib_status check_device(int index, cudaDeviceProp *properties)
{
    int count;
    NIB_TRY(count_devices(&count));
    if (index >= count)
        return NIB_FAIL(
            NIB_ERROR_DEVICE,
            "rank %d of this machine has no GPU of its own: it sees %d; start at most one rank a GPU, and let "
            "every rank see all of them (CUDA_VISIBLE_DEVICES, under Slurm --gpu-bind=none)",
            index, count);
    NIB_CHECK_CUDA(cudaGetDeviceProperties(properties, index));
    int architecture = 10 * properties->major + properties->minor;
    if (architecture < OLDEST_ARCHITECTURE)
        return NIB_FAIL(NIB_ERROR_DEVICE, "%s is of architecture sm_%d; Nibble needs sm_%d (Ampere) or newer, for bf16",
                        properties->name, architecture, OLDEST_ARCHITECTURE);
    return NIB_OK;
}

nib_status nib_cuda_backend_describe(int index, char *text, size_t bytes)
{
    cudaDeviceProp properties;
    int driver = 0;
    NIB_TRY(check_device(index, &properties));
    cudaDriverGetVersion(&driver);
    snprintf(text, bytes, "%s, sm_%d%d, %d processors, %.1f GiB, driver for CUDA %d.%d", properties.name,
             properties.major, properties.minor, properties.multiProcessorCount, gib(properties.totalGlobalMem),
             driver / 1000, driver % 1000 / 10);
    return NIB_OK;
}

void nib_cuda_backend_libraries(char *text, size_t bytes)
{
    int runtime = 0;
    const size_t product = cublasLtGetVersion();
    cudaRuntimeGetVersion(&runtime);
    snprintf(text, bytes, "runtime %d.%d, cublasLt %zu.%zu.%zu", runtime / 1000, runtime % 1000 / 10, product / 10000,
             product / 100 % 100, product % 100);
}

/* The first call that makes a context on the device: where a device in use by another process is found out. */
static nib_status open_stream(int index, cuda_context *context)
{
    NIB_CHECK_CUDA(cudaSetDevice(index));
    cudaError_t error = cudaStreamCreateWithFlags(&context->stream, cudaStreamNonBlocking);
    if (error == cudaErrorDevicesUnavailable)
        return NIB_FAIL(NIB_ERROR_DEVICE, "GPU %d is in use by another process that has it for itself", index);
    if (error == cudaErrorMemoryAllocation)
        return NIB_FAIL(NIB_ERROR_MEMORY, "GPU %d has no memory left for a context", index);
    NIB_CHECK_CUDA(error);
    return NIB_OK;
}

nib_status nib_cuda_backend_create(int index, nib_ops **out)
{
    cudaDeviceProp properties;
    nib_status status;
    *out = NULL;
    NIB_TRY(check_device(index, &properties));
    nib_ops *ops = new nib_ops();
    cuda_context *context = new cuda_context();
    fill_table(ops);
    ops->context = context;
    ops->device = context->description;
    ops->scratch = &context->scratch;
    name_scratch(&context->scratch, true);
    context->scratch.grow = grow_scratch;
    context->device = {10 * properties.major + properties.minor, properties.multiProcessorCount,
                       properties.sharedMemPerBlockOptin};
    ops->fp8 = context->device.architecture >= FP8_ARCHITECTURE;
    NIB_TRY_GOTO(nib_cuda_backend_describe(index, context->description, sizeof context->description), done);
    NIB_TRY_GOTO(open_stream(index, context), done);
    ops->queue = context->asked = context->stream;
    NIB_TRY_GOTO(nib_cuda_staging_create(context->stream, &context->staging), done);
    NIB_TRY_GOTO(nib_cuda_matmul_cache_create(context->stream, &context->matmul), done);
    *out = ops;
done:
    if (status != NIB_OK) close_backend(ops);
    return status;
}
