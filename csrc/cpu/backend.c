#include "cpu/backend.h"
#include "base/memory.h"
#include "cpu/adamw.h"
#include "cpu/adamw_8bit.h"
#include "cpu/attention.h"
#include "cpu/backend_internal.h"
#include "cpu/convert.h"
#include "cpu/dora.h"
#include "cpu/embedding.h"
#include "cpu/glu.h"
#include "cpu/head_rows_backward.h"
#include "cpu/layernorm.h"
#include "cpu/linear.h"
#include "cpu/linear_cross_entropy.h"
#include "cpu/matmul.h"
#include "cpu/nf4.h"
#include "cpu/rmsnorm.h"
#include "cpu/rotary.h"
#include "cpu/sample.h"
#include "cpu/tree_sum.h"

#include <oneapi/dnnl/dnnl.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

/* Blocks come from mmap, so that pages that are never touched cost nothing and large ones may be huge pages. */
static nib_status cpu_allocate(nib_ops *ops, const char *name, size_t bytes, void **block)
{
    (void)ops;
    *block = NULL;
    if (bytes == 0) return NIB_OK;
    void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        return NIB_FAIL(NIB_ERROR_MEMORY, "no memory for %s: %.2f GiB asked for", name, (double)bytes / (1 << 30));
    madvise(memory, bytes, MADV_HUGEPAGE);
    *block = memory;
    return NIB_OK;
}

static void cpu_release(nib_ops *ops, void *block, size_t bytes)
{
    (void)ops;
    if (block != NULL) munmap(block, bytes);
}

static nib_status cpu_copy(nib_ops *ops, void *to, const void *from, size_t bytes)
{
    (void)ops;
    if (bytes > 0) memcpy(to, from, bytes);
    return NIB_OK;
}

static nib_status cpu_zero(nib_ops *ops, void *block, size_t bytes)
{
    (void)ops;
    if (bytes > 0) memset(block, 0, bytes);
    return NIB_OK;
}

static nib_status cpu_synchronize(nib_ops *ops)
{
    (void)ops;
    return NIB_OK;
}

static uint64_t cpu_mark(nib_ops *ops)
{
    (void)ops;
    return 0;
}

static nib_status cpu_await(nib_ops *ops, uint64_t mark)
{
    (void)ops;
    (void)mark;
    return NIB_OK;
}

/* oneDNN's view of the CPU is everyone's, so that its ONEDNN_MAX_CPU_ISA caps all and one machine can test every path.
 * An instruction set is a set of bits that holds those it builds on. Returns the best level. */
static nib_cpu_level detect(nib_cpu_context *context)
{
    nib_cpu_level level = NIB_CPU_PORTABLE;
#if defined(__x86_64__)
    const unsigned isa = dnnl_get_effective_cpu_isa();
    const unsigned needs[NIB_CPU_LEVELS] = {[NIB_CPU_AVX2] = dnnl_cpu_isa_avx2,
                                            [NIB_CPU_AVX512] = dnnl_cpu_isa_avx512_core,
                                            [NIB_CPU_AVX512_BF16] = dnnl_cpu_isa_avx512_core_bf16,
                                            [NIB_CPU_AMX_BF16] = dnnl_cpu_isa_avx512_core_amx};
    for (nib_cpu_level l = NIB_CPU_AVX2; l < NIB_CPU_LEVELS; l++)
        if ((isa & needs[l]) == needs[l] && nib_cpu_kernels_at(l) != NULL) level = l;
#endif
    context->bf16_matmul = level >= NIB_CPU_AVX512_BF16;
    context->kernels = nib_cpu_kernels_at(level);
    return level;
}

const char *nib_cpu_features(void)
{
    static const char *const names[NIB_CPU_LEVELS] = {"none", "avx2", "avx2 avx512", "avx2 avx512 avx512-bf16",
                                                      "avx2 avx512 avx512-bf16 amx"};
    nib_cpu_context context = {0};
    return names[detect(&context)];
}

static nib_status cpu_rehearse(nib_ops *ops, nib_ops **dry);

static const char *const choice_names[] = {"vectors"};

static void cpu_use_plain(nib_ops *ops, uint32_t mask)
{
    nib_cpu_context *context = nib_cpu_context_of(ops);
    detect(context);
    ops->plain = mask;
    if ((mask & 1) != 0) context->kernels = nib_cpu_kernels_at(NIB_CPU_PORTABLE);
}

static const nib_ops table = {
    .name = "cpu",
    .choices = 1,
    .choice = choice_names,
    .use_plain = cpu_use_plain,
    .close = nib_cpu_backend_free,
    .rehearse = cpu_rehearse,
    .allocate = cpu_allocate,
    .release = cpu_release,
    .upload = cpu_copy,
    .download = cpu_copy,
    .fetch = cpu_copy,
    .zero = cpu_zero,
    .synchronize = cpu_synchronize,
    .mark = cpu_mark,
    .await = cpu_await,
    .convert = nib_cpu_convert,
    .tree_sum = nib_cpu_tree_sum,
    .embedding_forward = nib_cpu_embedding_forward,
    .embedding_backward = nib_cpu_embedding_backward,
    .rmsnorm_forward = nib_cpu_rmsnorm_forward,
    .rmsnorm_backward = nib_cpu_rmsnorm_backward,
    .layernorm_forward = nib_cpu_layernorm_forward,
    .layernorm_backward = nib_cpu_layernorm_backward,
    .rotary_table = nib_cpu_rotary_table,
    .rotary = nib_cpu_rotary,
    .attention_forward = nib_cpu_attention_forward,
    .attention_backward = nib_cpu_attention_backward,
    .attention_cached = nib_cpu_attention_cached,
    .linear_forward = nib_cpu_linear_forward,
    .linear_backward = nib_cpu_linear_backward,
    .dora_norm = nib_cpu_dora_norm,
    .glu_forward = nib_cpu_glu_forward,
    .glu_backward = nib_cpu_glu_backward,
    .linear_cross_entropy = nib_cpu_linear_cross_entropy,
    .head_rows_backward = nib_cpu_head_rows_backward,
    .logits = nib_cpu_logits,
    .sample = nib_cpu_sample,
    .nf4_quantize = nib_cpu_nf4_quantize,
    .nf4_quantize_absmax = nib_cpu_nf4_quantize_absmax,
    .nf4_dequantize = nib_cpu_nf4_dequantize,
    .global_norm = nib_cpu_global_norm,
    .adamw = nib_cpu_adamw,
    .adamw_8bit = nib_cpu_adamw_8bit,
};

static void *wait_at(void *gate)
{
    pthread_mutex_lock(gate);
    pthread_mutex_unlock(gate);
    return NULL;
}

/* GCC's OpenMP ends the process where it cannot start its threads. As many are started here first, which can fail in
 * our own words, and then OpenMP's, which stay. */
static nib_status start_threads(void)
{
    int wanted = nib_cpu_threads() - 1, started = 0;
    pthread_mutex_t gate = PTHREAD_MUTEX_INITIALIZER;
    pthread_t *thread = nib_calloc((size_t)wanted, sizeof *thread);
    if (thread == NULL) return NIB_FAIL(NIB_ERROR_MEMORY, "no memory for %d threads", wanted);
    pthread_mutex_lock(&gate);
    while (started < wanted && pthread_create(&thread[started], NULL, wait_at, &gate) == 0) started++;
    pthread_mutex_unlock(&gate);
    for (int i = 0; i < started; i++) pthread_join(thread[i], NULL);
    nib_free(thread);
    if (started < wanted)
        return NIB_FAIL(NIB_ERROR_MEMORY, "no memory for %d threads, %d could be started; set OMP_NUM_THREADS to fewer",
                        wanted + 1, started + 1);
    int running = 0; /* counted, since compilers leave out an empty region */
#pragma omp parallel reduction(+ : running)
    running++;
    return running > 0 ? NIB_OK : NIB_FAIL(NIB_ERROR_INTERNAL, "OpenMP ran no thread");
}

nib_status nib_cpu_backend_create(size_t scratch_bytes, nib_ops **out)
{
    *out = NULL;
    nib_ops *ops = nib_calloc(1, sizeof *ops);
    nib_cpu_context *context = nib_calloc(1, sizeof *context);
    nib_status status = NIB_OK;
    if (ops == NULL || context == NULL) {
        nib_free(context);
        nib_free(ops);
        return NIB_FAIL(NIB_ERROR_MEMORY, "no memory for the CPU backend");
    }
    *ops = table;
    ops->device = nib_cpu_features();
    ops->context = context;
    ops->scratch = &context->scratch;
    context->scratch = (nib_arena){.name = "scratch", .capacity = scratch_bytes};
    detect(context);
    void *block;
    NIB_TRY_GOTO(cpu_allocate(ops, "scratch", scratch_bytes, &block), done);
    context->scratch.block = block;
    NIB_TRY_GOTO(start_threads(), done);
    NIB_TRY_GOTO(nib_cpu_matmul_cache_create(&context->matmul), done);
    *out = ops;
done:
    if (status != NIB_OK) nib_cpu_backend_free(ops);
    return status;
}

/* The ops that take scratch; they see ops->rehearsal. */
static nib_status cpu_rehearse(nib_ops *ops, nib_ops **dry)
{
    (void)ops;
    NIB_TRY(nib_cpu_backend_create(0, dry));
    **dry = (nib_ops){
        .name = "cpu",
        .close = nib_cpu_backend_free,
        .context = (*dry)->context,
        .scratch = (*dry)->scratch,
        .rehearsal = true,
        .attention_forward = nib_cpu_attention_forward,
        .attention_backward = nib_cpu_attention_backward,
        .linear_forward = nib_cpu_linear_forward,
        .linear_backward = nib_cpu_linear_backward,
        .dora_norm = nib_cpu_dora_norm,
        .linear_cross_entropy = nib_cpu_linear_cross_entropy,
        .head_rows_backward = nib_cpu_head_rows_backward,
        .logits = nib_cpu_logits,
        .sample = nib_cpu_sample,
        .global_norm = nib_cpu_global_norm,
    };
    return NIB_OK;
}

void nib_cpu_backend_free(nib_ops *ops)
{
    if (ops == NULL) return;
    nib_cpu_context *context = ops->context;
    nib_cpu_matmul_cache_free(context->matmul);
    cpu_release(ops, context->scratch.block, context->scratch.capacity);
    nib_free(context);
    nib_free(ops);
}
