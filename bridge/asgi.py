"""The ASGI application that hypercorn loads: `hypercorn --worker-class trio bridge.asgi:app`.

Importing this module, and no other, prepares the process to be a server: it installs the repairs of
hypercorn, and sets the environment variables that worker processes inherit.
"""

from bridge.http.app import create_app
from bridge.server.hypercorn import worker
from bridge.server.instance import instance, share_run_token

__all__ = ["app"]

worker.install()

# Before worker processes are started, which inherit both.
instance()
share_run_token()

app = create_app()
