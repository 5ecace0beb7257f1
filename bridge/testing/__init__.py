"""A faithful phone and a faithful agent: the other ends of both wires, written independently."""
