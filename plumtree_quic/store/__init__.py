"""Stores: bundles that outlive the cache, and the memory of what was seen. No links, no protocol.

`contract` says what a store is, `memory` keeps it for one life of the process, `sqlite` on a disk:
there `book` decides what stays and what goes, and `database` knows the file and its rows.
"""
