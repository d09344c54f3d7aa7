#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""answered.py DIR: adds to the logs of crashload.py in DIR that everything was
flushed: the server has closed the image, so all it had answered is there."""
import os
import pickle
import sys
import time

path = os.path.join(sys.argv[1], 'log.0')
with open(path, 'rb') as f:
    log = pickle.load(f)
now = time.monotonic()
log.append([('flush', 0, [], False), now, now])
with open(path, 'wb') as f:
    pickle.dump(log, f)
