/* Plugins: shared libraries beside the program, or in ../lib/nibble from it, for what not every machine has. */
#ifndef NIB_PLUGIN_FILE_H
#define NIB_PLUGIN_FILE_H

#include "base/status.h"

/* Loads `file` for good. remedy: as below. */
nib_status nib_plugin_open(const char *file, const char *remedy, void **library);
/* Loads `file` for good (its library's own threads and handlers outlive their use) and finds its symbol. remedy: what
 * to do if there is no such file. NIB_ERROR_DEVICE. */
nib_status nib_plugin_load(const char *file, const char *symbol, const char *remedy, const void **found);
/* Refuses a plugin whose stated build is not the program's own. */
nib_status nib_plugin_same_build(const char *file, const char *build);

#endif
