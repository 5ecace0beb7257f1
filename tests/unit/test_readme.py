"""Every README.md stays true where a test can tell."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

from bridge.cli import COMMANDS
from bridge.config.file import FixedConfig
from bridge.config.secrets import Secrets
from bridge.config.settings import Settings
from bridge.config.toml import parse
from bridge.functions.registry import Function
from bridge.http.app import create_app
from bridge.outcome import Outcome

ROOT = Path(__file__).parents[2]
PAGES = {
    str(path.relative_to(ROOT)): path.read_text()
    for folder in ("", "bridge/**/", "deploy/**/", "tests/**/")
    for path in sorted(ROOT.glob(f"{folder}README.md"))
}
ALL = "\n".join(PAGES.values())


def without_code(text: str) -> str:
    return re.sub(r"```.*?```", "", text, flags=re.DOTALL)


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives to a page's headings."""
    headings = re.findall(r"^#+ (.+)$", without_code(text), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings}


def test_there_is_a_page_for_each_reader() -> None:
    assert {"README.md", "bridge/README.md", "bridge/http/README.md", "bridge/call/README.md"} | {
        "deploy/README.md",
        "tests/README.md",
    } <= PAGES.keys()


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page: str) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(PAGES[page])):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        file = (ROOT / page).parent / path if path else ROOT / page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file.read_text()), target


@pytest.mark.parametrize("page", PAGES)
def test_every_proof_that_is_named_exists(page: str) -> None:
    for name, path in re.findall(r"\[`(test_\w+)`\]\(([\w/.]+\.py)\)", PAGES[page]):
        assert re.search(rf"def {name}\b", ((ROOT / page).parent / path).read_text()), name


@pytest.mark.parametrize("page", PAGES)
def test_only_the_testers_page_and_the_one_on_cancellation_name_tests(page: str) -> None:
    if page not in {"tests/README.md", "bridge/call/README.md"}:
        assert re.findall(r"\(([^)]*test_\w+\.py)\)", PAGES[page]) == []


def test_every_path_that_is_named_exists() -> None:
    paths = set(re.findall(r"`((?:bridge|tests|deploy)/[\w./-]+)", ALL))
    assert {path for path in paths if not (ROOT / path).exists()} == set()


def test_every_module_that_is_named_exists() -> None:
    modules = set(re.findall(r"(?:python -m |from |\")((?:bridge|tests)(?:\.\w+)+)", ALL))
    for module in modules:
        path = ROOT / module.replace(".", "/")
        assert path.with_suffix(".py").exists() or path.is_dir(), module


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_described(command: str) -> None:
    assert f"| `bridge {command}" in PAGES["deploy/README.md"]


def test_every_setting_is_described() -> None:
    for table in msgspec.structs.fields(Settings):
        if isinstance(table.type, type) and issubclass(table.type, msgspec.Struct):
            for field in msgspec.structs.fields(table.type):
                dotted = rf"`{table.name}\.{field.name}\b"
                in_a_block = rf"\[{table.name}\][^`\[]*\n{field.name} = "
                assert re.search(f"{dotted}|{in_a_block}", ALL), f"{table.name}.{field.name}"


def test_every_metric_is_described() -> None:
    names = set(re.findall(r'"(bridge_\w+)"', (ROOT / "bridge/telemetry/metrics.py").read_text()))
    assert len(names) > 10
    assert {name for name in names if f"`{name}" not in PAGES["deploy/README.md"]} == set()


def test_every_route_is_described() -> None:
    app = create_app(FixedConfig(Settings()), Secrets(twilio_auth_tokens=("token",)))
    table = re.sub(r"^(?!\|).*$", "", PAGES["bridge/http/README.md"], flags=re.MULTILINE)
    routes = {
        (method, re.sub(r"<[^>]*call_sid>", "SID", rule.rule))
        for rule in app.url_map.iter_rules()
        for method in ({"WS"} if rule.websocket else (rule.methods or set()) - {"HEAD", "OPTIONS"})
        if not rule.rule.startswith(("/assets/", "/static/"))
    }
    assert ("POST", "/calls") in routes
    assert {route for route in routes if f"`{' '.join(route)}`" not in table} == set()


def test_every_outcome_is_described() -> None:
    page = PAGES["deploy/README.md"]
    assert [outcome for outcome in Outcome if f"`{outcome}`" not in page] == []


@pytest.mark.parametrize("page", ["README.md", "bridge/functions/README.md"])
def test_the_function_that_is_shown_can_be_used(page: str) -> None:
    (source,) = (code for language, code in blocks(page) if language == "python")
    module = {"__name__": "my_functions"}
    exec(source, module)
    shown = Function.of(module["book_table"])  # type: ignore[arg-type]
    assert (shown.name, shown.description) == ("book_table", "Book a table.")


@pytest.mark.parametrize("page", PAGES)
def test_the_settings_that_are_shown_are_valid(page: str) -> None:
    for language, text in blocks(page):
        if language == "toml" and "[slots" not in text:
            parse(text)


def blocks(page: str) -> list[tuple[str, str]]:
    """The fenced blocks of a page: language and text."""
    return re.findall(r"^```(\w*)\n(.*?)^```", PAGES[page], flags=re.DOTALL | re.MULTILINE)


def test_the_first_page_is_short_and_sets_up_with_one_command_each() -> None:
    lines = PAGES["README.md"].splitlines()
    assert len(lines) <= 200
    assert "deploy/setup && .venv/bin/bridge demo --open" in lines
    assert "deploy/setup test && .venv/bin/pytest -n 3" in lines
