"""How bytes are moved between sockets and tasks, at little cost."""
