/* Linears with LoRA, forward and backward, against the CPU backend in fp32 on the same bf16 values: one row (a matvec),
 * a few (products that decode in registers), many (dequantised weights and adapters in one product); parts of many
 * ranks, with and without adapter and bias; widths that are no whole vectors; x and dy with and without room beside
 * them; dropout, whose masks have to be the CPU's. Gradients are accumulated into over two micro-batches.
 *
 * Tolerance 1/32 of root mean square and element: x A^T, u's part of y, and the like are sums of terms up to three
 * times their root mean square, of which u, du, scale B and y are rounded to bf16 (2^-9 each) where fp32 keeps them. A
 * mask, a rank or a scale that is off shows as a whole term, many times that.
 */
#include "cuda_check.h"

extern "C" {
#include "base/random.h"
}

#include "linear_case.h"

#include "cuda/backend.h"
#include "cuda/choice.h"
#include "cuda/linear.h"

static const double TOLERANCE = 1.0 / 32;

typedef nib_status (*forward_op)(nib_ops *, const nib_linear *, nib_matrix, nib_dropout, nib_matrix, nib_matrix);
typedef nib_status (*backward_op)(nib_ops *, const nib_linear *, nib_matrix, nib_dropout, nib_matrix, nib_matrix, bool,
                                  nib_matrix);

struct form {
    forward_op forward;
    backward_op backward;
    int64_t gap; /* behind the rows of x and dy */
    bool room;   /* and whether the op may write there */
    bool adds;   /* to dx */
};
static const form JOINED = {nib_cuda_linear_forward, nib_cuda_linear_backward, 8, false, true};
static const form WRITTEN = {nib_cuda_linear_forward, nib_cuda_linear_backward, 8, false, false};
static const form DENSE = {nib_cuda_linear_forward, nib_cuda_linear_backward, 0, false, true};
static const form IN_PLACE = {nib_cuda_linear_forward, nib_cuda_linear_backward, 200, true, true};
static const form WRITTEN_IN_PLACE = {nib_cuda_linear_forward, nib_cuda_linear_backward, 200, true, false};
static const form PLAIN = {nib_cuda_linear_forward_plain, nib_cuda_linear_backward_plain, 8, false, true};

struct shape {
    int64_t K;
    std::vector<part_shape> parts;
};
static const shape THREE = {128, {{48, 4, false}, {24, 0, true}, {16, 8, true}}};

/* m with `room` of the columns behind it, which the op may then write. */
static nib_matrix with_room(nib_matrix m, bool allowed, int64_t room)
{
    return allowed ? nib_matrix_columns(m, 0, m.columns + room) : m;
}

class both_backends
{
  public:
    nib_ops *ops, *cpu;
    both_backends()
    {
        check_ok(nib_cuda_backend_create(0, &ops));
        check_ok(nib_cpu_backend_create(size_t{64} << 20, &cpu));
    }
    ~both_backends()
    {
        ops->close(ops);
        nib_cpu_backend_free(cpu);
    }
};

struct dropout_case {
    float p;
    uint64_t seed;
};

static void find_norms(const both_backends &on, const linear_case &linear)
{
    for (int p = 0; p < linear.cpu.parts; p++) {
        if (linear.cpu.part[p].lora.dora.gain == nullptr) continue;
        check_ok(on.cpu->dora_norm(on.cpu, &linear.cpu.part[p], linear.cpu.K));
        check_ok(on.ops->dora_norm(on.ops, &linear.device.part[p], linear.cpu.K));
    }
}

static void check_case(const both_backends &on, const form &form, const shape &shape, int64_t T, dropout_case drop)
{
    std::vector<uint64_t> key;
    for (uint64_t part = 0; part < NIB_LINEAR_MAX_PARTS; part++) key.push_back(nib_random_key(drop.seed, part));
    const device_buffer<uint64_t> device_key(key);
    const nib_dropout dropout = {drop.p, key.data()}, device_dropout = {drop.p, device_key.data()};
    const int64_t K = shape.K, gap = 8;
    linear_case linear(K, shape.parts, 77);
    const int64_t outputs = linear.outputs(), ranks = linear.ranks(), room = nib_linear_room(&linear.cpu);
    find_norms(on, linear);
    for (uint64_t batch = 0; batch < 2; batch++) {
        const std::vector<float> x = random_bf16(10 * batch + 1, T * K), dy = random_bf16(10 * batch + 2, T * outputs);
        const std::vector<float> before = random_bf16(10 * batch + 3, T * K);
        std::vector<float> u((size_t)(T * ranks)), y((size_t)(T * outputs)), dx = before, wide_x = x, wide_dy = dy;
        const nib_matrix wide_u = dense_matrix(u, T, ranks);
        check_ok(on.cpu->linear_forward(on.cpu, &linear.cpu, dense_matrix(wide_x, T, K), dropout, wide_u,
                                        dense_matrix(y, T, outputs)));
        check_ok(on.cpu->linear_backward(on.cpu, &linear.cpu, dense_matrix(wide_x, T, K), dropout, wide_u,
                                         dense_matrix(wide_dy, T, outputs), form.adds, dense_matrix(dx, T, K)));

        const strided_matrix device_x(x, T, K, form.gap), device_u(T, ranks, gap), device_y(T, outputs, gap);
        const strided_matrix device_dy(dy, T, outputs, form.gap), device_dx(before, T, K, gap);
        check_ok(form.forward(on.ops, &linear.device, with_room(device_x.matrix(), form.room, room), device_dropout,
                              device_u.matrix(), device_y.matrix()));
        check_ok(form.backward(on.ops, &linear.device, device_x.matrix(), device_dropout, device_u.matrix(),
                               with_room(device_dy.matrix(), form.room, room), form.adds, device_dx.matrix()));
        check_near("u", device_u.download(), u, TOLERANCE);
        check_near("y", device_y.download(), y, TOLERANCE);
        check_near("dx", device_dx.download(), dx, TOLERANCE);
        assert_int_equal(on.ops->scratch->used, 0);
    }
    for (int part = 0; part < (int)shape.parts.size(); part++) {
        check_near("da", linear.device_da(part), linear.cpu_da(part), TOLERANCE);
        check_near("db", linear.device_db(part), linear.cpu_db(part), TOLERANCE);
        check_near("dbias", linear.device_dbias(part), linear.cpu_dbias(part), TOLERANCE);
        if (!shape.parts[(size_t)part].dora) continue;
        check_near("dmagnitude", linear.device_dmagnitude(part), linear.cpu_dmagnitude(part), TOLERANCE);
    }
}

static void forward_and_backward_are_the_cpu_backends(void **)
{
    const both_backends on;
    for (int64_t T : {1, 3, 9, 63, 65, 129}) check_case(on, JOINED, THREE, T, {});
    check_case(on, DENSE, {64, {{48, 4, true}, {24, 8, false}}}, 65, {});
    for (int64_t T : {3, 65}) check_case(on, WRITTEN, THREE, T, {});
}

static void dropout_has_the_cpu_backends_masks(void **)
{
    const both_backends on;
    for (int64_t T : {1, 9, 65, 129}) check_case(on, JOINED, THREE, T, {0.25f, 0x1234567});
}

/* p is the very number that the first element of the first mask is compared with. */
static void a_number_that_is_p_is_not_dropped(void **)
{
    const both_backends on;
    for (uint64_t seed : {2, 9, 10}) {
        uint32_t word[4];
        nib_philox(nib_random_key(seed, 0), 0, 0, word);
        for (int64_t T : {1, 65}) check_case(on, JOINED, THREE, T, {nib_uniform(word[0]), seed});
    }
}

#ifdef NIB_CUDA_EMULATED
/* dA and dB ask for each tile of 32 tokens once: 128 columns and 16 ranks, 16 bytes a copy. */
static void the_copies_are_those_of_the_tiles(void **)
{
    const both_backends on;
    for (int64_t T : {65, 64}) {
        const linear_case linear(128, {{48, 4, false}}, 77);
        const strided_matrix x(random_bf16(1, T * 128), T, 128, 8), u(random_bf16(2, T * 4), T, 4, 8);
        const strided_matrix dy(random_bf16(3, T * 48), T, 48, 8);
        check_cuda(cudaDeviceSynchronize());
        nib_emulator::reset_counters();
        check_ok(on.ops->linear_backward(on.ops, &linear.device, x.matrix(), {}, u.matrix(), dy.matrix(), false, {}));
        check_cuda(cudaDeviceSynchronize());
        assert_int_equal(nib_emulator::counters().async_copies, 2 * ((T + 31) / 32) * 32 * (128 + 16) * 2 / 16);
    }
}
#endif

/* Ranks below, at and above what a tile holds; a linear without adapters; rows that are no whole vectors. */
static void any_rank_and_width_is_taken(void **)
{
    const both_backends on;
    const shape shapes[] = {{64, {{32, 1, false}}},
                            {192, {{40, 20, false}, {136, 64, true}}},
                            {64, {{24, 16, true}, {8, 1, false}, {16, 72, false}}},
                            {64, {{48, 0, false}, {16, 0, true}}},
                            {100, {{20, 3, true}, {12, 8, false}}},
                            {98, {{20, 3, true}, {12, 8, false}}}};
    for (const shape &s : shapes) {
        check_case(on, JOINED, s, 65, {});
        check_case(on, JOINED, s, 67, {0.5f, 99});
    }
}

static void room_beside_x_and_dy_is_used(void **)
{
    const both_backends on;
    check_case(on, IN_PLACE, THREE, 65, {});
    check_case(on, IN_PLACE, {192, {{40, 20, false}, {136, 64, true}}}, 129, {0.25f, 7});
}

/* Without cublasLt, Hopper multiplies with weights that it decodes in registers. */
static void weights_decoded_in_registers_agree_too(void **)
{
    const both_backends on;
    on.ops->use_plain(on.ops, 1u << NIB_CUDA_MATMUL);
    for (int64_t T : {65, 129}) check_case(on, JOINED, THREE, T, {});
    check_case(on, JOINED, {192, {{40, 20, false}, {136, 64, true}}}, 67, {0.25f, 7});
    check_case(on, JOINED, {64, {{48, 0, false}, {16, 0, true}}}, 66, {});
    check_case(on, IN_PLACE, THREE, 65, {});
    for (int64_t T : {65, 129}) check_case(on, WRITTEN, THREE, T, {});
    check_case(on, WRITTEN, {192, {{40, 20, false}, {136, 64, true}}}, 67, {0.25f, 7});
    check_case(on, WRITTEN, {64, {{48, 0, false}, {16, 0, true}}}, 66, {});
    check_case(on, WRITTEN_IN_PLACE, {192, {{40, 20, false}, {136, 64, true}}}, 129, {});
}

static void the_plain_form_agrees_too(void **)
{
    const both_backends on;
    for (int64_t T : {1, 9, 65}) {
        check_case(on, PLAIN, THREE, T, {});
        check_case(on, PLAIN, THREE, T, {0.25f, 5});
        check_case(on, PLAIN, {98, {{20, 3, true}, {12, 8, false}}}, T, {0.25f, 5});
    }
}

/* Enough tokens for several splits of the gradients' sums, whose last is short. */
static void sums_over_many_tokens_are_split(void **)
{
    const both_backends on;
    check_case(on, JOINED, {64, {{16, 8, false}}}, 777, {});
    check_case(on, JOINED, {64, {{16, 8, false}}}, 2100, {0.1f, 3});
}

/* DoRA in some parts and not in others, few rows and many, chunks of tokens whose last is short. */
static const shape DORA = {128, {{48, 4, false, true}, {24, 0, true}, {16, 8, true, true}}};

static void dora_scales_what_is_summed(void **)
{
    const both_backends on;
    const shape shapes[] = {{64, {{32, 1, true, true}}},
                            {192, {{40, 20, false, true}, {136, 64, true}}},
                            {100, {{21, 3, true, true}, {12, 8, false, true}}}};
    for (int64_t T : {1, 3, 9, 63, 65, 129}) check_case(on, JOINED, DORA, T, {});
    for (const shape &s : shapes) check_case(on, JOINED, s, 65, {});
    check_case(on, IN_PLACE, DORA, 65, {});
    check_case(on, JOINED, {64, {{24, 8, true, true}}}, 1100, {});
}

static void dora_drops_what_it_changes(void **)
{
    const both_backends on;
    for (int64_t T : {1, 9, 65, 129}) check_case(on, JOINED, DORA, T, {0.25f, 0x1234567});
    check_case(on, JOINED, {100, {{21, 3, true, true}, {12, 8, false}}}, 67, {0.5f, 99});
    check_case(on, IN_PLACE, {64, {{24, 8, true, true}}}, 1100, {0.1f, 3});
}

static void dora_agrees_with_plain_kernels_too(void **)
{
    const both_backends on;
    on.ops->use_plain(on.ops, ~0u);
    for (int64_t T : {1, 9, 65}) {
        check_case(on, JOINED, DORA, T, {});
        check_case(on, JOINED, DORA, T, {0.25f, 5});
    }
}

static void a_shape_that_does_not_fit_is_named(void **)
{
    nib_ops *ops;
    linear_case linear(128, {{48, 4, false}}, 77);
    strided_matrix x(3, 64, 0), u(3, 4, 0), y(3, 48, 0);
    check_ok(nib_cuda_backend_create(0, &ops));
    assert_int_equal(ops->linear_forward(ops, &linear.device, x.matrix(), {}, u.matrix(), y.matrix()), NIB_ERROR_SHAPE);
    assert_non_null(strstr(nib_error_message(), "test"));
    ops->close(ops);
}

int main()
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(forward_and_backward_are_the_cpu_backends, reset_emulator),
        cmocka_unit_test_setup(dropout_has_the_cpu_backends_masks, reset_emulator),
        cmocka_unit_test_setup(a_number_that_is_p_is_not_dropped, reset_emulator),
#ifdef NIB_CUDA_EMULATED
        cmocka_unit_test_setup(the_copies_are_those_of_the_tiles, reset_emulator),
#endif
        cmocka_unit_test_setup(any_rank_and_width_is_taken, reset_emulator),
        cmocka_unit_test_setup(room_beside_x_and_dy_is_used, reset_emulator),
        cmocka_unit_test_setup(weights_decoded_in_registers_agree_too, reset_emulator),
        cmocka_unit_test_setup(the_plain_form_agrees_too, reset_emulator),
        cmocka_unit_test_setup(sums_over_many_tokens_are_split, reset_emulator),
        cmocka_unit_test_setup(dora_scales_what_is_summed, reset_emulator),
        cmocka_unit_test_setup(dora_drops_what_it_changes, reset_emulator),
        cmocka_unit_test_setup(dora_agrees_with_plain_kernels_too, reset_emulator),
        cmocka_unit_test_setup(a_shape_that_does_not_fit_is_named, reset_emulator),
    };
    return cmocka_run_group_tests(tests, nullptr, nullptr);
}
