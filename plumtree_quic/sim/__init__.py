"""The production Core and codec on a virtual network, in virtual time. No socket or clock."""
