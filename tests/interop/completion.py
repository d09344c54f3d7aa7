#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""completion.py DIRECTORY FILE...: presses Tab in an interactive bash.

The shell runs in DIRECTORY on a terminal of its own, and reads bash-completion
and each FILE first.  Cases come on standard input, one a line, as

    TYPED => LINE          after Tab the command line is LINE
    TYPED ?> WORD...       Tab lists all of these words
    TYPED !> WORD...       Tab lists none of them

"|" at the end of LINE is a blank that Tab added.  Prints what failed; the exit
status is 1 if anything did.
"""
import os
import pty
import re
import select
import sys
import time

SETTINGS = r'''
PS1=; PS2=; unset HISTFILE
bind 'set show-all-if-ambiguous on'
bind 'set completion-query-items 0'
bind 'set page-completions off'
bind 'set bell-style none'
bind 'set enable-bracketed-paste off'
bind 'set completion-display-width 0'
bind -x '"\C-g": printf "<<%s>>\n" "$READLINE_LINE"'
'''
MAX_SECONDS = 30


def read_until(fd, pattern):
    """What the terminal shows up to PATTERN, and the match."""
    seen, end = '', time.monotonic() + MAX_SECONDS
    while time.monotonic() < end:
        if select.select([fd], [], [], 0.2)[0]:
            seen += os.read(fd, 65536).decode('utf-8', 'replace')
        match = re.search(pattern, seen)
        if match:
            return seen, match
    sys.exit('completion.py: no answer of bash to a key: ' + repr(seen[-500:]))


def start(directory, files):
    pid, fd = pty.fork()
    if pid == 0:
        os.chdir(directory)
        os.environ['TERM'] = 'dumb'
        os.environ['COLUMNS'] = '200'
        os.execv('/bin/bash', ['bash', '--norc', '--noprofile', '-i'])
    lines = ['. /usr/share/bash-completion/bash_completion']
    lines += [". '%s'" % f for f in files] + SETTINGS.strip().splitlines()
    os.write(fd, ('\n'.join(lines) + "\necho re''ady\n").encode())
    read_until(fd, r'(?m)^ready\r?$')
    return pid, fd


def press_tab(fd, typed):
    """(the line after Tab, what was listed)"""
    os.write(fd, (typed + '\t').encode())
    os.write(fd, b'\x07')
    seen, match = read_until(fd, r'<<(.*)>>')
    os.write(fd, b'\x15')
    return match.group(1), seen[:match.start()].replace(typed, '', 1).split()


def check(fd, typed, kind, wanted):
    line, listed = press_tab(fd, typed)
    if kind == '=>':
        if wanted.endswith('|'):
            wanted = wanted[:-1] + ' '
        return None if line == wanted else 'the line is %r' % line
    missing = [w for w in wanted.split() if (w in listed) != (kind == '?>')]
    return missing and '%s: listed are %s' % (' '.join(missing), listed)


def main():
    pid, fd = start(sys.argv[1], sys.argv[2:])
    failed = nr = 0
    for case in sys.stdin:
        match = re.match(r'(.*) ([=?!]>) (.*)$', case.rstrip('\n'))
        if not match:
            continue
        wrong = check(fd, *match.groups())
        nr += 1
        if wrong:
            failed += 1
            print('%s\n    %s' % (case.rstrip(), wrong))
    os.write(fd, b'\x15exit\n')
    os.close(fd)
    os.waitpid(pid, 0)
    print('%d cases, %d failed' % (nr, failed))
    sys.exit(1 if failed or nr == 0 else 0)


main()
