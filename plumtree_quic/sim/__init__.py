"""The production Core and codec on a virtual network, in virtual time. Never a socket or a clock."""
