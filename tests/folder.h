/* A folder of a test program's own: make_folder before its tests, remove_folder, with all that is in it, after them. */
#ifndef NIB_TEST_FOLDER_H
#define NIB_TEST_FOLDER_H

#include "base/file.h"

#include <stdlib.h>

static char folder[] = "/tmp/nib_test_XXXXXX";

static inline int make_folder(void **state)
{
    (void)state;
    return mkdtemp(folder) != NULL ? 0 : -1;
}

static inline int remove_folder(void **state)
{
    (void)state;
    return nib_file_remove_tree(folder) == NIB_OK ? 0 : -1;
}

#endif
