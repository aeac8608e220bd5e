#include "model/sampler.h"
#include "base/random.h"

#include <math.h>

static bool before(nib_candidate a, nib_candidate b)
{
    return a.logit > b.logit || (a.logit == b.logit && a.id < b.id);
}

/* Restores the heap (first of all at the root) below node i. */
static void sift_down(nib_candidate *heap, int64_t count, int64_t i)
{
    nib_candidate moved = heap[i];
    for (int64_t child; (child = 2 * i + 1) < count; i = child) {
        if (child + 1 < count && before(heap[child + 1], heap[child])) child++;
        if (!before(heap[child], moved)) break;
        heap[i] = heap[child];
    }
    heap[i] = moved;
}

/* Moves the first candidate of a heap to its end, where popped ones gather in reverse order; returns it. */
static nib_candidate pop(nib_candidate *heap, int64_t *count)
{
    nib_candidate first = heap[0];
    heap[0] = heap[--*count];
    heap[*count] = first;
    if (*count > 0) sift_down(heap, *count, 0);
    return first;
}

static double uniform(uint64_t seed, int64_t position)
{
    uint32_t word[4];
    nib_philox(seed, 0, (uint64_t)position, word);
    return ((double)word[0] + (double)word[1] / 4294967296.0) / 4294967296.0;
}

/* The candidate at which the running sum of weights passes the target; candidates are `step` apart. */
static int32_t draw(const nib_candidate *candidate, int64_t count, int step, float largest, double temperature,
                    double target)
{
    double sum = 0.0;
    for (int64_t i = 0; i < count; i++) {
        sum += exp(((double)candidate[step * i].logit - (double)largest) / temperature);
        if (sum > target) return candidate[step * i].id;
    }
    return candidate[step * (count - 1)].id;
}

/* Sum of the weights, that of the largest logit being 1. */
static double total_weight(const nib_candidate *candidate, int64_t count, float largest, double temperature)
{
    double sum = 0.0;
    for (int64_t i = 0; i < count; i++) sum += exp(((double)candidate[i].logit - (double)largest) / temperature);
    return sum;
}

static int32_t sample_best(nib_candidate *heap, int64_t V, const nib_generate_options *options, float largest, double u)
{
    int64_t left = V, limit = options->top_k > 0 && options->top_k < V ? options->top_k : V;
    for (int64_t i = V / 2 - 1; i >= 0; i--) sift_down(heap, V, i);
    if (limit < V)
        while (V - left < limit) pop(heap, &left);
    double total = total_weight(heap + (limit < V ? V - limit : 0), limit, largest, options->temperature);
    double kept = 0.0, wanted = options->top_p * total;
    int64_t count = 0;
    while (count < limit && (count == 0 || kept < wanted)) {
        if (limit == V) pop(heap, &left);
        kept += exp(((double)heap[V - 1 - count++].logit - (double)largest) / options->temperature);
    }
    return draw(heap + V - 1, count, -1, largest, options->temperature, u * kept);
}

nib_status nib_sample(const float *logits, int64_t V, const nib_generate_options *options, int64_t position,
                      nib_candidate *work, int32_t *id)
{
    int64_t best = 0;
    bool finite = true;
    for (int64_t v = 0; v < V; v++) {
        finite = finite && isfinite(logits[v]);
        if (logits[v] > logits[best]) best = v;
    }
    if (!finite)
        return NIB_FAIL(NIB_ERROR_DATA,
                        "the model's logits after %lld tokens are NaN or infinite; the weights or the "
                        "adapter are damaged",
                        (long long)position);
    *id = (int32_t)best;
    if (options->temperature <= 0.0) return NIB_OK;
    double u = uniform(options->seed, position);
    for (int64_t v = 0; v < V; v++) work[v] = (nib_candidate){logits[v], (int32_t)v};
    if (options->top_k > 0 || options->top_p < 1.0)
        *id = sample_best(work, V, options, logits[best], u);
    else
        *id = draw(work, V, 1, logits[best], options->temperature,
                   u * total_weight(work, V, logits[best], options->temperature));
    return NIB_OK;
}
