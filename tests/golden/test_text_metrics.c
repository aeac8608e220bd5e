/* F1 and ROUGE-L against other programs: eval/text_metrics.json holds what SQuAD's compute_f1 (in transformers 4.56.2)
 * and rouge_score 0.1.2 give for each pair. */
#include "check.h"

#include "base/file.h"
#include "base/json.h"
#include "eval/text_metrics.h"

#include <math.h>

/* The formulas are a handful of double operations in another order: a few units in the last place. */
#define TOLERANCE 1e-12

static double number(const nib_json *object, const char *key) { return nib_json_get(object, key)->number; }

static void scores_are_those_of_the_published_scripts(void **state)
{
    (void)state;
    const char *path = NIB_TEST_DATA "/eval/text_metrics.json";
    char *text;
    size_t length;
    nib_pool pool = {0};
    nib_json *cases;
    assert_int_equal(nib_file_read(path, 1 << 20, &text, &length), NIB_OK);
    assert_int_equal(nib_json_parse(path, text, length, (nib_json_options){0}, &pool, &cases), NIB_OK);
    assert_true(cases->length > 30);
    for (const nib_json *c = cases->first; c != NULL; c = c->next) {
        const char *prediction = nib_json_get(c, "prediction")->string,
                   *reference = nib_json_get(c, "reference")->string;
        double f1, rouge_l;
        assert_int_equal(nib_token_f1(prediction, reference, &f1), NIB_OK);
        assert_int_equal(nib_rouge_l(prediction, reference, &rouge_l), NIB_OK);
        if (!(fabs(f1 - number(c, "f1")) < TOLERANCE) || !(fabs(rouge_l - number(c, "rouge_l")) < TOLERANCE))
            fail_msg("'%s' against '%s': F1 %.15g, expected %.15g; ROUGE-L %.15g, expected %.15g", prediction,
                     reference, f1, number(c, "f1"), rouge_l, number(c, "rouge_l"));
    }
    nib_pool_free(&pool);
    nib_free(text);
}

static void exact_match_ignores_only_outer_white_space(void **state)
{
    (void)state;
    assert_true(nib_exact_match(" games\n", "games"));
    assert_true(nib_exact_match("\u3000two words\u00a0", "two words"));
    assert_true(nib_exact_match(" \n", ""));
    assert_false(nib_exact_match("Games", "games"));
    assert_false(nib_exact_match("games.", "games"));
    assert_false(nib_exact_match("two  words", "two words"));
    assert_false(nib_exact_match("", "games"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(scores_are_those_of_the_published_scripts),
        cmocka_unit_test(exact_match_ignores_only_outer_white_space),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
