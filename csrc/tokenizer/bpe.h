/* Byte-pair encoding of one word (Sennrich, Haddow and Birch, 2016): of all adjacent pairs the one whose merge was
 * learnt first is merged, the leftmost among equals, until none is left. As in Hugging Face's tokenizers. */
#ifndef NIB_BPE_H
#define NIB_BPE_H

#include "tokenizer/tokenizer.h"
#include "tokenizer/vocabulary.h"

typedef struct {
    uint64_t pair; /* left id << 32 | right id; UINT64_MAX: empty */
    uint32_t rank; /* lower merges first */
    int32_t id;    /* what the two become */
} nib_merge;

typedef struct {
    nib_vocabulary vocabulary;
    size_t model_bytes; /* of vocabulary.bytes: texts behind are added tokens, which the model does not know */
    nib_merge *merges;  /* open addressing, a power of two, at most half full; NULL: no merges */
    size_t merge_slots;
    bool byte_level;      /* symbols are bytes, written in the vocabulary in GPT-2's alphabet; else code points */
    bool ignore_merges;   /* a word that is in the vocabulary is its id, whatever the merges say */
    bool byte_fallback;   /* a code point without an id becomes its bytes, <0xXX> each */
    bool fuse_unk;        /* neighbouring unknown code points become one unknown */
    int32_t unknown;      /* -1: unknown symbols are left out */
    int32_t byte_id[256]; /* byte_level: id of that byte; byte_fallback: of <0xXX>; -1: none */
} nib_bpe;

nib_status nib_bpe_reserve_merges(nib_bpe *bpe, const char *name, size_t count);
/* Adds a merge (at most as many as reserved). NIB_ERROR_DATA if the pair is there already. */
nib_status nib_bpe_add_merge(nib_bpe *bpe, const char *name, int32_t left, int32_t right, uint32_t rank, int32_t id);
/* Fills byte_id; called when vocabulary and flags are set. */
void nib_bpe_find_bytes(nib_bpe *bpe);
void nib_bpe_free(nib_bpe *bpe);

/* What encoding needs besides the model: working memory, and the words met before. One per thread. */
typedef struct nib_bpe_worker nib_bpe_worker;
nib_bpe_worker *nib_bpe_worker_new(void); /* NULL: no memory */
void nib_bpe_worker_free(nib_bpe_worker *worker);
/* Appends the ids of a word; text is raw bytes, also when byte_level. */
nib_status nib_bpe_encode(const nib_bpe *bpe, nib_bpe_worker *worker, const char *text, size_t length,
                          nib_token_list *list);

bool nib_token_list_append(nib_token_list *list, const int32_t *ids, size_t count); /* false: no memory */

#endif
