"""README and docs/: links and pictures exist, and each command in them uses constants that its script has."""

import importlib
import re
import shutil
import subprocess
import sys

from pipeline import script
from tests.conftest import ROOT, script_module

import pytest

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
SCRIPTS = {path.name[:2]: path.name for path in sorted(ROOT.glob("[0-9][0-9]_*.py"))}
LINK = re.compile(r"\]\(([^()\s]+)\)|<(?:a|img)\b[^>]*(?:href|src)=\"([^\"]+)\"")
COMMAND = re.compile(r"python (?:-m )?((?:tools|tests)\.\w+|\w+\.py)((?: [A-Z][A-Z0-9_]*=[^\s`'\"]+)*)")
ROW = re.compile(r"^\| (0\d(?:, 0\d)*) \| (.*?) \|", re.MULTILINE)


def links(text: str) -> set[str]:
    """Where the links and pictures of a Markdown text lead, but for those to other sites."""
    found = {target for pair in LINK.findall(text) for target in pair if target}
    return {target for target in found if not re.match(r"[a-z]+:", target)}


def anchors(text: str) -> set[str]:
    """The names that GitHub gives to the headings of a Markdown text."""
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def commands(text: str) -> set[tuple[str, str]]:
    """The scripts that a text runs, each with its NAME=value arguments."""
    return {(name, arguments.strip()) for name, arguments in COMMAND.findall(text)}


def check_command(name: str, arguments: str, monkeypatch) -> None:
    """Fails where a script is missing, or refuses an argument as it would in a shell."""
    if name.endswith(".py"):
        assert (ROOT / name).exists(), f"{name} does not exist"
        module = script_module(name)
    else:
        module = importlib.import_module(name)
    if not arguments:
        return
    monkeypatch.setattr(sys, "argv", [name, *arguments.split()])
    constants = {key: value for key, value in vars(module).items() if key != "__constants__"}
    try:
        script.check(constants)
    except SystemExit as end:
        if "needs Ray, which is not installed" not in end.code:  # it was checked last
            pytest.fail(f"{name} {arguments}: {end.code}")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_pictures_exist(page):
    text = page.read_text("utf-8")
    for target in links(text):
        path, _, anchor = target.partition("#")
        found = page.parent / path if path else page
        assert found.exists(), f"{page.name}: {target} does not exist"
        assert not anchor or anchor in anchors(found.read_text("utf-8")), f"{page.name}: no heading for {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_use_constants_that_the_scripts_have(page, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # where the folders of the commands are made
    for name, arguments in commands(page.read_text("utf-8")):
        check_command(name, arguments, monkeypatch)


def test_constants_worth_changing_exist(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    rows = ROW.findall((ROOT / "README.md").read_text("utf-8"))
    assert len(rows) >= 5
    for numbers, cell in rows:
        for number in numbers.split(", "):
            names = re.findall(r"\b[A-Z][A-Z0-9_]+\b(?:=[^\s`]+)?", cell)
            module = script_module(SCRIPTS[number])
            assert names
            for name in names:
                assert hasattr(module, name.partition("=")[0]), f"{SCRIPTS[number]} has no {name}"
            settings = " ".join(name for name in names if "=" in name)
            check_command(SCRIPTS[number], settings, monkeypatch)


@pytest.mark.skipif(not shutil.which("make"), reason="needs make")
def test_make_uses_constants_that_the_scripts_have(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    plan = subprocess.run(["make", "-n", "demo", "train"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    runs = {(name, arguments) for name, arguments in commands(plan) if arguments}
    assert len(runs) >= 10
    for name, arguments in runs:
        check_command(name, arguments, monkeypatch)


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= 140
