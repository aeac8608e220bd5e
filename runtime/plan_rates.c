#include "plan_rates.h"
#include "train.h"

#define MOST_OPERATIONS 4e9 /* of one measured op, so that a large model is measured in seconds */
#define MOST_HEAD_ROWS  16384
#define MOST_TOKENS     512

/* Operands of the measured ops, all zero: the speed does not depend on values. */
typedef struct {
    nib_ops *ops;
    const nib_model_config *config;
    nib_dtype dtype;
    int64_t T, loss_rows, head_rows, rank;
    nib_arena arena;
    nib_linear plain, adapted; /* gate and up as one linear, without and with LoRA */
    nib_matrix x, dx, u, gate_up, h, qkv, dqkv, attention, dattention, head, hidden;
    float *lse, *norm, *nll, *values[4];
    int32_t *position, *end, *row, *label;
    float *weight;
    nib_clip *clip;
    nib_adamw_factors *factors;
} bench;

static nib_status take(bench *b, int64_t rows, int64_t columns, nib_dtype dtype, nib_matrix *matrix)
{
    *matrix = (nib_matrix){.rows = rows, .columns = columns, .stride = columns, .dtype = dtype};
    return nib_arena_take(&b->arena, rows * columns, dtype == NIB_DTYPE_F32 ? 4 : 2, &matrix->data);
}

static nib_status place_linear(bench *b, bool nf4)
{
    int64_t N = 2 * b->config->feed_forward, K = b->config->hidden, R = b->rank;
    nib_linear_part *part = &b->plain.part[0];
    b->plain = (nib_linear){.name = "measured", .K = K, .parts = 1, .part[0].rows = N};
    if (nf4) {
        uint8_t *codes;
        float *absmax;
        NIB_TRY(nib_arena_take(&b->arena, (N * K + 1) / 2, 1, &codes));
        NIB_TRY(nib_arena_take(&b->arena, (N * K + 63) / 64, sizeof *absmax, &absmax));
        part->nf4 = (nib_nf4){.codes = codes, .absmax = absmax};
    } else {
        NIB_TRY(take(b, N, K, NIB_DTYPE_BF16, &part->dense));
    }
    b->adapted = b->plain;
    nib_lora *lora = &b->adapted.part[0].lora;
    *lora = (nib_lora){.rank = R, .scale = 1};
    NIB_TRY(take(b, R, K, b->dtype, &lora->a));
    NIB_TRY(take(b, N, R, b->dtype, &lora->b));
    NIB_TRY(nib_arena_take(&b->arena, R * K, sizeof(float), &lora->da));
    NIB_TRY(nib_arena_take(&b->arena, N * R, sizeof(float), &lora->db));
    return take(b, b->T, R, b->dtype, &b->u);
}

static nib_status place(bench *b, bool nf4)
{
    const nib_model_config *c = b->config;
    int64_t T = b->T, q = c->heads * c->head_dim, kv = c->kv_heads * c->head_dim;
    NIB_TRY(place_linear(b, nf4));
    NIB_TRY(take(b, T, c->hidden, b->dtype, &b->x));
    NIB_TRY(take(b, T, c->hidden, b->dtype, &b->dx));
    NIB_TRY(take(b, T, c->hidden, b->dtype, &b->hidden));
    NIB_TRY(take(b, T, 2 * c->feed_forward, b->dtype, &b->gate_up));
    NIB_TRY(take(b, T, c->feed_forward, b->dtype, &b->h));
    NIB_TRY(take(b, T, q + 2 * kv, b->dtype, &b->qkv));
    NIB_TRY(take(b, T, q + 2 * kv, b->dtype, &b->dqkv));
    NIB_TRY(take(b, T, q, b->dtype, &b->attention));
    NIB_TRY(take(b, T, q, b->dtype, &b->dattention));
    NIB_TRY(take(b, b->head_rows, c->hidden, NIB_DTYPE_BF16, &b->head));
    NIB_TRY(nib_arena_take(&b->arena, c->heads * T, sizeof(float), &b->lse));
    NIB_TRY(nib_arena_take(&b->arena, c->hidden, sizeof(float), &b->norm));
    NIB_TRY(nib_arena_take(&b->arena, T, sizeof(float), &b->nll));
    NIB_TRY(nib_arena_take(&b->arena, T, sizeof(float), &b->weight));
    for (int i = 0; i < 4; i++) NIB_TRY(nib_arena_take(&b->arena, T * c->hidden, sizeof(float), &b->values[i]));
    NIB_TRY(nib_arena_take(&b->arena, T, sizeof(int32_t), &b->position));
    NIB_TRY(nib_arena_take(&b->arena, T, sizeof(int32_t), &b->end));
    NIB_TRY(nib_arena_take(&b->arena, T, sizeof(int32_t), &b->row));
    NIB_TRY(nib_arena_take(&b->arena, T, sizeof(int32_t), &b->label));
    NIB_TRY(nib_arena_take(&b->arena, 1, sizeof *b->clip, &b->clip));
    return nib_arena_take(&b->arena, 1, sizeof *b->factors, &b->factors);
}

static nib_status run_linear(bench *b, const nib_linear *linear)
{
    nib_matrix u = linear->part[0].lora.rank > 0 ? b->u : (nib_matrix){0};
    NIB_TRY(b->ops->linear_forward(b->ops, linear, b->x, (nib_dropout){0}, u, b->gate_up));
    return b->ops->linear_backward(b->ops, linear, b->x, (nib_dropout){0}, u, b->gate_up, false, b->dx);
}

static nib_status run_plain(bench *b) { return run_linear(b, &b->plain); }

static nib_status run_fp8(bench *b)
{
    nib_linear linear = b->plain;
    linear.fp8_forward = linear.fp8_backward = true;
    return run_linear(b, &linear);
}

static nib_status run_adapted(bench *b) { return run_linear(b, &b->adapted); }

static nib_status run_attention(bench *b)
{
    const nib_model_config *c = b->config;
    int64_t q = c->heads * c->head_dim, kv = c->kv_heads * c->head_dim;
    nib_attention_shape shape = {.heads = c->heads, .kv_heads = c->kv_heads, .head_dim = c->head_dim, .scale = 1};
    nib_tree tree = {.T = b->T, .position = b->position, .end = b->end};
    nib_matrix Q = nib_matrix_columns(b->qkv, 0, q), dQ = nib_matrix_columns(b->dqkv, 0, q);
    nib_matrix K = nib_matrix_columns(b->qkv, q, kv), dK = nib_matrix_columns(b->dqkv, q, kv);
    nib_matrix V = nib_matrix_columns(b->qkv, q + kv, kv), dV = nib_matrix_columns(b->dqkv, q + kv, kv);
    NIB_TRY(b->ops->attention_forward(b->ops, shape, tree, Q, K, V, b->attention, b->lse));
    return b->ops->attention_backward(b->ops, shape, tree, Q, K, V, b->attention, b->lse, b->dattention, dQ, dK, dV);
}

static nib_status run_loss(bench *b)
{
    nib_targets targets = {.N = b->loss_rows, .row = b->row, .label = b->label, .weight = b->weight};
    return b->ops->linear_cross_entropy(b->ops, b->x, b->head, 0.0f, targets, 1.0f, b->nll, b->dx, NULL);
}

static nib_status run_elementwise(bench *b)
{
    NIB_TRY(b->ops->glu_forward(b->ops, b->config->activation, b->gate_up, b->h));
    NIB_TRY(b->ops->glu_backward(b->ops, b->config->activation, b->h, b->gate_up));
    return b->ops->rmsnorm_forward(b->ops, b->x, &b->hidden, 1, b->norm, 1e-5f, b->dx);
}

static nib_status run_optimizer(bench *b)
{
    return b->ops->adamw(b->ops, b->factors, b->clip, b->T * b->config->hidden, b->values[0], b->values[1],
                         b->values[2], b->values[3]);
}

/* The better of two runs after one that makes code and touches pages. */
static nib_status seconds_of(bench *b, nib_status (*run)(bench *), double *seconds)
{
    for (int i = 0; i < 3; i++) {
        double start = nib_train_clock();
        NIB_TRY(run(b));
        NIB_TRY(b->ops->synchronize(b->ops));
        double taken = nib_train_clock() - start;
        if (i < 2 || taken < *seconds) *seconds = taken;
    }
    return NIB_OK;
}

static double element_bytes(nib_matrix m) { return (double)(m.rows * m.columns) * (m.dtype == NIB_DTYPE_F32 ? 4 : 2); }

static nib_status measure(bench *b, bool fp8, nib_rates *rates)
{
    const nib_model_config *c = b->config;
    double T = (double)b->T, C = (double)c->hidden, F = (double)c->feed_forward, R = (double)b->rank;
    double plain, narrow, adapted, attention, loss, elementwise, optimizer;
    NIB_TRY(seconds_of(b, run_plain, &plain));
    NIB_TRY(seconds_of(b, fp8 ? run_fp8 : run_plain, &narrow));
    NIB_TRY(seconds_of(b, run_adapted, &adapted));
    NIB_TRY(seconds_of(b, run_attention, &attention));
    NIB_TRY(seconds_of(b, run_loss, &loss));
    NIB_TRY(seconds_of(b, run_elementwise, &elementwise));
    NIB_TRY(seconds_of(b, run_optimizer, &optimizer));
    double added = adapted > plain ? adapted - plain : 1e-9;
    double moved = 3 * element_bytes(b->gate_up) + 2 * element_bytes(b->h) + 4 * element_bytes(b->x);
    *rates = (nib_rates){.base = 8 * T * C * F / plain,
                         .fp8 = 8 * T * C * F / narrow,
                         .lora = 6 * T * R * (C + 2 * F) / added,
                         .attention = 14 * T * (T + 1) / 2 * (double)(c->heads * c->head_dim) / attention,
                         .loss = 4 * (double)(b->loss_rows * b->head_rows) * C / loss,
                         .elementwise = moved / elementwise,
                         .optimizer = 28 * T * C / optimizer};
    return NIB_OK;
}

static int64_t clamp(double value, int64_t least, int64_t most)
{
    return value < (double)least ? least : value > (double)most ? most : (int64_t)value;
}

nib_status nib_rates_measure(nib_ops *ops, const nib_model_options *options, const nib_model_config *c, int64_t T,
                             nib_rates *rates)
{
    bench b = {.ops = ops, .config = c, .dtype = options->compute, .arena = {.name = "measured"}};
    bool nf4 = options->quantization == NIB_QUANT_NF4;
    void *block = NULL;
    size_t bytes;
    nib_status status;
    const nib_adamw_factors factors = nib_adamw_factors_of(
        (nib_adamw){.learning_rate = 1e-4, .beta1 = 0.9, .beta2 = 0.999, .epsilon = 1e-8, .step = 1});
    int64_t most = T < MOST_TOKENS ? T : MOST_TOKENS;
    b.T = clamp(MOST_OPERATIONS / (8.0 * (double)(c->hidden * c->feed_forward)), most < 32 ? most : 32, most);
    b.rank = options->lora.rank > 0 ? options->lora.rank : 1;
    b.head_rows = c->vocabulary < MOST_HEAD_ROWS ? c->vocabulary : MOST_HEAD_ROWS;
    b.loss_rows = clamp(MOST_OPERATIONS / (4.0 * (double)(c->hidden * b.head_rows)), 1, b.T);
    NIB_TRY(place(&b, nf4)); /* counts */
    bytes = b.arena.used;
    NIB_TRY(ops->allocate(ops, b.arena.name, bytes, &block));
    NIB_TRY_GOTO(ops->zero(ops, block, bytes), done);
    b.arena = (nib_arena){.name = b.arena.name, .block = block, .capacity = bytes};
    NIB_TRY_GOTO(place(&b, nf4), done);
    NIB_TRY_GOTO(ops->upload(ops, b.factors, &factors, sizeof factors), done);
    for (int32_t t = 0; t < b.T; t++) {
        int32_t all = (int32_t)b.T;
        NIB_TRY_GOTO(ops->upload(ops, b.position + t, &t, sizeof t), done);
        NIB_TRY_GOTO(ops->upload(ops, b.row + t, &t, sizeof t), done);
        NIB_TRY_GOTO(ops->upload(ops, b.end + t, &all, sizeof all), done);
    }
    status = measure(&b, options->fp8, rates);
done:
    ops->release(ops, block, bytes);
    return status;
}

nib_work_seconds nib_work_time(const nib_work *work, const nib_rates *rates)
{
    nib_work_seconds s = {.base = work->base_flops / rates->base,
                          .fp8 = work->fp8_flops / rates->fp8,
                          .lora = work->lora_flops / rates->lora,
                          .attention = work->attention_flops / rates->attention,
                          .loss = work->loss_flops / rates->loss,
                          .elementwise = work->elementwise_bytes / rates->elementwise,
                          .optimizer = work->optimizer_bytes / rates->optimizer};
    s.sum = s.base + s.fp8 + s.lora + s.attention + s.loss + s.elementwise + s.optimizer;
    return s;
}
