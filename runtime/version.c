#include "version.h"

const char *nib_version(void) { return NIBBLE_VERSION; }

const char *nib_commit(void) { return NIBBLE_COMMIT; }

const char *nib_build(void) { return NIBBLE_VERSION " " NIBBLE_COMMIT; }
