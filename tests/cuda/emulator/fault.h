/* Kernels that touch memory they may not: the signal becomes an error of the launch, with block, thread and address. */
#ifndef NIB_EMULATOR_FAULT_H
#define NIB_EMULATOR_FAULT_H

namespace nib_emulator
{

/* Before every launch, and in every OS thread that runs blocks. */
void handle_faults();
void prepare_thread_for_faults();

} // namespace nib_emulator

#endif
