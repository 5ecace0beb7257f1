"""The Dockerfile, performed without a container engine: its files are copied, its commands run, in
a folder that stands for the container's root, and what it starts runs as the user it names.

Paths that begin with / are the container's, so they are looked up in that folder. One command is
not run, since it would make a user of this machine; and pip may use its cache.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SECRETS = {"DEEPGRAM_API_KEY": "dg-test-key", "TWILIO_AUTH_TOKEN": "twilio-test-token"}


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's lines: what to do, and with what."""
    text = re.sub(r"\\\n\s*", " ", (ROOT / "Dockerfile").read_text())
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(line.split(None, 1)[0], line.split(None, 1)[1].strip()) for line in lines]


class Container:
    """What the Dockerfile makes. Both stages have the same root: nothing in it moves."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._cwd = "/"
        self.user = ""
        self.users: dict[str, str] = {}
        self.environment: dict[str, str] = {}
        self.command: list[str] = []
        self.stop_signal = "SIGTERM"

    def path(self, inside: str) -> Path:
        """Where a path of the container's is."""
        return self._root / os.path.normpath(os.path.join(self._cwd, inside)).lstrip("/")

    @property
    def workdir(self) -> Path:
        return self.path(".")

    def perform(self) -> None:
        do = {
            "FROM": self._from,
            "WORKDIR": self._change,
            "COPY": self._copy,
            "RUN": self._run,
            "USER": self._become,
            "ENV": self._set,
            "EXPOSE": self._expose,
            "STOPSIGNAL": self._stop,
            "CMD": self._start,
        }
        for what, arguments in instructions():
            do[what](arguments)

    def _from(self, image: str) -> None:
        assert image.startswith("python:3.")
        self._cwd = "/"
        self.user = ""

    def _change(self, path: str) -> None:
        self._cwd = path
        self.workdir.mkdir(parents=True, exist_ok=True)

    def _copy(self, arguments: str) -> None:
        *sources, target = shlex.split(arguments)
        if sources[0].startswith("--from="):
            # A virtual environment works where it was made, and nowhere else.
            assert sources[1:] == [target]
            assert self.path(target).exists()
            return
        for source in sources:
            origin, here = ROOT / source, self.path(target)
            if origin.is_dir():
                ignored = shutil.ignore_patterns("__pycache__")
                shutil.copytree(origin, here, dirs_exist_ok=True, ignore=ignored)
            else:
                to = here / origin.name if target.endswith("/") else here
                to.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(origin, to)

    def _run(self, command: str) -> None:
        program, *arguments = shlex.split(command)
        if program == "useradd":
            self._useradd(arguments)
        elif (program, arguments[:2]) == ("python", ["-m", "venv"]):
            # Without a pip of its own: Debian's Python has none to give.
            made = [interpreter(), "-m", "venv", "--without-pip", str(self.path(arguments[2]))]
            subprocess.run(made, check=True, timeout=120)
        elif program.endswith("/bin/pip"):
            python = self.path(program).with_name("python")
            pip = [sys.executable, "-m", "pip", "--python", str(python)]
            wanted = [one for one in arguments if one != "--no-cache-dir"]
            done = subprocess.run(
                [*pip, *wanted], capture_output=True, text=True, timeout=300, cwd=self.workdir
            )
            assert done.returncode == 0, done.stderr
        else:
            pytest.fail(f"a command that this test cannot perform: {command}")

    def _useradd(self, arguments: list[str]) -> None:
        options = dict(pairwise(arguments))
        self.users[arguments[-1]] = options["--uid"]
        if "--create-home" in arguments:
            home = self.path(options["--home-dir"])
            home.mkdir(parents=True)
            if os.geteuid() == 0:
                os.chown(home, int(options["--uid"]), int(options["--uid"]))

    def _become(self, user: str) -> None:
        self.user = user

    def _set(self, pairs: str) -> None:
        for pair in shlex.split(pairs):
            name, _, value = pair.partition("=")
            if name == "PATH":
                first = value.removesuffix(":$PATH")
                value = f"{self.path(first)}:/usr/bin:/bin"
            self.environment[name] = value

    def _expose(self, port: str) -> None:
        bind = re.search(r'^bind = "0\.0\.0\.0:(\d+)"', (ROOT / "config.toml").read_text(), re.M)
        assert bind is not None
        assert bind[1] == port

    def _stop(self, name: str) -> None:
        self.stop_signal = name

    def _start(self, command: str) -> None:
        self.command = json.loads(command)


def interpreter() -> str:
    """A Python that any user of this machine can run."""
    for candidate in (os.path.realpath(sys.executable), "/usr/bin/python3"):
        folders = Path(candidate).resolve().parents
        if all(folder.stat().st_mode & stat.S_IXOTH for folder in folders):
            return candidate
    pytest.skip("no Python here that another user can run")


@pytest.fixture(scope="module")
def container() -> Iterator[Container]:
    # Not tmp_path, which nobody else may enter.
    root = Path(tempfile.mkdtemp(prefix="bridge-container-"))
    root.chmod(0o755)
    try:
        made = Container(root)
        made.perform()
        yield made
    finally:
        shutil.rmtree(root)


def test_it_makes_what_it_starts(container: Container) -> None:
    """The image's own command, as the image's own user, answers, and stops as asked."""
    assert container.user == container.users["bridge"]
    data = container.workdir
    # As a volume would: an address of this machine's, since that is where the test is.
    (data / "config.toml").write_text('[server]\nbind = "127.0.0.1:0"\n')
    became = {}
    if os.geteuid() == 0:
        number = int(container.user)
        became = {"user": number, "group": number, "extra_groups": []}
    program = container.path("/opt/bridge/bin") / container.command[0]
    process = subprocess.Popen(
        [program, *container.command[1:]],
        cwd=data,
        env={**container.environment, **SECRETS},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        **became,
    )
    try:
        assert process.stderr is not None
        log = []
        for line in process.stderr:
            log.append(line)
            if running := re.search(r"Running on (http://\S+)", line):
                break
        else:
            pytest.fail("".join(log))
        with urllib.request.urlopen(f"{running[1]}/healthz", timeout=30) as answer:
            assert answer.status == 200
        with urllib.request.urlopen(f"{running[1]}/readyz", timeout=30) as answer:
            assert answer.status == 200
        if became:
            assert Path(f"/proc/{process.pid}").stat().st_uid == int(container.user)
            # It can write where it works, and nowhere else in the image.
            assert (data / "calls.db").stat().st_uid == int(container.user)
        process.send_signal(getattr(signal, container.stop_signal))
        process.stderr.read()
        assert process.wait(timeout=60) == 0
    finally:
        process.kill()
        process.communicate()


def test_it_holds_what_bridge_brings_and_no_more(container: Container) -> None:
    """The package whole, its data too; and nothing that only tests need."""
    (packages,) = container.path("/opt/bridge/lib").glob("python3.*/site-packages")
    installed = packages / "bridge"
    ours = {
        path.relative_to(ROOT)
        for path in (ROOT / "bridge").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {path for path in ours if not (packages / path).exists()} == set()
    assert installed.is_dir()
    for name in ("pytest", "hypothesis", "deepgram", "ruff"):
        assert not (packages / name).exists()
    for name in ("psycopg", "opentelemetry"):
        assert (packages / name).exists()


def test_the_image_is_small_by_its_make() -> None:
    """Two stages: what builds stays behind, and so do the sources."""
    steps = instructions()
    stages = [arguments for what, arguments in steps if what == "FROM"]
    assert len(stages) == 2
    assert all(stage.split()[0].endswith("-slim") for stage in stages)
    last = steps[max(n for n, (what, _) in enumerate(steps) if what == "FROM") :]
    assert [arguments for what, arguments in last if what == "COPY"] == [
        "--from=build /opt/bridge /opt/bridge",
        "config.toml /data/config.toml",
    ]
