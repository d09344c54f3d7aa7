# SPDX-License-Identifier: BSD-3-Clause
"""Inputs for test-qmp-wire-equals-qemu.sh: bytes that are sent to QEMU's monitor and
to ours.

FIXED are tables by subject.  MEANT are the inputs that are answered differently on
purpose, with both answers and the reason.  generated() makes further ones at
random.
"""
import re

CMD = b'{"execute":"x","id":%s}'

# Values and what is next to them.
VALUES = [
    b'{}', b'[]', b'1 ', b'-1 ', b'0 ', b'"abc"', b"'abc'", b'true ', b'false ',
    b'null ', b'tru ', b'nul1 ', b'abc def ', b'nan ', b'Infinity ', b'TRUE ',
    b'tRue ', b'_a ', b'truefalse ', b'abc1 a-b a_b ', b'- ', b'-a ', b'+1 ',
    b'01 ', b'-01 ', b'1. ', b'1.5 ', b'1.5e ', b'1.5e+ ', b'1.e5 ', b'.5 ',
    b'1e5 ', b'1E5 ', b'1e+5 ', b'1e-5 ', b'-0.5 ', b'0e1 ', b'-0 ', b'0.0 ',
    b'1.5.2 ', b'1e5e5 ', b'--1 ', b'0x10 ', b'1_000 ', b'%s ', b'% ', b'%d ',
    b'"%d %%"', b'/* c */ ', b'// c\n', b'# c\n', b'; ', b'= ', b'\\ ', b'` ',
    b'? ', b'~ ', b'@ ', b'\x7f ', b'\xc3\xa9 ', b'\xef\xbb\xbf{} ',
]

# Braces and brackets that do not fit, separators in wrong places.
SHAPES = [
    b']', b'}', b',', b':', b'[}', b'{]', b'[{]}', b'{"a":[}]', b'[1 2]', b'[1,]',
    b'[,]', b'[,1]', b'[1,,2]', b'[1:2]', b'{"a"}', b'{"a":}', b'{"a":1,}',
    b'{,}', b'{"a" "b"}', b'{"a":1 "b":2}', b'{"a":1:2}', b'{1:2}', b'{[]:1}',
    b'{{}:1}', b'{{"a" 1}:1}', b'{[1 2]:1}', b'{null:1}', b'{abc:1}', b'{true}',
    b'{"a":tru}', b'{"a":1,"a":2}', b'{"a":1,"a":[1 2]}', b'{"a":{"b":1,"b":2}}',
    b'[[[[]]]]', b'[[[[]]]]]', b'{}{}', b'{} {}\n{}', b'[]{}1 "a"', b'{"a":[1,2}]',
    b'[1}', b'{"a":1]', b'[[}', b'{"a"]', b'[{"a":1]}', b'{}}', b'[]]', b'{:1}',
    b'{"execute"}', b'{"execute":}', b'{"execute" "x"}', b'{"execute":"x",}',
    b'{"execute":"x" "y"}', b'{"execute":"x","execute":"y"}', b'{"id":1,"id":2}',
]

# Bytes that begin no token, and where the next one is looked for.
STRAY = [
    b'&%s{"execute":"x"}' % s for s in (
        b'', b' ', b'abc', b'"def"', b"'", b'1', b'\t', b'\n', b'\r', b'\\',
        b'\x7f', b'\xc3\xa9', b'\x01', b'\x1f', b'\x00', b'\xfe', b'\xff', b'&',
        b'-', b'1 2 3', b'"', b'tru', b'%')
] + [
    b'&abc%s' % s for s in (b',', b':', b']', b'}', b'[1]', b'{}', b' 1 \n',
                            b'\n1 ', b'\r1 ', b'\t1\n', b'\x0b1 ', b'\x0c1 ')
] + [
    b'{"execute":\xff{"execute":"x"}', b'{"execute":\xff', b'\xff', b'\xfe',
    b'\x00', b'\x01', b'{"a":\x01 "b"}', b'{"a":& "b":1} {"execute":"x"}',
    b'[1,2,&,3]', b'{"execute":"x"}\x00', b'\x00{"execute":"x"}',
    b'{"execute":"x"\x00}', b'{"execute":"x"}&', b'[\xff]', b'[[[\xff{}',
]

# Inside of strings.
STRINGS = [b'"%s"' % s for s in (
    b'', b'a', b'\\"', b"\\'", b'\\\\', b'\\/', b'\\b\\f\\n\\r\\t', b'\\a', b'\\q',
    b'\\x41', b'\\U0041', b'\\0', b'\\ ', b'\\\xe9', b'\\u0041', b'\\u00e9',
    b'\\u00E9\\uABCD\\uabcd', b'\\u0000', b'a\\u0000b', b'\\u001f', b'\\u007f',
    b'\\u', b'\\u1', b'\\u12', b'\\u123', b'\\u12g4', b'\\uzzzz', b'\\u000\\"',
    b'\\u12\xc3\xa9', b'\\uz\xc3', b'\\u 041', b'\\u-041', b'\\u+041',
    b'\\ud800', b'\\udbff', b'\\udc00', b'\\udfff', b'\\ud800x', b'\\ud800\\n',
    b'\\ud800\\u0041', b'\\ud800\\ud800', b'\\ud800\\udbff', b'\\ud800\\udc00',
    b'\\ud83d\\ude00', b'\\uD83D\\uDE00', b'\\udc00\\ud800', b'\\ud83f\\udfff',
    b'\\udbff\\udffd', b'\\udbff\\udffe', b'\\udbff\\udfff', b'\\ud800\\ud8',
    b'\\ud800\\uzzzz', b'\\ufffd', b'\\ufffe', b'\\uffff', b'\\ufdcf', b'\\ufdd0',
    b'\\ufdef', b'\\ufdf0', b'\x7f', b'/', b'\t', b'\n', b'\r', b'\x00', b'\x1f',
    b'\xc3\xa9', b'\xe2\x82\xac', b'\xf0\x9f\x98\x80', b'\xc2\x80', b'\xdf\xbf',
    b'\xe0\xa0\x80', b'\xef\xbf\xbd', b'\xf0\x90\x80\x80', b'\xf4\x8f\xbf\xbd',
    b'\xc0\x80', b'\xc0\x81', b'\xc1\xbf', b'\xe0\x80\x80', b'\xe0\x9f\xbf',
    b'\xf0\x80\x80\x80', b'\xf0\x8f\xbf\xbf', b'\xed\x9f\xbf', b'\xed\xa0\x80',
    b'\xed\xbf\xbf', b'\xee\x80\x80', b'\xef\xb7\x8f', b'\xef\xb7\x90',
    b'\xef\xb7\xaf', b'\xef\xb7\xb0', b'\xef\xbf\xbe', b'\xef\xbf\xbf',
    b'\xf0\x9f\xbf\xbd', b'\xf0\x9f\xbf\xbe', b'\xf4\x90\x80\x80', b'\xf5\x80\x80\x80',
    b'\xf8\x88\x80\x80\x80', b'\xfc\x84\x80\x80\x80\x80', b'\x80', b'\xbf', b'\xc3',
    b'\xc3a', b'\xe2\x82', b'\xe2\x82a', b'\xf0\x9f\x98', b'\xf0\x9f\x98a',
    b'\xc3\xc3\xa9', b'\xe2\xe2\x82\xac', b'\xfe', b'\xff', b'a"', b"'", b"a'b",
    b'%s %d %%')]

# The same sequences in a stray token, where they are printed and not refused.
BAD_UTF8 = [b'"a%s\x01' % s for s in (
    b'\x80', b'\x80\x80', b'\xbf', b'\xc0\x80', b'\xc0\xaf', b'\xc1\xbf', b'\xc3',
    b'\xc3\xc3', b'\xe0\x80\xaf', b'\xe2\x82', b'\xe2\x82\xe2\x82', b'\xe2a',
    b'\xed\xa0\x80', b'\xed\xa0\x80\xed\xb0\x80', b'\xef\xbf\xbe', b'\xef\xb7\x90',
    b'\xf0\x80\x80\xaf', b'\xf0\x90\x80', b'\xf0\x90', b'\xf0', b'\xf4\x90\x80\x80',
    b'\xf8\x88\x80\x80\x80', b'\xf8\x88\x80\x80', b'\xfb\xbf\xbf\xbf\xbf',
    b'\xfc\x84\x80\x80\x80\x80', b'\xfd\xbf\xbf\xbf\xbf\xbf', b'\xfd\xbf',
    b'\xc3\xa9', b'\xf0\x9f\x98\x80', b'\\u12', b'\\', b'\x7f')]

IDS = [
    b'1', b'-1', b'0', b'1.0', b'0.1', b'-0', b'-0.0', b'1e5', b'1.5e300', b'1e-400',
    b'5e-324', b'1.7976931348623157e308', b'3.14159', b'100.0', b'1e16', b'1e17',
    b'1e22', b'123456.789e3', b'9223372036854775807', b'-9223372036854775808',
    b'-9223372036854775809', b'18446744073709551616',
    b'123456789012345678901234567890', b'true', b'false', b'null', b'[]', b'{}',
    b'[1,[2,[3]]]', b'[1,"a",null,true,{"a":1.5}]', b'{"a":{"b":{"c":[]}}}',
    b'"a\\u0000b"', b"'a\"b'", b'"%s"', b'"%s"' % (b'z' * 8192),
]

REQUESTS = [
    b'{"execute":1}', b'{"execute":null}', b'{"execute":[]}', b'{"execute":""}',
    b'{"execute":"x"}', b'{"execute":"a\\u0000b"}', b'{"execute":"\xc3\xa9\\n"}',
    b'{"execute":"x","arguments":[]}', b'{"execute":"x","arguments":null}',
    b'{"execute":"x","arguments":1}', b'{"execute":"x","arguments":{}}',
    b'{"execute":"x","foo":1,"id":7}', b'{"foo":1,"id":8}', b'{"id":9}',
    b'{"id":{"a":1}}', b'{"a":1}', b'{"arguments":{}}', b'{"":1}',
    b'{"exec-oob":"x","id":1}', b'{"exec-oob":"query-version"}',
    b'{"exec-oob":1}', b'{"Execute":"x"}', b'{"execute ":"x"}',
    b'{"control":{"run-oob":true}}',
    b"{'execute':'x','id':'a\\'b'}", b'{ "execute" : "x" }\r\n',
    b'{\n"execute"\t:\r"x"}', b'{"execute":"x"}{"execute":"y"}',
    b'{"execute":"a1"}' * 12, b'{"id":1,"execute":"x"}', b'[{"execute":"x"}]',
    b'"{}"', b'{"execute":"qmp_capabilities","id":3}',
    b'{"execute":"qmp_capabilities","arguments":{"enable":[]}}',
    b'{"execute":"qmp_capabilities","arguments":{"enable":["foo"]}}',
    b'{"execute":"qmp_capabilities","arguments":{"enable":[1]}}',
    b'{"execute":"qmp_capabilities","arguments":{"enable":"oob"}}',
    b'{"execute":"qmp_capabilities","arguments":{"enable":null}}',
    b'{"execute":"qmp_capabilities","arguments":{"foo":1}}',
    b'{"execute":"query-version"}', b'{"execute":"query-version","id":[1]}',
    b'{"execute":"query-version","arguments":{}}',
    b'{"execute":"query-version","arguments":{"a":1}}',
    b'{"execute":"query-commands","arguments":{"a":1}}',
    b'{"execute":"query-jobs"}', b'{"execute":"query-jobs","arguments":{"b":2}}',
    b'{"execute":"query-block-exports"}',
    b'{"execute":"query-block-exports","arguments":{"b":{}}}',
]

# (command, arguments): what its table refuses, and errors of its own.
ARGUMENTS = [(c, a) for c, arguments in {
    b'job-cancel': [
        None, b'{}', b'{"id":"a"}', b'{"id":""}', b'{"id":1}', b'{"id":null}',
        b'{"id":{}}', b'{"id":[]}', b'{"id":true}', b'{"id":"a","b":1}',
        b'{"Id":"a"}', b'{"id":"a\\u0000"}', b'{"":1,"id":"a"}'],
    b'job-pause': [None, b'{"id":"a"}', b'{"id":1}', b'{"id":"a","id2":1}'],
    b'job-dismiss': [None, b'{"id":"a"}', b'{"id":1.5}', b'{"x":"a"}'],
    b'block-job-set-speed': [
        None, b'{}', b'{"device":1}', b'{"device":"a"}', b'{"speed":1}',
        b'{"device":"a","speed":"1"}', b'{"device":"a","speed":1.5}',
        b'{"device":"a","speed":1e3}', b'{"device":"a","speed":1.0}',
        b'{"device":"a","speed":true}', b'{"device":"a","speed":null}',
        b'{"device":"a","speed":[]}', b'{"device":"a","speed":-1}',
        b'{"device":"a","speed":0}', b'{"device":"a","speed":9223372036854775807}',
        b'{"device":"a","speed":-9223372036854775808}',
        b'{"device":"a","speed":9223372036854775808}',
        b'{"device":"a","speed":18446744073709551615}',
        b'{"device":"a","speed":18446744073709551616}',
        b'{"device":"a","speed":1,"z":1}', b'{"z":1}', b'{"device":1,"speed":"1"}',
        b'{"device":"","speed":1}', b'{"device":"\\u0000a","speed":1}',
        b'{"device":"\xc3\xa9\\"\\\\","speed":1}', b'{"device":"%s%n","speed":1}'],
    b'block-export-del': [
        None, b'{"id":"a"}', b'{"id":"a","mode":"x"}', b'{"id":"a","mode":"safe"}',
        b'{"id":"a","mode":"hard"}', b'{"id":"a","mode":1}',
        b'{"id":"a","mode":null}', b'{"id":"a","mode":"hard","k":2}',
        b'{"id":"a","mode":""}', b'{"id":"a","mode":"Safe"}',
        b'{"id":"a","mode":"safe\\u0000"}', b'{"mode":"hard"}'],
    b'transaction': [
        None, b'{"actions":[]}', b'{"actions":{}}', b'{"actions":null}',
        b'{"actions":[1]}', b'{"actions":[{}]}', b'{"actions":[{"type":1}]}',
        b'{"actions":[{"type":"abort"}]}', b'{"actions":[{"type":"none"}]}',
        b'{"actions":[{"type":"abort","data":1}]}',
        b'{"actions":[{"type":"abort","data":{}}]}',
        b'{"actions":[{"type":"abort","data":{"x":1}}]}',
        b'{"actions":[{"type":"abort","data":{}},{"type":"abort","data":{"x":1}}]}',
        b'{"actions":[{"type":"abort","data":{}},[]]}',
        b'{"actions":[{"type":"abort","data":{},"y":1}]}',
        b'{"actions":[],"properties":{}}', b'{"actions":[],"properties":[]}',
        b'{"actions":[],"properties":null}',
        b'{"actions":[],"properties":{"completion-mode":"zz"}}',
        b'{"actions":[],"properties":{"completion-mode":1}}',
        b'{"actions":[],"properties":{"completion-mode":"individual"}}',
        b'{"actions":[],"properties":{"zz":"zz"}}', b'{"actions":[],"z":1}'],
}.items() for a in arguments]

DEEP = [c for n in (1, 1023, 1024, 1025) for c in (
    b'[' * n + b']' * n, b'{"a":' * n + b'1' + b'}' * n)] + [
    b'[{"a":' * 512 + b'1' + b'}]' * 512, b'[{"a":' * 513 + b'1' + b'}]' * 513]

# What only the test's table has, or what depends on the version or the image.
NOT_IN_SERVER = [b'block-job-set-speed', b'block-export-del', b'transaction',
                 b'"query-version"', b'"query-block-exports"}']

# Before the negotiation; each is sent on a connection of its own.
NEGOTIATION = [
    b'{"execute":"query-version"}', b'{"execute":"x"}', b'{"foo":1}', b'1 ', b'{}',
    b'[', b'{"execute":"query-version","arguments":{"a":1},"id":2}',
    b'{"execute":"qmp_capabilities","id":1}',
    b'{"execute":"qmp_capabilities"}{"execute":"qmp_capabilities"}',
    b'{"execute":"qmp_capabilities","arguments":{"foo":1}}',
    b'{"execute":"qmp_capabilities","arguments":{"enable":["foo"]}}',
    b'{"execute":"qmp_capabilities","arguments":{"enable":[]}}{"execute":"x"}',
    b'{"exec-oob":"qmp_capabilities"}', b'&\n{"execute":"qmp_capabilities"}',
]

# A job from its start to its end: (input, how many lines come for it).
JOB = [
    (b'{"execute":"blockdev-create","id":5,"arguments":{"job-id":"j","options":'
     b'{"driver":"file","filename":"%(tmp)s/created","size":1048576}}}', 6),
    (b'{"execute":"query-jobs"}', 1),
    (b'{"execute":"job-dismiss","arguments":{"id":"j"},"id":"d"}', 2),
    (b'{"execute":"job-dismiss","arguments":{"id":"j"}}', 1),
    (b'{"execute":"query-jobs"}', 1),
]

GENERIC = b'{"error": {"class": "GenericError", "desc": "%s"}}\r\n'
NOT_FOUND = b'"error": {"class": "CommandNotFound", "desc": ' \
            b'"The command x has not been found"}}\r\n'

# (input, QEMU's answer, ours, reason)
MEANT = [
    (CMD % b'18446744073709551615',
     b'{"id": 18446744073709551615, ' + NOT_FOUND,
     b'{"id": 1.8446744073709552e+19, ' + NOT_FOUND,
     'whole numbers above INT64_MAX become floating point: jansson has none'),
    (CMD % b'1e400', b'{"id": inf, ' + NOT_FOUND,
     GENERIC % b'JSON parse error, number out of range',
     'QEMU answers with "inf", which is not JSON'),
    (CMD % b'{"b":1,"a":2}', b'{"id": {"a": 2, "b": 1}, ' + NOT_FOUND,
     b'{"id": {"b": 1, "a": 2}, ' + NOT_FOUND,
     "members keep the client's order; QEMU has the order of a hash table"),
    (b'{"execute":"' + b'y' * 600 + b'"}',
     b'{"error": {"class": "CommandNotFound", "desc": "The command ' +
     b'y' * 600 + b' has not been found"}}\r\n',
     b'{"error": {"class": "CommandNotFound", "desc": "The command ' +
     b'y' * 499 + b'"}}\r\n',
     'texts of errors are cut at 511 bytes, so that replies stay small'),
    (CMD % (b'"%s"' % (b'z' * 8193)),
     b'{"id": "' + b'z' * 8193 + b'", ' + NOT_FOUND,
     GENERIC % b"QMP input member 'id' is too large",
     'replies repeat an id, and stay small'),
    (b'{"execute":2,"a":1}',
     GENERIC % b"QMP input member 'a' is unexpected",
     GENERIC % b"QMP input member 'execute' must be a string",
     "of several faults the client's first one is told; QEMU has the order of a "
     "hash table"),
]

FIXED = (VALUES + SHAPES + STRAY + BAD_UTF8 + DEEP + REQUESTS +
         STRINGS + [CMD % s for s in STRINGS] + [CMD % i for i in IDS] +
         [b'{"execute":"%s"%s,"id":1}' %
          (c, b',"arguments":' + a if a is not None else b'')
          for c, a in ARGUMENTS])

# --- Random ones ------------------------------------------------------------

SOUP = [b'{', b'}', b'[', b']', b',', b':', b'"a"', b"'a'", b'1', b'-1', b'1.5', b' ',
        b'true', b'nul', b'&', b'\x01', b'\t', b'\n', b'""', b'"a":', b'"a":1',
        b'{"a":', b'[1,', b'\xff', b'0', b'-', b'e', b'"\\u00', b'"', b"'"]
ODD_BYTES = b'{}[],:"\'\\ \t\n\r09-+.eEaut\x00\x01\x7f\x80\xc3\xa9\xed\xfe\xff&%/'
UTF8 = [b'\x80', b'\xbf', b'\xc0', b'\xc2', b'\xe0', b'\xed', b'\xef', b'\xf0', b'\xf4',
        b'\xa0', b'\x90', b'\x9f', b'\xb7', b'a', b'\\u', b'd8', b'00', b'\\ud800',
        b'\\udc00', b'\\n', b'\xf8', b'\xc3\xa9']
SOUND = [b'{"execute":"x","id":%d}', b'{"execute":"query-jobs","id":%d}',
         b'{"execute":"job-cancel","arguments":{"id":"a"},"id":%d}',
         b'{"execute":"block-job-set-speed","arguments":{"device":"a","speed":%d}}',
         b'{"execute":"block-export-del","arguments":{"id":"a","mode":"hard"}}'
         b'{"execute":"x","id":%d}',
         b"{'execute':'transaction','arguments':{'actions':[]},'id':%d}"]


def number(rand):
    """Digits and signs.  An exponent of three digits may be out of range: MEANT."""
    s = b'1e999'
    while re.search(rb'[eE]\+?\d{3}', s):
        s = b''.join(bytes([rand.choice(b'0123456789')]) if rand.random() < 0.6
                     else rand.choice([b'.', b'-', b'e', b'+', b'E', b' '])
                     for _ in range(rand.randint(1, 8)))
    return s


def mutated(rand):
    """A sound request with one byte changed, removed or added, or cut short."""
    s = bytearray(rand.choice(SOUND) % rand.randint(0, 99))
    at = rand.randrange(len(s))
    how = rand.randrange(4)
    if how == 0:
        s[at] = rand.choice(ODD_BYTES)
    elif how == 1:
        del s[at]
    elif how == 2:
        s.insert(at, rand.choice(ODD_BYTES))
    else:
        del s[at:]
    return bytes(s)


def soup(rand):
    return b''.join(rand.choice(SOUP) for _ in range(rand.randint(1, 14)))


def text(rand):
    return CMD % (b'"%s"' % b''.join(rand.choice(UTF8)
                                     for _ in range(rand.randint(1, 6))))


def generated(rand, count):
    makers = [mutated, mutated, soup, soup, text,
              lambda r: b'[' + number(r) + b']', lambda r: number(r) + b' ']
    return [rand.choice(makers)(rand) for _ in range(count)]
