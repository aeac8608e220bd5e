#include "tokenizer/bpe.h"

#include "base/memory.h"
#include "base/utf8.h"
#include "tokenizer/byte_alphabet.h"

#include <stdio.h>
#include <string.h>

#define EMPTY   UINT64_MAX
#define NO_RANK UINT32_MAX

/* Words of up to this many symbols find their next pair by looking at all of them; longer ones keep a heap. */
#define SCAN_SYMBOLS 48

/* The cache of words: direct-mapped by hash, a word replaces the one before it. Longer words, or ones of more ids, are
 * rare and not kept. 64 K entries of 64 bytes. */
#define CACHE_ENTRIES 65536
#define CACHED_BYTES  30
#define CACHED_IDS    8

typedef struct {
    uint8_t length, count; /* length 0: empty */
    char text[CACHED_BYTES];
    int32_t ids[CACHED_IDS];
} cached_word;

typedef struct {
    int32_t id;
    int32_t previous, next; /* neighbours, -1 at the ends */
    uint32_t rank;          /* of the merge with the next symbol */
    int32_t merged;         /* what that merge gives */
} symbol;

typedef struct {
    uint32_t rank;
    int32_t at; /* left symbol */
    int32_t left, right;
} candidate;

struct nib_bpe_worker {
    cached_word *cache;
    symbol *symbols;
    size_t symbol_capacity;
    candidate *heap;
    size_t heap_count, heap_capacity;
    int32_t *ids;
    size_t id_capacity;
    nib_buffer text;
};

void nib_token_list_free(nib_token_list *list)
{
    nib_free(list->ids);
    memset(list, 0, sizeof *list);
}

bool nib_token_list_append(nib_token_list *list, const int32_t *ids, size_t count)
{
    if (list->count + count > list->capacity &&
        !nib_grow(&list->ids, &list->capacity, list->count + count, sizeof *list->ids))
        return false;
    for (size_t i = 0; i < count; i++) list->ids[list->count + i] = ids[i];
    list->count += count;
    return true;
}

static int32_t model_id(const nib_bpe *bpe, const char *text, size_t length)
{
    int32_t id = nib_vocabulary_find(&bpe->vocabulary, text, length);
    return id >= 0 && bpe->vocabulary.offsets[id] < bpe->model_bytes ? id : -1;
}

static uint64_t pair_of(int32_t left, int32_t right) { return (uint64_t)(uint32_t)left << 32 | (uint32_t)right; }

static const nib_merge *find_merge(const nib_bpe *bpe, int32_t left, int32_t right)
{
    uint64_t pair = pair_of(left, right), mask = bpe->merge_slots - 1;
    uint64_t slot = (pair * 0x9e3779b97f4a7c15u >> 32) & mask;
    while (bpe->merges[slot].pair != pair && bpe->merges[slot].pair != EMPTY) slot = (slot + 1) & mask;
    return &bpe->merges[slot];
}

nib_status nib_bpe_reserve_merges(nib_bpe *bpe, const char *name, size_t count)
{
    bpe->merge_slots = 16;
    while (bpe->merge_slots < count * 2) bpe->merge_slots *= 2;
    bpe->merges = nib_calloc(bpe->merge_slots, sizeof *bpe->merges);
    if (bpe->merges == NULL) return NIB_FAIL(NIB_ERROR_MEMORY, "%s: no memory for %zu merges", name, count);
    for (size_t i = 0; i < bpe->merge_slots; i++) bpe->merges[i] = (nib_merge){.pair = EMPTY, .rank = NO_RANK};
    return NIB_OK;
}

nib_status nib_bpe_add_merge(nib_bpe *bpe, const char *name, int32_t left, int32_t right, uint32_t rank, int32_t id)
{
    nib_merge *merge = (nib_merge *)find_merge(bpe, left, right);
    if (merge->pair != EMPTY)
        return NIB_FAIL(NIB_ERROR_DATA, "%s: merge %u of \"%.60s\" and \"%.60s\" is merge %u again", name, rank,
                        nib_vocabulary_text(&bpe->vocabulary, left, NULL),
                        nib_vocabulary_text(&bpe->vocabulary, right, NULL), merge->rank);
    *merge = (nib_merge){pair_of(left, right), rank, id};
    return NIB_OK;
}

void nib_bpe_find_bytes(nib_bpe *bpe)
{
    for (int byte = 0; byte < 256; byte++) {
        nib_buffer text = {0};
        if (bpe->byte_level)
            nib_buffer_codepoint(&text, nib_byte_character((uint8_t)byte));
        else
            nib_buffer_format(&text, "<0x%02X>", byte);
        bpe->byte_id[byte] = text.failed ? -1 : model_id(bpe, text.data, text.length);
        nib_buffer_free(&text);
    }
}

void nib_bpe_free(nib_bpe *bpe)
{
    nib_vocabulary_free(&bpe->vocabulary);
    nib_free(bpe->merges);
}

nib_bpe_worker *nib_bpe_worker_new(void)
{
    nib_bpe_worker *worker = nib_calloc(1, sizeof *worker);
    if (worker == NULL) return NULL;
    worker->cache = nib_calloc(CACHE_ENTRIES, sizeof *worker->cache);
    if (worker->cache != NULL) return worker;
    nib_free(worker);
    return NULL;
}

void nib_bpe_worker_free(nib_bpe_worker *worker)
{
    if (worker == NULL) return;
    nib_free(worker->cache);
    nib_free(worker->symbols);
    nib_free(worker->heap);
    nib_free(worker->ids);
    nib_buffer_free(&worker->text);
    nib_free(worker);
}

/* Ids of the bytes of one code point that the vocabulary lacks; false if a byte has none either. */
static bool fall_back(const nib_bpe *bpe, const char *text, size_t length, int32_t *ids, size_t *count)
{
    if (!bpe->byte_fallback) return false;
    for (size_t i = 0; i < length; i++)
        if (bpe->byte_id[(uint8_t)text[i]] < 0) return false;
    for (size_t i = 0; i < length; i++) ids[(*count)++] = bpe->byte_id[(uint8_t)text[i]];
    return true;
}

/* The ids that merging starts from, at most one a byte. */
static size_t first_symbols(const nib_bpe *bpe, const char *text, size_t length, int32_t *ids)
{
    size_t count = 0, step;
    bool after_unknown = false;
    for (size_t i = 0; i < length; i += step) {
        uint32_t codepoint;
        int32_t id;
        if (bpe->byte_level) {
            step = 1;
            id = bpe->byte_id[(uint8_t)text[i]];
        } else {
            step = nib_utf8_decode(text + i, length - i, &codepoint);
            id = model_id(bpe, text + i, step);
        }
        if (id >= 0) {
            ids[count++] = id;
            after_unknown = false;
        } else if (!bpe->byte_level && fall_back(bpe, text + i, step, ids, &count)) {
            after_unknown = false;
        } else if (bpe->unknown >= 0) {
            if (!(after_unknown && bpe->fuse_unk)) ids[count++] = bpe->unknown;
            after_unknown = true;
        }
    }
    return count;
}

static void merge_by_scanning(const nib_bpe *bpe, int32_t *ids, size_t *count)
{
    const nib_merge *merges[SCAN_SYMBOLS];
    size_t n = *count;
    for (size_t i = 0; i + 1 < n; i++) merges[i] = find_merge(bpe, ids[i], ids[i + 1]);
    while (n > 1) {
        size_t best = 0;
        for (size_t i = 1; i + 1 < n; i++)
            if (merges[i]->rank < merges[best]->rank) best = i;
        if (merges[best]->rank == NO_RANK) break;
        ids[best] = merges[best]->id;
        memmove(ids + best + 1, ids + best + 2, (n - best - 2) * sizeof *ids);
        if (best + 2 < n) memmove(merges + best + 1, merges + best + 2, (n - best - 2) * sizeof *merges);
        n--;
        if (best + 1 < n) merges[best] = find_merge(bpe, ids[best], ids[best + 1]);
        if (best > 0) merges[best - 1] = find_merge(bpe, ids[best - 1], ids[best]);
    }
    *count = n;
}

static bool comes_before(candidate a, candidate b) { return a.rank != b.rank ? a.rank < b.rank : a.at < b.at; }

/* Puts the pair that begins at a symbol into the heap, if it merges. The heap has room: a merge takes one candidate out
 * and puts in at most two, and there are fewer merges than symbols. */
static void push_pair(const nib_bpe *bpe, nib_bpe_worker *worker, int32_t at)
{
    symbol *s = &worker->symbols[at];
    s->rank = NO_RANK;
    if (s->next < 0) return;
    int32_t right = worker->symbols[s->next].id;
    const nib_merge *merge = find_merge(bpe, s->id, right);
    s->rank = merge->rank;
    s->merged = merge->id;
    if (merge->rank == NO_RANK) return;
    candidate c = {merge->rank, at, s->id, right};
    size_t hole = worker->heap_count++;
    for (; hole > 0 && comes_before(c, worker->heap[(hole - 1) / 2]); hole = (hole - 1) / 2)
        worker->heap[hole] = worker->heap[(hole - 1) / 2];
    worker->heap[hole] = c;
}

static candidate pop_pair(nib_bpe_worker *worker)
{
    candidate *heap = worker->heap, top = heap[0], last = heap[--worker->heap_count];
    size_t n = worker->heap_count, hole = 0;
    for (size_t child; (child = 2 * hole + 1) < n; hole = child) {
        if (child + 1 < n && comes_before(heap[child + 1], heap[child])) child++;
        if (!comes_before(heap[child], last)) break;
        heap[hole] = heap[child];
    }
    heap[hole] = last;
    return top;
}

static nib_status merge_by_heap(const nib_bpe *bpe, nib_bpe_worker *worker, int32_t *ids, size_t *count)
{
    size_t n = *count;
    if (!nib_grow(&worker->symbols, &worker->symbol_capacity, n, sizeof *worker->symbols) ||
        !nib_grow(&worker->heap, &worker->heap_capacity, 3 * n, sizeof *worker->heap))
        return NIB_FAIL(NIB_ERROR_MEMORY, "no memory to tokenize a word of %zu symbols", n);
    symbol *symbols = worker->symbols;
    worker->heap_count = 0;
    for (size_t i = 0; i < n; i++)
        symbols[i] = (symbol){.id = ids[i], .previous = (int32_t)i - 1, .next = i + 1 < n ? (int32_t)i + 1 : -1};
    for (size_t i = 0; i < n; i++) push_pair(bpe, worker, (int32_t)i);
    while (worker->heap_count > 0) {
        candidate c = pop_pair(worker);
        symbol *left = &symbols[c.at];
        if (left->id != c.left || left->next < 0 || symbols[left->next].id != c.right) continue; /* merged since */
        symbol *right = &symbols[left->next];
        left->id = left->merged;
        left->next = right->next;
        right->id = -1;
        if (left->next >= 0) symbols[left->next].previous = c.at;
        push_pair(bpe, worker, c.at);
        if (left->previous >= 0) push_pair(bpe, worker, left->previous);
    }
    *count = 0;
    for (int32_t i = n > 0 ? 0 : -1; i >= 0; i = symbols[i].next) ids[(*count)++] = symbols[i].id;
    return NIB_OK;
}

static nib_status encode_word(const nib_bpe *bpe, nib_bpe_worker *worker, const char *text, size_t length,
                              const int32_t **ids, size_t *count)
{
    if (length > INT32_MAX / 4 || !nib_grow(&worker->ids, &worker->id_capacity, length + 1, sizeof *worker->ids))
        return NIB_FAIL(NIB_ERROR_MEMORY, "no memory to tokenize a word of %zu bytes", length);
    *ids = worker->ids;
    if (bpe->ignore_merges) {
        nib_buffer *key = &worker->text;
        nib_buffer_clear(key);
        if (bpe->byte_level)
            nib_bytes_to_alphabet(key, text, length);
        else
            nib_buffer_append(key, text, length);
        if (key->failed) return NIB_FAIL(NIB_ERROR_MEMORY, "no memory to tokenize a word of %zu bytes", length);
        worker->ids[0] = model_id(bpe, key->data, key->length);
        *count = 1;
        if (worker->ids[0] >= 0) return NIB_OK;
    }
    *count = first_symbols(bpe, text, length, worker->ids);
    if (bpe->merges == NULL) return NIB_OK;
    if (*count > SCAN_SYMBOLS) return merge_by_heap(bpe, worker, worker->ids, count);
    merge_by_scanning(bpe, worker->ids, count);
    return NIB_OK;
}

nib_status nib_bpe_encode(const nib_bpe *bpe, nib_bpe_worker *worker, const char *text, size_t length,
                          nib_token_list *list)
{
    const int32_t *ids = NULL;
    size_t count = 0;
    if (length == 0) return NIB_OK;
    cached_word *cached = NULL;
    if (length <= CACHED_BYTES) {
        cached = &worker->cache[nib_text_hash(text, length) % CACHE_ENTRIES];
        if (cached->length == length && memcmp(cached->text, text, length) == 0) {
            if (nib_token_list_append(list, cached->ids, cached->count)) return NIB_OK;
            return NIB_FAIL(NIB_ERROR_MEMORY, "no memory for %zu tokens", list->count);
        }
    }
    NIB_TRY(encode_word(bpe, worker, text, length, &ids, &count));
    if (cached != NULL && count <= CACHED_IDS) {
        cached->length = (uint8_t)length;
        cached->count = (uint8_t)count;
        memcpy(cached->text, text, length);
        memcpy(cached->ids, ids, count * sizeof *ids);
    }
    if (!nib_token_list_append(list, ids, count))
        return NIB_FAIL(NIB_ERROR_MEMORY, "no memory for %zu tokens", list->count + count);
    return NIB_OK;
}
