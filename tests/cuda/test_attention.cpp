/* Attention's kernels, plain and tiled, against the CPU's fp32 kernels on the same rounded operands: trees of depth 1
 * to 4, windows, soft-caps, every head dim, T that fills no tile. Gradients besides against differences of the
 * definition in double arithmetic. */
#include "attention_case.h"

#include "cuda/choice.h"

namespace
{

typedef decltype(&nib_cuda_attention_forward) forward_function;
typedef decltype(&nib_cuda_attention_backward) backward_function;

nib_attention_shape shape_of(int64_t heads, int64_t kv_heads, int64_t head_dim, int64_t window = 0, float softcap = 0)
{
    return {heads, kv_heads, head_dim, 1.0f / std::sqrt((float)head_dim), window, softcap};
}

/* use_plain's: the device's own kernels, and those for every device. */
const uint32_t masks[] = {0, 1u << NIB_CUDA_ATTENTION_FORWARD_HOPPER | 1u << NIB_CUDA_ATTENTION_BACKWARD_HOPPER};

struct problem {
    nib_attention_shape shape;
    int64_t T, length;
    int depth;
};
const problem cases[] = {
    {shape_of(1, 1, 64), 1, 1, 1},
    {shape_of(2, 1, 64), 3, 3, 1},
    {shape_of(2, 2, 16), 63, 63, 1},
    {shape_of(4, 2, 64), 65, 65, 2},
    {shape_of(2, 1, 64), 257, 257, 1},
    {shape_of(6, 2, 16), 300, 90, 3},
    {shape_of(2, 1, 64), 300, 100, 4},
    {shape_of(2, 2, 80), 129, 129, 3},
    {shape_of(2, 1, 80, 33), 130, 130, 1},
    {shape_of(2, 2, 96), 129, 60, 2},
    {shape_of(2, 1, 96, 40, 5.0f), 200, 200, 4},
    {shape_of(4, 1, 128), 129, 129, 2},
    {shape_of(2, 1, 128, 0, 2.0f), 257, 120, 4},
    {shape_of(2, 1, 256), 65, 65, 1},
    {shape_of(2, 1, 256, 33, 5.0f), 150, 150, 3},
    {shape_of(2, 1, 64), 700, 700, 2},
    {shape_of(1, 1, 128, 300), 600, 600, 1},
    {shape_of(1, 1, 64, 127), 192, 192, 1}, /* the last query of a tile is a window away from the first key of one */
    {shape_of(1, 1, 64, 255), 384, 384, 1},
};

struct results {
    std::vector<float> out, lse, dq, dk, dv;
};

/* One pass of both launchers on the device. */
results run(nib_ops *ops, const attention_case &c, forward_function forward, backward_function backward)
{
    device_matrix q(c.q, c.T, c.queries), k(c.k, c.T, c.keys), v(c.v, c.T, c.keys), dout(c.dout, c.T, c.queries);
    device_matrix out(c.T, c.queries), dq(c.T, c.queries), dk(c.T, c.keys), dv(c.T, c.keys);
    device_buffer<int32_t> position(c.tree.position), end(c.tree.end);
    device_buffer<float> lse((size_t)(c.shape.heads * c.T));
    nib_tree tree = {c.T, position.data(), end.data()};
    check_ok(forward(ops, c.shape, tree, q.matrix(), k.matrix(), v.matrix(), out.matrix(), lse.data()));
    check_ok(backward(ops, c.shape, tree, q.matrix(), k.matrix(), v.matrix(), out.matrix(), lse.data(), dout.matrix(),
                      dq.matrix(), dk.matrix(), dv.matrix()));
    return {out.download(), lse.download(), dq.download(), dk.download(), dv.download()};
}

nib_ops *create_backend()
{
    nib_ops *ops;
    check_ok(nib_cuda_backend_create(0, &ops));
    return ops;
}

/* bf16 rounds by 2^-9 at most. Plain: out on its way out; gradients also through the rounded out. Tiled: out and the
 * gradients also by rounded probabilities and dS. */
void check_all(forward_function forward, backward_function backward, double rounding, uint32_t mask, int64_t longest)
{
    nib_ops *ops = create_backend();
    ops->use_plain(ops, mask);
    uint64_t seed = 100;
    for (const problem &each : cases) {
        if (each.T > longest) continue;
        attention_case c(each.shape, each.T, each.length, each.depth, seed += 100);
        results r = run(ops, c, forward, backward);
        check_close("out", r.out, c.out, rounding);
        check_close("lse", r.lse, c.lse, 1e-5); /* fp32, and an exponential to 2 ulp */
        check_close("dq", r.dq, c.dq, 2 * rounding);
        check_close("dk", r.dk, c.dk, 2 * rounding);
        check_close("dv", r.dv, c.dv, 2 * rounding);
    }
    ops->close(ops);
}

/* Takes 32 keys at a time: the cases of many tiles would show nothing else, and last a minute. */
void plain_meets_the_cpu(void **)
{
    check_all(nib_cuda_attention_forward_plain, nib_cuda_attention_backward_plain, 1.0 / 512, 0, 300);
}

void tiled_meets_the_cpu(void **)
{
    for (uint32_t mask : masks)
        check_all(nib_cuda_attention_forward, nib_cuda_attention_backward, 2.0 / 512, mask, INT64_MAX);
}

/* The definition, in double arithmetic: sum of dout times out. */
double definition(const attention_case &c, const std::vector<double> &q, const std::vector<double> &k,
                  const std::vector<double> &v)
{
    const int64_t HD = c.shape.head_dim, group = c.shape.heads / c.shape.kv_heads;
    double result = 0;
    for (int64_t h = 0; h < c.shape.heads; h++)
        for (int64_t t = 0; t < c.T; t++) {
            double total = 0, sum = 0;
            for (int64_t key = 0; key <= t; key++) {
                if (!c.visible(t, key)) continue;
                double s = 0, product = 0;
                for (int64_t i = 0; i < HD; i++) {
                    s += q[(size_t)(t * c.queries + h * HD + i)] * k[(size_t)(key * c.keys + h / group * HD + i)];
                    product += (double)c.dout[(size_t)(t * c.queries + h * HD + i)] *
                               v[(size_t)(key * c.keys + h / group * HD + i)];
                }
                s *= (double)c.shape.scale;
                double cap = (double)c.shape.softcap, weight = std::exp(cap > 0 ? cap * std::tanh(s / cap) : s);
                total += weight;
                sum += weight * product;
            }
            result += sum / total;
        }
    return result;
}

/* One number checks every element: the slope along a random direction. Each of its terms is off by up to some 2^-8, at
 * random, so that 1 % of the root of their squares is far beyond rounding, and one wrong element in a thousand shows.
 */
void tiled_gradients_meet_differences(void **)
{
    nib_ops *ops = create_backend();
    for (uint32_t mask : masks)
        for (const problem &each :
             {problem{shape_of(2, 1, 64), 90, 90, 3}, {shape_of(2, 1, 128, 20, 2.0f), 90, 60, 2}}) {
            ops->use_plain(ops, mask);
            attention_case c(each.shape, each.T, each.length, each.depth, 7);
            results r = run(ops, c, nib_cuda_attention_forward, nib_cuda_attention_backward);
            const std::vector<float> *gradients[3] = {&r.dq, &r.dk, &r.dv};
            for (int which = 0; which < 3; which++) {
                double expected = 0, size = 0, value[2], step = 1e-4;
                for (int side = 0; side < 2; side++) {
                    std::vector<double> x[3] = {
                        {c.q.begin(), c.q.end()}, {c.k.begin(), c.k.end()}, {c.v.begin(), c.v.end()}};
                    for (size_t i = 0; i < x[which].size(); i++)
                        x[which][i] += (side == 0 ? step : -step) * (double)test_uniform(50, i);
                    value[side] = definition(c, x[0], x[1], x[2]);
                }
                for (size_t i = 0; i < gradients[which]->size(); i++) {
                    double term = (double)(*gradients[which])[i] * (double)test_uniform(50, i);
                    expected += term;
                    size += term * term;
                }
                double found = (value[0] - value[1]) / (2 * step);
                if (!(std::fabs(found - expected) < 0.01 * std::sqrt(size)))
                    fail_msg("gradient %d: difference %.7g, gradient %.7g, scale %.3g", which, found, expected,
                             std::sqrt(size));
            }
        }
    ops->close(ops);
}

/* Whatever the order of warps and blocks; and the layout of tiles leaves no bank conflict. */
void order_changes_no_bit(void **)
{
    nib_ops *ops = create_backend();
    for (uint32_t mask : masks)
        for (int64_t head_dim : {16, 64, 80, 96, 128, 256}) {
            ops->use_plain(ops, mask);
            attention_case c(shape_of(2, 1, head_dim), 100, 100, 2, 5);
#ifdef NIB_CUDA_EMULATED
            nib_emulator::reset_counters();
#endif
            results first = run(ops, c, nib_cuda_attention_forward, nib_cuda_attention_backward);
#ifdef NIB_CUDA_EMULATED
            assert_int_equal(nib_emulator::counters().bank_conflicts, 0);
#endif
            nib_emulator::set_seed(99);
            results again = run(ops, c, nib_cuda_attention_forward, nib_cuda_attention_backward);
            assert_true(first.out == again.out && first.lse == again.lse && first.dq == again.dq &&
                        first.dk == again.dk && first.dv == again.dv);
        }
    ops->close(ops);
}

#ifdef NIB_CUDA_EMULATED
/* Two documents of which the second sees nothing of the first cost what they cost apart, not what one of both would. */
void hidden_tiles_are_not_loaded(void **)
{
    nib_ops *ops = create_backend();
    uint64_t copies[2];
    for (uint32_t mask : masks) {
        ops->use_plain(ops, mask);
        for (int documents = 1; documents <= 2; documents++) {
            attention_case c(shape_of(1, 1, 64), 256 * documents, 256 * documents, 1, 3);
            for (int64_t t = 0; t < c.T; t++) {
                c.tree.end[(size_t)t] = (int32_t)(t / 256 * 256 + 256);
                c.tree.position[(size_t)t] = (int32_t)(t % 256);
            }
            nib_emulator::reset_counters();
            run(ops, c, nib_cuda_attention_forward, nib_cuda_attention_backward);
            copies[documents - 1] = nib_emulator::counters().async_copies;
        }
        assert_true(copies[0] > 0);
        assert_int_equal(copies[1], 2 * copies[0]);
    }
    ops->close(ops);
}

/* Whether one of `queries` queries from `query` on sees one of `keys` keys from `key` on, in one document. */
bool sees(int64_t query, int64_t queries, int64_t key, int64_t keys, int64_t window)
{
    bool any = false;
    for (int64_t q = query; q < query + queries; q++)
        for (int64_t k = key; k < key + keys; k++) any = any || (k <= q && (window == 0 || q - k < window));
    return any;
}

/* Of the kernels for every device, at heads of 128: a block copies the tiles of 32 that one of its rows sees, keys and
 * values, or queries, gradients and the sums beside them; a warp multiplies those that do not lie wholly above its
 * diagonal. Windows that end where a tile begins. */
void tiles_that_nobody_sees_cost_nothing(void **)
{
    const int64_t T = 256, HD = 128, TILE = 32, TILE_COPIES = 2 * TILE * HD / 8, PRODUCTS = 2 * TILE / 8 * HD / 16;
    nib_ops *ops = create_backend();
    ops->use_plain(ops, masks[1]);
    for (int64_t window : {0, 33, 65}) {
        attention_case c(shape_of(1, 1, HD, window), T, T, 1, 3);
        uint64_t copies = 0, products = 0;
        for (int64_t tile = 0; tile < T; tile += TILE) {
            for (int64_t query = 0; query < T; query += 128) /* forward; 32 queries a warp, as two rows of products */
                if (sees(query, 128, tile, TILE, window)) {
                    copies += TILE_COPIES;
                    for (int64_t own = query; own < query + 128; own += 32)
                        products += tile < own + 32 ? 2 * PRODUCTS : 0;
                }
            for (int64_t own = 0; own < T; own += 64) { /* backward; 16 rows a warp, the 64 of a block */
                const bool seen_by = sees(own, 64, tile, TILE, window), sees_it = sees(tile, TILE, own, 64, window);
                copies += (seen_by ? TILE_COPIES : 0) + (sees_it ? TILE_COPIES + TILE : 0);
                for (int64_t row = own; row < own + 64; row += 16) {
                    products += seen_by && tile < row + 16 ? PRODUCTS + PRODUCTS / 2 : 0; /* dQ */
                    products += sees_it && row < tile + TILE ? 2 * PRODUCTS : 0;          /* dK and dV */
                }
            }
        }
        copies += (T + 2 * 2 * T) * HD / 8; /* each block's own rows: queries; and two matrices of the other kernels */
        nib_emulator::reset_counters();
        run(ops, c, nib_cuda_attention_forward, nib_cuda_attention_backward);
        assert_int_equal(nib_emulator::counters().async_copies, copies);
        assert_int_equal(nib_emulator::counters().matrix_products, products);
    }
    ops->close(ops);
}

/* Hopper's forward kernel: of tiles before the first and behind the last that a group of 64 queries sees it starts no
 * product, whatever the other group of the block sees. One head; a tile is 128 keys, of heads of 256 only 64. */
void hopper_multiplies_what_a_group_sees(void **)
{
    const struct {
        int64_t head_dim, T;
        std::vector<int32_t> end; /* of tokens from a multiple of 64 on */
        uint64_t seen;            /* tiles, summed over groups */
    } trees[] = {
        {256, 128, {128, 128}, 1 + 2},                                   /* the diagonal */
        {256, 64 * 5 - 3, {317, 317, 317, 317, 317}, 1 + 2 + 3 + 4 + 5}, /* a group behind the end */
        {64, 256, {192, 192, 192, 256}, 1 + 1 + 2 + 1},                  /* documents */
        {64,
         512,
         {512, 448, 448, 448, 448, 448, 448, 512},
         1 + 1 + 2 + 2 + 3 + 3 + 4 + 4}, /* a prefix and two answers */
        {64,
         512,
         {448, 448, 448, 448, 448, 448, 448, 512},
         1 + 1 + 2 + 2 + 3 + 3 + 4 + 1}, /* a group whose document is another skips three tiles in a row */
        {128, 256, {128, 128, 256, 256}, 1 + 1 + 1 + 1},
    };
    nib_ops *ops = create_backend();
    for (const auto &one : trees) {
        attention_case c(shape_of(1, 1, one.head_dim), one.T, one.T, 1, 3);
        for (int64_t t = 0; t < c.T; t++) c.tree.end[(size_t)t] = one.end[(size_t)t / 64];
        c.compute();
        device_matrix q(c.q, c.T, c.queries), k(c.k, c.T, c.keys), v(c.v, c.T, c.keys), out(c.T, c.queries);
        device_buffer<int32_t> position(c.tree.position), end(c.tree.end);
        nib_emulator::reset_counters();
        check_ok(nib_cuda_attention_forward_hopper(ops, c.shape, {c.T, position.data(), end.data()}, q.matrix(),
                                                   k.matrix(), v.matrix(), out.matrix(), NULL));
        check_close("out", out.download(), c.out, 2.0 / 512);
        const int64_t keys = one.head_dim == 256 ? 64 : 128;
        assert_int_equal(nib_emulator::counters().matrix_products, one.seen * (uint64_t)(one.head_dim + keys) / 16);
    }
    ops->close(ops);
}

/* The emulator refuses Hopper's instructions on any other card. */
void other_cards_get_the_others(void **)
{
    nib_emulator::set_device(8, 0, 4, size_t{1} << 30);
    nib_ops *ops = create_backend();
    attention_case c(shape_of(2, 1, 128), 100, 100, 2, 5);
    check_close("out", run(ops, c, nib_cuda_attention_forward, nib_cuda_attention_backward).out, c.out, 2.0 / 512);
    device_matrix q(c.T, c.queries), k(c.T, c.keys);
    assert_int_equal(nib_cuda_attention_forward_hopper(ops, c.shape, {c.T, NULL, NULL}, q.matrix(), k.matrix(),
                                                       k.matrix(), q.matrix(), NULL),
                     NIB_ERROR_SHAPE);
    assert_non_null(strstr(nib_error_message(), "for sm_90: heads of 128 on sm_80"));
    ops->close(ops);
}
#endif

/* Ranges of any length, some empty, before a window or not; several queries; a group larger than 16. */
void cached_meets_the_cpu(void **)
{
    const nib_cache_range ranges[] = {{3, 1}, {10, 200}, {0, 0}, {260, 129}, {5, 7}, {0, 300}, {299, 90}};
    const int32_t begin[] = {0, 1, 4, 5, 7};
    const nib_attention_shape shapes[] = {
        shape_of(2, 1, 8),   shape_of(4, 2, 16),     shape_of(9, 3, 64),           shape_of(40, 2, 64, 150),
        shape_of(2, 2, 80),  shape_of(2, 1, 96, 33), shape_of(4, 1, 128, 0, 0.1f), shape_of(2, 1, 256, 260),
        shape_of(16, 1, 256)};
    nib_ops *ops = create_backend(), *cpu;
    check_ok(nib_cpu_backend_create(64 << 20, &cpu));
    for (int64_t T : {4, 3}) /* of any number of heads, so that a block's last warps have nothing to do */
        for (const nib_attention_shape &shape : shapes)
            for (auto cached : {nib_cuda_attention_cached_plain, nib_cuda_attention_cached}) {
                const int64_t queries = shape.heads * shape.head_dim, keys = shape.kv_heads * shape.head_dim,
                              rows = 389;
                std::vector<float> q = bf16_values(1, (size_t)(T * queries)), k = bf16_values(2, (size_t)(rows * keys));
                std::vector<float> v = bf16_values(3, (size_t)(rows * keys)), want((size_t)(T * queries));
                check_ok(cpu->attention_cached(cpu, shape, {q.data(), T, queries, queries, NIB_DTYPE_F32},
                                               {k.data(), rows, keys, keys, NIB_DTYPE_F32},
                                               {v.data(), rows, keys, keys, NIB_DTYPE_F32}, begin, ranges,
                                               {want.data(), T, queries, queries, NIB_DTYPE_F32}));
                device_matrix dq(q, T, queries), dk(k, rows, keys), dv(v, rows, keys), out(T, queries);
                check_ok(cached(ops, shape, dq.matrix(), dk.matrix(), dv.matrix(), begin, ranges, out.matrix()));
                check_close("out", out.download(), want, 2.0 / 512);
                const nib_cache_range outside = {300, 90};
                const int32_t one[] = {0, 1, 1, 1, 1};
                assert_int_equal(cached(ops, shape, dq.matrix(), dk.matrix(), dv.matrix(), one, &outside, out.matrix()),
                                 NIB_ERROR_SHAPE);
            }
    nib_cpu_backend_free(cpu);
    ops->close(ops);
}

void unsupported_shapes_are_refused(void **)
{
    nib_ops *ops = create_backend();
    attention_case c(shape_of(2, 1, 64), 10, 10, 1, 3);
    device_matrix q(c.q, c.T, c.queries), k(c.k, c.T, c.keys), out(c.T, c.queries);
    nib_tree tree = {c.T, NULL, NULL};
    nib_matrix odd = q.matrix(), fp32 = q.matrix();
    odd.stride = c.queries + 4;
    fp32.dtype = NIB_DTYPE_F32;
    assert_int_equal(nib_cuda_attention_forward(ops, c.shape, tree, odd, k.matrix(), k.matrix(), out.matrix(), NULL),
                     NIB_ERROR_SHAPE);
    assert_non_null(strstr(nib_error_message(), "rows of q [10, 128], 132 apart"));
    assert_int_equal(nib_cuda_attention_forward(ops, c.shape, tree, fp32, k.matrix(), k.matrix(), out.matrix(), NULL),
                     NIB_ERROR_SHAPE);
    assert_int_equal(nib_cuda_attention_forward(ops, shape_of(2, 1, 60), tree, q.matrix(), k.matrix(), k.matrix(),
                                                out.matrix(), NULL),
                     NIB_ERROR_SHAPE);
    assert_non_null(strstr(nib_error_message(), "2 heads, 1 key/value heads of 60"));
    ops->close(ops);
}

} // namespace

int main()
{
    const CMUnitTest tests[] = {
        cmocka_unit_test_setup(plain_meets_the_cpu, reset_emulator),
        cmocka_unit_test_setup(tiled_meets_the_cpu, reset_emulator),
        cmocka_unit_test_setup(tiled_gradients_meet_differences, reset_emulator),
        cmocka_unit_test_setup(order_changes_no_bit, reset_emulator),
#ifdef NIB_CUDA_EMULATED
        cmocka_unit_test_setup(hidden_tiles_are_not_loaded, reset_emulator),
        cmocka_unit_test_setup(tiles_that_nobody_sees_cost_nothing, reset_emulator),
        cmocka_unit_test_setup(hopper_multiplies_what_a_group_sees, reset_emulator),
        cmocka_unit_test_setup(other_cards_get_the_others, reset_emulator),
#endif
        cmocka_unit_test_setup(cached_meets_the_cpu, reset_emulator),
        cmocka_unit_test_setup(unsupported_shapes_are_refused, reset_emulator),
    };
    return cmocka_run_group_tests(tests, nullptr, nullptr);
}
