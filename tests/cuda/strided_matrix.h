/* A bf16 matrix on the device whose rows have a gap between them that nobody may write, and random values for it. */
#ifndef NIB_CUDA_STRIDED_MATRIX_H
#define NIB_CUDA_STRIDED_MATRIX_H

#include "cuda_check.h"

#include <cmath>

inline float uniform_value(uint64_t stream, uint64_t index)
{
    uint32_t word[4];
    nib_philox(stream, 0, index, word);
    return 2.0f * nib_uniform(word[0]) - 1.0f;
}

/* n values in (-1, 1) that bf16 holds. */
inline std::vector<float> random_bf16(uint64_t stream, int64_t n)
{
    std::vector<float> values((size_t)n);
    for (size_t i = 0; i < values.size(); i++)
        values[i] = nib_bf16_to_float(nib_bf16_from_float(uniform_value(stream, i)));
    return values;
}

/* gap is in elements; kernels that ask for 16-byte rows need a multiple of 8. */
class strided_matrix
{
  public:
    strided_matrix(const std::vector<float> &values, int64_t rows, int64_t columns, int64_t gap)
        : rows_(rows), columns_(columns), gap_(gap), buffer_(with_gaps(values, rows, columns, gap))
    {
    }
    /* NaN everywhere. */
    strided_matrix(int64_t rows, int64_t columns, int64_t gap)
        : strided_matrix(std::vector<float>((size_t)(rows * columns), NAN), rows, columns, gap)
    {
    }
    nib_matrix matrix() const { return {buffer_.data(), rows_, columns_, columns_ + gap_, NIB_DTYPE_BF16}; }
    /* Waits. Fails if a gap was written. */
    std::vector<float> download() const
    {
        const std::vector<uint16_t> bits = buffer_.download();
        std::vector<float> values;
        for (int64_t r = 0; r < rows_; r++)
            for (int64_t c = 0; c < columns_ + gap_; c++) {
                const uint16_t x = bits[(size_t)(r * (columns_ + gap_) + c)];
                if (c >= columns_)
                    assert_int_equal(x, GAP);
                else
                    values.push_back(nib_bf16_to_float({x}));
            }
        return values;
    }

  private:
    static constexpr uint16_t GAP = 0x7fc1; /* a NaN: reading it shows too */
    static std::vector<uint16_t> with_gaps(const std::vector<float> &values, int64_t rows, int64_t columns, int64_t gap)
    {
        std::vector<uint16_t> bits((size_t)(rows * (columns + gap)), GAP);
        for (int64_t r = 0; r < rows; r++)
            for (int64_t c = 0; c < columns; c++)
                bits[(size_t)(r * (columns + gap) + c)] = nib_bf16_from_float(values[(size_t)(r * columns + c)]).bits;
        return bits;
    }
    int64_t rows_, columns_, gap_;
    device_buffer<uint16_t> buffer_;
};

#endif
