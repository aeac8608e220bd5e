/* The global functions of a chat template, and the methods of `loop` and of a cycler. */
#include "tokenizer/jinja_render.h"

#include <math.h>
#include <string.h>
#include <time.h>

enum { MAX_RANGE = 100000 }; /* as in Jinja's sandbox */

static nib_status global_range(nib_jinja_render *render, const nib_jinja_call *call, nib_jinja_value *result)
{
    int64_t bounds[3] = {0, 0, 1};
    int given = call->given[2] ? 3 : call->given[1] ? 2 : 1;
    for (int i = 0; i < given; i++) {
        nib_jinja_value part = call->values[i];
        if (part.kind != NIB_JINJA_INTEGER && part.kind != NIB_JINJA_BOOL)
            return nib_jinja_fail(render, "'%s' object cannot be interpreted as an integer", nib_jinja_type_name(part));
        bounds[given == 1 ? 1 : i] = part.kind == NIB_JINJA_BOOL ? part.boolean : part.integer;
    }
    if (bounds[2] == 0) return nib_jinja_fail(render, "range() arg 3 must not be zero");
    double length = ceil(((double)bounds[1] - (double)bounds[0]) / (double)bounds[2]);
    if (length > MAX_RANGE)
        return nib_jinja_fail(render, "Range too big. The sandbox blocks ranges larger than MAX_RANGE=%d.", MAX_RANGE);
    NIB_TRY(nib_jinja_new_sequence(render, NIB_JINJA_RANGE, length > 0.0 ? (size_t)length : 0, result));
    memcpy(result->sequence->bounds, bounds, sizeof bounds);
    for (int64_t i = bounds[0]; bounds[2] > 0 ? i < bounds[1] : i > bounds[1];) {
        NIB_TRY(nib_jinja_push(render, *result, nib_jinja_integer(i)));
        if (__builtin_add_overflow(i, bounds[2], &i)) break;
    }
    return NIB_OK;
}

/* dict(pairs, a=1) and namespace(pairs, a=1) */
static nib_status make_dict(nib_jinja_render *render, nib_jinja_kind kind, const nib_jinja_call *call,
                            nib_jinja_value *result)
{
    const nib_jinja_arguments *arguments = call->arguments;
    NIB_TRY(nib_jinja_new_dict(render, kind, result));
    if (arguments->count > 1) return nib_jinja_fail(render, "%s() takes one positional argument", call->function);
    if (arguments->count == 1 && arguments->positional[0].kind == NIB_JINJA_DICT) {
        const nib_jinja_dict *from = arguments->positional[0].dict;
        for (size_t i = 0; i < from->count; i++)
            NIB_TRY(nib_jinja_dict_set(render, *result, from->keys[i], from->values[i]));
    } else if (arguments->count == 1) {
        const nib_jinja_value *items, *pair;
        size_t count, length;
        NIB_TRY(nib_jinja_items(render, arguments->positional[0], &items, &count));
        for (size_t i = 0; i < count; i++) {
            NIB_TRY(nib_jinja_items(render, items[i], &pair, &length));
            if (length != 2) return nib_jinja_fail(render, "%s() takes pairs, got %zu items", call->function, length);
            NIB_TRY(nib_jinja_dict_set(render, *result, pair[0], pair[1]));
        }
    }
    for (size_t i = 0; i < arguments->named_count; i++)
        NIB_TRY(nib_jinja_dict_set(render, *result, arguments->names[i], arguments->named[i]));
    return NIB_OK;
}

static nib_status global_dict(nib_jinja_render *render, const nib_jinja_call *call, nib_jinja_value *result)
{
    return make_dict(render, NIB_JINJA_DICT, call, result);
}

static nib_status global_namespace(nib_jinja_render *render, const nib_jinja_call *call, nib_jinja_value *result)
{
    return make_dict(render, NIB_JINJA_NAMESPACE, call, result);
}

static nib_status global_raise_exception(nib_jinja_render *render, const nib_jinja_call *call, nib_jinja_value *result)
{
    NIB_TRY(nib_jinja_to_string(render, call->values[0], result));
    return nib_jinja_fail(render, "%.*s", (int)result->string.length, result->string.bytes);
}

/* datetime.now().strftime(format); of what C lacks, %f is microseconds, and a time without zone prints none. */
static nib_status global_strftime_now(nib_jinja_render *render, const nib_jinja_call *call, nib_jinja_value *result)
{
    nib_jinja_value format = call->values[0];
    if (format.kind != NIB_JINJA_STRING) return nib_jinja_fail(render, "strftime_now() takes a format");
    time_t seconds = (time_t)render->now;
    struct tm now;
    if (gmtime_r(&seconds, &now) == NULL) return nib_jinja_fail(render, "strftime_now(): the time is out of range");
    nib_jinja_text text = {.render = render};
    for (size_t i = 0; i < format.string.length; i++) {
        char directive[8] = {format.string.bytes[i]}, piece[128];
        size_t length = 1;
        if (directive[0] == '%') {
            while (length < 3 && i + 1 < format.string.length) {
                directive[length++] = format.string.bytes[++i];
                if (strchr("-_0^#", directive[length - 1]) == NULL) break;
            }
            char last = directive[length - 1];
            if (last == 'z' || last == 'Z') continue;
            if (last == 'f') {
                nib_jinja_text_literal(&text, "000000");
                continue;
            }
        }
        size_t written = directive[0] == '%' ? strftime(piece, sizeof piece, directive, &now) : 0;
        nib_jinja_text_append(&text, directive[0] == '%' ? piece : directive, directive[0] == '%' ? written : 1);
    }
    return nib_jinja_text_finish(&text, result);
}

static nib_status global_cycler(nib_jinja_render *render, const nib_jinja_call *call, nib_jinja_value *result)
{
    if (call->arguments->count == 0) return nib_jinja_fail(render, "at least one item has to be provided");
    NIB_TRY(nib_jinja_new_sequence(render, NIB_JINJA_CYCLER, call->arguments->count, result));
    for (size_t i = 0; i < call->arguments->count; i++)
        NIB_TRY(nib_jinja_push(render, *result, call->arguments->positional[i]));
    return NIB_OK;
}

static nib_status global_joiner(nib_jinja_render *render, const nib_jinja_call *call, nib_jinja_value *result)
{
    nib_jinja_joiner *joiner = nib_jinja_alloc(render, 1, sizeof *joiner);
    if (joiner == NULL) return nib_jinja_no_memory(render);
    joiner->separator = call->given[0] ? call->values[0] : nib_jinja_literal(", ");
    *result = (nib_jinja_value){.kind = NIB_JINJA_JOINER, .joiner = joiner};
    return NIB_OK;
}

const nib_jinja_builtin nib_jinja_globals[] = {
    {"range", "start stop step", 1, global_range},
    {"dict", "*", 0, global_dict},
    {"namespace", "*", 0, global_namespace},
    {"raise_exception", "message", 1, global_raise_exception},
    {"strftime_now", "format", 1, global_strftime_now},
    {"cycler", "*", 0, global_cycler},
    {"joiner", "sep", 0, global_joiner},
    {NULL, NULL, 0, NULL},
};

static nib_status loop_cycle(nib_jinja_render *render, const nib_jinja_call *call, nib_jinja_value *result)
{
    if (call->subject.kind != NIB_JINJA_LOOP || call->arguments->count == 0)
        return nib_jinja_fail(render, "no items for cycling given");
    *result = call->arguments->positional[call->subject.loop->index % call->arguments->count];
    return NIB_OK;
}

static nib_status loop_changed(nib_jinja_render *render, const nib_jinja_call *call, nib_jinja_value *result)
{
    nib_jinja_value now;
    bool same;
    if (call->subject.kind != NIB_JINJA_LOOP) return nib_jinja_fail(render, "changed() belongs to a loop");
    NIB_TRY(nib_jinja_new_sequence(render, NIB_JINJA_TUPLE, call->arguments->count, &now));
    for (size_t i = 0; i < call->arguments->count; i++)
        NIB_TRY(nib_jinja_push(render, now, call->arguments->positional[i]));
    NIB_TRY(nib_jinja_equal(render, call->subject.loop->changed, now, &same));
    call->subject.loop->changed = now;
    *result = nib_jinja_bool(!same);
    return NIB_OK;
}

static nib_status cycler_next(nib_jinja_render *render, const nib_jinja_call *call, nib_jinja_value *result)
{
    if (call->subject.kind != NIB_JINJA_CYCLER) return nib_jinja_fail(render, "next() belongs to a cycler");
    nib_jinja_sequence *items = call->subject.sequence;
    *result = items->items[items->next];
    items->next = (items->next + 1) % items->count;
    return NIB_OK;
}

static nib_status cycler_reset(nib_jinja_render *render, const nib_jinja_call *call, nib_jinja_value *result)
{
    if (call->subject.kind != NIB_JINJA_CYCLER) return nib_jinja_fail(render, "reset() belongs to a cycler");
    call->subject.sequence->next = 0;
    *result = nib_jinja_none();
    return NIB_OK;
}

const nib_jinja_builtin nib_jinja_loop_methods[] = {
    {"cycle", "*", 0, loop_cycle}, {"changed", "*", 0, loop_changed},
    {"next", "", 0, cycler_next},  {"reset", "", 0, cycler_reset},
    {NULL, NULL, 0, NULL},
};
