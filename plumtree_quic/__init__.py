"""plumtree-quic: secure messaging inside a cluster. The public names, and nothing else."""

__version__ = "0.1.0"
