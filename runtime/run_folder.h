/* A run's output folder: who may write into it, and where its parts lie. */
#ifndef NIB_RUN_FOLDER_H
#define NIB_RUN_FOLDER_H

#include "base/status.h"

#include <stdbool.h>

typedef struct {
    int lock;   /* descriptor of the folder, locked while the run lasts; -1: not open */
    bool fresh; /* no run was here before */
    char *path, *config, *metrics, *log, *report, *checkpoints;
    char *result; /* the folder of what was trained */
} nib_run_folder;

/* `result` names the folder of what is trained: "adapter", or "model" of a full fine-tune. Creates the folder, or takes
 * one that is empty, or, with resume, one that holds a run; opens log.txt. A folder that holds anything else is
 * NIB_ERROR_CONFIG; one that cannot be written, or in which another process trains, NIB_ERROR_IO. */
nib_status nib_run_folder_open(const char *path, const char *result, bool resume, nib_run_folder *folder);
/* The same folder for a rank other than 0, which writes nothing there but its own log-rank-N.txt. */
nib_status nib_run_folder_follow(const char *path, const char *result, int rank, nib_run_folder *folder);
void nib_run_folder_close(nib_run_folder *folder);

#endif
