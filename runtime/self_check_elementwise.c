/* Cases of what reads, computes and writes element by element or row by row, of NF4 itself, and of the optimizer. */
#include "self_check_case.h"

#include <math.h>

static nib_status convert(nib_check_run *run, const int64_t *size)
{
    nib_ops *ops = run->ops;
    const int64_t rows = size[0], columns = size[1];
    nib_matrix from, back;
    float *wide;
    NIB_TRY(nib_check_matrix(run, 1, rows, columns, &from));
    NIB_TRY(nib_check_empty_floats(run, rows * columns, &wide));
    NIB_TRY(nib_check_empty(run, rows, columns, &back));
    const nib_matrix to = {wide, rows, columns, columns, NIB_DTYPE_F32};
    NIB_TRY(ops->convert(ops, from, to));
    NIB_TRY(ops->convert(ops, to, back));
    NIB_TRY(nib_check_keep_floats(run, "to fp32", wide, rows * columns, NIB_CHECK_BITS));
    return nib_check_keep(run, "and back", back, NIB_CHECK_BITS);
}

static nib_status tree_sum(nib_check_run *run, const int64_t *size)
{
    const float *left[3];
    float *x, *to;
    NIB_TRY(nib_check_floats(run, 1, size[0], &x));
    for (int k = 0; k < 3; k++) {
        float *values;
        NIB_TRY(nib_check_floats(run, (uint64_t)k + 2, size[0], &values));
        left[k] = values;
    }
    NIB_TRY(nib_check_empty_floats(run, size[0], &to));
    NIB_TRY(run->ops->tree_sum(run->ops, x, 3, left, size[0], to));
    NIB_TRY(nib_check_keep_floats(run, "x", x, size[0], NIB_CHECK_BITS));
    return nib_check_keep_floats(run, "sum", to, size[0], NIB_CHECK_BITS);
}

/* Tokens of which many come again. */
static nib_status tokens(nib_check_run *run, int64_t T, int64_t V, int32_t **token)
{
    int32_t host[512];
    for (int64_t t = 0; t < T; t++) host[t] = (int32_t)(t * t % V);
    return nib_check_upload(run, host, (size_t)T * sizeof *host, token);
}

static nib_status embedding_forward(nib_check_run *run, const int64_t *size)
{
    int32_t *token;
    nib_matrix table, x;
    NIB_TRY(tokens(run, size[0], size[2], &token));
    NIB_TRY(nib_check_matrix(run, 1, size[2], size[1], &table));
    NIB_TRY(nib_check_empty(run, size[0], size[1], &x));
    NIB_TRY(run->ops->embedding_forward(run->ops, token, table, 1.5f, x));
    return nib_check_keep(run, "x", x, NIB_CHECK_BF16);
}

static nib_status embedding_backward(nib_check_run *run, const int64_t *size)
{
    int32_t *token;
    nib_matrix dx;
    float *dtable;
    NIB_TRY(tokens(run, size[0], size[2], &token));
    NIB_TRY(nib_check_matrix(run, 1, size[0], size[1], &dx));
    NIB_TRY(nib_check_floats(run, 2, size[2] * size[1], &dtable));
    NIB_TRY(run->ops->embedding_backward(run->ops, token, dx, 1.5f, dtable));
    return nib_check_keep_floats(run, "dtable", dtable, size[2] * size[1], NIB_CHECK_FP32);
}

static nib_status rmsnorm_forward(nib_check_run *run, const int64_t *size)
{
    nib_matrix x, delta, y;
    float *weight;
    NIB_TRY(nib_check_matrix(run, 1, size[0], size[1], &x));
    NIB_TRY(nib_check_matrix(run, 2, size[0], size[1], &delta));
    NIB_TRY(nib_check_floats(run, 3, size[1] / size[2], &weight));
    NIB_TRY(nib_check_empty(run, size[0], size[1], &y));
    NIB_TRY(run->ops->rmsnorm_forward(run->ops, x, &delta, size[2], weight, 1e-5f, y));
    NIB_TRY(nib_check_keep(run, "x", x, NIB_CHECK_BF16));
    return nib_check_keep(run, "y", y, NIB_CHECK_BF16);
}

static nib_status rmsnorm_backward(nib_check_run *run, const int64_t *size)
{
    nib_matrix x, dy, dx;
    float *weight, *dweight;
    NIB_TRY(nib_check_matrix(run, 1, size[0], size[1], &x));
    NIB_TRY(nib_check_matrix(run, 2, size[0], size[1], &dy));
    NIB_TRY(nib_check_matrix(run, 3, size[0], size[1], &dx));
    NIB_TRY(nib_check_floats(run, 4, size[1] / size[2], &weight));
    NIB_TRY(nib_check_floats(run, 5, size[1] / size[2], &dweight));
    NIB_TRY(run->ops->rmsnorm_backward(run->ops, x, size[2], weight, 1e-5f, dy, dx, dweight));
    NIB_TRY(nib_check_keep(run, "dx", dx, NIB_CHECK_BF16));
    return nib_check_keep_floats(run, "dweight", dweight, size[1] / size[2], NIB_CHECK_FP32);
}

static nib_status layernorm_forward(nib_check_run *run, const int64_t *size)
{
    nib_matrix x, delta, y;
    float *weight, *bias;
    NIB_TRY(nib_check_matrix(run, 1, size[0], size[1], &x));
    NIB_TRY(nib_check_matrix(run, 2, size[0], size[1], &delta));
    NIB_TRY(nib_check_floats(run, 3, size[1], &weight));
    NIB_TRY(nib_check_floats(run, 4, size[1], &bias));
    NIB_TRY(nib_check_empty(run, size[0], size[1], &y));
    NIB_TRY(run->ops->layernorm_forward(run->ops, x, &delta, weight, bias, 1e-5f, y));
    NIB_TRY(nib_check_keep(run, "x", x, NIB_CHECK_BF16));
    return nib_check_keep(run, "y", y, NIB_CHECK_BF16);
}

static nib_status layernorm_backward(nib_check_run *run, const int64_t *size)
{
    nib_matrix x, dy, dx;
    float *weight, *dweight, *dbias;
    NIB_TRY(nib_check_matrix(run, 1, size[0], size[1], &x));
    NIB_TRY(nib_check_matrix(run, 2, size[0], size[1], &dy));
    NIB_TRY(nib_check_matrix(run, 3, size[0], size[1], &dx));
    NIB_TRY(nib_check_floats(run, 4, size[1], &weight));
    NIB_TRY(nib_check_floats(run, 5, size[1], &dweight));
    NIB_TRY(nib_check_floats(run, 6, size[1], &dbias));
    NIB_TRY(run->ops->layernorm_backward(run->ops, x, weight, 1e-5f, dy, dx, dweight, dbias));
    NIB_TRY(nib_check_keep(run, "dx", dx, NIB_CHECK_BF16));
    NIB_TRY(nib_check_keep_floats(run, "dweight", dweight, size[1], NIB_CHECK_FP32));
    return nib_check_keep_floats(run, "dbias", dbias, size[1], NIB_CHECK_FP32);
}

static nib_status rotary(nib_check_run *run, const int64_t *size)
{
    nib_ops *ops = run->ops;
    const int64_t T = size[0], heads = size[1], head_dim = size[2], pairs = head_dim / 2;
    int32_t at[512], *position;
    float rate[128], *frequency, *table;
    nib_matrix x;
    for (int64_t t = 0; t < T; t++) at[t] = (int32_t)(t * 37 % 4000);
    for (int64_t i = 0; i < pairs; i++) rate[i] = powf(10000.0f, -(float)i / (float)pairs);
    NIB_TRY(nib_check_upload(run, at, (size_t)T * sizeof *at, &position));
    NIB_TRY(nib_check_upload(run, rate, (size_t)pairs * sizeof *rate, &frequency));
    NIB_TRY(nib_check_empty_floats(run, T * 2 * pairs, &table));
    NIB_TRY(nib_check_matrix(run, 1, T, heads * head_dim, &x));
    NIB_TRY(ops->rotary_table(ops, position, T, frequency, pairs, 1.25f, table));
    NIB_TRY(ops->rotary(ops, x, heads, head_dim, table, pairs, (nib_rotary_layout)size[3], false));
    NIB_TRY(nib_check_keep_floats(run, "table", table, T * 2 * pairs, NIB_CHECK_FP32));
    return nib_check_keep(run, "x", x, NIB_CHECK_BF16);
}

static nib_status glu_forward(nib_check_run *run, const int64_t *size)
{
    nib_matrix gate_up, h;
    NIB_TRY(nib_check_matrix(run, 1, size[0], 2 * size[1], &gate_up));
    NIB_TRY(nib_check_empty(run, size[0], size[1], &h));
    NIB_TRY(run->ops->glu_forward(run->ops, (nib_activation)size[2], gate_up, h));
    return nib_check_keep(run, "h", h, NIB_CHECK_BF16);
}

static nib_status glu_backward(nib_check_run *run, const int64_t *size)
{
    nib_matrix gate_up, dh;
    NIB_TRY(nib_check_matrix(run, 1, size[0], 2 * size[1], &gate_up));
    NIB_TRY(nib_check_matrix(run, 2, size[0], size[1], &dh));
    NIB_TRY(run->ops->glu_backward(run->ops, (nib_activation)size[2], dh, gate_up));
    return nib_check_keep(run, "d(gate, up)", gate_up, NIB_CHECK_BF16);
}

static nib_status empty_bytes(nib_check_run *run, int64_t n, uint8_t **bytes)
{
    NIB_TRY(nib_arena_take(&run->memory, n, 1, bytes));
    return run->ops->zero(run->ops, *bytes, (size_t)n);
}

static nib_status nf4_quantize(nib_check_run *run, const int64_t *size)
{
    nib_ops *ops = run->ops;
    const int64_t n = size[0], blocks = (n + 63) / 64, nested_blocks = (blocks + 255) / 256;
    float *weight, *absmax, *map, *nested, offset;
    uint8_t *codes, *absmax_codes;
    NIB_TRY(nib_check_floats(run, 1, n, &weight));
    NIB_TRY(nib_check_empty_floats(run, blocks, &absmax));
    NIB_TRY(nib_check_empty_floats(run, nested_blocks, &nested));
    NIB_TRY(nib_check_upload(run, nib_nf4_dynamic_map, 256 * sizeof *map, &map));
    NIB_TRY(empty_bytes(run, (n + 1) / 2, &codes));
    NIB_TRY(empty_bytes(run, blocks, &absmax_codes));
    NIB_TRY(ops->nf4_quantize(ops, weight, n, codes, absmax));
    NIB_TRY(ops->nf4_quantize_absmax(ops, absmax, blocks, map, absmax_codes, nested, &offset));
    NIB_TRY(nib_check_keep_bytes(run, "codes", codes, (n + 1) / 2));
    NIB_TRY(nib_check_keep_floats(run, "absmax", absmax, blocks, NIB_CHECK_BITS));
    NIB_TRY(nib_check_keep_bytes(run, "absmax codes", absmax_codes, blocks));
    NIB_TRY(nib_check_keep_floats(run, "nested absmax", nested, nested_blocks, NIB_CHECK_BITS));
    return nib_check_keep_value(run, "offset", (double)offset, NIB_CHECK_BITS);
}

/* Rows of few different logits, so that many are equal. */
static nib_status sample(nib_check_run *run, const int64_t *size)
{
    enum { ROWS = 3 };
    const int64_t V = size[0], position[ROWS] = {7, 8, 1000};
    const nib_sampling sampling = {
        .temperature = (double)size[1] / 100, .top_k = size[2], .top_p = (double)size[3] / 100, .seed = 5};
    float *logits;
    int32_t *id, chosen[ROWS];
    NIB_TRY(nib_check_floats(run, 1, ROWS * V, &logits));
    NIB_TRY(nib_arena_take(&run->memory, ROWS, sizeof *id, &id));
    NIB_TRY(run->ops->sample(run->ops, sampling, logits, ROWS, V, position, id));
    NIB_TRY(run->ops->download(run->ops, chosen, id, sizeof chosen));
    for (int i = 0; i < ROWS; i++) NIB_TRY(nib_check_keep_value(run, "token", chosen[i], NIB_CHECK_BITS));
    return NIB_OK;
}

static nib_status global_norm(nib_check_run *run, const int64_t *size)
{
    float *array[2];
    const int64_t length[] = {size[0], size[1]};
    nib_clip *clip, found;
    NIB_TRY(nib_check_floats(run, 1, length[0], &array[0]));
    NIB_TRY(nib_check_floats(run, 2, length[1], &array[1]));
    NIB_TRY(nib_arena_take(&run->memory, 1, sizeof *clip, &clip));
    NIB_TRY(run->ops->zero(run->ops, clip, sizeof *clip));
    NIB_TRY(run->ops->global_norm(run->ops, 2, array, length, 1.0, clip));
    NIB_TRY(run->ops->download(run->ops, &found, clip, sizeof found));
    NIB_TRY(nib_check_keep_value(run, "norm", found.norm, NIB_CHECK_FP32));
    return nib_check_keep_value(run, "scale", (double)found.scale, NIB_CHECK_FP32);
}

static nib_status adamw(nib_check_run *run, const int64_t *size)
{
    const int64_t n = size[0];
    const nib_adamw_factors host_factors = nib_adamw_factors_of((nib_adamw){1e-3, 0.9, 0.999, 1e-8, 0.01, 3});
    const nib_clip host = {.norm = 2.0, .scale = 0.5f};
    float *parameter, *gradient, *first, *second;
    nib_adamw_factors *factors;
    nib_clip *clip;
    NIB_TRY(nib_check_floats(run, 1, n, &parameter));
    NIB_TRY(nib_check_floats(run, 2, n, &gradient));
    NIB_TRY(nib_check_floats(run, 3, n, &first));
    NIB_TRY(nib_check_floats(run, 0, n, &second));
    NIB_TRY(run->ops->zero(run->ops, second, (size_t)n * sizeof *second)); /* never negative */
    NIB_TRY(nib_check_upload(run, &host, sizeof host, &clip));
    NIB_TRY(nib_check_upload(run, &host_factors, sizeof host_factors, &factors));
    NIB_TRY(run->ops->adamw(run->ops, factors, clip, n, parameter, gradient, first, second));
    NIB_TRY(nib_check_keep_floats(run, "parameter", parameter, n, NIB_CHECK_BITS));
    NIB_TRY(nib_check_keep_floats(run, "first moment", first, n, NIB_CHECK_BITS));
    return nib_check_keep_floats(run, "second moment", second, n, NIB_CHECK_BITS);
}

static nib_status empty_moments(nib_check_run *run, int64_t n, nib_moments_8bit *moments)
{
    const int64_t blocks = (n + NIB_MOMENT_BLOCK - 1) / NIB_MOMENT_BLOCK;
    float maps[2][256], *absmax;
    for (int i = 0; i < 256; i++) {
        maps[0][i] = nib_nf4_dynamic_map[i];
        maps[1][i] = nib_dynamic_map_unsigned[i];
    }
    NIB_TRY(nib_check_upload(run, maps, sizeof maps, &moments->maps));
    NIB_TRY(empty_bytes(run, n, &moments->first));
    NIB_TRY(empty_bytes(run, n, &moments->second));
    NIB_TRY(nib_arena_take(&run->memory, 2 * blocks, sizeof *absmax, &absmax));
    moments->first_absmax = absmax;
    moments->second_absmax = absmax + blocks;
    return run->ops->zero(run->ops, absmax, (size_t)(2 * blocks) * sizeof *absmax);
}

/* Two steps, so that moments are read that were written. */
static nib_status adamw_8bit(nib_check_run *run, const int64_t *size)
{
    const int64_t n = size[0];
    const nib_clip host = {.norm = 2.0, .scale = 0.5f};
    float *parameter, *gradient;
    nib_moments_8bit moments;
    nib_clip *clip;
    NIB_TRY(nib_check_floats(run, 1, n, &parameter));
    NIB_TRY(nib_check_upload(run, &host, sizeof host, &clip));
    NIB_TRY(empty_moments(run, n, &moments));
    for (int64_t step = 1; step <= 2; step++) {
        const nib_adamw_factors host_factors = nib_adamw_factors_of((nib_adamw){1e-3, 0.9, 0.999, 1e-8, 0.01, step});
        nib_adamw_factors *factors;
        NIB_TRY(nib_check_upload(run, &host_factors, sizeof host_factors, &factors));
        NIB_TRY(nib_check_floats(run, 2 + (uint64_t)step, n, &gradient));
        NIB_TRY(run->ops->adamw_8bit(run->ops, factors, clip, n, parameter, gradient, moments));
    }
    NIB_TRY(nib_check_keep_floats(run, "parameter", parameter, n, NIB_CHECK_BITS));
    NIB_TRY(nib_check_keep_bytes(run, "first moment", moments.first, n));
    NIB_TRY(nib_check_keep_bytes(run, "second moment", moments.second, n));
    return nib_check_keep_floats(run, "absmax", moments.first_absmax,
                                 2 * ((n + NIB_MOMENT_BLOCK - 1) / NIB_MOMENT_BLOCK), NIB_CHECK_BITS);
}

/* clang-format off */
const nib_check_case nib_check_elementwise[] = {
    {"convert", "[%lld, %lld]", convert, .size = {5, 100}},
    {"tree_sum", "%lld values", tree_sum, .size = {1003}},
    {"embedding_forward", "T %lld, C %lld, V %lld", embedding_forward, .size = {33, 100, 37}},
    {"embedding_forward", "T %lld, C %lld, V %lld", embedding_forward, .full = true, .size = {257, 4096, 999}},
    {"embedding_backward", "T %lld, C %lld, V %lld", embedding_backward, .size = {33, 100, 37}},
    {"rmsnorm_forward", "T %lld, C %lld, %lld groups", rmsnorm_forward, .size = {3, 100, 1}},
    {"rmsnorm_forward", "T %lld, C %lld, %lld groups", rmsnorm_forward, .size = {2, 2050, 1}},
    {"rmsnorm_forward", "T %lld, C %lld, %lld groups", rmsnorm_forward, .size = {3, 320, 5}},
    {"rmsnorm_forward", "T %lld, C %lld, %lld groups", rmsnorm_forward, .full = true, .size = {257, 8192, 1}},
    {"rmsnorm_backward", "T %lld, C %lld, %lld groups", rmsnorm_backward, .size = {17, 100, 1}},
    {"rmsnorm_backward", "T %lld, C %lld, %lld groups", rmsnorm_backward, .size = {2, 2050, 1}},
    {"rmsnorm_backward", "T %lld, C %lld, %lld groups", rmsnorm_backward, .size = {17, 320, 5}},
    {"rmsnorm_backward", "T %lld, C %lld, %lld groups", rmsnorm_backward, .full = true, .size = {257, 8192, 1}},
    {"layernorm_forward", "T %lld, C %lld", layernorm_forward, .size = {17, 100}},
    {"layernorm_forward", "T %lld, C %lld", layernorm_forward, .size = {2, 2050}},
    {"layernorm_forward", "T %lld, C %lld", layernorm_forward, .full = true, .size = {257, 8192}},
    {"layernorm_backward", "T %lld, C %lld", layernorm_backward, .size = {17, 100}},
    {"layernorm_backward", "T %lld, C %lld", layernorm_backward, .size = {2, 2050}},
    {"layernorm_backward", "T %lld, C %lld", layernorm_backward, .full = true, .size = {257, 8192}},
    {"rotary", "T %lld, %lld heads of %lld, layout %lld", rotary, .size = {7, 3, 80, NIB_ROTARY_HALF_SPLIT}},
    {"rotary", "T %lld, %lld heads of %lld, layout %lld", rotary, .size = {7, 3, 80, NIB_ROTARY_INTERLEAVED}},
    {"rotary", "T %lld, %lld heads of %lld, layout %lld", rotary, .full = true, .size = {509, 8, 128, NIB_ROTARY_HALF_SPLIT}},
    {"glu_forward", "T %lld, F %lld, activation %lld", glu_forward, .size = {5, 100, NIB_ACTIVATION_SILU}},
    {"glu_forward", "T %lld, F %lld, activation %lld", glu_forward, .size = {5, 100, NIB_ACTIVATION_GELU_TANH}},
    {"glu_forward", "T %lld, F %lld, activation %lld", glu_forward, .size = {5, 100, NIB_ACTIVATION_GELU}},
    {"glu_backward", "T %lld, F %lld, activation %lld", glu_backward, .size = {5, 100, NIB_ACTIVATION_SILU}},
    {"glu_backward", "T %lld, F %lld, activation %lld", glu_backward, .size = {5, 100, NIB_ACTIVATION_GELU_TANH}},
    {"glu_backward", "T %lld, F %lld, activation %lld", glu_backward, .size = {5, 100, NIB_ACTIVATION_GELU}},
    {"glu_backward", "T %lld, F %lld, activation %lld", glu_backward, .full = true, .size = {257, 8192, NIB_ACTIVATION_SILU}},
    {"nf4_quantize", "%lld values", nf4_quantize, .size = {4165}},
    {"nf4_quantize", "%lld values", nf4_quantize, .full = true, .size = {2000000}},
    {"sample", "V %lld, temperature %lld %%, top-k %lld, top-p %lld %%", sample, .size = {1003, 0, 0, 100}},
    {"sample", "V %lld, temperature %lld %%, top-k %lld, top-p %lld %%", sample, .size = {1003, 70, 40, 90}},
    {"sample", "V %lld, temperature %lld %%, top-k %lld, top-p %lld %%", sample, .full = true, .size = {128256, 100, 0, 95}},
    {"global_norm", "%lld and %lld values", global_norm, .size = {2001, 99}},
    {"adamw", "%lld values", adamw, .size = {1003}},
    {"adamw_8bit", "%lld values", adamw_8bit, .size = {1003}},
    {"adamw_8bit", "%lld values", adamw_8bit, .full = true, .size = {1000000}},
    {0},
};
/* clang-format on */
