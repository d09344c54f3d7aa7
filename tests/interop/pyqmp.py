#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""pyqmp.py SOCKET: talks to a control socket through qemu.qmp, the QMP library for
Python, and prints what it gets, a line each.  Exit status 77: it is not installed."""
import asyncio
import sys

try:
    from qemu.qmp import QMPClient
    from qemu.qmp.qmp_client import ExecuteError
except ImportError:
    sys.exit(77)


async def main(path):
    client = QMPClient('test')
    await client.connect(path)
    print('capabilities', client.greeting.QMP.capabilities)
    for command in ('query-version', 'query-schema', 'query-commands', 'query-jobs'):
        print(command, await client.execute(command) is not None)
    try:
        await client.execute('no-such-command')
    except ExecuteError as e:
        print(e)
    await client.execute('index-existing')
    for _ in range(2):
        event = await asyncio.wait_for(client.events.get(), 20)
        print(event['event'], event['data']['id'], event['data']['status'])
    await client.disconnect()


asyncio.run(main(sys.argv[1]))
