"""Several nodes in one process, and when they are ready."""

import asyncio


async def all_linked(nodes, timeout_s=30.0):
    """Wait until each node knows all others alive, and has a link to each.

    A member is known before there is a link to it: on a busy machine, much before.
    """
    others = len(nodes) - 1
    for each in nodes:
        await each.wait_for_peers(others, timeout=timeout_s)
    async with asyncio.timeout(timeout_s):
        while any(len(each.peers()) < others for each in nodes):
            await asyncio.sleep(0.01)
