"""Authenticated links with lanes and datagrams over one UDP socket. Knows nothing of trees or membership."""
