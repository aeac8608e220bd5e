#include "model/shards.h"
#include "base/memory.h"

nib_status nib_shards_agree(const nib_shards *among, bool *value)
{
    if (among == NULL) return NIB_OK;
    char *all = nib_calloc((size_t)among->size, 1);
    if (all == NULL) return NIB_FAIL(NIB_ERROR_MEMORY, "no memory to ask %d ranks", among->size);
    all[among->rank] = *value;
    nib_status status = among->share(among->context, all, 1);
    for (int r = 0; r < among->size; r++) *value = *value && all[r];
    nib_free(all);
    return status;
}
