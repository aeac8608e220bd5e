/* Every instruction of the list that kernels build on does what a scalar computation of the same does. `nibble doctor`
 * runs the same list on a chip. */
#include "cuda_check.h"

#include "cuda/backend.h"
#include "cuda/conformance.h"
#include "cuda/conformance_hopper.h"

#include <set>

static void every_instruction_agrees(void **)
{
    nib_ops *ops;
    std::set<std::string> names;
    check_ok(nib_cuda_backend_create(0, &ops));
    for (int i = 0; i < nib_cuda_conformance_count(); i++) {
        nib_instruction_line line;
        check_ok(nib_cuda_conformance_check(ops, i, &line));
        if (line.verdict == NIB_INSTRUCTION_DISAGREES) fail_msg("%s: %s", line.name, line.difference);
        assert_true(names.insert(line.name).second);
    }
    assert_true(names.size() > 15);
    ops->close(ops);
}

#ifdef NIB_CUDA_EMULATED
/* On Ampere there are neither 8-bit products nor stmatrix: said, not run. */
static void absent_instructions_are_not_run(void **)
{
    nib_ops *ops;
    std::set<std::string> absent;
    nib_emulator::set_device(8, 0, 4, size_t{1} << 30);
    check_ok(nib_cuda_backend_create(0, &ops));
    for (int i = 0; i < nib_cuda_conformance_count(); i++) {
        nib_instruction_line line;
        check_ok(nib_cuda_conformance_check(ops, i, &line));
        if (line.verdict == NIB_INSTRUCTION_ABSENT) absent.insert(line.name);
    }
    assert_true(absent.count("mma.m16n8k32.e4m3") == 1 && absent.count("stmatrix.x4") == 1);
    assert_true(absent.count("mma.m16n8k16.bf16") == 0);
    ops->close(ops);
}

/* A kernel that writes nothing is a difference, not an agreement. */
static void a_difference_is_a_verdict(void **)
{
    nib_ops *ops;
    int wrong = 0;
    nib_emulator::break_kernel("row->kernel", cudaSuccess);
    check_ok(nib_cuda_backend_create(0, &ops));
    for (int i = 0; i < nib_cuda_conformance_count(); i++) {
        nib_instruction_line line;
        check_ok(nib_cuda_conformance_check(ops, i, &line));
        wrong += line.verdict == NIB_INSTRUCTION_DISAGREES;
        if (line.verdict == NIB_INSTRUCTION_DISAGREES) assert_non_null(strstr(line.difference, "word 0 of"));
    }
    assert_int_equal(wrong,
                     nib_cuda_conformance_count() - NIB_CUDA_CONFORMANCE_HOPPER); /* those launch by other names */
    ops->close(ops);
}
#endif

int main()
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(every_instruction_agrees, reset_emulator),
#ifdef NIB_CUDA_EMULATED
        cmocka_unit_test_setup(absent_instructions_are_not_run, reset_emulator),
        cmocka_unit_test_setup(a_difference_is_a_verdict, reset_emulator),
#endif
    };
    return cmocka_run_group_tests(tests, nullptr, nullptr);
}
