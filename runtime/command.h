/* The commands of the program: one file each, cmd_NAME.c, one row each in main.c's table. */
#ifndef NIB_COMMAND_H
#define NIB_COMMAND_H

#include "base/status.h"

/* argc, argv: what follows the command's name; argv[argc] is NULL. `--help` has been handled by main, which also sees
 * whether all of standard output could be written. */
typedef nib_status (*nib_command_run)(int argc, char **argv);

typedef struct {
    const char *name;
    const char *summary; /* one line of `nibble --help` */
    const char *usage;   /* the text of `nibble NAME --help` */
    nib_command_run run;
} nib_command;

/* Each is defined in its cmd_NAME.c. */
extern const nib_command nib_command_check;
extern const nib_command nib_command_bench;
extern const nib_command nib_command_chat;
extern const nib_command nib_command_doctor;
extern const nib_command nib_command_eval;
extern const nib_command nib_command_export;
extern const nib_command nib_command_inspect;
extern const nib_command nib_command_pack;
extern const nib_command nib_command_plan;
extern const nib_command nib_command_quantize;
extern const nib_command nib_command_render;
extern const nib_command nib_command_score;
extern const nib_command nib_command_tokenize;
extern const nib_command nib_command_train;

#endif
