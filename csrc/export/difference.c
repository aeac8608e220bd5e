#include "export/difference.h"
#include "base/memory.h"

#include <math.h>
#include <string.h>

/* Log-probabilities of a model at every position of the prompts: [positions, V]. */
typedef struct {
    float *values;
    int64_t positions, V;
} log_probabilities;

static void normalize(float *row, int64_t V)
{
    double sum = 0.0, largest = row[0];
    for (int64_t v = 1; v < V; v++) largest = row[v] > largest ? row[v] : largest;
    for (int64_t v = 0; v < V; v++) sum += exp((double)row[v] - largest);
    double shift = largest + log(sum);
    for (int64_t v = 0; v < V; v++) row[v] = (float)((double)row[v] - shift);
}

static nib_status evaluate(nib_model *model, const nib_prompt *prompts, int count, log_probabilities *out)
{
    nib_pack pack = {0};
    nib_row *rows = nib_calloc((size_t)count, sizeof *rows);
    uint8_t *unsupervised = NULL;
    int32_t longest = 0;
    nib_status status;
    out->V = nib_model_get_config(model)->vocabulary;
    for (int i = 0; i < count; i++) longest = prompts[i].length > longest ? prompts[i].length : longest;
    unsupervised = nib_calloc((size_t)longest, 1);
    if (rows == NULL || unsupervised == NULL) {
        status = NIB_FAIL(NIB_ERROR_MEMORY, "no memory for %d prompts", count);
        goto done;
    }
    for (int i = 0; i < count; i++) rows[i] = (nib_row){prompts[i].ids, unsupervised, prompts[i].length, 1.0f};
    nib_pack_options options = {.slots = 1, .micro_batch_tokens = INT32_MAX, .share_prefixes = true, .pack = true};
    NIB_TRY_GOTO(nib_pack_step(rows, count, options, &pack), done);
    out->positions = pack.computed_tokens;
    out->values = nib_calloc((size_t)(out->positions * out->V), sizeof *out->values);
    if (out->values == NULL) {
        status = NIB_FAIL(NIB_ERROR_MEMORY, "no memory for logits of %lld positions", (long long)out->positions);
        goto done;
    }
    NIB_TRY_GOTO(nib_model_reserve(model, out->positions, 0, NIB_RECOMPUTE_NONE, false), done);
    NIB_TRY_GOTO(nib_model_logits(model, &pack.micro_batch[0], out->values), done);
    for (int64_t t = 0; t < out->positions; t++) normalize(out->values + t * out->V, out->V);
done:
    nib_pack_free(&pack);
    nib_free(rows);
    nib_free(unsupervised);
    return status;
}

static nib_status open_and_evaluate(nib_ops *ops, const nib_model_options *options, const nib_prompt *prompts,
                                    int count, log_probabilities *out)
{
    nib_model *model;
    nib_model_options fp32 = *options;
    fp32.compute = NIB_DTYPE_F32;
    fp32.stream_layers = true; /* each is passed once */
    NIB_TRY(nib_model_open(ops, &fp32, &model));
    nib_status status = evaluate(model, prompts, count, out);
    nib_model_close(model);
    return status;
}

static void compare_rows(const float *p, const float *q, int64_t V, nib_logit_difference *d)
{
    int64_t best_p = 0, best_q = 0;
    for (int64_t v = 0; v < V; v++) {
        double gap = (double)p[v] - (double)q[v];
        d->max_abs = fabs(gap) > d->max_abs ? fabs(gap) : d->max_abs;
        d->mean_kl += exp((double)p[v]) * gap;
        if (p[v] > p[best_p]) best_p = v;
        if (q[v] > q[best_q]) best_q = v;
    }
    d->same_best += best_p == best_q;
}

nib_status nib_export_difference(nib_ops *ops, const nib_model_options *first, const nib_model_options *second,
                                 const nib_prompt *prompts, int count, nib_logit_difference *difference)
{
    log_probabilities a = {0}, b = {0};
    nib_status status;
    *difference = (nib_logit_difference){0};
    NIB_TRY_GOTO(open_and_evaluate(ops, first, prompts, count, &a), done);
    NIB_TRY_GOTO(open_and_evaluate(ops, second, prompts, count, &b), done);
    if (a.V != b.V) {
        status = NIB_FAIL(NIB_ERROR_DATA, "%s has %lld ids and %s %lld: they cannot be compared", first->path,
                          (long long)a.V, second->path, (long long)b.V);
        goto done;
    }
    for (int64_t t = 0; t < a.positions; t++) compare_rows(a.values + t * a.V, b.values + t * a.V, a.V, difference);
    difference->positions = a.positions;
    difference->mean_kl /= (double)a.positions;
    difference->same_best /= (double)a.positions;
done:
    nib_free(a.values);
    nib_free(b.values);
    return status;
}
