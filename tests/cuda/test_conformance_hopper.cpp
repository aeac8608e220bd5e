/* Hopper's instructions against plain loops, emulated and, where there is such a card, on the chip. */
#include "cuda_check.h"

#include "cuda/backend.h"
#include "cuda/conformance_hopper.h"

namespace
{

void every_instruction_does_what_it_says(void **)
{
    nib_ops *ops;
    nib_cuda_conformance result[NIB_CUDA_CONFORMANCE_HOPPER];
    check_ok(nib_cuda_backend_create(0, &ops));
    if (nib_cuda_device_of(ops)->architecture != 90) {
        assert_int_equal(nib_cuda_conformance_hopper(ops, result), NIB_ERROR_DEVICE);
    } else {
        check_ok(nib_cuda_conformance_hopper(ops, result));
        for (const nib_cuda_conformance &one : result)
            if (one.wrong > 0 || one.values == 0)
                fail_msg("%s: %lld of %lld values are wrong", one.instruction, (long long)one.wrong,
                         (long long)one.values);
    }
    ops->close(ops);
}

} // namespace

int main()
{
    const CMUnitTest tests[] = {cmocka_unit_test_setup(every_instruction_does_what_it_says, reset_emulator)};
    return cmocka_run_group_tests(tests, nullptr, nullptr);
}
