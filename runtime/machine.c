#include "machine.h"
#include "base/utf8.h"

#ifdef _OPENMP
#include <omp.h>
#endif
#include <stdio.h>
#include <string.h>
#include <sys/utsname.h>
#include <unistd.h>

/* The number in KEY's line "KEY: 123 kB" of a file of /proc, in bytes; 0 if there is none. */
static size_t kibibytes_of(const char *path, const char *key)
{
    FILE *file = fopen(path, "r");
    char line[256];
    unsigned long long value = 0;
    size_t length = strlen(key);
    if (file == NULL) return 0;
    while (fgets(line, sizeof line, file) != NULL)
        if (strncmp(line, key, length) == 0 && sscanf(line + length, ": %llu", &value) == 1) break;
    fclose(file);
    return (size_t)value * 1024;
}

size_t nib_peak_memory(void) { return kibibytes_of("/proc/self/status", "VmHWM"); }

size_t nib_resident_memory(void) { return kibibytes_of("/proc/self/status", "VmRSS"); }

size_t nib_available_memory(void) { return kibibytes_of("/proc/meminfo", "MemAvailable"); }

static void read_processor(char name[256])
{
    char line[512];
    FILE *file = fopen("/proc/cpuinfo", "r");
    while (file != NULL && fgets(line, sizeof line, file) != NULL)
        if (sscanf(line, "model name : %255[^\n]", name) == 1) break;
    if (file != NULL) fclose(file);
    if (name[0] == 0 || nib_utf8_invalid_at(name, strlen(name)) != strlen(name)) strcpy(name, "unknown");
}

void nib_machine_read(nib_machine *machine)
{
    struct utsname system;
    *machine = (nib_machine){.processors = (int)sysconf(_SC_NPROCESSORS_ONLN), .threads = 1};
    read_processor(machine->processor);
#ifdef _OPENMP
    machine->threads = omp_get_max_threads();
#endif
    machine->memory = kibibytes_of("/proc/meminfo", "MemTotal");
    if (uname(&system) == 0) snprintf(machine->system, sizeof machine->system, "%s %s", system.sysname, system.release);
}
