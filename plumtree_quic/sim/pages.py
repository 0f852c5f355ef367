"""Memory of large clusters, in large pages where the kernel has them. No node, no virtual time.

Each event is at another node than the one before, so thousands of nodes are read from memory all
over, and with pages of 4 KiB finding each of them takes longer than reading it. A page of 2 MiB
holds a dozen nodes. Python's own allocator asks for such pages only where the whole system does.
"""

import ctypes
import mmap
import sys
from pathlib import Path

__all__ = ["regions", "use_large_pages"]

PAGE_BYTES = 2 << 20
# From Linux 6.1 on; Python's mmap module has no name for it yet.
MADV_COLLAPSE = 25


def use_large_pages() -> int:
    """Move what this process holds into large pages; return how many bytes the kernel moved.

    0 where it does not know how: nothing is lost but speed. Call it once what stays is there.
    """
    if sys.platform != "linux":
        return 0
    madvise = ctypes.CDLL(None, use_errno=True).madvise
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    moved = 0
    for start, end in regions(Path("/proc/self/maps").read_text()):
        size = end - start
        if not madvise(start, size, mmap.MADV_HUGEPAGE) and not madvise(start, size, MADV_COLLAPSE):
            moved += size
    return moved


def regions(maps: str) -> list[tuple[int, int]]:
    """The heap in `maps` (proc(5), /proc/pid/maps): (start, end) of whole large pages.

    Stacks, files and what is shared with other processes are left alone.
    """
    out: list[tuple[int, int]] = []
    for line in maps.splitlines():
        span, access, _, _, inode, *path = line.split(maxsplit=5)
        if access != "rw-p" or inode != "0" or path not in ([], ["[heap]"]):
            continue
        low, high = (int(each, 16) for each in span.split("-"))
        start, end = -(-low // PAGE_BYTES) * PAGE_BYTES, high // PAGE_BYTES * PAGE_BYTES
        if start < end:
            out.append((start, end))
    return out
