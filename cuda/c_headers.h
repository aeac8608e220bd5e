/* The C headers that cuda/ works against, as C++ sees them. */
#ifndef NIB_CUDA_C_HEADERS_H
#define NIB_CUDA_C_HEADERS_H

/* Headers of the C library first, outside of extern "C": C++ declares templates in some of them. */
#include <math.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

extern "C" {
#include "base/arena.h"
#include "base/bf16.h"
#include "base/log.h"
#include "base/random.h"
#include "base/status.h"
#include "model/ops.h"
}

#endif
