"""The command line, one module a command. Shows and asks; the library decides."""
