"""README and docs/: links and pictures exist, each command uses constants that its script has; tutorials are run."""

import ast
import importlib
import re
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from models import evolution
from pipeline import UserError, script
from tests.conftest import ROOT, script_module

import pytest

PAGES = [*sorted(ROOT.glob("README*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
TUTORIALS = [*sorted((ROOT / "docs").glob("tutorial*.md")), *sorted((ROOT / "docs" / "ko").glob("*.md"))]
SCRIPTS = {path.name[:2]: path.name for path in sorted(ROOT.glob("[0-9][0-9]_*.py"))}
LINK = re.compile(r"\]\(([^()\s]+)\)|<(?:a|img)\b[^>]*(?:href|src)=\"([^\"]+)\"")
COMMAND = re.compile(r"python (?:-m )?((?:tools|tests)\.\w+|\w+\.py)((?: [A-Z][A-Z0-9_]*=[^\s`'\"]+)*)")
ROW = re.compile(r"^\| (0\d(?:, 0\d)*) \| (.*?) \|", re.MULTILINE)
BLOCK = re.compile(r"^```(sh|python)\n(.*?)^```", re.MULTILINE | re.DOTALL)
QUOTED = re.compile(r"# ([\w/]+\.py)(?:: ([\w.]+))?$")  # the first line of a quotation: a file, and which function


# A tutorial's command is run with these constants in place of its own.
SEARCH = "GENERATIONS=1 POPULATION=4 EVAL_EPISODES=1 MAX_IDLE_STEPS=5 NUM_ENVS=4 WORKERS=1"
TINY = {
    "01_generate_data.py": "ROLLOUTS=4 MAX_STEPS=60 WORKERS=1",
    "02_train_vae.py": "EPOCHS=1 FRAMES_PER_EPOCH=32 BATCH_SIZE=16 SHUFFLE_BUFFER=32 VALIDATION_FRAMES=16",
    "03_series.py": "DREAM_STARTS=16",
    "04_train_rnn.py": "EPOCHS=1 FRAMES_PER_EPOCH=200 BATCH_SIZE=4 SEQUENCE_LENGTH=20",
    "05_train_controller.py": f"{SEARCH} EPISODES=1",
    "06_visualise.py": "EPISODES=1 BASELINE_EPISODES=1 MAX_STEPS=84 MAX_DREAM_STEPS=8 DREAMS=2 NUM_ENVS=2 WORKERS=1 "
    "TRACK=1000 LOOKAHEAD=25 OPEN_LOOP_STEPS=25",
    "07_dream_train.py": f"{SEARCH} EPISODES=2 HARD_TRACKS=1 DREAM_ENVS=4 MAX_DREAM_STEPS=5",
    "cartpole_dqn.py": "EPISODES=2 LEARNING_STARTS=20 TRAIN_FREQUENCY=20 GRADIENT_STEPS=1 BATCH_SIZE=4 SHOW=False",
}
# What must be in MODELS before: 06 would show the shipped weights instead.
V, VM = ("vae.weights.h5",), ("vae.weights.h5", "rnn.weights.h5", "dream_starts.npz")
NEEDS = {"03_series.py": V, "04_train_rnn.py": V, "05_train_controller.py": VM, "07_dream_train.py": VM}
NEEDS["06_visualise.py"] = (*VM, "controller.weights.h5")


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
    """Fails where a script is missing, or refuses an argument or several together, as it would in a shell."""
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
        if "POPULATION" in constants:
            evolution.validate(constants)
        elif hasattr(module, "validate"):
            vars(module).update(constants)
            module.validate()
    except UserError as error:
        pytest.fail(f"{name} {arguments}: {error}")
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


def blocks(text: str, language: str) -> list[list[str]]:
    """The lines of each code block in that language."""
    return [body.splitlines() for found, body in BLOCK.findall(text) if found == language]


def shell_lines(page: Path) -> tuple[str, ...]:
    """The lines of a page's shell blocks, without comments."""
    lines = (line.split(" # ")[0].strip() for block in blocks(page.read_text("utf-8"), "sh") for line in block)
    return tuple(line for line in lines if line and not line.startswith("#"))


class InlinePool:
    """One worker, in this process: TensorFlow is loaded already."""

    count = 1

    def __init__(self, cluster, count, initializer, *arguments):
        self.prepared = initializer(*arguments)

    def run_on_all(self, task, total, *arguments):
        return [task(self.prepared, iter(range(total)), *arguments)]

    def imap_unordered(self, task, items):
        return (task(self.prepared, item) for item in items)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


class Reader:
    """Who types a tutorial's commands, in a copy of the project without anybody's data or weights."""

    def __init__(self, folder: Path, monkeypatch) -> None:
        self.folder, self.monkeypatch, self.ran = folder, monkeypatch, set()
        (folder / "models").mkdir()
        for path in (*ROOT.glob("*.py"), ROOT / "pipeline", *ROOT.glob("models/*.py"), ROOT / "models" / "trained"):
            (folder / path.relative_to(ROOT)).symlink_to(path)
        monkeypatch.chdir(folder)
        monkeypatch.setattr("pipeline.workers.worker_pool", InlinePool)

    def type(self, line: str) -> None:
        """Run a line at toy size. Fails for what a reader's shell or a script would refuse, and for what is unknown."""
        program, *words = shlex.split(line)
        if program in ("python", ".venv/bin/python"):
            self.python(*words)
        elif program == "make":
            targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
            assert {word for word in words if "=" not in word} <= set(targets), f"not in the Makefile: {line}"
        elif program in ("mkdir", "cp", "ln", "sed"):
            done = subprocess.run(["sh", "-c", line], capture_output=True, text=True)
            assert done.returncode == 0, f"{line}: {done.stderr}"
        else:
            assert line == ". .venv/bin/activate", f"a tutorial has no such command: {line}"

    def python(self, name: str, *arguments: str) -> None:
        """Run a script, or check the arguments of a tool."""
        if name == "-m":
            check_command(arguments[0], " ".join(arguments[1:]), self.monkeypatch)
            return
        script_name = Path(name).name
        assert script_name in TINY, f"no such script: {name}"
        if arguments == ("--help",):
            return
        check_command(script_name, " ".join(arguments), self.monkeypatch)
        tiny = dict(pair.split("=", 1) for pair in (*arguments, *TINY[script_name].split()))
        command = [name, *sorted(f"{key}={value}" for key, value in tiny.items())]
        for file in NEEDS.get(script_name, ()):
            assert Path(tiny.get("MODELS", "models"), file).exists(), f"{file} is not there yet: {shlex.join(command)}"
        run = tuple(command)
        if script_name == "06_visualise.py":  # nothing is made of its files
            run = tuple(word for word in command if not word.startswith(("DATA=", "MODELS=")))
        if run in self.ran:
            return
        self.ran.add(run)
        if name == script_name:
            self.run_here(command)
        else:  # a copy, with changes
            done = subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=240)
            assert done.returncode == 0, f"{shlex.join(command)}: {done.stderr}"

    def run_here(self, command: list[str]) -> None:
        """Run a script in this process, as from a shell."""
        handler = signal.getsignal(signal.SIGTERM)
        self.monkeypatch.setattr(sys, "argv", command)
        try:
            runpy.run_path(str(ROOT / command[0]), run_name="__main__")
        except SystemExit as end:
            pytest.fail(f"{shlex.join(command)}: {end.code}")
        finally:
            signal.signal(signal.SIGTERM, handler)


@pytest.fixture
def reader(tmp_path, monkeypatch):
    return Reader(tmp_path, monkeypatch)


# A translation has the commands of its original: those are run once.
READ = {shell_lines(page): page.relative_to(ROOT) for page in reversed(TUTORIALS)}


@pytest.mark.parametrize("lines", READ, ids=lambda lines: str(READ[lines]))
def test_a_reader_can_run_a_tutorial(lines, reader):
    for line in lines:
        reader.type(line)


FAULTS = [
    ("python 08_more.py", "no such script"),
    ("python 02_train_vae.py KL_TOLERNCE=0", "unknown constant"),
    ("python 02_train_vae.py KL_TOLERANCE=-1", "must be at least 0"),
    ("python 06_visualise.py MAX_STEPS=60", "must be 80 to 1000"),
    ("python 05_train_controller.py HARD_TRACKS=4", "must be less than EPISODES"),
    ("python 02_train_vae.py DATA=data/none MODELS=data/none", "01_generate_data.py first"),
    ("python 06_visualise.py DATA=data/none MODELS=data/none", "is not there yet"),
    ("cp models/vae.weights.h5 data", "No such file"),
    ("make dmo", "not in the Makefile"),
    ("rm -rf data", "no such command"),
]


@pytest.mark.parametrize(("line", "told"), FAULTS)
def test_a_wrong_command_fails(line, told, reader):
    with pytest.raises((AssertionError, pytest.fail.Exception), match=told):
        reader.type(line)


@pytest.mark.skipif(not shutil.which("make"), reason="needs make")
def test_the_tutorial_has_the_commands_of_the_demo():
    plan = subprocess.run(["make", "-n", "demo"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    plan = {tuple(sorted(line.split()[1:])) for line in plan.splitlines() if re.match(r"\.venv/bin/python 0", line)}
    assert len(plan) == 7
    assert plan <= {tuple(sorted(line.split()[1:])) for line in shell_lines(ROOT / "docs" / "tutorial.md")}


def quoted_source(path: str, name: str) -> list[str]:
    """The lines of a file, or of the function or method `name` in it, stripped."""
    source = (ROOT / path).read_text("utf-8")
    node = ast.parse(source)
    for part in filter(None, name.split(".")):
        (node,) = (each for each in ast.iter_child_nodes(node) if getattr(each, "name", None) == part)
    text = ast.get_source_segment(source, node) if name else source
    return [line.strip() for line in text.splitlines()]


@pytest.mark.parametrize("page", TUTORIALS, ids=lambda page: str(page.relative_to(ROOT)))
def test_quoted_code_is_in_its_file(page):
    """In the order of the quotation; lines between may be left out."""
    for first, *lines in blocks(page.read_text("utf-8"), "python"):
        if not (where := QUOTED.match(first)):
            continue
        source = iter(quoted_source(where[1], where[2] or ""))
        for line in filter(None, map(str.strip, lines)):
            assert line in source, f"{page.name}: not in {where[0][2:]}, or not after the line before: {line}"
