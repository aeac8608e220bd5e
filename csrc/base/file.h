/* Files: read-only mapping, whole reads, and writes that are either complete or absent. */
#ifndef NIB_FILE_H
#define NIB_FILE_H

#include "base/buffer.h"
#include "base/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct {
    const uint8_t *data; /* read-only, size bytes; NULL when size is 0 */
    uint64_t size;
    char *path; /* owned copy, for messages */
} nib_file;

/* Opens a regular file for reading; the caller closes *fd, which is -1 on failure. NIB_ERROR_DATA if it does not exist
 * or is no regular file, NIB_ERROR_IO for the rest. */
nib_status nib_file_open_regular(const char *path, int *fd, uint64_t *size);
/* Maps a regular file; errors as nib_file_open_regular, and NIB_ERROR_DATA for a pointer of Git LFS. */
nib_status nib_file_map(nib_file *file, const char *path);
void nib_file_unmap(nib_file *file);
/* Tells the kernel that the bytes are no longer needed, so that a streamed file does not stay in memory. */
void nib_file_release(const nib_file *file, uint64_t offset, uint64_t length);
/* SHA-256 of the mapped file, whose pages are given back as it goes, so that a large one is never resident as a whole.
 */
void nib_file_hash(const nib_file *file, char hex[65]);

/* Whole file into *text (NUL added after *length bytes; free with nib_free). max: larger is NIB_ERROR_DATA. */
nib_status nib_file_read(const char *path, size_t max, char **text, size_t *length);

/* Durable replacement: writes PATH.tmp-PID, fsyncs, renames over PATH, fsyncs the folder. On failure PATH is as
 * before and the temporary is removed. A device or a pipe is written to in place. NIB_ERROR_IO with errno's text. */
nib_status nib_file_replace(const char *path, const void *bytes, size_t length);
/* The same with text as FOLDER/name; NIB_ERROR_MEMORY if the text is not whole because an append found no memory. */
nib_status nib_file_replace_text(const char *folder, const char *name, const nib_buffer *text);
/* Full write loop on a descriptor (EINTR, short writes). path is for the message. */
nib_status nib_file_write_all(int fd, const void *bytes, size_t length, const char *path);
nib_status nib_file_sync_folder(const char *path);

/* Whether the name is taken, if only by a symbolic link to nothing: what cannot be read is an error, not absent. */
bool nib_file_exists(const char *path);
bool nib_file_is_folder(const char *path);
bool nib_file_is_same(const char *a, const char *b); /* one file or folder under two names; false if one is absent */
nib_status nib_file_make_folders(const char *path);  /* mkdir -p */
nib_status nib_file_remove_tree(const char *path);   /* rm -r; absent is fine */
/* base and name joined with one '/', or a copy of name if it is absolute; free with nib_free; NULL: no memory. */
char *nib_path_join(const char *base, const char *name);
char *nib_path_folder(const char *path); /* dirname; free with nib_free */
/* name in the folder of what can be made again: $XDG_CACHE_HOME/nibble, or ~/.cache/nibble. As nib_path_join. */
char *nib_cache_path(const char *name);

#endif
