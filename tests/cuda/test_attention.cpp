/* Attention's kernels, plain and tiled, against the CPU's fp32 kernels on the same rounded operands: trees of depth 1
 * to 4, windows, soft-caps, every head dim, T that fills no tile. Gradients besides against differences of the
 * definition in double arithmetic. */
#include "attention_case.h"

namespace
{

typedef decltype(&nib_cuda_attention_forward) forward_function;
typedef decltype(&nib_cuda_attention_backward) backward_function;

nib_attention_shape shape_of(int64_t heads, int64_t kv_heads, int64_t head_dim, int64_t window = 0, float softcap = 0)
{
    return {heads, kv_heads, head_dim, 1.0f / std::sqrt((float)head_dim), window, softcap};
}

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
void check_all(forward_function forward, backward_function backward, double rounding)
{
    nib_ops *ops = create_backend();
    uint64_t seed = 100;
    for (const problem &each : cases) {
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

void plain_meets_the_cpu(void **)
{
    check_all(nib_cuda_attention_forward_plain, nib_cuda_attention_backward_plain, 1.0 / 512);
}

void tiled_meets_the_cpu(void **) { check_all(nib_cuda_attention_forward, nib_cuda_attention_backward, 2.0 / 512); }

} // namespace

int main()
{
    const CMUnitTest tests[] = {
        cmocka_unit_test_setup(plain_meets_the_cpu, reset_emulator),
        cmocka_unit_test_setup(tiled_meets_the_cpu, reset_emulator),
    };
    return cmocka_run_group_tests(tests, nullptr, nullptr);
}
