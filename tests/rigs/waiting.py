"""Waiting on real clocks: for what a test is about to look at, never for a time.

WAIT_S is how long a test that fails takes to fail. A machine that is busy with other things may
take most of it, so nothing here is shorter.
"""

import asyncio

WAIT_S = 60.0

# For a port that is free again and is to be bound, or dialled in vain, a moment later: everything
# else here is at 127.0.0.1, where the kernel may give that port to somebody else meanwhile.
ASIDE = "127.0.0.2"


async def until(condition):
    async with asyncio.timeout(WAIT_S):
        while not condition():
            await asyncio.sleep(0.01)


async def linked(nodes):
    """Each of these nodes has a link to each other one, as in a cluster of up to 16 members.

    `Node.wait_for_peers` returns earlier: others tell of a member before it is linked.
    """
    await until(lambda: all(len(each.peers()) == len(nodes) - 1 for each in nodes))
