/* What every test includes first: cmocka wants its own headers in this order. */
#ifndef NIB_CHECK_H
#define NIB_CHECK_H

/* clang-format off */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#ifdef __cplusplus
extern "C" {
#endif
#include <cmocka.h>
#ifdef __cplusplus
}
#endif
/* clang-format on */

#endif
