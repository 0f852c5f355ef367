"""State machines that decide: membership, overlay, broadcast. No socket, clock or codec."""
