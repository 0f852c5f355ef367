"""How an operator reaches a running node. Reads and asks; decides nothing about the protocol."""
