/* A launch's blocks, in a random order, over all cores. */
#ifndef NIB_EMULATOR_GRID_H
#define NIB_EMULATOR_GRID_H

#include "block.h"

namespace nib_emulator
{

/* Runs all blocks and adds to `counters`; "" or the first thing that went wrong. One launch at a time. */
std::string run_grid(const Launch &launch, Counters &counters);

} // namespace nib_emulator

#endif
