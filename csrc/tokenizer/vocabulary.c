#include "tokenizer/vocabulary.h"

#include "base/memory.h"

#include <string.h>

#define NO_TEXT UINT64_MAX

static uint64_t mix(uint64_t a, uint64_t b)
{
    __extension__ unsigned __int128 product = (unsigned __int128)a * b;
    return (uint64_t)product ^ (uint64_t)(product >> 64);
}

/* Multiply-and-fold over 8-byte words, as in wyhash (Wang Yi, public domain). */
uint64_t nib_text_hash(const char *text, size_t length)
{
    uint64_t hash = 0x9e3779b97f4a7c15u ^ length, word;
    for (; length >= 8; text += 8, length -= 8) {
        memcpy(&word, text, 8);
        hash = mix(hash ^ word, 0xa0761d6478bd642fu);
    }
    word = 0;
    for (size_t i = 0; i < length; i++) word |= (uint64_t)(unsigned char)text[i] << (8 * i);
    return mix(hash ^ word, 0xe7037ed1a0b428dbu);
}

const char *nib_vocabulary_text(const nib_vocabulary *vocabulary, int64_t id, size_t *length)
{
    if (id < 0 || (uint64_t)id >= vocabulary->ids || vocabulary->offsets[id] == NO_TEXT) return NULL;
    if (length != NULL) *length = vocabulary->lengths[id];
    return vocabulary->bytes.data + vocabulary->offsets[id];
}

/* The slot that holds the text, or the empty one where it belongs. */
static size_t find_slot(const nib_vocabulary *v, const char *text, size_t length)
{
    size_t slot = nib_text_hash(text, length) & (v->slot_count - 1);
    for (; v->slots[slot] >= 0; slot = (slot + 1) & (v->slot_count - 1)) {
        int32_t id = v->slots[slot];
        if (v->lengths[id] == length && memcmp(v->bytes.data + v->offsets[id], text, length) == 0) break;
    }
    return slot;
}

int32_t nib_vocabulary_find(const nib_vocabulary *vocabulary, const char *text, size_t length)
{
    return vocabulary->texts == 0 ? -1 : vocabulary->slots[find_slot(vocabulary, text, length)];
}

static bool grow_slots(nib_vocabulary *v)
{
    size_t count = v->slot_count == 0 ? 1024 : v->slot_count * 4;
    int32_t *slots = nib_calloc(count, sizeof *slots);
    if (slots == NULL) return false;
    memset(slots, 0xff, count * sizeof *slots);
    nib_free(v->slots);
    v->slots = slots;
    v->slot_count = count;
    for (size_t id = 0; id < v->ids; id++)
        if (v->offsets[id] != NO_TEXT)
            v->slots[find_slot(v, v->bytes.data + v->offsets[id], v->lengths[id])] = (int32_t)id;
    return true;
}

nib_status nib_vocabulary_add(nib_vocabulary *v, const char *name, int64_t id, const char *text, size_t length)
{
    if (id < 0 || id > NIB_VOCABULARY_MAX_ID)
        return NIB_FAIL(NIB_ERROR_DATA, "%s: token \"%.100s\" has id %lld, expected 0 to %d", name, text, (long long)id,
                        NIB_VOCABULARY_MAX_ID);
    size_t needed = (size_t)id + 1;
    if (!nib_grow(&v->offsets, &v->offset_capacity, needed, sizeof *v->offsets) ||
        !nib_grow(&v->lengths, &v->length_capacity, needed, sizeof *v->lengths) ||
        (v->texts * 2 >= v->slot_count && !grow_slots(v)))
        return NIB_FAIL(NIB_ERROR_MEMORY, "%s: no memory for a vocabulary of %lld ids", name, (long long)id + 1);
    while (v->ids < needed) v->offsets[v->ids++] = NO_TEXT;
    if (v->offsets[id] != NO_TEXT)
        return NIB_FAIL(NIB_ERROR_DATA, "%s: id %lld is given to \"%.100s\" and to \"%.100s\"", name, (long long)id,
                        v->bytes.data + v->offsets[id], text);
    size_t slot = find_slot(v, text, length);
    if (v->slots[slot] >= 0)
        return NIB_FAIL(NIB_ERROR_DATA, "%s: token \"%.100s\" has the ids %d and %lld; a text has one id", name, text,
                        v->slots[slot], (long long)id);
    v->offsets[id] = v->bytes.length;
    v->lengths[id] = (uint32_t)length;
    nib_buffer_append(&v->bytes, text, length);
    nib_buffer_char(&v->bytes, 0);
    if (v->bytes.failed || length > UINT32_MAX)
        return NIB_FAIL(NIB_ERROR_MEMORY, "%s: no memory for the vocabulary's texts", name);
    v->slots[slot] = (int32_t)id;
    v->texts++;
    return NIB_OK;
}

void nib_vocabulary_free(nib_vocabulary *vocabulary)
{
    nib_buffer_free(&vocabulary->bytes);
    nib_free(vocabulary->offsets);
    nib_free(vocabulary->lengths);
    nib_free(vocabulary->slots);
    memset(vocabulary, 0, sizeof *vocabulary);
}
