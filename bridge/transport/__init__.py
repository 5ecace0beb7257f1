"""Websockets and byte streams on Trio: the sockets of a call, at little cost."""
