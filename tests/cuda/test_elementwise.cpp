/* Embedding, RMSNorm, LayerNorm, rotary and gated activations against the CPU backend in fp32 on the same bf16 values,
 * at widths that are no whole vectors and with strided rows.
 *
 * Tolerance 1/64 of root mean square and element: each result is rounded to bf16 once (2^-9), the residual sum before a
 * norm once more, and a gradient adds terms of up to three times its size. */
#include "backends.h"

extern "C" {
#include "base/random.h"
}

#include "linear_case.h"

#include "cuda/backend.h"

static const double TOLERANCE = 1.0 / 64;

/* 64 rows first: 4 bytes for each fill the scratch of a new backend to its last, so that what lies behind is found. */
static const struct {
    int64_t T, C, gap;
} shapes[] = {{64, 8, 0}, {1, 8, 0}, {3, 64, 8}, {65, 100, 4}, {129, 576, 8}, {5, 2050, 2}, {2, 4104, 0}};

static void embedding_is_the_cpu_backends(void **)
{
    backends b;
    for (auto s : shapes) {
        const int64_t V = 37;
        std::vector<float> table = random_bf16(1, V * s.C), dx = random_bf16(2, s.T * s.C), x((size_t)(s.T * s.C));
        std::vector<float> dtable = random_bf16(3, V * s.C);
        std::vector<int32_t> token;
        for (int64_t t = 0; t < s.T; t++) token.push_back((int32_t)(t * t % V)); /* many come again */
        device_buffer<int32_t> device_token(token);
        device_buffer<float> device_dtable(dtable);
        strided_matrix device_table(table, V, s.C, 0), device_x(s.T, s.C, s.gap), device_dx(dx, s.T, s.C, s.gap);
        check_ok(b.cpu->embedding_forward(b.cpu, token.data(), dense_matrix(table, V, s.C), 1.5f,
                                          dense_matrix(x, s.T, s.C)));
        check_ok(b.cpu->embedding_backward(b.cpu, token.data(), dense_matrix(dx, s.T, s.C), 1.5f, dtable.data()));
        check_ok(
            b.cuda->embedding_forward(b.cuda, device_token.data(), device_table.matrix(), 1.5f, device_x.matrix()));
        check_ok(
            b.cuda->embedding_backward(b.cuda, device_token.data(), device_dx.matrix(), 1.5f, device_dtable.data()));
        check_near("x", device_x.download(), x, TOLERANCE);
        check_near("dtable", device_dtable.download(), dtable, 1e-6); /* fp32 on both sides, in order of the tokens */
    }
}

/* A token that the table does not have is NaN, not what lies beside the table. */
static void a_token_beyond_the_vocabulary_is_no_number(void **)
{
    backends b;
    for (int64_t C : {8, 9}) {
        device_buffer<int32_t> token(std::vector<int32_t>{4, 5, -1, 0});
        strided_matrix table(random_bf16(1, 5 * C), 5, C, 0), x(4, C, 0);
        check_ok(b.cuda->embedding_forward(b.cuda, token.data(), table.matrix(), 1.0f, x.matrix()));
        const std::vector<float> found = x.download();
        for (int64_t i = 0; i < 4 * C; i++) assert_int_equal(std::isnan(found[(size_t)i]), i / C == 1 || i / C == 2);
    }
}

/* Rows as one piece, and as two and more that are normed by themselves, whole vectors or not. */
static void rmsnorm_is_the_cpu_backends(void **)
{
    backends b;
    for (auto s : shapes)
        for (int64_t groups : {1, 2, 25}) {
            if (s.C % groups != 0) continue;
            const int64_t n = s.T * s.C, columns = s.C / groups;
            std::vector<float> x = random_bf16(1, n), delta = random_bf16(2, n), dy = random_bf16(3, n),
                               dx = random_bf16(4, n);
            std::vector<float> weight = random_bf16(5, columns), dweight = random_bf16(6, columns), y((size_t)n);
            strided_matrix device_x(x, s.T, s.C, s.gap), device_delta(delta, s.T, s.C, s.gap),
                device_y(s.T, s.C, s.gap);
            strided_matrix device_dy(dy, s.T, s.C, s.gap), device_dx(dx, s.T, s.C, s.gap);
            device_buffer<float> device_weight(weight), device_dweight(dweight);
            nib_matrix wide_x = dense_matrix(x, s.T, s.C), wide_delta = dense_matrix(delta, s.T, s.C);
            nib_matrix narrow_delta = device_delta.matrix();
            check_ok(b.cpu->rmsnorm_forward(b.cpu, wide_x, &wide_delta, groups, weight.data(), 1e-5f,
                                            dense_matrix(y, s.T, s.C)));
            check_ok(b.cuda->rmsnorm_forward(b.cuda, device_x.matrix(), &narrow_delta, groups, device_weight.data(),
                                             1e-5f, device_y.matrix()));
            check_near("x", device_x.download(), x, TOLERANCE);
            check_near("y", device_y.download(), y, TOLERANCE);
            x = device_x.download(); /* as it is rounded there, so that both differentiate at the same point */
            check_ok(b.cpu->rmsnorm_backward(b.cpu, dense_matrix(x, s.T, s.C), groups, weight.data(), 1e-5f,
                                             dense_matrix(dy, s.T, s.C), dense_matrix(dx, s.T, s.C), dweight.data()));
            check_ok(b.cuda->rmsnorm_backward(b.cuda, device_x.matrix(), groups, device_weight.data(), 1e-5f,
                                              device_dy.matrix(), device_dx.matrix(), device_dweight.data()));
            check_near("dx", device_dx.download(), dx, TOLERANCE);
            check_near("dweight", device_dweight.download(), dweight,
                       1e-4); /* fp32 sums of up to 3,225 pieces in another order */
        }
}

/* Rows whose mean is far from zero; with and without a bias, and gradients of each parameter alone. */
static void layernorm_is_the_cpu_backends(void **)
{
    backends b;
    for (auto s : shapes)
        for (bool with_bias : {true, false}) {
            const int64_t n = s.T * s.C;
            std::vector<float> x = random_bf16(1, n), delta = random_bf16(2, n), dy = random_bf16(3, n),
                               dx = random_bf16(4, n);
            std::vector<float> weight = random_bf16(5, s.C), bias = random_bf16(6, s.C), y((size_t)n);
            std::vector<float> dweight = random_bf16(7, s.C), dbias = random_bf16(8, s.C);
            for (size_t i = 0; i < x.size(); i++) x[i] = nib_bf16_to_float(nib_bf16_from_float(x[i] + 3));
            strided_matrix device_x(x, s.T, s.C, s.gap), device_delta(delta, s.T, s.C, s.gap);
            strided_matrix device_y(s.T, s.C, s.gap), device_dy(dy, s.T, s.C, s.gap), device_dx(dx, s.T, s.C, s.gap);
            device_buffer<float> device_weight(weight), device_bias(bias), device_dweight(dweight), device_dbias(dbias);
            nib_matrix wide_x = dense_matrix(x, s.T, s.C), wide_delta = dense_matrix(delta, s.T, s.C);
            nib_matrix narrow_delta = device_delta.matrix();
            check_ok(b.cuda->layernorm_forward(b.cuda, device_x.matrix(), &narrow_delta, device_weight.data(),
                                               with_bias ? device_bias.data() : nullptr, 1e-5f, device_y.matrix()));
            check_ok(b.cpu->layernorm_forward(b.cpu, wide_x, &wide_delta, weight.data(), nullptr, 1e-5f,
                                              {nullptr, s.T, s.C, s.C, NIB_DTYPE_F32})); /* the sum alone */
            check_near("x", device_x.download(), x, TOLERANCE);
            x = device_x.download(); /* as it is rounded there: the spread about a large mean depends on it */
            check_ok(b.cpu->layernorm_forward(b.cpu, dense_matrix(x, s.T, s.C), nullptr, weight.data(),
                                              with_bias ? bias.data() : nullptr, 1e-5f, dense_matrix(y, s.T, s.C)));
            check_near("y", device_y.download(), y, TOLERANCE);
            check_ok(b.cpu->layernorm_backward(b.cpu, dense_matrix(x, s.T, s.C), weight.data(), 1e-5f,
                                               dense_matrix(dy, s.T, s.C), dense_matrix(dx, s.T, s.C), dweight.data(),
                                               with_bias ? dbias.data() : nullptr));
            check_ok(b.cuda->layernorm_backward(b.cuda, device_x.matrix(), device_weight.data(), 1e-5f,
                                                device_dy.matrix(), device_dx.matrix(), device_dweight.data(),
                                                with_bias ? device_dbias.data() : nullptr));
            check_near("dx", device_dx.download(), dx, TOLERANCE);
            check_near("dweight", device_dweight.download(), dweight, 1e-4); /* fp32 sums of rows in another order */
            check_near("dbias", device_dbias.download(), dbias, 1e-4);
        }
}

static void rotary_is_the_cpu_backends_and_inverts_itself(void **)
{
    backends b;
    for (nib_rotary_layout layout : {NIB_ROTARY_HALF_SPLIT, NIB_ROTARY_INTERLEAVED})
        for (int64_t HD : {16, 20, 64, 80, 128})
            for (int64_t T : {1, 3, 65}) {
                const int64_t heads = T == 3 ? 60 : 3, pairs = HD / 2, n = T * heads * HD;
                std::vector<float> x = random_bf16(1, n), first = x, frequency, table((size_t)(T * 2 * pairs));
                std::vector<int32_t> position;
                for (int64_t i = 0; i < pairs; i++) frequency.push_back(powf(10000.0f, -(float)i / (float)pairs));
                for (int64_t t = 0; t < T; t++) position.push_back((int32_t)(t * 37 % 4000));
                device_buffer<int32_t> device_position(position);
                device_buffer<float> device_frequency(frequency), device_table(table.size());
                strided_matrix device_x(x, T, heads * HD, 8);
                check_ok(b.cpu->rotary_table(b.cpu, position.data(), T, frequency.data(), pairs, 1.25f, table.data()));
                check_ok(b.cuda->rotary_table(b.cuda, device_position.data(), T, device_frequency.data(), pairs, 1.25f,
                                              device_table.data()));
                check_near("table", device_table.download(), table, 1e-6);
                check_ok(b.cpu->rotary(b.cpu, dense_matrix(x, T, heads * HD), heads, HD, table.data(), pairs, layout,
                                       false));
                check_ok(
                    b.cuda->rotary(b.cuda, device_x.matrix(), heads, HD, device_table.data(), pairs, layout, false));
                check_near("rotated", device_x.download(), x, TOLERANCE);
                check_ok(
                    b.cuda->rotary(b.cuda, device_x.matrix(), heads, HD, device_table.data(), pairs, layout, true));
                for (float &value : first) value *= 1.25f * 1.25f;
                check_near("rotated back", device_x.download(), first, TOLERANCE);
            }
}

static void gated_activations_are_the_cpu_backends(void **)
{
    backends b;
    for (nib_activation activation : {NIB_ACTIVATION_SILU, NIB_ACTIVATION_GELU_TANH, NIB_ACTIVATION_GELU})
        for (auto s : shapes) {
            const int64_t F = s.C;
            std::vector<float> gate_up = random_bf16(1, s.T * 2 * F), dh = random_bf16(2, s.T * F),
                               h((size_t)(s.T * F));
            for (size_t i = 0; i < gate_up.size(); i++) gate_up[i] *= 4; /* into the tails, and still bf16 values */
            strided_matrix device_gate_up(gate_up, s.T, 2 * F, s.gap), device_h(s.T, F, s.gap),
                device_dh(dh, s.T, F, s.gap);
            check_ok(b.cpu->glu_forward(b.cpu, activation, dense_matrix(gate_up, s.T, 2 * F), dense_matrix(h, s.T, F)));
            check_ok(b.cuda->glu_forward(b.cuda, activation, device_gate_up.matrix(), device_h.matrix()));
            check_near("h", device_h.download(), h, TOLERANCE);
            check_ok(
                b.cpu->glu_backward(b.cpu, activation, dense_matrix(dh, s.T, F), dense_matrix(gate_up, s.T, 2 * F)));
            check_ok(b.cuda->glu_backward(b.cuda, activation, device_dh.matrix(), device_gate_up.matrix()));
            check_near("d(gate, up)", device_gate_up.download(), gate_up, TOLERANCE);
        }
}

int main()
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(embedding_is_the_cpu_backends, reset_emulator),
        cmocka_unit_test_setup(a_token_beyond_the_vocabulary_is_no_number, reset_emulator),
        cmocka_unit_test_setup(rmsnorm_is_the_cpu_backends, reset_emulator),
        cmocka_unit_test_setup(layernorm_is_the_cpu_backends, reset_emulator),
        cmocka_unit_test_setup(rotary_is_the_cpu_backends_and_inverts_itself, reset_emulator),
        cmocka_unit_test_setup(gated_activations_are_the_cpu_backends, reset_emulator),
    };
    return cmocka_run_group_tests(tests, nullptr, nullptr);
}
