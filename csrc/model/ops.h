/* The table of operations that a transformer step needs. The model (forward.c, backward.c) is written once against it;
 * a backend (csrc/cpu, cuda) is a filled-in table.
 *
 * Conventions
 *   - dims: T packed tokens of a micro-batch, C hidden, V vocabulary, NH heads, NKV key/value heads, HD head dim,
 *     F feed-forward, R rank, N targets.
 *   - A matrix is row-major; rows are `stride` elements apart. "Activation" means fp32 or bf16, the same in all
 *     activation arguments of one call; arithmetic is fp32 inside an op, rounded once on the way out.
 *   - Pointers are device pointers of the backend unless marked host.
 *   - Ops run in the order they are called (one stream); `synchronize` waits. On the CPU they are done on return.
 *   - Every op is deterministic: the same bits from the same inputs at any thread count.
 *   - An op returns NIB_ERROR_SHAPE, with a message that names op and shape, for what it does not support.
 *   - Temporaries come from ops->scratch, LIFO: an op leaves it as it found it.
 */
#ifndef NIB_OPS_H
#define NIB_OPS_H

#include "base/arena.h"
#include "base/bf16.h"
#include "base/status.h"
#include "formats/tensor_set.h"

typedef struct {
    void *data;
    int64_t rows, columns;
    int64_t stride;  /* elements between rows, >= columns */
    nib_dtype dtype; /* F32 or BF16 */
} nib_matrix;

/* Address of an element. */
static inline void *nib_matrix_at(nib_matrix matrix, int64_t row, int64_t column)
{
    return (char *)matrix.data + (row * matrix.stride + column) * (matrix.dtype == NIB_DTYPE_F32 ? 4 : 2);
}

/* View of `columns` columns from column `first` on, and of `rows` rows from row `first` on. */
nib_matrix nib_matrix_columns(nib_matrix matrix, int64_t first, int64_t columns);
nib_matrix nib_matrix_rows(nib_matrix matrix, int64_t first, int64_t rows);

/* The prefix tree of a micro-batch (packing.md): key k is visible to query q exactly when
 * k <= q && q < end[k] (and position[q] - position[k] < window, if window > 0). */
typedef struct {
    int64_t T;
    const int32_t *position; /* [T] depth in the tree = rotary position */
    const int32_t *end;      /* [T] first index after the subtree of the token's node */
} nib_tree;

/* NF4 (Dettmers et al., "QLoRA", 2023), in bitsandbytes' packing: high nibble first, blocks of 64 over the flattened
 * matrix, absmax per block either fp32 or double quantised (uint8 codes, nested blocks of 256). */
typedef struct {
    const uint8_t *codes;        /* [(rows * columns + 1) / 2] */
    const float *absmax;         /* [blocks], or NULL if double quantised */
    const uint8_t *absmax_codes; /* [blocks] */
    const float *nested_absmax;  /* [ceil(blocks / 256)] */
    const float *nested_map;     /* [256] */
    float nested_offset;
} nib_nf4;

/* DoRA (Liu et al., "DoRA: Weight-Decomposed Low-Rank Adaptation", 2024), as PEFT computes it: the part's outputs are
 * those of the weight whose rows are magnitude * v / ||v||, v = W + scale B A. The norm counts as a constant in the
 * gradient (section 4.3). All fp32 [n]. */
typedef struct {
    const float *magnitude;
    float *norm, *gain; /* ||v|| and magnitude / ||v||, written by dora_norm; gain NULL: plain LoRA */
    float *dmagnitude;  /* accumulated into; NULL: not trained */
} nib_dora;

/* One LoRA pair (Hu et al., 2021): y += scale * B (A dropout(x)). fp32 masters are held by the optimizer; a and b are
 * the copies in the activation type. rank 0: no adapter on this part. */
typedef struct {
    int64_t rank;
    float scale;
    nib_matrix a;   /* [R, K] activation type */
    nib_matrix b;   /* [n, R] activation type */
    float *da, *db; /* fp32 [R, K], [n, R], accumulated into; NULL: not trained */
    nib_dora dora;
} nib_lora;

/* One weight of the checkpoint: some rows of a linear. */
typedef struct {
    int64_t rows;      /* output features n of this part */
    nib_nf4 nf4;       /* base weight if codes != NULL, else: */
    nib_matrix dense;  /* [n, K] fp32 or bf16 */
    const float *bias; /* [n] fp32, or NULL */
    nib_lora lora;
    float *dweight; /* fp32 [n, K], accumulated into (full fine-tuning); NULL: frozen. Dense weights only. */
    float *dbias;   /* fp32 [n], likewise */
} nib_linear_part;

/* y[T, sum of rows] = x W^T + bias + LoRA: several weights that read the same x (q, k, v; gate, up) are one linear. */
#define NIB_LINEAR_MAX_PARTS 3
typedef struct {
    const char *name; /* for messages: "layers.3.qkv" */
    int64_t K;        /* input features */
    /* y's, dx's product with the base in 8-bit floating point, y's where there are many rows (nib_ops.fp8): NF4 parts
     * of a multiple of 16 rows, K too. */
    bool fp8_forward, fp8_backward;
    int parts;
    nib_linear_part part[NIB_LINEAR_MAX_PARTS];
} nib_linear;

int64_t nib_linear_outputs(const nib_linear *linear);      /* sum of rows */
int64_t nib_linear_ranks(const nib_linear *linear);        /* sum of ranks */
bool nib_linear_is_dora(const nib_linear *linear);         /* of any part */
int64_t nib_linear_padded_ranks(const nib_linear *linear); /* each rounded up to a multiple of 8 */
/* Columns that a backend may want beside x and dy, to make linear and adapters one product: the padded ranks, and 8 for
 * a bias. */
int64_t nib_linear_room(const nib_linear *linear);

/* LoRA dropout: element c of token t is dropped when uniform(philox(key, t, c)) < p, and kept elements are divided by
 * 1 - p; the mask is computed again in backward, never stored. The keys lie in memory, so that a step that is recorded
 * has other masks each time. */
typedef struct {
    float p;
    const uint64_t *key; /* [parts] of seed, step, micro-batch, linear and part; not read if p is 0 */
} nib_dropout;

typedef struct {
    int64_t heads, kv_heads, head_dim;
    float scale;    /* of q k^T, usually 1/sqrt(HD) */
    int64_t window; /* 0: none */
    float softcap;  /* 0: none; else softcap * tanh(score / softcap) */
} nib_attention_shape;

/* The targets of a micro-batch (packing.md). */
typedef struct {
    int64_t N;
    const int32_t *row;   /* [N] index into the packed array, ascending (several labels to a row allowed) */
    const int32_t *label; /* [N] */
    const float *weight;  /* [N] */
} nib_targets;

/* Keys that a query of the cached attention sees: rows first .. first + count of the cache. */
typedef struct {
    int32_t first, count;
} nib_cache_range;

/* How a token is chosen from its logits. */
typedef struct {
    double temperature; /* 0: greedy */
    double top_p;       /* 1: off */
    int64_t top_k;      /* 0: off */
    uint64_t seed;
} nib_sampling;

#define NIB_TREE_SUM_LEVELS 32 /* of the tree of slots, at most */

#define NIB_SAMPLE_WEIGHT_BITS 44
#define NIB_SAMPLE_VOCABULARY  (1 << 19) /* at most, so that the sum of all weights has 64 bits */

typedef struct {
    double learning_rate, beta1, beta2, epsilon, weight_decay;
    int64_t step; /* 1 for the first update */
} nib_adamw;

/* The same as the ops take it: from the backend's memory, so that a step that is recorded has another rate each time.
 */
typedef struct {
    float decay, beta1, beta2, rest1, rest2, step_size, root, epsilon;
} nib_adamw_factors;
nib_adamw_factors nib_adamw_factors_of(nib_adamw options);

/* The global norm of a step's gradients and what it makes of them, in the backend's memory, so that neither the step
 * nor the next need wait for it. scale: min(1, max_norm / (norm + 1e-6)), or 1 without clipping. missed: 1 if the norm
 * of the step before was not finite, else 0. Zeros before the first step. */
typedef struct {
    double norm;
    float scale;
    int32_t missed;
} nib_clip;

/* Which dims of a head rotary turns together: i and i + pairs (Llama as in transformers), or 2 i and 2 i + 1 (GPT-J).
 */
typedef enum { NIB_ROTARY_HALF_SPLIT, NIB_ROTARY_INTERLEAVED } nib_rotary_layout;

typedef enum { NIB_ACTIVATION_SILU, NIB_ACTIVATION_GELU_TANH, NIB_ACTIVATION_GELU } nib_activation;

/* AdamW's moments in 8 bits (Dettmers et al., "8-bit Optimizers via Block-wise Quantization", 2022), in bitsandbytes'
 * layout: value i is map[code[i]] * absmax[i / 256]. */
#define NIB_MOMENT_BLOCK 256
typedef struct {
    uint8_t *first, *second;             /* codes [n] */
    float *first_absmax, *second_absmax; /* [ceil(n / 256)] */
    const float *maps;                   /* [2][256]: nib_nf4_dynamic_map, nib_dynamic_map_unsigned */
} nib_moments_8bit;

typedef struct nib_recording nib_recording;

/* Queues beside the one of the ops. */
typedef enum {
    NIB_SIDE_GATHERS,   /* layers of a divided base, brought a layer ahead */
    NIB_SIDE_GRADIENTS, /* sums over ranks, while the backward pass goes on */
    NIB_SIDES
} nib_side;

typedef struct nib_ops nib_ops;
struct nib_ops {
    const char *name;   /* "cpu", "cuda", "emulated" */
    const char *device; /* one line: what it computes on */
    void *context;      /* the backend's own */
    bool rehearsal;     /* touches no tensor, only counts (model/rehearsal.h): there is nothing to load */
    bool bf16_only;     /* activations have to be bf16 */
    bool fp8;           /* linears may be fp8 */
    bool uses_room;     /* linears want room beside x and dy (nib_linear_room) */
    /* Training's micro-batches are filled up to multiples of this many tokens and targets, so that few shapes are met;
     * 0 or 1: they are taken as they are. */
    int64_t shape_step;
    nib_arena *scratch;
    void *queue; /* what runs the ops one after the other, as the device's other libraries take it; NULL: the host */

    /* Kernels of which there are two: a fast one, made for this device, and a plain one, its oracle and its fallback.
     * use_plain: from now on choice i is computed by the plain one where bit i of `mask` is set, else by the fast one.
     */
    int choices;
    const char *const *choice; /* [choices] names */
    void (*use_plain)(nib_ops *ops, uint32_t mask);
    uint32_t plain; /* the mask in use */

    /* Which algorithm computes a product is found by measuring, and decides bits. From now on it is the one that
     * `folder` names, if such a device with such libraries has left it there; what is found now is left there too.
     * NULL: there is nothing to choose. */
    nib_status (*keep_algorithms)(nib_ops *ops, const char *folder);

    void (*close)(nib_ops *ops); /* gives back the backend itself; NULL is allowed */
    /* The same ops over a counting scratch arena, which they take and leave, doing nothing else; those that take none
     * may be NULL. For model/rehearsal.h. */
    nib_status (*rehearse)(nib_ops *ops, nib_ops **dry);
    /* Bytes that could still be allocated. NULL: the backend's memory is the process's own. */
    nib_status (*memory_left)(nib_ops *ops, size_t *bytes);

    /* Memory. An arena's block comes from here (base/arena.h). */
    nib_status (*allocate)(nib_ops *ops, const char *name, size_t bytes, void **block);
    void (*release)(nib_ops *ops, void *block, size_t bytes);
    nib_status (*upload)(nib_ops *ops, void *to, const void *host, size_t bytes);     /* host may change on return */
    nib_status (*download)(nib_ops *ops, void *host, const void *from, size_t bytes); /* waits */
    /* As download, but host is filled only when synchronize has returned: a step's figures, which it does not wait for.
     */
    nib_status (*fetch)(nib_ops *ops, void *host, const void *from, size_t bytes);
    nib_status (*zero)(nib_ops *ops, void *block, size_t bytes);
    nib_status (*synchronize)(nib_ops *ops);
    /* mark: a number for all that was fetched so far. await: what was fetched before the mark has come, as after
     * synchronize; what was asked of the ops since may still be under way. */
    uint64_t (*mark)(nib_ops *ops);
    nib_status (*await)(nib_ops *ops, uint64_t mark);
    /* The ops between begin and end are not done but kept: with the pointers, sizes and numbers that they were given;
     * each replay does them all. They have to be ops that never wait (no upload, download, fetch, synchronize), and to
     * have been done before in the same shapes. *recording NULL, and what happened between is forgotten, if one of them
     * could not be kept. NULL: the backend has no such thing. */
    nib_status (*record_begin)(nib_ops *ops);
    nib_status (*record_end)(nib_ops *ops, nib_recording **recording);
    nib_status (*replay)(nib_ops *ops, nib_recording *recording);
    void (*recording_free)(nib_ops *ops, nib_recording *recording);
    /* Queues for what moves bytes beside the ops. fork: what is asked of *queue from now on comes after all that was
     * asked of the ops and of the other such queue. join: what is asked of the ops from now on comes after all that was
     * asked of that queue. Neither waits, nor may it come between record_begin and record_end. These three are NULL
     * where queue is. */
    nib_status (*fork)(nib_ops *ops, nib_side side, void **queue);
    nib_status (*join)(nib_ops *ops, nib_side side);
    /* From now on ops are asked of this queue of fork's (NULL: of their own again), and run beside those asked before.
     * For ops that take no scratch. */
    void (*aside)(nib_ops *ops, void *queue);
    /* to = from in to's type, element by element. */
    nib_status (*convert)(nib_ops *ops, nib_matrix from, nib_matrix to);
    /* The fixed-order sum of gradient slots: to = x + left[0] + ... + left[count - 1], in this order, each addition
     * rounded, and then x = 0 unless to is x; to may be one of left. fp32, n elements; left host, 0 <= count <=
     * NIB_TREE_SUM_LEVELS. */
    nib_status (*tree_sum)(nib_ops *ops, float *x, int count, const float *const *left, int64_t n, float *to);

    /* x[t] = scale * table[token[t]]; table [V, C] bf16 or fp32, x [T, C] activation. */
    nib_status (*embedding_forward)(nib_ops *ops, const int32_t *token, nib_matrix table, float scale, nib_matrix x);
    /* dtable[token[t]] += scale * dx[t], in order of t; a token below 0 has no row. dtable fp32 dense, [V, C] or as
     * many rows as the tokens name. */
    nib_status (*embedding_backward)(nib_ops *ops, const int32_t *token, nib_matrix dx, float scale, float *dtable);

    /* RMSNorm (Zhang & Sennrich, 2019) with the residual add before it: if delta is not NULL, x += delta (rounded to
     * the activation type), then y = x / sqrt(mean(x^2) + epsilon) * weight. x [T, C] in and out, y [T, C]. A row is
     * `groups` pieces of C / groups columns, each normed by itself, weight fp32 [C / groups]: 1, or the heads of
     * queries and keys. y.data may be NULL: only the add. */
    nib_status (*rmsnorm_forward)(nib_ops *ops, nib_matrix x, const nib_matrix *delta, int64_t groups,
                                  const float *weight, float epsilon, nib_matrix y);
    /* dx += d/dx of the norm at x (the sum after the residual add), given dy. dweight fp32 [C / groups] accumulated
     * into, or NULL. */
    nib_status (*rmsnorm_backward)(nib_ops *ops, nib_matrix x, int64_t groups, const float *weight, float epsilon,
                                   nib_matrix dy, nib_matrix dx, float *dweight);

    /* LayerNorm (Ba et al., 2016) after the same residual add: y = (x - mean(x)) / sqrt(mean((x - mean(x))^2) +
     * epsilon)
     * * weight + bias. weight, bias fp32 [C]; bias may be NULL. */
    nib_status (*layernorm_forward)(nib_ops *ops, nib_matrix x, const nib_matrix *delta, const float *weight,
                                    const float *bias, float epsilon, nib_matrix y);
    /* dx += d/dx of the norm at x, given dy. dweight and dbias fp32 [C] accumulated into, each may be NULL. */
    nib_status (*layernorm_backward)(nib_ops *ops, nib_matrix x, const float *weight, float epsilon, nib_matrix dy,
                                     nib_matrix dx, float *dweight, float *dbias);

    /* table fp32 [T, 2 * pairs]: cos then sin of position[t] * frequency[i], times scale; frequency fp32 [pairs]. */
    nib_status (*rotary_table)(nib_ops *ops, const int32_t *position, int64_t T, const float *frequency, int64_t pairs,
                               float scale, float *table);
    /* In place, per head of x [T, heads * HD]: the first 2 * pairs dims are rotated; inverse: by the negative angle
     * (that is the gradient). */
    nib_status (*rotary)(nib_ops *ops, nib_matrix x, int64_t heads, int64_t head_dim, const float *table, int64_t pairs,
                         nib_rotary_layout layout, bool inverse);

    /* out [T, NH*HD]; q [T, NH*HD], k and v [T, NKV*HD]; lse fp32 [NH, T] = log-sum-exp of the scaled scores of each
     * query, for the backward pass; may be NULL. Tiles that the tree rule empties are not visited. */
    nib_status (*attention_forward)(nib_ops *ops, nib_attention_shape shape, nib_tree tree, nib_matrix q, nib_matrix k,
                                    nib_matrix v, nib_matrix out, float *lse);
    nib_status (*attention_backward)(nib_ops *ops, nib_attention_shape shape, nib_tree tree, nib_matrix q, nib_matrix k,
                                     nib_matrix v, nib_matrix out, const float *lse, nib_matrix dout, nib_matrix dq,
                                     nib_matrix dk, nib_matrix dv);
    /* Generation: query i (row of q) sees the cache rows of range[range_begin[i]] .. range[range_begin[i + 1] - 1]
     * (host arrays; with a window, only the last `window` keys in that order). k, v: the cache, [capacity, NKV*HD]. */
    nib_status (*attention_cached)(nib_ops *ops, nib_attention_shape shape, nib_matrix q, nib_matrix k, nib_matrix v,
                                   const int32_t *range_begin, const nib_cache_range *range, nib_matrix out);

    /* y = x W^T + bias + LoRA. x [T, K], y [T, outputs]. u [T, ranks] activation: A dropout(x) of every part, kept for
     * the backward pass (u.data may be NULL if the linear has no adapter). Few rows take a matvec path that never
     * writes dequantised weights to memory. x may be wider than K: the columns behind K are the op's to write in, and
     * nib_linear_room of them save a backend a copy of x; likewise behind the outputs in dy below.
     * DoRA: y = gain (W x + LoRA) + bias. Under dropout the part that gain changes sees what LoRA sees, as in PEFT:
     * y = W x + (gain - 1) W dropout(x) + gain LoRA + bias. */
    nib_status (*linear_forward)(nib_ops *ops, const nib_linear *linear, nib_matrix x, nib_dropout dropout,
                                 nib_matrix u, nib_matrix y);
    /* dx = dy W + du A (+ dx before, if accumulate); da, db, dmagnitude, dweight, dbias accumulated into. dx.data may
     * be NULL. */
    nib_status (*linear_backward)(nib_ops *ops, const nib_linear *linear, nib_matrix x, nib_dropout dropout,
                                  nib_matrix u, nib_matrix dy, bool accumulate, nib_matrix dx);

    /* norm and gain of a DoRA part's rows, from W [n, K], its adapter and its magnitude; after every change of these. A
     * row that is zero has no direction: its gain is 0. NULL: the backend has no DoRA. */
    nib_status (*dora_norm)(nib_ops *ops, const nib_linear_part *part, int64_t K);

    /* h = activation(gate) * up (Shazeer, "GLU Variants", 2020); gate_up [T, 2F]: gate left, up right; h [T, F]. */
    nib_status (*glu_forward)(nib_ops *ops, nib_activation activation, nib_matrix gate_up, nib_matrix h);
    /* d(gate_up) from dh, written over gate_up. */
    nib_status (*glu_backward)(nib_ops *ops, nib_activation activation, nib_matrix dh, nib_matrix gate_up);

    /* nll[i] = -log softmax(head x[row[i]])[label[i]] (fp32 [N]; logits with soft-cap if softcap > 0), in chunks of
     * rows, so that all logits never exist. If dx.data is not NULL: dx [T, C] = gradient of
     * gradient_scale * sum(weight[i] * nll[i]), rows without a target zero; dhead fp32 [V, C] accumulated into, or
     * NULL. head [V, C]. */
    nib_status (*linear_cross_entropy)(nib_ops *ops, nib_matrix x, nib_matrix head, float softcap, nib_targets targets,
                                       float gradient_scale, float *nll, nib_matrix dx, float *dhead);
    /* drows[i] += the gradient of that sum with respect to row[i] of the head, which has no soft-cap, from the nll that
     * linear_cross_entropy has found; drows fp32 [n, C], row [n] without repetition. */
    nib_status (*head_rows_backward)(nib_ops *ops, nib_matrix x, nib_matrix head, nib_targets targets,
                                     float gradient_scale, const float *nll, int64_t n, const int32_t *row,
                                     float *drows);
    /* logits fp32 [rows, V] = x head^T (soft-capped). */
    nib_status (*logits)(nib_ops *ops, nib_matrix x, nib_matrix head, float softcap, float *logits);

    /* id[i] = a token chosen by logits [rows, V] fp32, or -1 if a logit of the row is NaN or infinite. position [rows]
     * host, id [rows]. At temperature 0 the largest logit's, of equal ones the lowest id. Otherwise in the order of
     * transformers' warpers: logits are divided by the temperature, the top_k largest are kept, of these the smallest
     * set of the likeliest whose probabilities sum to top_p (Holtzman et al., "The Curious Case of Neural Text
     * Degeneration", 2020; of equal logits the lower id is kept first), and one is drawn.
     * Every backend draws the same: a weight is floor(2^44 exp((logit - largest) / temperature)) by the operations of
     * cpu/sample.c in fp32, so that sums are whole numbers, exact in any order; and the token is the first, in order of
     * ids, at which the sum of the kept weights passes floor(r total), r the first 64 bits of Philox at (seed,
     * position). So a sequence's text does not depend on what else is in its batch. */
    nib_status (*sample)(nib_ops *ops, nib_sampling sampling, const float *logits, int64_t rows, int64_t V,
                         const int64_t *position, int32_t *id);

    /* NF4 of n values from fp32: codes [(n+1)/2], absmax fp32 [ceil(n/64)]; and of the absmax: codes, nested absmax,
     * offset (the mean, host), with bitsandbytes' dynamic map. Bit-exact with bitsandbytes. */
    nib_status (*nf4_quantize)(nib_ops *ops, const float *weight, int64_t n, uint8_t *codes, float *absmax);
    nib_status (*nf4_quantize_absmax)(nib_ops *ops, const float *absmax, int64_t blocks, const float *nested_map,
                                      uint8_t *absmax_codes, float *nested_absmax, float *nested_offset);
    /* out [rows, columns] bf16 or fp32 (fp32 holds the bf16-rounded value, as QLoRA computes with it). */
    nib_status (*nf4_dequantize)(nib_ops *ops, const nib_nf4 *weight, nib_matrix out);

    /* clip->norm = sqrt of the sum of squares of all arrays, in a fixed order, accumulated in double; clip->scale for
     * max_norm (0: no clipping); clip->missed from the norm that was there. */
    nib_status (*global_norm)(nib_ops *ops, int count, float *const *array, const int64_t *length, double max_norm,
                              nib_clip *clip);
    /* AdamW as PyTorch's (Loshchilov & Hutter, 2019); the gradient is multiplied by clip->scale first. fp32 [n].
     * Changes nothing if clip->norm is not finite. factors [2], of which the step takes factors[clip->missed]: whether
     * the step before counts for its bias correction need not be known where it is asked for. */
    nib_status (*adamw)(nib_ops *ops, const nib_adamw_factors *factors, const nib_clip *clip, int64_t n,
                        float *parameter, const float *gradient, float *first_moment, float *second_moment);
    /* The same with moments of 8 bits: they are widened, the step is taken with the new moments in fp32, then these are
     * quantised: absmax of the block, and of value / absmax the nearest of the map, of two as near the lower. A second
     * moment above 0 is never rounded to 0, where bitsandbytes' CUDA does so: a first moment that is left would be
     * divided by epsilon in a step without gradient (the embedding's row of a token that does not occur). Zeros at the
     * start are code 0 and absmax 0. */
    nib_status (*adamw_8bit)(nib_ops *ops, const nib_adamw_factors *factors, const nib_clip *clip, int64_t n,
                             float *parameter, const float *gradient, nib_moments_8bit moments);
};

/* The 16 NF4 values, and bitsandbytes' signed dynamic map of 256 values (Dettmers et al., "8-bit Optimizers", 2021);
 * defined in model/nf4_tables.c. */
extern const float nib_nf4_values[16];
extern const float nib_nf4_dynamic_map[256];
extern const float nib_dynamic_map_unsigned[256];

#endif
