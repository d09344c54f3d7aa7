#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""pyqmplib.py SOCKET STEP: uses a control socket through qemu.qmp, the library of QEMU's
source tree, and fails if anything is not as the library's users expect it.

first: capabilities, queries, an error, a job with its events, several commands at once.
again: the same client leaves and connects again, until the server ends: it is told so.
"""
import asyncio
import sys

from qemu.qmp import EventListener, QMPClient, Runstate
from qemu.qmp.qmp_client import ExecuteError


async def wait_for_event(listener, **want):
    while True:
        event = await asyncio.wait_for(listener.get(), 30)
        if all(event['data'].get(k) == v for k, v in want.items()):
            return event


async def follow_job(client):
    with client.listener('JOB_STATUS_CHANGE') as listener:
        reply = await client.execute('index-existing', {'job-id': 'mine',
                                                        'auto-dismiss': False})
        assert reply == {}, reply
        for status in ('created', 'running', 'waiting', 'pending', 'concluded'):
            event = await wait_for_event(listener, id='mine')
            assert event['data']['status'] == status, event
            assert event['timestamp']['seconds'] > 0, event
        jobs = await client.execute('query-jobs')
        assert [j['status'] for j in jobs] == ['concluded'], jobs
        await client.execute('job-dismiss', {'id': 'mine'})
        await wait_for_event(listener, id='mine', status='null')


async def first(path):
    client = QMPClient('test')
    await client.connect(path)
    assert client.greeting.QMP.capabilities == [], client.greeting
    assert client.greeting.QMP.version['package'].startswith('nbdkit-dedup-')
    for command in ('query-version', 'query-commands', 'query-jobs', 'query-disks',
                    'query-status', 'query-stats', 'query-clients', 'query-schema',
                    'query-block-exports', 'query-named-block-nodes'):
        assert await client.execute(command) is not None, command
    for command, arguments, part in (
            ('no-such', {}, 'has not been found'),
            ('job-cancel', {'id': 'no'}, 'Job not found'),
            ('disk-create', {'name': 'x'}, "'size'")):
        try:
            await client.execute(command, arguments)
            sys.exit('FAIL: %s was not refused' % command)
        except ExecuteError as e:
            assert part in str(e), e
    await follow_job(client)
    many = [client.execute('query-status') for _ in range(50)]
    assert all(r['running'] for r in await asyncio.gather(*many))
    raw = await client.execute_msg(client.make_execute_msg('query-status'))
    assert raw['running'], raw
    await client.disconnect()
    assert client.runstate == Runstate.IDLE


async def again(path):
    client = QMPClient('again')
    for _ in range(3):
        await client.connect(path)
        assert (await client.execute('query-status'))['running']
        await client.disconnect()
    await client.connect(path)
    listener = EventListener('SHUTDOWN')
    client.register_listener(listener)
    print('connected', flush=True)
    event = await asyncio.wait_for(listener.get(), 30)
    assert event['data']['reason'] == 'host-signal', event
    while client.runstate == Runstate.RUNNING:
        await asyncio.sleep(0.01)
    try:
        await client.disconnect()
    except EOFError:            # how the library tells that the server left
        pass
    assert client.runstate == Runstate.IDLE


asyncio.run({'first': first, 'again': again}[sys.argv[2]](sys.argv[1]))
