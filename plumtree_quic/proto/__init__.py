"""State machines that decide: membership, overlay, broadcast. Never a socket, a clock or a codec."""
