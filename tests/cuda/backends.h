/* The CUDA backend and the CPU's beside each other, for as long as a test takes. */
#ifndef NIB_CUDA_BACKENDS_H
#define NIB_CUDA_BACKENDS_H

#include "cuda_check.h"

extern "C" {
#include "cpu/backend.h"
}

#include "cuda/backend.h"

struct backends {
    nib_ops *cuda, *cpu;
    backends()
    {
        check_ok(nib_cuda_backend_create(0, &cuda));
        check_ok(nib_cpu_backend_create(size_t{16} << 20, &cpu));
    }
    ~backends()
    {
        cuda->close(cuda);
        nib_cpu_backend_free(cpu);
    }
};

#endif
