/* The machine that a run is on, and what the process takes of it. */
#ifndef NIB_MACHINE_H
#define NIB_MACHINE_H

#include "base/buffer.h"

#include <stddef.h>

/* Peak resident memory of the process in bytes (VmHWM); 0: not known. */
size_t nib_peak_memory(void);
/* Resident memory of the process now, in bytes (VmRSS); 0: not known. */
size_t nib_resident_memory(void);
/* Memory that can still be taken, in bytes (MemAvailable); 0: not known. */
size_t nib_available_memory(void);
/* "Intel(R) Xeon(R) ..., 2 threads, 15.6 GiB, Linux 6.1.0". */
void nib_machine_describe(nib_buffer *text);

#endif
