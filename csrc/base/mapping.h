/* Which files are mapped where. Another program may cut a file that is mapped; reading what is gone raises SIGBUS, and
 * its handler asks here which file it was. */
#ifndef NIB_MAPPING_H
#define NIB_MAPPING_H

#include <stdint.h>

/* path stays the caller's, until the mapping is removed. Of 4096 files at once; those beyond are not found. */
void nib_mapping_add(const void *begin, uint64_t size, const char *path);
void nib_mapping_remove(const void *begin);
/* The path of the file that is mapped at an address, which byte of how many that is; NULL: none. Async-signal-safe. */
const char *nib_mapping_find(const void *address, uint64_t *offset, uint64_t *size);

#endif
