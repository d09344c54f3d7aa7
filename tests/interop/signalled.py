#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""Run a program that changes an image, and end it in the middle.

signalled.py SIGNAL MS IMAGE PROGRAM ARG...
    Starts PROGRAM, waits until IMAGE's feature bit 48 says that changes are
    under way (or PROGRAM has ended), then MS milliseconds, sends SIGNAL, and
    ends with PROGRAM's status as a shell has it.
"""
import signal
import subprocess
import sys
import time


def under_way(image):
    with open(image, 'rb') as f:
        f.seek(73)
        return f.read(1)[0] & 1


def main():
    number = getattr(signal, 'SIG' + sys.argv[1])
    image = sys.argv[3]
    with subprocess.Popen(sys.argv[4:]) as p:
        while p.poll() is None and not under_way(image):
            time.sleep(0.0005)
        time.sleep(float(sys.argv[2]) / 1000)
        if p.poll() is None:
            p.send_signal(number)
        status = p.wait()
    sys.exit(status if status >= 0 else 128 - status)


main()
