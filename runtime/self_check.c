#include "base/memory.h"
#include "base/random.h"
#include "self_check_case.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#define MOST_BYTES ((size_t)40 << 20) /* of a case on the host, of which only what it uses takes memory */
#define GAP        8                  /* elements: rows of kernels that read 16 bytes stay aligned */
#define GAP_BF16   0x7fc1             /* a NaN: reading a gap shows too */

float nib_check_uniform(uint64_t seed, uint64_t index)
{
    uint32_t word[4];
    nib_philox(seed, 0, index, word);
    return nib_bf16_to_float(nib_bf16_from_float(2.0f * nib_uniform(word[0]) - 1.0f));
}

nib_status nib_check_upload(nib_check_run *run, const void *host, size_t bytes, void *pointer)
{
    void *to;
    NIB_TRY(nib_arena_take(&run->memory, (int64_t)bytes, 1, &to));
    memcpy(pointer, &to, sizeof to);
    return run->ops->upload(run->ops, to, host, bytes);
}

/* seed 0: NaN. */
static float value_of(uint64_t seed, int64_t i) { return seed == 0 ? NAN : nib_check_uniform(seed, (uint64_t)i); }

static nib_status make_matrix(nib_check_run *run, uint64_t seed, int64_t rows, int64_t columns, nib_matrix *m)
{
    const int64_t stride = columns + GAP, n = rows * stride;
    const size_t element = run->dtype == NIB_DTYPE_F32 ? 4 : 2;
    *m = (nib_matrix){.rows = rows, .columns = columns, .stride = stride, .dtype = run->dtype};
    void *host = nib_calloc((size_t)n, element);
    if (host == NULL) return NIB_FAIL(NIB_ERROR_MEMORY, "no memory for a matrix of the self-check");
    for (int64_t i = 0; i < n; i++) {
        const int64_t column = i % stride;
        const float value = column < columns ? value_of(seed, i / stride * columns + column) : NAN;
        if (run->dtype == NIB_DTYPE_F32)
            ((float *)host)[i] = value;
        else
            ((nib_bf16 *)host)[i] = column < columns ? nib_bf16_from_float(value) : (nib_bf16){GAP_BF16};
    }
    nib_status status = nib_check_upload(run, host, (size_t)n * element, &m->data);
    nib_free(host);
    return status;
}

nib_status nib_check_matrix(nib_check_run *run, uint64_t seed, int64_t rows, int64_t columns, nib_matrix *m)
{
    return make_matrix(run, seed, rows, columns, m);
}

nib_status nib_check_empty(nib_check_run *run, int64_t rows, int64_t columns, nib_matrix *m)
{
    return make_matrix(run, 0, rows, columns, m);
}

nib_status nib_check_floats(nib_check_run *run, uint64_t seed, int64_t n, float **values)
{
    float *host = nib_calloc((size_t)n, sizeof *host);
    if (host == NULL) return NIB_FAIL(NIB_ERROR_MEMORY, "no memory for %lld values of the self-check", (long long)n);
    for (int64_t i = 0; i < n; i++) host[i] = value_of(seed, i);
    nib_status status = nib_check_upload(run, host, (size_t)n * sizeof *host, values);
    nib_free(host);
    return status;
}

nib_status nib_check_empty_floats(nib_check_run *run, int64_t n, float **values)
{
    return nib_check_floats(run, 0, n, values);
}

/* The place of a result of n values. */
static nib_status add_result(nib_check_run *run, const char *name, int64_t n, double allowed, float **values)
{
    if (run->results == NIB_CHECK_RESULTS)
        return NIB_FAIL(NIB_ERROR_INTERNAL, "self-check: more than %d results", NIB_CHECK_RESULTS);
    *values = nib_calloc((size_t)n, sizeof **values);
    if (*values == NULL) return NIB_FAIL(NIB_ERROR_MEMORY, "no memory for %lld values of the self-check", (long long)n);
    run->result[run->results].name = name;
    run->result[run->results].values = *values;
    run->result[run->results].n = n;
    run->result[run->results++].allowed = allowed;
    return NIB_OK;
}

/* The values of a matrix that was downloaded with its gaps, which have to be as they were (of fp32, the reference's own
 * type, they are not looked at). */
static nib_status spread_rows(const char *name, nib_matrix m, const void *host, float *values)
{
    for (int64_t row = 0; row < m.rows; row++)
        for (int64_t column = 0; column < m.stride; column++) {
            const int64_t at = row * m.stride + column;
            if (column < m.columns)
                values[row * m.columns + column] = m.dtype == NIB_DTYPE_F32
                                                       ? ((const float *)host)[at]
                                                       : nib_bf16_to_float(((const nib_bf16 *)host)[at]);
            else if (m.dtype == NIB_DTYPE_BF16 && ((const nib_bf16 *)host)[at].bits != GAP_BF16)
                return NIB_FAIL(NIB_ERROR_DEVICE, "%s: row %lld was written beyond its end", name, (long long)row);
        }
    return NIB_OK;
}

nib_status nib_check_keep(nib_check_run *run, const char *name, nib_matrix m, double allowed)
{
    float *values;
    const size_t bytes = (size_t)(m.rows * m.stride) * (m.dtype == NIB_DTYPE_F32 ? 4 : 2);
    NIB_TRY(add_result(run, name, m.rows * m.columns, allowed, &values));
    void *host = nib_calloc(bytes, 1);
    if (host == NULL) return NIB_FAIL(NIB_ERROR_MEMORY, "no memory for a matrix of the self-check");
    nib_status status = run->ops->download(run->ops, host, m.data, bytes);
    if (status == NIB_OK) status = spread_rows(name, m, host, values);
    nib_free(host);
    return status;
}

nib_status nib_check_keep_floats(nib_check_run *run, const char *name, const float *from, int64_t n, double allowed)
{
    float *values;
    NIB_TRY(add_result(run, name, n, allowed, &values));
    return run->ops->download(run->ops, values, from, (size_t)n * sizeof *values);
}

nib_status nib_check_keep_bytes(nib_check_run *run, const char *name, const uint8_t *from, int64_t n)
{
    float *values;
    NIB_TRY(add_result(run, name, n, NIB_CHECK_BITS, &values));
    uint8_t *bytes = nib_calloc((size_t)n, 1);
    if (bytes == NULL) return NIB_FAIL(NIB_ERROR_MEMORY, "no memory for %lld bytes of the self-check", (long long)n);
    nib_status status = run->ops->download(run->ops, bytes, from, (size_t)n);
    for (int64_t i = 0; i < n; i++) values[i] = (float)bytes[i];
    nib_free(bytes);
    return status;
}

nib_status nib_check_keep_value(nib_check_run *run, const char *name, double value, double allowed)
{
    float *values;
    NIB_TRY(add_result(run, name, 1, allowed, &values));
    values[0] = (float)value;
    return NIB_OK;
}

static void drop_results(nib_check_run *run)
{
    for (int i = 0; i < run->results; i++) nib_free(run->result[i].values);
    run->results = 0;
}

/* The case on one backend, with the plain kernels of `mask` in use. */
static nib_status run_case(nib_check_run *run, const nib_check_case *c, const char *shape, uint32_t mask)
{
    drop_results(run);
    nib_arena_reset(&run->memory, 0);
    run->ops->use_plain(run->ops, mask);
    nib_status status = c->run(run, c->size);
    if (status == NIB_OK) status = run->ops->synchronize(run->ops);
    return status == NIB_OK ? NIB_OK : nib_error_context(status, "self-check of %s, %s", c->op, shape);
}

static double difference(const float *found, const float *expected, int64_t n)
{
    double squares = 0, largest = 0;
    for (int64_t i = 0; i < n; i++) squares += (double)expected[i] * (double)expected[i];
    const double size = n == 0 ? 0 : sqrt(squares / (double)n);
    for (int64_t i = 0; i < n; i++) {
        const double off = fabs((double)found[i] - (double)expected[i]);
        if (off == 0) continue;
        if (!isfinite(off)) return INFINITY;
        largest = fmax(largest, off / (size + fabs((double)expected[i])));
    }
    return largest;
}

/* The result that is furthest off in shares of what it may be; do all agree? */
static bool compare(const nib_check_run *found, const nib_check_run *expected, const char **which, double *off,
                    double *allowed)
{
    double worst = -1;
    for (int i = 0; i < expected->results; i++) {
        const double limit = expected->result[i].allowed;
        const double d = difference(found->result[i].values, expected->result[i].values, expected->result[i].n);
        const double share = limit > 0 ? d / limit : d > 0 ? INFINITY : 0;
        if (share <= worst) continue;
        worst = share;
        *which = expected->result[i].name;
        *off = d;
        *allowed = limit;
    }
    return worst <= 1;
}

typedef struct {
    nib_check_run device, reference;
    uint32_t off;
} check;

/* The choices that are plain in a case whatever has been found: the one that it goes without. */
static uint32_t plain_in(const nib_check_case *c, const nib_ops *ops)
{
    uint32_t mask = 0;
    for (int i = 0; i < ops->choices && c->without != NULL; i++)
        if (strcmp(ops->choice[i], c->without) == 0) mask = 1u << i;
    return mask;
}

/* Looks for the one choice whose plain kernel makes the case right; all of them if it takes several. */
static nib_status find_culprit(check *k, const nib_check_case *c, const char *shape, uint32_t *off)
{
    const char *which;
    double d, allowed;
    const int choices = k->device.ops->choices;
    const uint32_t plain = k->off | plain_in(c, k->device.ops);
    for (int i = 0; i < choices; i++) {
        if ((plain >> i & 1) != 0) continue;
        NIB_TRY(run_case(&k->device, c, shape, plain | 1u << i));
        *off = 1u << i;
        if (compare(&k->device, &k->reference, &which, &d, &allowed)) return NIB_OK;
    }
    *off = (uint32_t)((1ull << choices) - 1);
    return NIB_OK;
}

static void give_back(nib_check_run *run)
{
    if (run->memory.block != NULL) run->ops->release(run->ops, run->memory.block, run->memory.capacity);
    run->memory = (nib_arena){.name = run->memory.name};
}

/* A block of at least so many bytes: the largest of the cases so far. */
static nib_status make_room(nib_check_run *run, size_t bytes)
{
    void *block;
    if (bytes <= run->memory.capacity) return NIB_OK;
    give_back(run);
    NIB_TRY(run->ops->allocate(run->ops, "the self-check", bytes, &block));
    run->memory.block = block;
    run->memory.capacity = bytes;
    return NIB_OK;
}

static nib_status check_case(check *k, const nib_check_case *c, nib_check_line *line)
{
    const char *which;
    double allowed;
    const uint32_t all = (uint32_t)((1ull << k->device.ops->choices) - 1);
    bool plain_agrees = false;
    *line = (nib_check_line){.op = c->op, .plain = NAN};
    snprintf(line->shape, sizeof line->shape, c->shape, (long long)c->size[0], (long long)c->size[1],
             (long long)c->size[2], (long long)c->size[3], (long long)c->size[4], (long long)c->size[5],
             (long long)c->size[6]);
    NIB_TRY(run_case(&k->reference, c, line->shape, ~0u));
    NIB_TRY(make_room(&k->device, k->reference.memory.used)); /* no operand is wider in bf16 */
    if (c->two) {
        NIB_TRY(run_case(&k->device, c, line->shape, all));
        plain_agrees = compare(&k->device, &k->reference, &which, &line->plain, &allowed);
    }
    NIB_TRY(run_case(&k->device, c, line->shape, k->off | plain_in(c, k->device.ops)));
    if (compare(&k->device, &k->reference, &line->which, &line->fast, &line->allowed)) return NIB_OK;
    line->verdict = plain_agrees ? NIB_CHECK_PLAIN : NIB_CHECK_DISAGREES;
    if (!plain_agrees) return NIB_OK;
    NIB_TRY(find_culprit(k, c, line->shape, &line->off));
    k->off |= line->off;
    return NIB_OK;
}

static nib_check_run run_on(nib_ops *ops, nib_dtype dtype)
{
    return (nib_check_run){.ops = ops, .dtype = dtype, .memory = {.name = "self-check"}};
}

static void close_run(nib_check_run *run)
{
    drop_results(run);
    give_back(run);
}

nib_status nib_self_check(nib_ops *ops, nib_ops *reference, nib_check_size size, nib_check_report report, void *user,
                          uint32_t *off, bool *refused)
{
    const nib_check_case *const tables[] = {nib_check_elementwise, nib_check_products};
    check k = {.device = run_on(ops, NIB_DTYPE_BF16), .reference = run_on(reference, NIB_DTYPE_F32)};
    *refused = false;
    nib_status status = make_room(&k.reference, MOST_BYTES);
    for (int t = 0; t < 2; t++)
        for (const nib_check_case *c = tables[t]; c->op != NULL && status == NIB_OK; c++) {
            nib_check_line line;
            if (c->full && size == NIB_CHECK_SHORT) continue;
            status = check_case(&k, c, &line);
            if (status != NIB_OK) break;
            *refused = *refused || line.verdict == NIB_CHECK_DISAGREES;
            if (report != NULL) report(user, &line);
        }
    ops->use_plain(ops, k.off);
    *off = k.off;
    close_run(&k.device);
    close_run(&k.reference);
    return status;
}
