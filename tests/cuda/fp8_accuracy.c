/* What 8-bit floating point costs in accuracy: the golden models trained on the emulated backend, by the kernels' own
 * source, with fp8 products everywhere and with some of them left in bf16. For profiling/fp8_accuracy, a line of JSON
 * for each model and variant: the losses and gradient norms of eight steps, those of fp32 (torch), and how far the
 * first batch's whole gradient is from the CPU backend's in fp32, in shares of its norm.
 *
 * A variant is made by what stands between the model and the backend's linears. Some round an operand before the
 * backend does: to other numbers that e4m3 holds too, so that its own rounding changes nothing; or instead of it, the
 * product being bf16's. */
#define TEST_NAME "fp8"
#include "model_case.h"

#include "model/plugin.h"

extern const nib_plugin nib_plugin_entry;

enum { QKV = 1, OUTPUT = 2, GATE_UP = 4, DOWN = 8, ALL = 15 };
typedef enum { AS_IT_IS, TO_E5M2, ONE_SCALE, INSTEAD, INSTEAD_TIGHTLY } rounding;

typedef struct {
    const char *name;
    bool fp8, own;         /* own: as the model has it, which else is left at `forward` and `backward` */
    int forward, backward; /* which linears' products are fp8 */
    rounding x, dy;
} variant;

static const variant variants[] = {
    {"bf16", false, false, 0, 0, AS_IT_IS, AS_IT_IS},
    {"all linears, forward and backward", true, false, ALL, ALL, AS_IT_IS, AS_IT_IS},
    {"forward alone, dX in bf16", true, false, ALL, 0, AS_IT_IS, AS_IT_IS},
    {"dX alone, forward in bf16", true, false, 0, ALL, AS_IT_IS, AS_IT_IS},
    {"q, k, v in bf16", true, false, ALL - QKV, ALL - QKV, AS_IT_IS, AS_IT_IS},
    {"q, k, v forward in bf16 (as it is done)", true, true, 0, 0, AS_IT_IS, AS_IT_IS},
    {"o_proj in bf16", true, false, ALL - OUTPUT, ALL - OUTPUT, AS_IT_IS, AS_IT_IS},
    {"gate and up in bf16", true, false, ALL - GATE_UP, ALL - GATE_UP, AS_IT_IS, AS_IT_IS},
    {"down_proj in bf16", true, false, ALL - DOWN, ALL - DOWN, AS_IT_IS, AS_IT_IS},
    {"all linears, dY in e5m2", true, false, ALL, ALL, AS_IT_IS, TO_E5M2},
    {"all linears, one scale for all rows of x and of dY", true, false, ALL, ALL, ONE_SCALE, ONE_SCALE},
    {"x and dY alone in e4m3, scale a power of two", true, false, ALL, ALL, INSTEAD, INSTEAD},
    {"x and dY alone in e4m3, scale amax / 448", true, false, ALL, ALL, INSTEAD_TIGHTLY, INSTEAD_TIGHTLY},
};

static const variant *in_use;
static nib_ops backend; /* its own ops */
static void *copy;      /* of the operand that is rounded here */

static int kind_of(const nib_linear *linear)
{
    const char *kind = strrchr(linear->name, '.') + 1;
    return strcmp(kind, "qkv") == 0      ? QKV
           : strcmp(kind, "output") == 0 ? OUTPUT
           : strcmp(kind, "down") == 0   ? DOWN
                                         : GATE_UP;
}

static nib_linear as_the_variant_has_it(const nib_linear *linear)
{
    nib_linear own = *linear;
    if (in_use->own) return own;
    own.fp8_forward = in_use->fp8 && (in_use->forward & kind_of(linear)) != 0;
    own.fp8_backward = in_use->fp8 && (in_use->backward & kind_of(linear)) != 0;
    return own;
}

static float largest_of(const nib_bf16 *row, int64_t n)
{
    float largest = 0;
    for (int64_t i = 0; i < n; i++) largest = fmaxf(largest, fabsf(nib_bf16_to_float(row[i])));
    return largest;
}

/* x to the nearest multiple of 2^-bits of its binade, or of `smallest`. */
static float round_to(float x, int bits, double smallest)
{
    int exponent;
    if (x == 0) return x;
    frexpf(x, &exponent);
    const double step = fmax(ldexp(1.0, exponent - 1 - bits), smallest);
    return (float)(nearbyint((double)x / step) * step);
}

/* The smallest power of two with which `largest` is 448 or less. */
static double scale_for(float largest)
{
    int exponent = -126;
    while ((double)largest > 448 * ldexp(1, exponent)) exponent++;
    return ldexp(1, exponent);
}

/* n numbers of one scale. */
static void round_numbers(nib_bf16 *x, int64_t n, rounding how)
{
    const float largest = largest_of(x, n);
    const double scale = how == INSTEAD_TIGHTLY ? (double)largest / 448 : scale_for(largest);
    for (int64_t i = 0; i < n && largest > 0; i++) {
        const float units = (float)((double)nib_bf16_to_float(x[i]) / scale);
        x[i] = nib_bf16_from_float(
            (float)(scale * (double)(how == TO_E5M2 ? round_to(units, 2, 0) : round_to(units, 3, ldexp(1, -9)))));
    }
}

/* A copy of m, rounded. */
static nib_status round_operand(nib_ops *ops, nib_matrix m, rounding how, nib_matrix *rounded)
{
    const size_t bytes = (size_t)(m.rows * m.columns) * sizeof(nib_bf16);
    const int64_t rows = how == ONE_SCALE ? 1 : m.rows, n = m.rows * m.columns / rows;
    *rounded = (nib_matrix){copy, m.rows, m.columns, m.columns, NIB_DTYPE_BF16};
    NIB_TRY(backend.convert(ops, m, *rounded));
    nib_bf16 *host = nib_calloc(bytes, 1);
    nib_status status = backend.download(ops, host, copy, bytes);
    for (int64_t row = 0; row < rows; row++) round_numbers(host + row * n, n, how);
    if (status == NIB_OK) status = backend.upload(ops, copy, host, bytes);
    nib_free(host);
    return status;
}

static bool instead(rounding how) { return how == INSTEAD || how == INSTEAD_TIGHTLY; }

/* u, and by it the adapters' gradients, from x as it is; y, the adapters' share of it too, from rounded x. */
static nib_status forward(nib_ops *ops, const nib_linear *linear, nib_matrix x, nib_dropout dropout, nib_matrix u,
                          nib_matrix y)
{
    nib_linear own = as_the_variant_has_it(linear);
    nib_matrix rounded, kept;
    if (in_use->x == AS_IT_IS || !own.fp8_forward) return backend.linear_forward(ops, &own, x, dropout, u, y);
    own.fp8_forward = !instead(in_use->x);
    NIB_TRY(round_operand(ops, nib_matrix_columns(x, 0, linear->K), in_use->x, &rounded));
    NIB_TRY(backend.linear_forward(ops, &own, rounded, dropout, u, y));
    kept = (nib_matrix){copy, y.rows, y.columns, y.columns, NIB_DTYPE_BF16};
    NIB_TRY(backend.convert(ops, y, kept));
    NIB_TRY(backend.linear_forward(ops, &own, x, dropout, u, y));
    return backend.convert(ops, kept, y);
}

/* The adapters' gradients from dy as it is; dx, the adapters' share of it too, from rounded dy. */
static nib_status backward(nib_ops *ops, const nib_linear *linear, nib_matrix x, nib_dropout dropout, nib_matrix u,
                           nib_matrix dy, bool accumulate, nib_matrix dx)
{
    nib_linear own = as_the_variant_has_it(linear);
    nib_matrix rounded;
    if (in_use->dy == AS_IT_IS || !own.fp8_backward || dx.data == NULL)
        return backend.linear_backward(ops, &own, x, dropout, u, dy, accumulate, dx);
    own.fp8_backward = !instead(in_use->dy);
    NIB_TRY(backend.linear_backward(ops, &own, x, dropout, u, dy, false, (nib_matrix){0}));
    NIB_TRY(round_operand(ops, nib_matrix_columns(dy, 0, nib_linear_outputs(linear)), in_use->dy, &rounded));
    for (int p = 0; p < own.parts; p++) own.part[p].lora.da = own.part[p].lora.db = NULL;
    return backend.linear_backward(ops, &own, x, dropout, u, rounded, accumulate, dx);
}

static void print_numbers(const char *name, const double *values)
{
    printf(", \"%s\": [", name);
    for (int s = 0; s < GOLDEN_STEPS; s++) printf("%s%.9g", s > 0 ? ", " : "", values[s]);
    printf("]");
}

static nib_model *open_variant(nib_ops *ops, const char *name)
{
    nib_model *model = open_model_with(
        ops, name, (nib_model_options){.quantization = NIB_QUANT_NF4, .compute = NIB_DTYPE_BF16, .fp8 = in_use->fp8});
    ops->record_begin = NULL; /* what stands between waits */
    return model;
}

/* How far the gradient of the model's documents is from `wide`. */
static double gradient_off(nib_ops *ops, const char *name, const float *wide, int64_t n)
{
    packed p;
    pack_golden(&p, name);
    nib_model *model = open_variant(ops, name);
    must(nib_model_reserve(model, p.T, p.N, NIB_RECOMPUTE_NONE, true));
    train_once(ops, model, &p);
    float *found = download_gradients(ops, model, &n);
    const double off = difference(found, wide, n);
    nib_free(found);
    nib_model_close(model);
    return off;
}

static void measure(nib_ops *ops, const char *name, const nib_tensor_set *set, const float *wide, int64_t n)
{
    double loss[GOLDEN_STEPS], norm[GOLDEN_STEPS], golden_loss[GOLDEN_STEPS], golden_norm[GOLDEN_STEPS];
    nib_model *model = open_variant(ops, name);
    must(nib_model_reserve(model, 256, 256, NIB_RECOMPUTE_NONE, true));
    for (int s = 0; s < GOLDEN_STEPS; s++) {
        loss[s] = train_golden_step(ops, model, set, s, &norm[s]);
        golden_loss[s] = golden_number(set, "train.losses", s);
        golden_norm[s] = golden_number(set, "train.grad_norms", s);
    }
    nib_model_close(model);
    printf("{\"model\": \"%s\", \"variant\": \"%s\"", name, in_use->name);
    print_numbers("loss", loss);
    print_numbers("norm", norm);
    print_numbers("fp32_loss", golden_loss);
    print_numbers("fp32_norm", golden_norm);
    printf(", \"gradient_off\": %.6g}\n", gradient_off(ops, name, wide, n));
    fflush(stdout);
}

int main(void)
{
    static const char *const names[] = {"llama_tied", "llama3_gqa"};
    nib_ops *ops, *cpu;
    nib_file_remove_tree(CACHE_FOLDER);
    must(nib_plugin_entry.create(0, &ops));
    must(nib_cpu_backend_create(SCRATCH_BYTES, &cpu));
    backend = *ops;
    must(backend.allocate(ops, "a rounded operand", (size_t)1 << 22, &copy));
    ops->linear_forward = forward;
    ops->linear_backward = backward;
    for (size_t m = 0; m < sizeof names / sizeof *names; m++) {
        packed p;
        int64_t n;
        nib_tensor_set *set = open_golden(names[m], "expected.safetensors");
        pack_golden(&p, names[m]);
        float *wide = gradients_of(cpu, names[m], false, NIB_DTYPE_F32, NIB_RECOMPUTE_NONE, &p, &n);
        for (size_t v = 0; v < sizeof variants / sizeof *variants; v++) {
            in_use = &variants[v];
            measure(ops, names[m], set, wide, n);
        }
        nib_free(wide);
        nib_tensor_set_close(set);
    }
    backend.release(ops, copy, (size_t)1 << 22);
    ops->close(ops);
    nib_cpu_backend_free(cpu);
    nib_file_remove_tree(CACHE_FOLDER);
    return 0;
}
