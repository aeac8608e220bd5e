#include "model/weight_source.h"
#include "base/memory.h"
#include "model/random_weights.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

static nib_status visit_module(nib_weight_visitor visit, void *user, int64_t layer, const char *module, int64_t rows,
                               int64_t columns, bool bias)
{
    char name[160];
    snprintf(name, sizeof name, "model.layers.%lld.%s.weight", (long long)layer, module);
    NIB_TRY(visit(user, name, rows, columns, columns > 0));
    if (!bias) return NIB_OK;
    snprintf(name, sizeof name, "model.layers.%lld.%s.bias", (long long)layer, module);
    return visit(user, name, rows, 0, false);
}

nib_status nib_weights_visit(const nib_model_config *c, nib_weight_visitor visit, void *user)
{
    int64_t q = c->heads * c->head_dim, kv = c->kv_heads * c->head_dim;
    NIB_TRY(visit(user, "model.embed_tokens.weight", c->vocabulary, c->hidden, false));
    for (int64_t l = 0; l < c->layers; l++) {
        NIB_TRY(visit_module(visit, user, l, "input_layernorm", c->hidden, 0, false));
        NIB_TRY(visit_module(visit, user, l, "self_attn.q_proj", q, c->hidden, c->attention_bias));
        NIB_TRY(visit_module(visit, user, l, "self_attn.k_proj", kv, c->hidden, c->attention_bias));
        NIB_TRY(visit_module(visit, user, l, "self_attn.v_proj", kv, c->hidden, c->attention_bias));
        NIB_TRY(visit_module(visit, user, l, "self_attn.o_proj", c->hidden, q, c->output_bias));
        if (c->qk_norm) NIB_TRY(visit_module(visit, user, l, "self_attn.q_norm", c->head_dim, 0, false));
        if (c->qk_norm) NIB_TRY(visit_module(visit, user, l, "self_attn.k_norm", c->head_dim, 0, false));
        NIB_TRY(visit_module(visit, user, l, "post_attention_layernorm", c->hidden, 0, false));
        NIB_TRY(visit_module(visit, user, l, "mlp.gate_proj", c->feed_forward, c->hidden, c->mlp_bias));
        NIB_TRY(visit_module(visit, user, l, "mlp.up_proj", c->feed_forward, c->hidden, c->mlp_bias));
        NIB_TRY(visit_module(visit, user, l, "mlp.down_proj", c->hidden, c->feed_forward, c->mlp_bias));
    }
    NIB_TRY(visit(user, "model.norm.weight", c->hidden, 0, false));
    return c->tied_head ? NIB_OK : visit(user, "lm_head.weight", c->vocabulary, c->hidden, false);
}

/* "model.layers.3.self_attn.q_proj.weight" to "blk.3.attn_q.weight"; false: no counterpart. */
static bool gguf_name(const char *name, char *out, size_t size)
{
    static const char *const names[][2] = {
        {"input_layernorm", "attn_norm"},    {"self_attn.q_proj", "attn_q"},
        {"self_attn.k_proj", "attn_k"},      {"self_attn.v_proj", "attn_v"},
        {"self_attn.o_proj", "attn_output"}, {"post_attention_layernorm", "ffn_norm"},
        {"mlp.gate_proj", "ffn_gate"},       {"mlp.up_proj", "ffn_up"},
        {"mlp.down_proj", "ffn_down"},       {"self_attn.q_norm", "attn_q_norm"},
        {"self_attn.k_norm", "attn_k_norm"}};
    static const char *const whole[][2] = {{"model.embed_tokens.weight", "token_embd.weight"},
                                           {"model.norm.weight", "output_norm.weight"},
                                           {"lm_head.weight", "output.weight"}};
    long long layer;
    int at = 0;
    for (size_t i = 0; i < sizeof whole / sizeof *whole; i++)
        if (strcmp(name, whole[i][0]) == 0) return snprintf(out, size, "%s", whole[i][1]) > 0;
    if (sscanf(name, "model.layers.%lld.%n", &layer, &at) != 1 || at == 0) return false;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        size_t n = strlen(names[i][0]);
        if (strncmp(name + at, names[i][0], n) == 0 && name[at + (int)n] == '.')
            return snprintf(out, size, "blk.%lld.%s%s", layer, names[i][1], name + at + n) > 0;
    }
    return false;
}

const nib_tensor_view *nib_weight_source_find(const nib_weight_source *source, const char *name)
{
    char mapped[200];
    if (nib_tensor_set_gguf(source->set) == NULL) return nib_tensor_set_find(source->set, name);
    return gguf_name(name, mapped, sizeof mapped) ? nib_tensor_set_find(source->set, mapped) : NULL;
}

void nib_weight_source_release(const nib_weight_source *source, const char *name)
{
    const nib_tensor_view *tensor = source->random ? NULL : nib_weight_source_find(source, name);
    if (tensor != NULL) nib_file_release(tensor->file, tensor->offset, tensor->bytes);
}

static bool ends_with(const char *text, const char *end)
{
    size_t n = strlen(text), m = strlen(end);
    return n >= m && strcmp(text + n - m, end) == 0;
}

typedef struct {
    nib_weight_source *source;
    size_t found; /* tensors of the set that are accounted for */
} check_state;

static nib_status check_weight(void *user, const char *name, int64_t rows, int64_t columns, bool linear)
{
    check_state *state = user;
    const nib_weight_source *source = state->source;
    const nib_tensor_view *tensor = nib_weight_source_find(source, name);
    if (tensor == NULL)
        return NIB_FAIL(NIB_ERROR_DATA, "%s: tensor \"%s\" is missing; is the checkpoint complete?", source->path,
                        name);
    if (linear && tensor->dtype == NIB_DTYPE_U8) {
        nib_bnb_nf4 parts;
        NIB_TRY(nib_bnb_nf4_find(source->set, name, &parts));
        if (parts.rows != rows || parts.columns != columns)
            return NIB_FAIL(NIB_ERROR_DATA, "%s: tensor \"%s\" is [%lld, %lld], expected [%lld, %lld]", source->path,
                            name, (long long)parts.rows, (long long)parts.columns, (long long)rows, (long long)columns);
        state->source->quantized = true;
        state->found += (size_t)parts.tensors;
        return NIB_OK;
    }
    state->found++;
    nib_status status =
        columns > 0 ? nib_tensor_expect_shape(tensor, 2, rows, columns) : nib_tensor_expect_shape(tensor, 1, rows);
    return status == NIB_OK ? NIB_OK : nib_error_context(status, "configuration and weights are not of one model");
}

/* Tensors that some checkpoints carry and no forward pass reads. */
static bool is_ignored(const nib_weight_source *source, const char *name)
{
    if (source->config.tied_head && (strcmp(name, "lm_head.weight") == 0)) return true;
    return ends_with(name, "rotary_emb.inv_freq") || strcmp(name, "rope_freqs.weight") == 0;
}

typedef struct {
    const nib_weight_source *source;
    const char *wanted;
    bool known;
} surplus_state;

static nib_status compare_weight(void *user, const char *name, int64_t rows, int64_t columns, bool linear)
{
    surplus_state *state = user;
    (void)rows;
    (void)columns;
    (void)linear;
    const nib_tensor_view *tensor = nib_weight_source_find(state->source, name);
    size_t n = tensor == NULL ? 0 : strlen(tensor->name);
    /* bitsandbytes puts its parts beside a weight as NAME.absmax and so on */
    state->known = state->known || (tensor != NULL && strncmp(state->wanted, tensor->name, n) == 0 &&
                                    (state->wanted[n] == 0 || (state->source->quantized && state->wanted[n] == '.')));
    return NIB_OK;
}

static nib_status check_surplus(const nib_weight_source *source, size_t found)
{
    size_t ignored = 0, count = nib_tensor_set_count(source->set);
    for (size_t i = 0; i < count; i++) ignored += is_ignored(source, nib_tensor_set_at(source->set, i)->name);
    if (found + ignored == count) return NIB_OK;
    for (size_t i = 0; i < count; i++) {
        surplus_state state = {.source = source, .wanted = nib_tensor_set_at(source->set, i)->name};
        nib_weights_visit(&source->config, compare_weight, &state);
        if (!state.known && !is_ignored(source, state.wanted))
            return NIB_FAIL(NIB_ERROR_DATA,
                            "%s: tensor \"%s\" is not one of a %s model; is config.json another model's?", source->path,
                            state.wanted, source->config.family);
    }
    return NIB_OK;
}

/* A Llama 3.1 or 3.2 GGUF holds its rope scaling only as rope_freqs.weight [HD / 2]: what each frequency is divided by.
 * The parameters behind it are those of every published Llama 3 but for the factor, which is the largest value; a
 * tensor that they do not reproduce is refused. */
static nib_status read_rope_divisors(nib_weight_source *source)
{
    const nib_tensor_view *tensor = nib_tensor_set_find(source->set, "rope_freqs.weight");
    nib_model_config *c = &source->config;
    float divisor[NIB_MAX_HEAD_DIM / 2], plain[NIB_MAX_HEAD_DIM / 2], scaled[NIB_MAX_HEAD_DIM / 2];
    if (tensor == NULL) return NIB_OK;
    int64_t pairs = c->head_dim / 2;
    NIB_TRY(nib_tensor_expect_shape(tensor, 1, pairs));
    NIB_TRY(nib_tensor_read_float(tensor, 0, pairs, divisor));
    nib_rope_frequencies(c, plain);
    c->rope = NIB_ROPE_LLAMA3;
    c->rope_factor = 1.0;
    for (int64_t i = 0; i < pairs; i++) c->rope_factor = fmax(c->rope_factor, (double)divisor[i]);
    c->rope_low_frequency = 1.0;
    c->rope_high_frequency = 4.0;
    c->rope_original_positions = 8192;
    nib_rope_frequencies(c, scaled);
    for (int64_t i = 0; i < pairs; i++)
        if (!(fabsf(plain[i] / divisor[i] - scaled[i]) <= 1e-4f * scaled[i]))
            return NIB_FAIL(NIB_ERROR_DATA,
                            "%s: tensor \"rope_freqs.weight\" divides frequency %lld by %g, expected %g as in Llama 3; "
                            "this rope scaling is not supported",
                            source->path, (long long)i, (double)divisor[i], (double)(plain[i] / scaled[i]));
    return NIB_OK;
}

nib_status nib_weight_source_open(const char *path, nib_weight_source *source)
{
    *source = (nib_weight_source){0};
    snprintf(source->path, sizeof source->path, "%s", path);
    nib_status status;
    NIB_TRY_GOTO(nib_tensor_set_open(path, &source->set), done);
    const nib_gguf *gguf = nib_tensor_set_gguf(source->set);
    status = gguf != NULL ? nib_model_config_from_gguf(path, gguf, &source->config)
                          : nib_model_config_read(path, &source->config);
    if (status != NIB_OK) goto done;
    if (gguf != NULL) source->config.tied_head = nib_tensor_set_find(source->set, "output.weight") == NULL;
    NIB_TRY_GOTO(read_rope_divisors(source), done);
    check_state state = {.source = source};
    NIB_TRY_GOTO(nib_weights_visit(&source->config, check_weight, &state), done);
    status = check_surplus(source, state.found);
done:
    if (status != NIB_OK) nib_weight_source_close(source);
    return status;
}

void nib_weight_source_close(nib_weight_source *source)
{
    nib_tensor_set_close(source->set);
    source->set = NULL;
}

nib_status nib_weight_source_open_random(const char *path, nib_weight_source *source)
{
    if (ends_with(path, ".gguf")) { /* its configuration lies beside its tensors */
        NIB_TRY(nib_weight_source_open(path, source));
        nib_weight_source_close(source);
        source->quantized = false;
    } else {
        *source = (nib_weight_source){0};
        snprintf(source->path, sizeof source->path, "%s", path);
        NIB_TRY(nib_model_config_read(path, &source->config));
    }
    source->random = true;
    return NIB_OK;
}

static bool is_finite(nib_bf16 value) { return (value.bits & 0x7f80) != 0x7f80; }

/* at: of the value among those of a tensor of this many columns. */
static nib_status not_finite(const nib_weight_source *source, const char *name, int64_t at, int64_t columns)
{
    return NIB_FAIL(NIB_ERROR_DATA,
                    "%s: tensor \"%s\" holds NaN or Inf at row %lld, column %lld; the checkpoint is damaged",
                    source->path, name, (long long)(at / columns), (long long)(at % columns));
}

/* values: rows from `first` on of a tensor of this many columns. */
static nib_status check_finite(const nib_weight_source *source, const char *name, const nib_bf16 *values, int64_t first,
                               int64_t columns, int64_t n)
{
    int bad = 0;
    for (int64_t i = 0; i < n; i++) bad |= !is_finite(values[i]);
    if (!bad) return NIB_OK;
    int64_t at = 0;
    while (is_finite(values[at])) at++;
    return not_finite(source, name, first * columns + at, columns);
}

/* Row of a GGUF's Q or K that holds Hugging Face's row r: within a head, half j and pair i lie at 2 i + j. */
static int64_t interleaved_row(int64_t r, int64_t head_dim)
{
    int64_t head = r / head_dim, in_head = r % head_dim, half = in_head / (head_dim / 2),
            pair = in_head % (head_dim / 2);
    return head * head_dim + 2 * pair + half;
}

nib_status nib_weight_source_read(const nib_weight_source *source, const char *name, int64_t first, int64_t rows,
                                  int64_t columns, nib_bf16 *out)
{
    if (source->random) {
        nib_random_weights(name, out, rows * columns);
        return NIB_OK;
    }
    const nib_tensor_view *tensor = nib_weight_source_find(source, name);
    if (tensor == NULL) return NIB_FAIL(NIB_ERROR_INTERNAL, "%s: tensor \"%s\" was not checked", source->path, name);
    bool permuted = nib_tensor_set_gguf(source->set) != NULL && nib_model_config_gguf_interleaves(&source->config) &&
                    (strstr(name, ".q_proj.weight") != NULL || strstr(name, ".k_proj.weight") != NULL);
    if (!permuted) {
        NIB_TRY(nib_tensor_read_bf16(tensor, first * columns, rows * columns, out));
    } else {
        for (int64_t r = 0; r < rows; r++)
            NIB_TRY(nib_tensor_read_bf16(tensor, interleaved_row(first + r, source->config.head_dim) * columns, columns,
                                         out + r * columns));
    }
    return check_finite(source, name, out, first, columns, rows * columns);
}

bool nib_weight_source_is_wide(const nib_weight_source *source, const char *name)
{
    if (source->random || nib_tensor_set_gguf(source->set) != NULL) return false;
    const nib_tensor_view *tensor = nib_weight_source_find(source, name);
    return tensor != NULL && (tensor->dtype == NIB_DTYPE_F32 || tensor->dtype == NIB_DTYPE_F16);
}

nib_status nib_weight_source_read_wide(const nib_weight_source *source, const char *name, int64_t first, int64_t rows,
                                       int64_t columns, float *out)
{
    NIB_TRY(nib_tensor_read_float(nib_weight_source_find(source, name), first * columns, rows * columns, out));
    for (int64_t i = 0; i < rows * columns; i++)
        if (!isfinite(out[i])) return not_finite(source, name, first * columns + i, columns);
    return NIB_OK;
}

void nib_weight_source_hash_table(const nib_weight_source *source, nib_sha256 *hash)
{
    for (size_t i = 0; i < nib_tensor_set_count(source->set); i++) {
        const nib_tensor_view *tensor = nib_tensor_set_at(source->set, i);
        nib_sha256_update(hash, tensor->name, strlen(tensor->name) + 1);
        nib_sha256_update(hash, nib_dtype_name(tensor->dtype), strlen(nib_dtype_name(tensor->dtype)) + 1);
        nib_sha256_update(hash, tensor->shape, (size_t)tensor->rank * sizeof *tensor->shape);
    }
}
