"""The API token of a run, printed with the console's address and kept for commands on this machine.

Where BRIDGE_API_TOKEN is not set, the server makes a token for the run (`bridge.server.instance`).
Operators read it in the address that is printed at the start; it stands behind a `#`, which
browsers send to no server and in no Referer. `bridge dial` and `bridge phone` read it in a file
that only this Unix user can read, in `$XDG_RUNTIME_DIR/bridge`, or else in `bridge-UID` in the
folder for temporary files.
"""

from __future__ import annotations

import hashlib
import os
import stat
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from bridge.addresses import host_here, is_loopback
from bridge.log import get_logger

log = get_logger(__name__)


class _Kept(msgspec.Struct):
    """The content of a file: which server, on which ports, and its token."""

    pid: int
    ports: list[int]
    token: str


def page_address(address: str, token: str, path: str = "/") -> str:
    """Return the address of a page on this machine, with the token. `address` is a bound one."""
    scheme, _, host = address.partition("://")
    return f"{scheme}://{host_here(host)}{path}#token={token}"


@contextmanager
def announced(token: str, addresses: Sequence[str]) -> Iterator[None]:
    """Print the console's address with `token`, and keep the token while the context is open.

    `addresses` are those that the server listens on. Among several processes with one token, the
    first to come prints and keeps it.
    """
    with keeping(token, addresses) as first:
        if first and addresses:
            console = page_address(addresses[0], token)
            sys.stderr.write(f"console: {console} (BRIDGE_API_TOKEN sets a token of your own)\n")
            sys.stderr.flush()
        yield


@contextmanager
def keeping(token: str, addresses: Sequence[str]) -> Iterator[bool]:
    """Keep the token for this user's commands while the context is open.

    Yields False if another process of the server keeps it already. A token that cannot be kept is
    logged: the server runs without its file.
    """
    path = None
    try:
        path = _write(token, addresses)
    except FileExistsError:
        yield False
        return
    except OSError as error:
        log.warning(
            "the run's API token cannot be kept for other commands; set BRIDGE_API_TOKEN for the "
            "server and for them",
            reason=str(error),
        )
    try:
        yield True
    finally:
        if path is not None:
            with suppress(OSError):
                path.unlink()


def kept_token(url: str) -> str:
    """Return the token that this user's server at `url` has kept; "" if there is none.

    Only for addresses of this machine: a token is sent to no other.
    """
    try:
        parts = urlsplit(url)
        port = parts.port or {"https": 443}.get(parts.scheme, 80)
    except ValueError:
        return ""
    if not is_loopback(parts.netloc):
        return ""
    return next((one.token for one in _latest_first() if port in one.ports), "")


def _write(token: str, addresses: Sequence[str]) -> Path:
    folder = next((one for one in _folders() if _is_private(one, make=True)), None)
    if folder is None:
        raise PermissionError("no folder that only this user can read")
    for path in folder.glob("*.json"):
        # Of a server that was killed.
        if (other := _read(path)) is not None and not _is_running(other.pid):
            path.unlink(missing_ok=True)
    ports = [int(port) for one in addresses if (port := one.rpartition(":")[2]).isdigit()]
    path = folder / f"{hashlib.sha256(token.encode()).hexdigest()[:16]}.json"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(descriptor, "wb") as file:
        file.write(msgspec.json.encode(_Kept(os.getpid(), ports, token)))
    return path


def _latest_first() -> Iterator[_Kept]:
    """Yield what the kept files of this user say."""
    found: list[tuple[float, Path]] = []
    for folder in _folders():
        if _is_private(folder):
            with suppress(OSError):
                found += [(path.stat().st_mtime, path) for path in folder.glob("*.json")]
    for _, path in sorted(found, reverse=True):
        if (one := _read(path)) is not None:
            yield one


def _read(path: Path) -> _Kept | None:
    """Return the content of a file; None for one that is gone or not finished."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=_Kept)
    except (OSError, msgspec.DecodeError):
        return None


def _folders() -> list[Path]:
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    temporary = Path(tempfile.gettempdir(), f"bridge-{os.getuid()}")
    return [Path(runtime, "bridge"), temporary] if runtime else [temporary]


def _is_private(folder: Path, *, make: bool = False) -> bool:
    """Return whether only this user can read and write the folder; `make` it if it is missing."""
    try:
        if make:
            folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
    except OSError:
        return False
    ours = status.st_uid == os.getuid() and not stat.S_IMODE(status.st_mode) & 0o077
    return ours and stat.S_ISDIR(status.st_mode)


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError as error:
        return not isinstance(error, ProcessLookupError)
    return True
