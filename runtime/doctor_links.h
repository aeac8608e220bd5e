/* What `nibble doctor` does under a launcher: the links between the job's ranks. */
#ifndef NIB_RUNTIME_DOCTOR_LINKS_H
#define NIB_RUNTIME_DOCTOR_LINKS_H

#include "device.h"
#include "ranks.h"

/* All ranks together. Joins them, which checks their collectives, then measures every pair (link_check.h): over the
 * collectives and, where every rank has a GPU and NCCL, from device to device. Rank 0 prints a line for each pair, or
 * one object; a slow pair is marked and named. NIB_ERROR_DEVICE names the rank that is lost or the pair between which
 * bytes arrive wrong. */
nib_status nib_doctor_links(const nib_ranks *ranks, nib_device device, bool json);

#endif
