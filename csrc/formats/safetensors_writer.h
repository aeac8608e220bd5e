/* Writes a safetensors file tensor by tensor, durably: into PATH.tmp-PID, fsync, read back and compared by SHA-256,
 * then renamed over PATH. On any failure PATH is as before.
 *
 * Use: begin, declare every tensor (in the order written), data for each in turn, finish. abandon frees a writer at any
 * point and removes the temporary.
 */
#ifndef NIB_SAFETENSORS_WRITER_H
#define NIB_SAFETENSORS_WRITER_H

#include "formats/tensor_set.h"

typedef struct nib_safetensors_writer nib_safetensors_writer;

nib_status nib_safetensors_writer_begin(const char *path, nib_safetensors_writer **writer);
nib_status nib_safetensors_writer_metadata(nib_safetensors_writer *writer, const char *key, const char *value);
nib_status nib_safetensors_writer_declare(nib_safetensors_writer *writer, const char *name, nib_dtype dtype, int rank,
                                          const int64_t *shape);
/* Appends bytes of the current tensor; may be called several times a tensor; the next tensor begins when its bytes are
 * complete. */
nib_status nib_safetensors_writer_data(nib_safetensors_writer *writer, const void *bytes, uint64_t length);
/* Frees the writer whatever the outcome. hex (may be NULL) gets the file's SHA-256. */
nib_status nib_safetensors_writer_finish(nib_safetensors_writer *writer, char hex[65]);
void nib_safetensors_writer_abandon(nib_safetensors_writer *writer);

#endif
