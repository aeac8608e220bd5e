/* A file that is cut, or whose disk fails, while the program has it mapped: a page of it that is gone raises SIGBUS,
 * which would end the program without a word. */
#ifndef NIB_LOST_FILE_H
#define NIB_LOST_FILE_H

/* From here on that ends the program with a message that names the file, and exit code 74. Any other SIGBUS does what
 * it did before. The handler runs on the stack it meets, whatever lies below it (signals.h): it never returns. */
void nib_lost_file_watch(void);

#endif
