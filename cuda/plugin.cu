/* What the program finds in libnibble_cuda.so (model/plugin.h). */
#include "cuda/backend.h"
#include "cuda/conformance.h"

extern "C" {
#include "model/plugin.h"

extern const nib_plugin nib_plugin_entry;
const nib_plugin nib_plugin_entry = {NIBBLE_VERSION " " NIBBLE_COMMIT, nib_cuda_backend_create,
                                     nib_cuda_backend_describe,        nib_cuda_backend_libraries,
                                     nib_cuda_conformance_count,       nib_cuda_conformance_check};
}
