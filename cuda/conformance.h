/* The list of instructions that kernels build on, each run on the device and held against a scalar computation of the
 * same: `nibble doctor` runs it on a chip, tests/cuda/test_conformance.cpp emulated. What the emulator's tests prove of
 * the kernels holds on a chip if every one of these agrees there.
 *
 * Another instruction: a row in the list of its file (conformance_matrix.cu, _memory.cu, _warp.cu, _number.cu), or a
 * file of its own with a list that conformance.cu joins to these. */
#ifndef NIB_CUDA_CONFORMANCE_H
#define NIB_CUDA_CONFORMANCE_H

#include "cuda/c_headers.h"

extern "C" {
#include "model/plugin.h"
}

int nib_cuda_conformance_count(void);
/* Runs instruction i, 0 <= i < count, on the device of `ops`. A difference is a verdict in *line, not an error. */
nib_status nib_cuda_conformance_check(nib_ops *ops, int i, nib_instruction_line *line);

#endif
