/* What a rank prints, line by line: with its rank before each line, so that many can share a terminal; and into a log.
 */
#ifndef NIB_LAUNCH_LINES_H
#define NIB_LAUNCH_LINES_H

#include <stddef.h>

#define NIB_LINE_BYTES 65536 /* a longer line is cut into several */

typedef struct {
    int from;    /* non-blocking end of the rank's pipe; -1: at its end */
    int to, log; /* descriptors; log -1: none */
    char prefix[16];
    size_t length;
    char text[NIB_LINE_BYTES];
} nib_lines;

/* Reads what is there and writes whole lines. Returns 0 at the end of the pipe, which is then closed, else 1. */
int nib_lines_copy(nib_lines *lines);

#endif
