/* The machine that a run is on, and what the process takes of it. */
#ifndef NIB_MACHINE_H
#define NIB_MACHINE_H

#include <stddef.h>

/* Peak resident memory of the process in bytes (VmHWM); 0: not known. */
size_t nib_peak_memory(void);
/* Resident memory of the process now, in bytes (VmRSS); 0: not known. */
size_t nib_resident_memory(void);
/* Memory that can still be taken, in bytes (MemAvailable); 0: not known. */
size_t nib_available_memory(void);

typedef struct {
    char processor[256]; /* "AMD EPYC 9B14"; UTF-8 */
    char system[256];    /* "Linux 6.1.0" */
    int processors;      /* that are online */
    int threads;         /* that the ops take */
    size_t memory;       /* bytes; 0: not known */
} nib_machine;
void nib_machine_read(nib_machine *machine);

#endif
