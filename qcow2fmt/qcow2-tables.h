/* SPDX-License-Identifier: BSD-3-Clause */
/* A set of L2 tables, known by their cluster, for walks that pass each once.  One thread at
 * a time for each. */
#ifndef QCOW2_TABLES_H
#define QCOW2_TABLES_H

#include <stdbool.h>
#include <stdint.h>

#include "cleanup.h"

struct qcow2_tables;

/* NULL: out of memory.  That is an empty set to which nothing is added, also below. */
struct qcow2_tables *qcow2_tables_new (void);
void qcow2_tables_free (struct qcow2_tables *t);
/* Adds the table in a cluster.  Returns whether it was there; false also if there is no
 * memory. */
bool qcow2_tables_seen (struct qcow2_tables *t, uint64_t host_idx) MUST_CHECK;
void qcow2_tables_forget (struct qcow2_tables *t, uint64_t host_idx);

#endif
