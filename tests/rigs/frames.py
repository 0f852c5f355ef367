"""Cuts the bytes of a lane into frames, without the library's own reader."""


def frame_types(data):
    """The type byte of each complete frame on a stream that begins with its lane byte."""
    at, found = 1, []
    while at < len(data):
        size_bytes = 1 << (data[at] >> 6)
        if at + size_bytes > len(data):
            break
        size = int.from_bytes(data[at : at + size_bytes], "big") & ((1 << (8 * size_bytes - 2)) - 1)
        at += size_bytes
        if at + size > len(data):
            break
        found.append(data[at])
        at += size
    return found
