#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""named.py TOP DOCUMENT...: prints what documents name and the tree lacks.

Checked in each Markdown file, whose path is relative to TOP:
 - the target of a link to a file;
 - a path with a known ending, wherever it stands;
 - in backquotes, a file without a path ("gate.c") or a folder ("hash/") somewhere
   in the tree, or a header that a source includes in angle brackets;
 - in backquotes, a name in small letters with an underscore: it occurs in a source,
   comments left out.  "struct x" is defined, and "x.y" is a field of a struct x;
 - "`f` (`file.c`" and "`f` in `file.c`": f is defined in that file.

Prints one thing a line, as "DOCUMENT:LINE: what"; exit status 1 if there is any,
2 if the documents name nothing.
"""
import os
import re
import sys

SPAN = re.compile(r'`([^`]+)`')
LINK = re.compile(r'\]\(([^)#\s]+)(?:#[^)]*)?\)')
ENDING = r'\.(?:c|h|py|sh|md|svg|pod)'
PATH = re.compile(r'(?<![\w./~-])(?:\.\./)?(?:[\w-]+/)+[\w.-]*\w' + ENDING
                  + r'(?![\w.]*\w)')
BARE = re.compile(r'[\w-]+\.(?:c|h|py|sh)')
FOLDER = re.compile(r'(?:[\w-]+/)+')
NAME = re.compile(r'(struct )?([a-z][a-z0-9]*_\w*)'
                  r'(?:\.(\w+))?(?: \(.*\))?(?:\.\.\.)?')
IN_FILE = re.compile(r'`(\w+)`,?\s+(?:\(|in\s+)`([\w./-]+\.[ch])`')
STRUCT = re.compile(r'^struct (\w+)\s*\{([^\n]*\}|.*?^\})', re.M | re.S)
COMMENT = re.compile(r'/\*.*?\*/', re.S)
PLACEHOLDER = re.compile(r'NAME')


class Tree:
    def __init__(self, top):
        self.top = top
        self.files, self.folders = set(), set()
        for folder, folders, names in os.walk(top):
            folders[:] = [f for f in folders
                          if not f.startswith(('build', '.'))]
            for name in names:
                self.files.add(os.path.relpath(os.path.join(folder, name), top))
            self.folders |= {os.path.relpath(os.path.join(folder, f), top) + '/'
                             for f in folders}
        self.names = {os.path.basename(f) for f in self.files}
        self.text = {f: self.read(f) for f in self.files
                     if f.endswith(('.c', '.h'))}
        everything = '\n'.join(self.text.values())
        self.words = set(re.findall(r'\w+', everything))
        self.system = {os.path.basename(h) for h in
                       re.findall(r'#include <([^>]+)>', everything)}
        self.structs = dict(STRUCT.findall(everything))

    def read(self, path):
        with open(os.path.join(self.top, path), encoding='utf-8') as f:
            return COMMENT.sub('', f.read())

    def defines(self, path, name):
        """Does a file of that path, or with that name, define it?"""
        found = [t for f, t in self.text.items()
                 if f == path or f.endswith('/' + path)]
        start = re.compile(r'^(?:struct |enum |#define )?' + name + r'\b', re.M)
        return any(start.search(t) for t in found)


def missing_name(tree, span):
    m = NAME.fullmatch(span)
    if not m:
        return None
    struct, name, field = m.groups()
    if struct or field:
        if name not in tree.structs:
            return f'no struct {name}'
        if field and not re.search(rf'\b{field}\b', tree.structs[name]):
            return f'no {field} in struct {name}'
        return None
    if name.endswith('_'):
        known = any(w.startswith(name) for w in tree.words)
    else:
        known = name in tree.words
    return None if known else f'no {name}'


def missing_file(tree, span):
    if BARE.fullmatch(span):
        return None if span in tree.names | tree.system else f'no file {span}'
    if FOLDER.fullmatch(span):
        known = any(('/' + f).endswith('/' + span) for f in tree.folders)
        return None if known else f'no folder {span}'
    return None


def problems(tree, doc, text):
    """Pairs of a position in TEXT and what is missing."""
    here = os.path.dirname(doc)
    for m in LINK.finditer(text):
        target = os.path.normpath(os.path.join(here, m[1]))
        if '://' not in m[1] and target not in tree.files:
            yield m.start(), f'no file {m[1]}'
    for m in PATH.finditer(text):
        wanted = {os.path.normpath(m[0]),
                  os.path.normpath(os.path.join(here, m[0]))}
        if not PLACEHOLDER.search(m[0]) and not wanted & tree.files:
            yield m.start(), f'no file {m[0]}'
    for m in SPAN.finditer(text):
        span = ' '.join(m[1].split())
        what = missing_name(tree, span) or missing_file(tree, span)
        if what and not PLACEHOLDER.search(span):
            yield m.start(), what
    for m in IN_FILE.finditer(text):
        if not tree.defines(m[2], m[1]):
            yield m.start(), f'no {m[1]} in {m[2]}'


def main():
    tree, docs = Tree(sys.argv[1]), sys.argv[2:]
    found, seen = [], 0
    for doc in docs:
        with open(os.path.join(tree.top, doc), encoding='utf-8') as f:
            text = f.read()
        seen += len(SPAN.findall(text))
        for pos, what in sorted(problems(tree, doc, text)):
            line = text.count('\n', 0, pos) + 1
            found.append(f'{doc}:{line}: {what}')
    if not seen:
        print('nothing to look at', file=sys.stderr)
        return 2
    print(*found, sep='\n', end='\n' if found else '')
    return 1 if found else 0


if __name__ == '__main__':
    sys.exit(main())
