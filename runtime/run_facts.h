/* run.json: what the report tells of a run that neither its configuration nor its metrics hold. */
#ifndef NIB_RUN_FACTS_H
#define NIB_RUN_FACTS_H

#include "train.h"

/* Writes the run folder's run.json: program and machine, planned steps, trained parameters, memory by class, and what
 * became of each data source. */
nib_status nib_run_facts_write(const nib_training *training);

#endif
