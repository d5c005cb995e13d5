"""The set-up: which Python it takes, what it says is missing, what it installs; line ends; `make clean`."""

import os
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from tools import setup

import pytest

ROOT = Path(__file__).parent.parent
BUILT_FROM = ("requirements.txt", "tools/setup.sh", "tools/setup.py")
TOOLS = ["sh", "cat", "dirname"]
ALL_SYSTEMS = ("Debian/Ubuntu: ", "Fedora: ", "macOS: ")


class Machine:
    """A clone on a machine of which the test decides what is in PATH."""

    def __init__(self, folder: Path):
        self.clone, self.bin = folder / "a clone 世界", folder / "bin"
        (self.clone / "tools").mkdir(parents=True)
        self.bin.mkdir()
        for name in BUILT_FROM:
            shutil.copy(ROOT / name, self.clone / name)
        for name in TOOLS:
            (self.bin / name).symlink_to(shutil.which(name))
        self.program("uname", "echo Linux x86_64")
        self.program("grep", "exit 0")

    def program(self, name: str, text: str) -> None:
        """Put a shell script into PATH."""
        (self.bin / name).write_text(f"#!/bin/sh\n{text}\n")
        (self.bin / name).chmod(0o755)

    def python(self, name: str, version: str, code: int = 0) -> None:
        """Put a Python into PATH that answers setup.sh's probe so, and says its name when it is given setup.py."""
        said = f'echo {name} "$@" $PYTHONHOME $PYTHONPATH; exit 0'
        self.program(name, f'test "$1" = -c || {{ {said}; }}\necho {version}\nexit {code}')

    def setup(self, **variables: str) -> tuple[int, list[str]]:
        """Run setup.sh; its exit code and the lines it printed."""
        done = subprocess.run(
            [self.bin / "sh", "tools/setup.sh"],
            cwd=self.clone,
            env={"PATH": str(self.bin), **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        return done.returncode, done.stdout.splitlines()


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


@pytest.mark.parametrize(
    ("pythons", "variables", "chosen"),
    [
        ([("python3.13", "3.13", 0)], {}, "python3.13"),
        ([("python3", "3.11", 0)], {"PYTHONHOME": "/nowhere", "PYTHONPATH": "/nowhere"}, "python3"),
        ([("python3.13", "", 127), ("python3.12", "3.12", 0)], {}, "python3.12"),  # a shim of pyenv's that does not run
        ([("python3.13", "3.13", 4), ("python3.11", "3.11", 0)], {}, "python3.11"),  # one without Python.h comes last
        ([("python3.13", "3.13", 4), ("python3", "3.14", 3)], {}, "python3.13"),
        ([("python3.13", "3.13", 0), ("my own", "3.12", 0)], {"PYTHON": "my own"}, "my own"),
    ],
)
def test_which_python_builds(machine, pythons, variables, chosen):
    for python in pythons:
        machine.python(*python)
    assert machine.setup(**variables) == (0, [f"{chosen} tools/setup.py"])


@pytest.mark.parametrize(
    ("pythons", "variables", "words"),
    [
        ([], {}, "Python 3.11, 3.12 or 3.13 is missing. "),
        ([("python3", "2.7", 3)], {}, "is missing (python3 is 2.7). "),
        ([("python3.13", "3.13", 0), ("mine", "3.14", 3)], {"PYTHON": "mine"}, "at PYTHON=mine (mine is 3.14). "),
    ],
)
def test_no_python(machine, pythons, variables, words):
    for python in pythons:
        machine.python(*python)
    if variables:
        machine.program("uv", "echo is not asked")
    code, (line,) = machine.setup(**variables)
    assert code == 1
    for word in ("set-up: ", words, *ALL_SYSTEMS, "install uv"):
        assert word in line


@pytest.mark.parametrize(("version", "parts", "code"), [("3.10", 1, 3), ("3.11", 1, 0), ("3.13", 0, 4), ("3.14", 1, 3)])
def test_the_probe_of_a_python(folder, monkeypatch, capsys, version, parts, code):
    probe = (ROOT / "tools" / "setup.sh").read_text().split("probe='")[1].split("'\n")[0]
    monkeypatch.setattr(sys, "version_info", tuple(map(int, version.split("."))))
    monkeypatch.setattr(setup.sysconfig, "get_path", lambda name: os.getcwd() if parts else "/nowhere")
    with pytest.raises(SystemExit) as end:
        exec(probe, {})
    assert (end.value.code, capsys.readouterr().out) == (code, f"{version}\n")


def test_uv_brings_a_python_where_none_fits(machine):
    machine.python("python3", "3.10", 3)
    machine.python("from uv", "3.13")
    machine.program("uv", f'test "$1 $2" = "python find" && echo "{machine.bin}/from uv" || test "$2" = install')
    code, lines = machine.setup()
    assert code == 0
    assert lines[1] == "from uv tools/setup.py"
    machine.program("uv", "exit 2")
    code, lines = machine.setup()
    assert code == 1
    assert "(python3 is 3.10)" in lines[-1]
    machine.python("python3.11", "3.11")  # then it isn't asked
    assert machine.setup() == (0, ["python3.11 tools/setup.py"])


def test_a_processor_without_avx_is_refused_before_anything_is_downloaded(machine):
    machine.python("python3", "3.12")
    machine.program("uv", "echo downloads")
    machine.program("grep", 'test "$*" != "-qw avx /proc/cpuinfo"')
    code, (line,) = machine.setup()
    assert code == 1
    assert "AVX" in line
    machine.program("uname", "echo Darwin arm64")
    assert machine.setup()[0] == 0


def make_venv(machine: Machine) -> Path:
    python = machine.clone / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    (machine.clone / ".venv" / "whole").write_text("".join((machine.clone / name).read_text() for name in BUILT_FROM))
    return python


def test_a_whole_venv_is_left_alone(machine, monkeypatch):
    python = make_venv(machine)
    assert machine.setup() == (0, [])
    monkeypatch.setattr(setup, "VENV", machine.clone / ".venv")
    monkeypatch.setattr(setup, "STAMP", machine.clone / ".venv" / "whole")
    made_from = setup.STAMP.read_text()
    assert setup.is_whole(made_from)
    assert not setup.is_whole(f"{made_from}scipy==1.17.0\n")
    python.unlink()
    assert not setup.is_whole(made_from)


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
    machine.python("python3", "3.11")
    assert machine.setup() == (0, ["python3 tools/setup.py"])


def missing(monkeypatch, kind="Linux-x86_64", libc="glibc", bits=64, parts=True, compilers="own", free=9_000):
    """What setup.py says is missing on such a machine; `compilers` are those that work."""
    system, processor = kind.split("-")
    variables = {"CC": "sh -pthread" if "own" in compilers else "no-such-cc", "CXX": "own"}
    monkeypatch.setattr(setup, "BITS", bits)
    monkeypatch.setattr(setup.platform, "system", lambda: system)
    monkeypatch.setattr(setup.platform, "machine", lambda: processor)
    monkeypatch.setattr(setup.platform, "libc_ver", lambda: (libc, ""))
    monkeypatch.setattr(setup.importlib.util, "find_spec", lambda name: name if parts else None)
    monkeypatch.setattr(setup.sysconfig, "get_path", lambda name: os.getcwd() if parts else "/nowhere")
    monkeypatch.setattr(setup.sysconfig, "get_config_var", variables.get)
    monkeypatch.setattr(setup, "compile_error", lambda name: None if name in compilers.split() else f"{name}: broken")
    monkeypatch.setattr(setup, "free_megabytes", lambda: free)
    return list(setup.lacks())


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working folder, with a Python.h in it; neither CXX nor CC is set."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "Python.h").touch()
    monkeypatch.setattr(os, "environ", {name: text for name, text in os.environ.items() if name not in ("CC", "CXX")})


@pytest.mark.parametrize("kind", ["Linux-x86_64", "Linux-aarch64", "Darwin-arm64"])
def test_nothing_is_said_where_nothing_is_missing(folder, monkeypatch, kind):
    assert missing(monkeypatch, kind, libc="glibc" if kind.startswith("Linux") else "") == []


@pytest.mark.parametrize(
    ("machine", "word"),
    [
        ({"kind": "Darwin-x86_64", "libc": ""}, "Intel Macs"),
        ({"kind": "Linux-armv7l", "bits": 32}, "32-bit Python on Linux-armv7l"),
        ({"kind": "Linux-aarch64", "bits": 32}, "32-bit Python on Linux-aarch64"),
        ({"libc": ""}, "glibc"),
    ],
)
def test_a_machine_without_tensorflow(folder, monkeypatch, machine, word):
    (line,) = missing(monkeypatch, **machine)
    assert word in line


def test_everything_missing_is_said_at_once(folder, monkeypatch):
    lines = missing(monkeypatch, parts=False, compilers="", free=1_000)
    words = ("ensurepip is missing from", "Python.h is missing for", "is missing (c++: broken)", "1000 MB are free")
    for line, word in zip(lines, words, strict=True):
        for expected in (word, *ALL_SYSTEMS):
            assert expected in line


def test_another_compiler_stands_in_for_pythons_own_but_not_for_the_one_asked_for(folder, monkeypatch):
    assert missing(monkeypatch, compilers="g++ clang++") == []
    assert (os.environ["CXX"], os.environ["CC"]) == ("g++", "g++")
    os.environ["CXX"] = "g++-99"
    (line,) = missing(monkeypatch, compilers="own c++")
    assert "is missing at CXX=g++-99 (g++-99: broken)" in line


def test_a_compiler_is_tried_with_its_options(folder, tmp_path):
    assert "No such file" in setup.compile_error("no-such-compiler")
    (tmp_path / "c").write_text("#!/bin/sh\necho 'xcrun: error' >&2\necho more >&2\nexit 1\n")
    (tmp_path / "c").chmod(0o755)
    assert setup.compile_error(f"{tmp_path}/c -O1") == "xcrun: error"
    (tmp_path / "c").write_text("#!/bin/sh\ntest $1 = -O1\n")
    assert setup.compile_error(f"{tmp_path}/c -O1") is None
    assert "exit code 1" in setup.compile_error(f"{tmp_path}/c -O2")


def test_a_folder_that_cant_be_written_to(folder, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
    (line,) = missing(monkeypatch)
    assert "can't be written to" in line


def test_the_installers_get_no_variables_of_other_projects(monkeypatch):
    for name in (
        "PIP_TARGET",
        "PIP_NO_DEPS",
        "UV_SYSTEM_PYTHON",
        "PIP_INDEX_URL",
        "UV_INDEX",
        "PIP_CERT",
        "HTTP_PROXY",
    ):
        monkeypatch.setenv(name, "x")
    names = setup.environment().keys()
    assert not {"PIP_TARGET", "PIP_NO_DEPS", "UV_SYSTEM_PYTHON"} & names
    assert {"PIP_INDEX_URL", "UV_INDEX", "PIP_CERT", "HTTP_PROXY"} <= names


@pytest.fixture
def packages(folder, tmp_path, monkeypatch):
    """Builds .venv in the working folder with a pip that runs the shell script in this folder's `pip`."""
    monkeypatch.setattr(setup, "VENV", tmp_path / ".venv")
    monkeypatch.setattr(setup, "LOG", tmp_path / ".venv" / "setup.log")
    monkeypatch.setattr(setup, "STAMP", tmp_path / ".venv" / "whole")
    monkeypatch.setattr(setup.sys, "_base_executable", str(tmp_path / "python"), raising=False)
    (tmp_path / "python").write_text(
        '#!/bin/sh\ntest "$2" = venv || . ./pip\nmkdir -p .venv/bin\ncp python .venv/bin\n'
    )
    (tmp_path / "python").chmod(0o755)
    return tmp_path / "pip"


def test_build(packages, tmp_path, capfd):
    packages.write_text('echo "$@" >>packages; exit\n')
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / "left over").touch()
    assert setup.build("what it is made from") == 0
    assert setup.STAMP.read_text() == "what it is made from"
    assert {path.name for path in setup.VENV.iterdir()} == {"bin", "setup.log", "whole"}
    build, rest = (tmp_path / "packages").read_text().splitlines()
    assert build.startswith("-m pip install swig")
    assert "--no-build-isolation -r requirements.txt pytest" in rest
    assert "is ready" in capfd.readouterr().err


def test_uv_installs_where_it_is_in_path_and_pip_where_uv_fails(packages, tmp_path, monkeypatch):
    packages.write_text("echo pip >>who; exit\n")
    (tmp_path / "uv").write_text("#!/bin/sh\necho uv >>who\n")
    (tmp_path / "uv").chmod(0o755)
    os.environ["PATH"] = f"{tmp_path}:{os.environ['PATH']}"
    assert setup.build("") == 0
    (tmp_path / "uv").write_text("#!/bin/sh\nexit 2\n")
    assert setup.build("") == 0
    assert (tmp_path / "who").read_text().split() == ["uv", "uv", "pip", "pip"]


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("echo 'Temporary failure in name resolution'; exit 1", ["packages can't be downloaded. Is there a network?"]),
        ("echo 'WARNING: of pip'; echo 'no space left'; exit 1", ["no space left", "failed, see above"]),
    ],
)
def test_a_build_that_fails_leaves_no_stamp(packages, capfd, text, lines):
    packages.write_text(f"{text}\n")
    assert setup.build("") == 1
    assert not setup.STAMP.exists()
    for line, expected in zip(capfd.readouterr().err.splitlines()[1:], lines, strict=True):
        assert expected in line


STOPPABLE = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from tools import setup
setup.lacks = list
setup.install = lambda: setup.run("sh", "-c", "sleep 0.3; echo $$ >pid; exec sleep 100")
setup.sys._base_executable = "true"
sys.exit(setup.main())
"""


def line_of(process: subprocess.Popen) -> str:
    """The next line that comes within half a minute."""
    assert select.select([process.stderr], [], [], 30)[0]
    return process.stderr.readline()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_two_at_once_take_turns_however_the_first_one_ends(machine, number):
    """The second one begins when the first one and what it started have ended, and finds .venv half-built."""
    start = {"args": [sys.executable, "-c", STOPPABLE], "cwd": machine.clone, "stderr": subprocess.PIPE, "text": True}
    pid = machine.clone / "pid"
    with subprocess.Popen(**start) as first:
        assert "building" in line_of(first)
        with subprocess.Popen(**start) as second:
            assert "another one is building" in line_of(second)
            while not (pid.exists() and pid.read_text()):
                time.sleep(0.01)
            first.send_signal(number)
            if number == signal.SIGKILL:  # its installer goes on
                first.wait()
                assert not select.select([second.stderr], [], [], 0.2)[0]
                os.kill(int(pid.read_text()), signal.SIGKILL)
            else:
                assert "stopped; make starts it again" in line_of(first)
                assert first.wait() == 130
            assert "building" in line_of(second)
            second.terminate()
            assert second.wait() == 130
    assert not (machine.clone / ".venv" / "whole").exists()


@pytest.mark.skipif(not shutil.which("git"), reason="needs git")
def test_a_clone_with_other_line_ends(tmp_path):
    """What the shell reads has LF, and pictures and weights are as they were, whatever git is set to."""
    kept = [".gitattributes", "Makefile", "tools/setup.sh", ".ci/run", "docs/images/score.png"]
    git = ["git", "-c", "core.autocrlf=true", "-c", "user.name=a", "-c", "user.email=a@b"]
    environment = {**os.environ, "GIT_CONFIG_GLOBAL": os.devnull}
    for name in kept:
        (tmp_path / "one" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / "one" / name)
    for command in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "all"]):
        subprocess.run([*git, *command], cwd=tmp_path / "one", check=True, env=environment)
    subprocess.run([*git, "clone", "-q", "one", "other"], cwd=tmp_path, check=True, env=environment)
    for name in kept:
        assert (tmp_path / "other" / name).read_bytes() == (ROOT / name).read_bytes()


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
    trained += ["models/seed-2/vae.weights.h5"]
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


@pytest.mark.skipif(not shutil.which("make"), reason="needs make")
def test_make_train_goes_on_where_it_stopped(tmp_path):
    """Every step with its SEED, in folders of this seed; a failure ends it, and the log keeps what was printed."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "ran $@"\ntest ! -e fails || case "$1" in 04*) echo told >&2; exit 1;; esac\n')
    python.chmod(0o755)

    def train() -> tuple[int, list[str]]:
        command = ["make", "-s", "-o", "setup", "train", "SEED=2", "PY=./python"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        return done.returncode, re.findall("^ran (.*)", done.stdout, re.MULTILINE)

    (tmp_path / "fails").touch()
    code, ran = train()
    assert code != 0
    assert [line[:2] for line in ran] == ["01", "02", "03", "04"]
    (tmp_path / "fails").unlink()
    code, rest = train()
    assert code == 0
    further = ["01", "03", "04"]
    dream_rounds = ["07", *further] * 3
    assert [line[:2] for line in rest] == ["04", "05", *further, *dream_rounds, "05", "05", "07", "06"]
    # The controller that drives in 01, its first rollout, and where a search starts.
    origins = [" ".join(re.findall(r"(?:FIRST_ROLLOUT|CONTROLLER|INIT_FROM)=\S+", line)) for line in rest]
    firsts = (20000, 30000, 40000)
    dreamers = [f"FIRST_ROLLOUT={first} CONTROLLER=dream_controller" for first in firsts]
    drives = ["FIRST_ROLLOUT=10000 CONTROLLER=controller", *dreamers]
    assert list(filter(None, origins)) == [*drives, "INIT_FROM=controller", "INIT_FROM=controller"]
    # Each search has a history of its own; the last ones are those that 06 shows.
    folders = [(line[:2], re.search(" DATA=data/seed-2(\\S*)", line)[1]) for line in rest if line[:2] in ("05", "07")]
    rounds = [("07", f"/dream-{number}") for number in (1, 2, 3)]
    assert folders == [("05", "/z"), *rounds, ("05", "/fine"), ("05", ""), ("07", "")]
    assert all("SEED=2 " in line for line in (ran + rest)[:-1])
    assert all(re.search(r" DATA=data/seed-2(/z|/dream-\d|/fine)? MODELS=models/seed-2$", line) for line in ran + rest)
    log = (tmp_path / "data/seed-2/train/log").read_text()
    assert re.findall("^ran (.*)", log, re.MULTILINE) == ran + rest
    assert "told" in log
    assert train() == (0, [])
