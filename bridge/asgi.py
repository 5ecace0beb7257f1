"""The ASGI application that hypercorn loads: `hypercorn --worker-class trio bridge.asgi:app`.

Importing this module, and no other, prepares the process to be a server: it puts this project's
repairs into hypercorn and makes what worker processes inherit from the process that starts them.
"""

from bridge.http.app import create_app
from bridge.server.hypercorn import worker
from bridge.server.instance import instance, share_ticket_key

__all__ = ["app"]

worker.install()

# Before there are worker processes, which inherit both.
instance()
share_ticket_key()

app = create_app()
