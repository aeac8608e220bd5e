/* Help with a key that the configuration does not have. */
#ifndef NIB_CONFIG_NAMES_H
#define NIB_CONFIG_NAMES_H

/* What a name of another engine (transformers, PEFT, axolotl, LLaMA-Factory, torchtune) is called here; NULL if it is
 * none. key may carry its section: only the part after the last dot is compared. */
const char *nib_config_foreign_name(const char *key);
/* The valid name with the smallest edit distance (Levenshtein, 1966) to key, whole or without sections; a name equal
 * but for its section wins. count > 0. */
const char *nib_config_nearest_name(const char *key, const char *const *names, int count);

#endif
