"""Authenticated links with lanes and datagrams over one UDP socket. Never trees or membership."""
