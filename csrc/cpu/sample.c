#include "cpu/sample.h"
#include "base/random.h"
#include "cpu/backend_internal.h"
#include "cpu/vector.h"

#include <float.h>
#include <math.h>

typedef struct {
    float logit;
    int32_t id;
} candidate;

/* weight = floor(2^44 2^((logit - largest) * rate)) */
typedef struct {
    float largest, rate;
} weighting;

static bool before(candidate a, candidate b) { return a.logit > b.logit || (a.logit == b.logit && a.id < b.id); }

/* Restores the heap (first of all at the root) below node i. */
static void sift_down(candidate *heap, int64_t count, int64_t i)
{
    candidate moved = heap[i];
    for (int64_t child; (child = 2 * i + 1) < count; i = child) {
        if (child + 1 < count && before(heap[child + 1], heap[child])) child++;
        if (!before(heap[child], moved)) break;
        heap[i] = heap[child];
    }
    heap[i] = moved;
}

/* Moves the first candidate of a heap to its end, where popped ones gather in reverse order; returns it. */
static candidate pop(candidate *heap, int64_t *count)
{
    candidate first = heap[0];
    heap[0] = heap[--*count];
    heap[*count] = first;
    if (*count > 0) sift_down(heap, *count, 0);
    return first;
}

/* Every operation rounded by itself, without the C library's exponential: the same integer on every machine. */
static uint64_t weight(weighting w, float logit)
{
    const float x = (logit - w.largest) * w.rate;
    if (!(x >= -NIB_SAMPLE_WEIGHT_BITS)) return 0; /* below 1 */
    const float whole = rintf(x), r = (x - whole) * 0.693147181f;
    float sum = nib_exp_term[0];
    for (int i = 1; i < NIB_EXP_TERMS; i++) sum = sum * r + nib_exp_term[i];
    return (uint64_t)ldexpf((sum * (r * r) + r) + 1.0f, NIB_SAMPLE_WEIGHT_BITS + (int)whole);
}

static uint64_t share_of(double share, uint64_t total)
{
    const uint64_t wanted = (uint64_t)ceil(share * (double)total);
    return wanted < 1 ? 1 : wanted < total ? wanted : total;
}

/* The last of the kept candidates, in the order of `before`. heap [V], overwritten. */
static candidate last_kept(candidate *heap, int64_t V, const nib_sampling *options, weighting w)
{
    const int64_t limit = options->top_k > 0 && options->top_k < V ? options->top_k : V;
    int64_t left = V, count = 0;
    uint64_t total = 0, kept = 0;
    for (int64_t i = V / 2 - 1; i >= 0; i--) sift_down(heap, V, i);
    while (limit < V && V - left < limit) pop(heap, &left);
    for (int64_t i = limit < V ? left : 0; i < V; i++) total += weight(w, heap[i].logit);
    const uint64_t wanted = share_of(options->top_p, total);
    while (count < limit && kept < wanted) {
        if (limit == V) pop(heap, &left);
        kept += weight(w, heap[V - ++count].logit);
    }
    return heap[V - count];
}

/* The high 64 bits of a b. */
static uint64_t multiply_high(uint64_t a, uint64_t b)
{
    const uint64_t mask = 0xffffffffu, low = (a & mask) * (b & mask), cross = (a >> 32) * (b & mask) + (low >> 32);
    const uint64_t other = (a & mask) * (b >> 32) + (cross & mask);
    return (a >> 32) * (b >> 32) + (cross >> 32) + (other >> 32);
}

/* The first id at which the sum of kept weights passes a random share of their total. */
static int32_t draw(const float *logits, int64_t V, weighting w, const candidate *last, uint64_t seed, int64_t position)
{
    uint32_t word[4];
    uint64_t total = 0, sum = 0;
    int32_t id = 0;
    nib_philox(seed, 0, (uint64_t)position, word);
    for (int32_t v = 0; v < V; v++)
        if (last == NULL || !before(*last, (candidate){logits[v], v})) total += weight(w, logits[v]);
    const uint64_t target = multiply_high((uint64_t)word[0] << 32 | word[1], total);
    for (int32_t v = 0; sum <= target; v++)
        if (last == NULL || !before(*last, (candidate){logits[v], v})) {
            sum += weight(w, logits[v]);
            id = v;
        }
    return id;
}

/* The first of the largest; -1 if any is NaN or infinite. */
NIB_CPU_CLONES static int32_t first_largest(const float *logits, int64_t V)
{
    nib_v16 top = nib_v16_set(-INFINITY), finite = nib_v16_set(0.0f);
    float lanes[16], largest = -INFINITY, rest = 0.0f;
    int64_t v = 0;
    for (; v + 16 <= V; v += 16) {
        const nib_v16 x = *(const nib_v16 *)(logits + v);
        top = nib_v16_max(top, x);
        finite += x - x; /* 0, else NaN */
    }
    memcpy(lanes, &top, sizeof lanes);
    for (int i = 0; i < 16; i++) largest = lanes[i] > largest ? lanes[i] : largest;
    for (; v < V; v++) {
        largest = logits[v] > largest ? logits[v] : largest;
        rest += logits[v] - logits[v];
    }
    if (!isfinite(nib_v16_sum(finite) + rest)) return -1;
    int32_t first = 0;
    while (logits[first] != largest) first++;
    return first;
}

static int32_t sample_row(const nib_sampling *options, const float *logits, int64_t V, int64_t position,
                          candidate *heap)
{
    const int32_t best = first_largest(logits, V);
    if (best < 0 || options->temperature <= 0.0) return best;
    const weighting w = {logits[best], (float)fmin(1.44269504088896340736 / options->temperature, FLT_MAX)};
    if (options->top_k == 0 && options->top_p >= 1.0) return draw(logits, V, w, NULL, options->seed, position);
    for (int32_t v = 0; v < V; v++) heap[v] = (candidate){logits[v], v};
    const candidate last = last_kept(heap, V, options, w);
    return draw(logits, V, w, &last, options->seed, position);
}

nib_status nib_cpu_sample(nib_ops *ops, nib_sampling sampling, const float *logits, int64_t rows, int64_t V,
                          const int64_t *position, int32_t *id)
{
    const size_t mark = ops->scratch->used;
    candidate *heap;
    if (V < 1 || V > NIB_SAMPLE_VOCABULARY)
        return NIB_FAIL(NIB_ERROR_SHAPE, "sample: a vocabulary of %lld, expected 1 to %d", (long long)V,
                        NIB_SAMPLE_VOCABULARY);
    NIB_TRY(nib_arena_take(ops->scratch, V, sizeof *heap, &heap));
    for (int64_t i = 0; i < rows && !ops->rehearsal; i++)
        id[i] = sample_row(&sampling, logits + i * V, V, position[i], heap);
    nib_arena_reset(ops->scratch, mark);
    return NIB_OK;
}
