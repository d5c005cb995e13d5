"""What `make` says before it builds .venv: a line for each thing that is missing, nothing where it is whole."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TOOLS = ["sh", "cat", "cut", "df", "dirname", "du", "grep", "head", "mktemp", "rm", "tail"]


class Machine:
    """A clone on a machine of which one decides what is there: PATH is one folder of scripts."""

    def __init__(self, folder: Path):
        self.clone, self.bin, self.include = folder / "a clone", folder / "bin", folder / "include"
        for made in (self.clone / ".ci", self.bin, self.include):
            made.mkdir(parents=True)
        shutil.copy(ROOT / ".ci" / "setup.sh", self.clone / ".ci")
        shutil.copy(ROOT / "requirements.txt", self.clone)
        for tool in TOOLS:
            (self.bin / tool).symlink_to(shutil.which(tool))
        (self.include / "Python.h").touch()
        self.program("c++", "exit 0")
        self.free(1_000_000)

    def program(self, name: str, text: str) -> None:
        """Put a shell script into PATH, in place of what has that name."""
        (self.bin / name).unlink(missing_ok=True)
        (self.bin / name).write_text(f"#!/bin/sh\n{text}\n")
        (self.bin / name).chmod(0o755)

    def free(self, megabytes: int) -> None:
        lines = f"Filesystem 1024-blocks Used Available Capacity Mounted\\n/dev/x 9 9 {megabytes * 1024} 1% /\\n"
        self.program("df", f"printf '{lines}'")

    def python(
        self, name: str, version: str, venv: str = "yes", machine: str = "Linux-x86_64", libc: str = "glibc"
    ) -> None:
        """Put a Python into PATH that answers the script's questions as told."""
        answers = (version, self.bin / name, venv, self.include, machine, libc, "no-such-cc", "no-such-c++")
        self.program(name, "cat <<'END'\n" + "\n".join(map(str, answers)) + "\nEND")

    def setup(self, *arguments: str, **variables: str) -> tuple[int, list[str]]:
        """Run the script; its exit code and the lines it printed."""
        done = subprocess.run(
            [self.bin / "sh", ".ci/setup.sh", *arguments],
            cwd=self.clone,
            env={"PATH": str(self.bin), "TMPDIR": str(self.bin.parent), **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        return done.returncode, done.stdout.splitlines()

    def lacks(self, *words: str, **variables: str) -> None:
        """Assert that one line is printed for each of `words`, with the three systems' cures, and nothing else."""
        code, lines = self.setup("check", **variables)
        assert code == 1
        assert len(lines) == len(words), lines
        for word, line in zip(words, lines, strict=True):
            assert line.startswith("set-up: ")
            assert word in line
            for system in ("Debian/Ubuntu: ", "Fedora: ", "macOS: "):
                assert system in line


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


def test_nothing_is_said_where_nothing_is_missing(machine):
    machine.python("python3.12", "3.12")
    assert machine.setup("check") == (0, [])


@pytest.mark.parametrize("version", ["2.7", "3.10", "3.13"])
def test_another_python(machine, version):
    machine.python("python3", version)
    machine.lacks(f"Python 3.11 or 3.12 is missing (python3 is {version}).")


def test_no_python(machine):
    machine.lacks("Python 3.11 or 3.12 is missing. ")


def test_a_shim_that_does_not_run_is_passed_over(machine):
    machine.program("python3.12", "echo 'pyenv: python3.12: command not found' >&2; exit 127")
    machine.python("python3.11", "3.11")
    assert machine.setup("check") == (0, [])


def test_a_python_that_has_all_goes_before_one_that_has_not(machine):
    machine.python("python3.12", "3.12", venv="no")
    machine.lacks("ensurepip is missing from Python 3.12.")
    machine.python("python3.11", "3.11")
    assert machine.setup("check") == (0, [])


def test_the_python_that_was_asked_for(machine):
    machine.python("python3.12", "3.12")
    machine.python("mine", "3.13")
    machine.lacks("missing at PYTHON=mine (mine is 3.13)", PYTHON="mine")


def test_everything_missing_is_said_at_once(machine):
    machine.python("python3", "3.11", venv="no")
    (machine.include / "Python.h").unlink()
    (machine.bin / "c++").unlink()
    machine.free(1_000)
    machine.lacks(
        "ensurepip is missing from Python 3.11.",
        "Python.h is missing for Python 3.11.",
        "a C++ compiler that works is missing.",
        "1000 MB are free",
    )


def test_a_compiler_that_does_not_run(machine):
    machine.python("python3.12", "3.12")
    machine.program("c++", "echo 'xcrun: error: invalid active developer path' >&2; exit 1")
    machine.lacks("is missing (xcrun: error: invalid active developer path).")
    machine.program("clang++", "exit 0")
    assert machine.setup("check") == (0, [])


def test_another_compiler_does_not_stand_in_for_the_one_asked_for(machine):
    machine.python("python3.12", "3.12")
    machine.lacks("missing at CXX=g++-99", CXX="g++-99")


@pytest.mark.parametrize(
    ("kind", "libc", "word"),
    [
        ("Darwin-x86_64", "-", "Intel"),
        ("Linux-x86_64", "-", "glibc"),
        ("Linux-armv7l", "glibc", "Linux-armv7l"),
    ],
)
def test_a_machine_without_tensorflow(machine, kind, libc, word):
    machine.python("python3.12", "3.12", machine=kind, libc=libc)
    code, lines = machine.setup("check")
    assert code == 1
    assert len(lines) == 1
    assert word in lines[0]


def test_a_mac(machine):
    machine.python("python3.12", "3.12", machine="Darwin-arm64", libc="-")
    assert machine.setup("check") == (0, [])


def test_the_python_of_these_tests_answers_the_questions(machine):
    (machine.bin / "python3").symlink_to(sys.executable)
    code, lines = machine.setup("check")
    assert [line for line in lines if "Python 3" in line and "Python.h" not in line] == []
    assert code == 0 or "Python.h" in lines[0]


def make_venv(machine: Machine) -> Path:
    (machine.clone / ".venv" / "bin").mkdir(parents=True)
    python = machine.clone / ".venv" / "bin" / "python"
    python.symlink_to(sys.executable)
    inputs = [(machine.clone / name).read_text() for name in ("requirements.txt", ".ci/setup.sh")]
    (machine.clone / ".venv" / "whole").write_text("".join(inputs))
    return python


def test_a_whole_venv_is_left_alone(machine):
    make_venv(machine)
    assert machine.setup() == (0, [])


@pytest.mark.parametrize("harm", ["interrupted", "other packages", "its Python is gone"])
def test_another_venv_is_not_taken_for_whole(machine, harm):
    python = make_venv(machine)
    if harm == "interrupted":
        (machine.clone / ".venv" / "whole").unlink()
    elif harm == "other packages":
        with open(machine.clone / "requirements.txt", "a") as file:
            file.write("scipy==1.17.0\n")
    else:
        python.unlink()
        python.symlink_to(machine.bin / "gone")
    code, lines = machine.setup()
    assert code == 1
    assert "Python 3.11 or 3.12 is missing" in lines[0]


@pytest.mark.skipif(not shutil.which("make"), reason="needs make")
def test_clean_keeps_what_took_training(tmp_path):
    shipped = [
        "models/vae.py",
        "models/trained/vae.weights.h5",
        "models/trained/controller.npz",
        "tests/a.py",
        "Makefile",
    ]
    trained = ["data/rollouts/1.npz", "data/demo/a.png", "data/.x.lock", "data/two words.npz", "models/.x.lock"]
    trained += ["models/vae.weights.h5", "models/rnn.checkpoint.npz", "models/demo/vae.weights.h5"]
    caches = ["models/__pycache__/a.pyc", ".venv/whole", ".ruff_cache/x", ".pytest_cache/x"]
    for name in shipped + trained + caches:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    shutil.copy(ROOT / "Makefile", tmp_path)

    def make(target: str) -> tuple[str, set[str]]:
        done = subprocess.run(["make", "-s", target], cwd=tmp_path, check=True, capture_output=True, text=True)
        assert done.stderr == ""
        return done.stdout, {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}

    assert make("clean") == ("", {*shipped, *trained})
    said, left = make("clean-trained")
    assert left == set(shipped)
    assert said.count("removing ") == len({tuple(name.split("/")[:2]) for name in trained})
    assert make("clean-trained") == ("", set(shipped))
