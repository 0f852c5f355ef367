"""Large pages: which parts of a process are moved, and that nothing in them changes."""

import random

from plumtree_quic.sim.pages import regions, use_large_pages

MAPS = """\
00400000-00600000 r--p 00000000 fd:00 1234 /usr/bin/python3.11
55d0000ff000-55d000c01000 rw-p 00000000 00:00 0 [heap]
7f0000000000-7f0000400000 rw-p 00000000 00:00 0
7f0000500000-7f0000600000 rw-p 00000000 00:00 0
7f0000700000-7f0000f00000 rw-s 00000000 00:05 77 /dev/zero (deleted)
7f0001000000-7f0002000000 ---p 00000000 00:00 0
7f0002000000-7f0003000000 rw-p 00000000 fd:00 99 /usr/lib/libc.so.6
7ffc00000000-7ffc00800000 rw-p 00000000 00:00 0 [stack]
"""


def test_the_heap_is_moved_and_neither_files_nor_stacks_nor_what_is_shared():
    assert regions(MAPS) == [
        (0x55D000200000, 0x55D000C00000),
        (0x7F0000000000, 0x7F0000400000),
    ]


def test_nothing_changes_in_what_is_moved():
    content = random.Random(1).randbytes(8 << 20)
    copies = [bytearray(content) for _ in range(2)]
    assert use_large_pages() >= 0
    assert all(copy == content for copy in copies)
