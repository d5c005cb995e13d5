"""Constants from the shell, seed ranges, whole files, the lock: models/settings.py."""

import errno
import itertools
import os
import runpy
import signal
import subprocess
import sys
import time

from models.tracks import EVOLUTION_TRACKS, REPORT_TRACKS, ROLLOUT_TRACKS, SELECTION_TRACKS, rollout_tracks
from pipeline import UserError, progress, script
from pipeline.files import atomic_write, load_npz, save_npz
from pipeline.progress import Progress, format_duration
from tests.conftest import ROOT, refused, run_script

import numpy as np
import pytest

SCRIPT = '''"""A script for tests.

Reads nothing.
"""

from typing import Literal

from pipeline import script
from pipeline.script import NonNegativeInt

COUNT = 3  # how many
RATE = 0.5
START: NonNegativeInt = 0
LAYERS = (1.0, 2.0)
FLAG = False
KIND: Literal["a", "b"] = "a"
DATA = "data"


def main():
    print(repr((COUNT, RATE, START, LAYERS, FLAG, KIND, DATA)))


if __name__ == "__main__":
    script.run(main, globals())
'''


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Run SCRIPT with arguments: the tuple that it prints, or the line that it refuses with."""
    path = tmp_path / "99_script.py"
    path.write_text(SCRIPT)
    old = signal.getsignal(signal.SIGTERM)

    def call(*arguments: str):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [str(path), *arguments])
        try:
            runpy.run_path(str(path), run_name="__main__")
        except SystemExit as end:
            return end.code or capsys.readouterr().out
        return eval(capsys.readouterr().out)

    yield call
    signal.signal(signal.SIGTERM, old)


def test_seed_ranges_never_overlap():
    ranges = (
        REPORT_TRACKS,
        SELECTION_TRACKS,
        ROLLOUT_TRACKS,
        EVOLUTION_TRACKS,
    )
    assert all(seeds.step == 1 and len(seeds) for seeds in ranges)
    for one, other in itertools.combinations(ranges, 2):
        assert one.stop <= other.start or other.stop <= one.start
    assert range(1000, 1100) == REPORT_TRACKS
    assert range(500, 600) == SELECTION_TRACKS
    assert (ROLLOUT_TRACKS.start, EVOLUTION_TRACKS.start) == (1_000_000, 2_000_000)


def test_each_seed_has_rollouts_of_its_own():
    def tracks(seed: int, first: int, count: int) -> range:
        return rollout_tracks({"SEED": seed, "FIRST_ROLLOUT": first, "ROLLOUTS": count})

    assert tracks(1, 0, 4000) == range(1_000_000, 1_004_000)
    assert tracks(1, 10_000, 400) == range(1_010_000, 1_010_400)
    ranges = [tracks(seed, 0, 100_000) for seed in range(1, 11)]
    assert [track for track in itertools.chain(*ranges)] == list(ROLLOUT_TRACKS)
    with pytest.raises(UserError, match="SEED can be 10 at most"):
        tracks(11, 0, 1)
    with pytest.raises(UserError, match="FIRST_ROLLOUT"):
        tracks(1, 99_999, 2)


@pytest.mark.parametrize(
    ("argument", "place", "value"),
    [
        ("COUNT=12", 0, 12),
        ("COUNT=1_000", 0, 1000),
        ("RATE=2", 1, 2.0),
        ("RATE=1e-4", 1, 1e-4),
        ("START=0", 2, 0),
        ("LAYERS=(3,4.5,0)", 3, (3, 4.5, 0)),
        ("FLAG=True", 4, True),
        ("KIND=b", 5, "b"),
        ("KIND='b'", 5, "b"),
        ("DATA=some/where", 6, "some/where"),
        ("DATA=2026", 6, "2026"),
        ("DATA=a=b", 6, "a=b"),
    ],
)
def test_constants_from_the_shell(run, argument, place, value):
    found = run(argument)[place]
    assert (found, type(found)) == (value, type(value))


def test_one_folder_for_both(tmp_path, as_script):
    from types import SimpleNamespace

    called = []
    namespace = SimpleNamespace(__file__="99_script.py", DATA=str(tmp_path), MODELS=f"{tmp_path}/../{tmp_path.name}")
    namespace.main = lambda: called.append(1)
    as_script(namespace)
    assert called == [1]


def test_several_constants_and_none(run):
    assert run() == (3, 0.5, 0, (1.0, 2.0), False, "a", "data")
    assert run("COUNT=4", "KIND=b", "COUNT=5") == (5, 0.5, 0, (1.0, 2.0), False, "b", "data")


@pytest.mark.parametrize(
    ("argument", "told"),
    [
        ("COLOUR=3", "unknown constant 'COLOUR=3': this script has COUNT, RATE, START, LAYERS, FLAG, KIND, DATA"),
        ("COUNT", "cannot parse 'COUNT': expected NAME=value"),
        ("count=3", "unknown constant"),
        ("--verbose", "cannot parse '--verbose': expected NAME=value, without spaces"),
        ("__file__=x", "unknown constant"),
        ("COUNT=2.5", "expected something such as 3"),
        ("COUNT=many", "expected something such as"),
        ("COUNT=True", "expected something such as"),
        ("COUNT=", "expected something such as"),
        ("COUNT={[]: 1}", "expected something such as"),
        ("COUNT=__import__('os').getpid()", "expected something such as"),
        ("COUNT=0", "COUNT=0 must be above 0"),
        ("COUNT=-3", "COUNT=-3 must be above 0"),
        (f"COUNT={10**400}", "must be above 0"),
        ("START=-1", "START=-1 must be at least 0"),
        ("RATE=fast", "expected something such as 0.5"),
        ("RATE=nan", "expected something such as"),
        ("RATE=1e999", "RATE=inf must be above 0"),
        (f"RATE={10**400}", "expected something such as"),
        ("RATE=0.0", "must be above 0"),
        ("LAYERS=5", "expected something such as (1.0, 2.0)"),
        ("LAYERS=('a',)", "expected something such as"),
        ("LAYERS=()", "LAYERS must not be empty"),
        ("LAYERS=(1,-2)", "must be at least 0"),
        ("FLAG=1", "expected something such as"),
        ("FLAG=yes", "expected something such as"),
        ("KIND=c", "KIND=c must be one of a, b"),
        ("DATA=", "DATA must not be empty"),
        ("DATA=99_script.py", "DATA=99_script.py can't be used as a folder: File exists"),
        ("DATA=99_script.py/data", "can't be used as a folder: Not a directory"),
    ],
)
def test_a_bad_constant_is_one_line(run, argument, told):
    line = run(argument)
    assert line.startswith("99_script.py: ")
    assert told in line
    assert "\n" not in line


def test_nan_that_was_edited_in_is_refused():
    with pytest.raises(UserError, match="RATE=nan must be above 0"):
        script._validate({"RATE": float("nan"), "__constants__": ["RATE"]})


def test_help_prints_the_docstring_and_the_constants(run):
    text = run("--help")
    assert "A script for tests." in text
    assert "COUNT = 3  # how many" in text
    assert "import" not in text


SCRIPTS = sorted(path.name for path in ROOT.glob("0*.py"))


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_script_says_what_it_is(name):
    result = run_script(name, "--help")
    assert result.returncode == 0
    assert "Step" in result.stdout
    assert "DATA = " in result.stdout
    lines = result.stdout.split("NAME=value):\n\n")[1].splitlines()
    for above, line in zip(["", *lines], lines):  # each constant has its comment, behind it or above it
        assert "#" in line or above.startswith("#"), line


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_bad_constant_is_told_before_tensorflow_is_imported(name):
    command = [sys.executable, "-X", "importtime", str(ROOT / name), f"DATA={ROOT / 'README.md'}"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 1
    imported = {line.split("|")[-1].strip() for line in result.stderr.splitlines() if line.startswith("import time:")}
    assert "numpy" in imported
    assert not imported & {"tensorflow", "keras"}
    assert "can't be used as a folder" in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr


def test_whole_replaces_at_the_end_only(tmp_path):
    path = tmp_path / "a.npz"
    save_npz(path, x=np.arange(3))
    before = path.read_bytes()

    def fail():
        with atomic_write(path) as temporary:
            temporary.write_bytes(b"half")
            assert path.read_bytes() == before
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.npz"]
    with atomic_write(path) as temporary:
        assert temporary.suffix == ".npz"
        temporary.write_bytes(b"new")
    assert path.read_bytes() == b"new"


def test_what_a_killed_run_left_behind_is_written_over(tmp_path):
    path = tmp_path / "a.npz"
    (tmp_path / ".tmp-a.npz").write_bytes(b"half a file")
    save_npz(path, x=np.arange(3))
    assert os.listdir(tmp_path) == ["a.npz"]


@pytest.mark.parametrize("level", [0, 1])
def test_arrays_come_back(tmp_path, level):
    arrays = {"a": np.arange(12.0).reshape(3, 4), "text": np.array("abc"), "none": np.zeros((0, 2), bool)}
    save_npz(tmp_path / "a.npz", level, **arrays)
    found = load_npz(tmp_path / "a.npz", "x")
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype


def test_objects_are_not_written(tmp_path):
    with pytest.raises(ValueError, match="Object arrays"):
        save_npz(tmp_path / "a.npz", x=np.array([{}], object))
    assert os.listdir(tmp_path) == []


def test_a_full_disk_is_one_line(tmp_path, monkeypatch, as_script):
    path = tmp_path / "a.npz"
    save_npz(path, x=np.arange(3))
    before = path.read_bytes()

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    from types import SimpleNamespace

    namespace = SimpleNamespace(__file__="99_script.py", main=lambda: save_npz(path, x=np.arange(4)))
    with pytest.raises(SystemExit) as end:
        as_script(namespace)
    assert end.value.code.startswith("99_script.py: no room to write (No space left on device)")
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.npz"]


def test_other_errors_keep_their_traceback(as_script):
    from types import SimpleNamespace

    def fail():
        raise PermissionError(errno.EPERM, "no")

    with pytest.raises(PermissionError):
        as_script(SimpleNamespace(__file__="99_script.py", main=fail))


WAITS = """
import time
from pipeline import script
DATA = "{folder}"
def main():
    print("started", flush=True)
    time.sleep(30)
script.run(main, globals())
"""


@pytest.fixture
def waiting(tmp_path):
    """A script that runs, its path, and the folder that it holds."""
    path = tmp_path / "98_waits.py"
    path.write_text(WAITS.format(folder=tmp_path / "data"))
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    options = {"text": True, "env": environment, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen([sys.executable, str(path)], **options)
    assert process.stdout.readline() == "started\n"
    yield process, [sys.executable, str(path)], options
    process.kill()
    process.communicate()


def test_a_second_run_on_the_same_folder_is_refused(waiting):
    process, command, options = waiting
    second = subprocess.run(command, **options)
    line = refused(second)
    assert line.startswith("98_waits.py: 98_waits.py is already running on ")
    assert f"(process {process.pid})" in line
    process.kill()  # the lock goes with the process
    process.wait()
    third = subprocess.Popen(command, **options)
    assert third.stdout.readline() == "started\n"
    third.kill()
    third.communicate()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_is_one_line(waiting, number):
    process, _, _ = waiting
    start = time.monotonic()
    process.send_signal(number)
    _, told = process.communicate(timeout=10)
    assert process.returncode == 130
    assert told.strip() == "98_waits.py: stopped. The same command continues from what is saved."
    assert time.monotonic() - start < 5


def test_clock():
    assert [format_duration(s) for s in (0, 9.6, 205, 3723)] == ["0:00", "0:10", "3:25", "1:02:03"]


def test_progress_in_a_log(capsys, monkeypatch):
    now = itertools.count(0, 6)
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(now))
    shown = Progress(4, "rollouts")
    for done in range(1, 5):
        shown.update(done, "a note")
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["2/4 rollouts, 0.2/s, 0:12 left  a note", "4/4 rollouts, 0.2/s, 0:24  a note"]
