/* Kernels that touch memory they may not: the signal becomes an error of the launch, with block, thread and address. */
#ifndef NIB_EMULATOR_FAULT_H
#define NIB_EMULATOR_FAULT_H

namespace nib_emulator
{

/* Once for every OS thread that runs blocks. */
void catch_faults();

} // namespace nib_emulator

#endif
