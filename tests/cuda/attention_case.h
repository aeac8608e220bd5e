/* Inputs of attention's tests: random bf16 operands over a prefix tree, on the device with gaps between rows that
 * nobody may read or write, and what the CPU's fp32 kernels make of the same rounded values. */
#ifndef NIB_CUDA_ATTENTION_CASE_H
#define NIB_CUDA_ATTENTION_CASE_H

#include "cuda_check.h"

#include "cuda/attention.h"
#include "cuda/backend.h"

extern "C" {
#include "base/random.h"
#include "cpu/backend.h"
}

#include <algorithm>
#include <cmath>

inline float test_uniform(uint64_t stream, uint64_t index)
{
    uint32_t word[4];
    nib_philox(stream, 0, index, word);
    return 2.0f * nib_uniform(word[0]) - 1.0f;
}

/* n values in (-1, 1) that bf16 holds. */
inline std::vector<float> bf16_values(uint64_t stream, size_t n)
{
    std::vector<float> values(n);
    for (size_t i = 0; i < n; i++) values[i] = nib_bf16_to_float(nib_bf16_from_float(test_uniform(stream, i)));
    return values;
}

/* [rows, columns] of bf16 on the device; a row's gap holds GAP. */
class device_matrix
{
  public:
    static constexpr int64_t PAD = 8; /* elements between rows */
    static constexpr uint16_t GAP = 0x7fc1;

    device_matrix(const std::vector<float> &values, int64_t rows, int64_t columns)
        : rows_(rows), columns_(columns), buffer_(pad(values, rows, columns))
    {
    }
    /* Poison. */
    device_matrix(int64_t rows, int64_t columns)
        : device_matrix(std::vector<float>((size_t)(rows * columns), NAN), rows, columns)
    {
    }
    nib_matrix matrix() const { return {buffer_.data(), rows_, columns_, columns_ + PAD, NIB_DTYPE_BF16}; }
    /* Fails if a gap was written. */
    std::vector<float> download() const
    {
        std::vector<uint16_t> bits = buffer_.download();
        std::vector<float> values;
        for (int64_t r = 0; r < rows_; r++)
            for (int64_t c = 0; c < columns_ + PAD; c++) {
                uint16_t x = bits[(size_t)(r * (columns_ + PAD) + c)];
                if (c >= columns_)
                    assert_int_equal(x, GAP);
                else
                    values.push_back(nib_bf16_to_float({x}));
            }
        return values;
    }

  private:
    static std::vector<uint16_t> pad(const std::vector<float> &values, int64_t rows, int64_t columns)
    {
        std::vector<uint16_t> bits((size_t)(rows * (columns + PAD)), GAP);
        for (int64_t r = 0; r < rows; r++)
            for (int64_t c = 0; c < columns; c++)
                bits[(size_t)(r * (columns + PAD) + c)] = nib_bf16_from_float(values[(size_t)(r * columns + c)]).bits;
        return bits;
    }
    int64_t rows_, columns_;
    device_buffer<uint16_t> buffer_;
};

/* Documents of about `length` tokens, each a tree of `depth` levels: the second and the last third of a node are two
 * children of its first third. Depth 1 is plain packing; length >= T and depth 1 is one causal document. */
struct test_tree {
    std::vector<int32_t> position, end;

    test_tree(uint64_t seed, int64_t T, int64_t length, int depth) : position((size_t)T), end((size_t)T)
    {
        uint64_t draw = 0;
        for (int64_t start = 0, stop; start < T; start = stop) {
            stop = std::min(T, start + 1 + length / 2 + (int64_t)(std::fabs(test_uniform(seed, draw++)) * length / 2));
            if (length >= T) stop = T;
            grow(start, stop, 0, depth);
        }
    }

  private:
    void grow(int64_t from, int64_t to, int32_t at, int depth)
    {
        for (int64_t t = from; t < to; t++) {
            position[(size_t)t] = at + (int32_t)(t - from);
            end[(size_t)t] = (int32_t)to;
        }
        int64_t third = (to - from) / 3;
        if (depth == 1 || third == 0) return;
        grow(from + third, from + 2 * third, at + (int32_t)third, depth - 1);
        grow(from + 2 * third, to, at + (int32_t)third, depth - 1);
    }
};

/* Operands and results, on the host in fp32. */
struct attention_case {
    nib_attention_shape shape;
    int64_t T, queries, keys; /* columns of q, of k */
    test_tree tree;
    std::vector<float> q, k, v, dout;
    std::vector<float> out, lse, dq, dk, dv; /* the CPU's */

    attention_case(nib_attention_shape shape_, int64_t T_, int64_t length, int depth, uint64_t seed)
        : shape(shape_), T(T_), queries(shape.heads * shape.head_dim), keys(shape.kv_heads * shape.head_dim),
          tree(seed, T, length, depth), q(bf16_values(seed + 1, (size_t)(T * queries))),
          k(bf16_values(seed + 2, (size_t)(T * keys))), v(bf16_values(seed + 3, (size_t)(T * keys))),
          dout(bf16_values(seed + 4, (size_t)(T * queries))), out(q.size()), lse((size_t)(shape.heads * T)),
          dq(q.size()), dk(k.size()), dv(k.size())
    {
        compute();
    }

    /* The CPU's results; again, once the tree has been changed. */
    void compute()
    {
        nib_ops *cpu;
        nib_tree on_host = {T, tree.position.data(), tree.end.data()};
        check_ok(nib_cpu_backend_create(64 << 20, &cpu));
        check_ok(cpu->attention_forward(cpu, shape, on_host, view(q), view(k), view(v), view(out), lse.data()));
        check_ok(cpu->attention_backward(cpu, shape, on_host, view(q), view(k), view(v), view(out), lse.data(),
                                         view(dout), view(dq), view(dk), view(dv)));
        nib_cpu_backend_free(cpu);
    }

    bool visible(int64_t query, int64_t key) const
    {
        return key <= query && query < tree.end[(size_t)key] &&
               (shape.window == 0 || tree.position[(size_t)query] - tree.position[(size_t)key] < shape.window);
    }

  private:
    nib_matrix view(std::vector<float> &x) const
    {
        int64_t columns = (int64_t)x.size() / T;
        return {x.data(), T, columns, columns, NIB_DTYPE_F32};
    }
};

/* |found - want| <= bound |want|. */
inline void check_close(const char *what, const std::vector<float> &found, const std::vector<float> &want, double bound)
{
    double error = 0, norm = 0;
    assert_int_equal(found.size(), want.size());
    for (size_t i = 0; i < want.size(); i++) {
        error += ((double)found[i] - want[i]) * ((double)found[i] - want[i]);
        norm += (double)want[i] * want[i];
    }
    if (!(error <= bound * bound * norm + 1e-12))
        fail_msg("%s: off by %.3g of its norm, expected at most %.3g", what, std::sqrt(error / norm), bound);
}

#endif
