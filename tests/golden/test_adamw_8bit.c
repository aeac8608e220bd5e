/* AdamW with 8-bit moments against bitsandbytes' (data/adamw, made by tests/peers/adamw_8bit.py), one step at a time
 * from its own moments.
 *
 * The parameter's step is taken with moments that are not yet rounded again, so it has to agree to the rounding of
 * fp32. Codes are the nearest of the map; bitsandbytes on a CPU rounds value / absmax to steps of 2 / 65,535 first, so
 * that of two codes which are about as near it may take the other. */
#include "check.h"

#include "base/memory.h"
#include "cpu/backend.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

enum { N = 600, BLOCKS = 3, STEPS = 3 };
#define GRID (2.0 / 65535)

static const void *golden(const nib_tensor_set *set, const char *format, int step, nib_dtype dtype, uint64_t bytes)
{
    char name[32];
    snprintf(name, sizeof name, format, step);
    const nib_tensor_view *view = nib_tensor_set_find(set, name);
    if (view == NULL || view->dtype != dtype || view->bytes != bytes) fail_msg("%s is not what is expected", name);
    return view->data;
}

/* The moments after `step`; zeros before the first. */
typedef struct {
    uint8_t code[2][N];
    float absmax[2][BLOCKS];
} moments;

static void read_moments(const nib_tensor_set *set, int step, moments *m)
{
    memset(m, 0, sizeof *m);
    if (step == 0) return;
    memcpy(m->code[0], golden(set, "state1_%d", step, NIB_DTYPE_U8, N), N);
    memcpy(m->code[1], golden(set, "state2_%d", step, NIB_DTYPE_U8, N), N);
    memcpy(m->absmax[0], golden(set, "absmax1_%d", step, NIB_DTYPE_F32, sizeof m->absmax[0]), sizeof m->absmax[0]);
    memcpy(m->absmax[1], golden(set, "absmax2_%d", step, NIB_DTYPE_F32, sizeof m->absmax[1]), sizeof m->absmax[1]);
}

/* value: the moment before it was rounded, from the moments and the gradient that the step began with. */
static void check_code(uint8_t found, uint8_t expected, double value, const float *map, double absmax)
{
    const double x = absmax > 0 ? value / absmax : 0;
    const double off = fabs((double)map[found] - x), other = fabs((double)map[expected] - x);
    assert_true(off <= other + 1e-6); /* fp32's roundings of a value up to 1 decide which of two is nearer */
    if (found != expected) assert_true(other - off <= GRID);
}

static void a_step_is_that_of_bitsandbytes(void **state)
{
    (void)state;
    static float maps[2][256], p[N], g[N];
    nib_ops *ops;
    nib_tensor_set *set;
    assert_int_equal(nib_cpu_backend_create(1 << 20, &ops), NIB_OK);
    assert_int_equal(nib_tensor_set_open(NIB_TEST_DATA "/adamw/adamw_8bit.safetensors", &set), NIB_OK);
    memcpy(maps[0], nib_nf4_dynamic_map, sizeof maps[0]);
    memcpy(maps[1], nib_dynamic_map_unsigned, sizeof maps[1]);
    assert_memory_equal(maps[1], golden(set, "unsigned_map", 0, NIB_DTYPE_F32, sizeof maps[1]), sizeof maps[1]);
    for (int step = 1; step <= STEPS; step++) {
        const nib_clip clip = {.norm = 1.0, .scale = 1.0f};
        const nib_adamw_factors factors = nib_adamw_factors_of((nib_adamw){1e-3, 0.9, 0.999, 1e-8, 0.01, step});
        moments before, m, want;
        read_moments(set, step - 1, &before);
        read_moments(set, step, &want);
        m = before;
        memcpy(p, golden(set, "p%d", step - 1, NIB_DTYPE_F32, sizeof p), sizeof p);
        memcpy(g, golden(set, "g%d", step, NIB_DTYPE_F32, sizeof g), sizeof g);
        const nib_moments_8bit quantised = {m.code[0], m.code[1], m.absmax[0], m.absmax[1], maps[0]};
        assert_int_equal(ops->adamw_8bit(ops, &factors, &clip, N, p, g, quantised), NIB_OK);
        const float *expected = golden(set, "p%d", step, NIB_DTYPE_F32, sizeof p);
        for (int i = 0; i < N; i++) {
            const int b = i / 256;
            const double slope = (double)g[i];
            const double first = 0.9 * (double)maps[0][before.code[0][i]] * (double)before.absmax[0][b] + 0.1 * slope;
            const double second =
                0.999 * (double)maps[1][before.code[1][i]] * (double)before.absmax[1][b] + 0.001 * slope * slope;
            /* bitsandbytes orders fp32's operations otherwise: some roundings of 6e-8 */
            assert_true(fabs((double)p[i] - (double)expected[i]) <= 1e-6 * (1 + fabs((double)expected[i])));
            check_code(m.code[0][i], want.code[0][i], first, maps[0], (double)m.absmax[0][b]);
            check_code(m.code[1][i], want.code[1][i], second, maps[1], (double)m.absmax[1][b]);
        }
        for (int b = 0; b < BLOCKS; b++)
            for (int k = 0; k < 2; k++)
                assert_true(fabsf(m.absmax[k][b] - want.absmax[k][b]) <= 1e-6f * want.absmax[k][b]);
    }
    nib_tensor_set_close(set);
    nib_cpu_backend_free(ops);
}

/* A gradient that is no number changes nothing; a block of zeros stays one. */
static void the_ends_are_well_defined(void **state)
{
    (void)state;
    static float maps[2][256], p[N], g[N], unchanged[N];
    moments m = {0}, none = {0};
    nib_ops *ops;
    assert_int_equal(nib_cpu_backend_create(1 << 20, &ops), NIB_OK);
    memcpy(maps[0], nib_nf4_dynamic_map, sizeof maps[0]);
    memcpy(maps[1], nib_dynamic_map_unsigned, sizeof maps[1]);
    const nib_moments_8bit quantised = {m.code[0], m.code[1], m.absmax[0], m.absmax[1], maps[0]};
    const nib_adamw_factors factors = nib_adamw_factors_of((nib_adamw){1e-3, 0.9, 0.999, 1e-8, 0.0, 1});
    for (int i = 0; i < N; i++) unchanged[i] = p[i] = (float)i;
    assert_int_equal(ops->adamw_8bit(ops, &factors, &(nib_clip){.norm = NAN, .scale = 1.0f}, N, p, g, quantised),
                     NIB_OK);
    assert_memory_equal(&m, &none, sizeof m);
    assert_int_equal(ops->adamw_8bit(ops, &factors, &(nib_clip){.scale = 1.0f}, N, p, g, quantised), NIB_OK);
    assert_memory_equal(p, unchanged, sizeof p);
    for (int i = 0; i < N; i++) assert_true(maps[0][m.code[0][i]] == 0 && maps[1][m.code[1][i]] == 0);
    nib_cpu_backend_free(ops);
}

/* A value that had a small gradient once and has none in the next step: its second moment is not rounded away while
 * its first is still there, so that it moves by no more than the rate. */
static void a_small_second_moment_stays(void **state)
{
    (void)state;
    static float maps[2][256], p[N], g[N];
    moments m = {0};
    nib_ops *ops;
    assert_int_equal(nib_cpu_backend_create(1 << 20, &ops), NIB_OK);
    memcpy(maps[0], nib_nf4_dynamic_map, sizeof maps[0]);
    memcpy(maps[1], nib_dynamic_map_unsigned, sizeof maps[1]);
    const nib_moments_8bit quantised = {m.code[0], m.code[1], m.absmax[0], m.absmax[1], maps[0]};
    for (int i = 0; i < N; i++) g[i] = i % 2 == 0 ? 1.0f : 1e-5f;
    for (int step = 1; step <= 2; step++) {
        const nib_adamw_factors factors = nib_adamw_factors_of((nib_adamw){1e-3, 0.9, 0.999, 1e-8, 0.0, step});
        assert_int_equal(ops->adamw_8bit(ops, &factors, &(nib_clip){.norm = 1.0, .scale = 1.0f}, N, p, g, quantised),
                         NIB_OK);
        for (int i = 1; i < N; i += 2) {
            assert_true(maps[0][m.code[0][i]] > 0 && maps[1][m.code[1][i]] > 0);
            assert_true(fabsf(p[i]) <= 2e-3f);
            g[i] = 0.0f;
        }
    }
    nib_cpu_backend_free(ops);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_step_is_that_of_bitsandbytes),
        cmocka_unit_test(the_ends_are_well_defined),
        cmocka_unit_test(a_small_second_moment_stays),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
