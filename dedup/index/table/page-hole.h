/* SPDX-License-Identifier: BSD-3-Clause */
/* Finds pages of a table that were never written. */
#ifndef DEDUP_PAGE_HOLE_H
#define DEDUP_PAGE_HOLE_H

#include "io.h"

/* Returns true if one of NR_PAGES pages (DEDUP_PAGE_SIZE bytes each) from
 * HOST_OFF on lies in a hole of the file and so reads as zeroes.  False if the
 * host does not report holes.  Reads only the pages where holes begin. */
bool dedup_page_in_hole (struct io_store *io, uint64_t host_off,
                         uint64_t nr_pages) MUST_CHECK;

#endif
