/* SPDX-License-Identifier: BSD-3-Clause */
/* Pages of the index that are not there. */
#ifndef DEDUP_PAGE_HOLE_H
#define DEDUP_PAGE_HOLE_H

#include "io.h"

/* Is one of NR_PAGES pages (DEDUP_PAGE_SIZE bytes each) from HOST_OFF on in a
 * hole of the file, where it reads as zeroes?  False where the host does not
 * tell.  Reads nothing but pages at holes. */
bool dedup_page_in_hole (struct io_store *io, uint64_t host_off,
                         uint64_t nr_pages) MUST_CHECK;

#endif
