"""The server process: start, worker processes, stop, watchdog, tunnel, and hypercorn's limits."""
