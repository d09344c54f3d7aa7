#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""first-read.py SOCKET: connect as soon as that works, read one cluster."""
import sys
import time

import nbd

end = time.monotonic() + 60
while True:
    h = nbd.NBD()
    try:
        h.connect_unix(sys.argv[1])
        break
    except nbd.Error:
        if time.monotonic() > end:
            raise
        time.sleep(0.005)
h.pread(4096, 0)
h.shutdown()
