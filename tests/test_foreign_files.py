"""Files and folders that are whole, but locked, unreadable, somebody else's, or no files at all."""

import errno
import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

from models import evolution, weights, worlds
from models.tracks import ROLLOUT_TRACKS
from models.vae import VAE
from pipeline import UserError, rollouts, script
from pipeline.files import load_npz, save_npz
from tests.conftest import refused, run_script

import numpy as np
import pytest

NOBODY = 65534


@contextmanager
def nobody():
    """In here this process is one whom permissions bind: root is not."""
    if os.getuid() == 0:
        os.setresuid(NOBODY, NOBODY, 0)
    try:
        yield
    finally:
        if os.getresuid()[2] == 0:
            os.setresuid(0, 0, 0)


@pytest.fixture
def folder():
    """A folder that nobody can enter too; `tmp_path` is in one that is its owner's alone."""
    path = Path(tempfile.mkdtemp())
    path.chmod(0o755)
    yield path
    for inside in path.rglob("*"):
        if inside.is_dir():
            inside.chmod(0o755)
    shutil.rmtree(path)


def unreadable(path: Path) -> None:
    path.chmod(0)


def a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def a_link_to_nothing(path: Path) -> None:
    path.unlink()
    path.symlink_to("/nowhere/at/all")


def a_link_to_itself(path: Path) -> None:
    path.unlink()
    path.symlink_to(path)


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


FOREIGN = {
    unreadable: "can't be read: Permission denied",
    a_pipe: "is no file: move it away",
    a_link_to_nothing: "is missing (a link to /nowhere/at/all)",
    a_link_to_itself: "can't be read: Too many levels of symbolic links",
    a_folder: "is a folder: move it away",
}


def read_v(path: Path) -> None:
    weights.load(path, VAE(), "02_train_vae.py")


def read_c(path: Path) -> None:
    weights.load_controller(path.parent, "controller")


def read_rollout(path: Path) -> None:
    rollouts.read(path)


def read_starts(path: Path) -> None:
    worlds.load_starts(path.parent, None)


def read_history(path: Path) -> None:
    constants = {"POPULATION": 8, "EVAL_TRACKS": 5, "FEATURES": "zh", "SCRIPT": "05_train_controller.py"}
    evolution._read(path, constants, ("real",), path.with_name("controller.weights.h5"), np.eye(289))


READERS = {
    read_v: "vae.weights.h5",
    read_c: "controller.weights.h5",
    read_rollout: "rollout-1000000.npz",
    read_starts: "dream_starts.npz",
    read_history: "controller.npz",
}


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("kind", FOREIGN)
def test_what_can_not_be_read_is_never_to_be_deleted(folder, untrained, read, kind):
    path = folder / READERS[read]
    source = untrained / path.name
    path.write_bytes(source.read_bytes() if source.exists() else b"PK")
    kind(path)
    if read is read_history and kind in (a_link_to_nothing, a_link_to_itself):
        pytest.skip("where there is no history, one begins")
    with nobody(), pytest.raises(UserError) as error:
        read(path)
    line = str(error.value)
    assert f"{path} {FOREIGN[kind]}" in line
    assert "delete" not in line.lower()
    assert "damaged" not in line


def test_a_disk_that_fails_damages_no_file(tmp_path, monkeypatch):
    path = tmp_path / "a.npz"
    save_npz(path, x=np.arange(3))

    def fail(*_, **__):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(np, "load", fail)
    with pytest.raises(UserError, match=r"a.npz can't be read: Input/output error$"):
        load_npz(path, "01_generate_data.py")


HOLDS = "import h5py, sys\nwith h5py.File(sys.argv[1], 'r+'):\n    print('held', flush=True)\n    sys.stdin.read()\n"


def test_weights_that_another_process_has_open_are_read(linked):
    path = linked / "vae.weights.h5"
    env = os.environ | {"HDF5_USE_FILE_LOCKING": "TRUE"}
    options = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "env": env}
    with subprocess.Popen([sys.executable, "-c", HOLDS, str(path)], **options) as holder:
        assert holder.stdout.readline() == b"held\n"
        read_v(path)
        holder.stdin.close()


def call(main, folder: Path, *reads: str, **constants: str) -> None:
    """Run `main` as a script with DATA and MODELS in `folder`."""
    namespace = {"__file__": "99_script.py", "DATA": str(folder / "data"), "MODELS": str(folder / "models")}
    script.run(main, namespace | constants, reads)


@pytest.fixture(autouse=True)
def no_arguments(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["99_script.py"])


def test_a_folder_that_is_only_read_needs_no_permission_to_write(folder):
    for name, mode in (("data", 0o777), ("models", 0o555)):
        (folder / name).mkdir()
        (folder / name).chmod(mode)
    called = []
    with nobody():
        call(lambda: called.append(1), folder, "MODELS")
        with pytest.raises(SystemExit, match=r"MODELS=.*models can't be written to"):
            call(lambda: called.append(2), folder)
    assert called == [1]
    assert list((folder / "models").iterdir()) == []


@pytest.mark.parametrize(
    ("name", "arguments", "told"),
    [
        ("06_visualise.py", ["FRAMES=5"], "FRAMES=5 must be"),
        ("01_generate_data.py", ["FIRST=2000000"], "track seeds for rollouts"),
    ],
)
def test_06_and_01_write_nothing_in_models(tmp_path, name, arguments, told):
    """They come to what is wrong with another constant: a folder that is written to is made, and locked, before."""
    result = run_script(name, *arguments, f"DATA={tmp_path}", "MODELS=/proc/nothing/is/made/here")
    assert told in refused(result)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_disk_without_locks(tmp_path, monkeypatch, capsys, number):
    def fail(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", fail)
    called = []
    call(lambda: called.append(1), tmp_path)
    assert called == [1]
    told = capsys.readouterr().out.splitlines()
    assert len(told) == 2  # for each folder
    assert "models can't be locked (" in told[1]
    assert "see to it that no other 99_script.py runs on it" in told[1]


def test_a_lock_that_another_user_left(folder):
    folder.chmod(0o777)
    (folder / "data").mkdir()
    (folder / "data").chmod(0o777)
    lock = folder / "data" / ".99_script.py.lock"
    lock.write_text("12345")
    called = []
    with nobody():
        call(lambda: called.append(1), folder, MODELS=str(folder / "data"))
        with open(lock) as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            with pytest.raises(SystemExit, match=r"already running on .* \(process 12345\)"):
                call(lambda: called.append(2), folder, MODELS=str(folder / "data"))
    assert called == [1]


@pytest.mark.parametrize("kind", ["write-protected", "folder", "link", "pipe", "read-only folder"])
def test_a_file_that_may_not_be_written(folder, kind):
    """What is in the way is one line, or, where it was only left behind, gone."""
    data = folder / "data"
    data.mkdir()
    data.chmod(0o777)
    path, left, other = data / "a.npz", data / ".tmp-a.npz", folder / "other"
    other.write_bytes(b"other")
    if kind == "write-protected":
        path.write_bytes(b"kept")
        path.chmod(0o444)
    elif kind == "folder":
        path.mkdir()
    elif kind == "link":
        left.symlink_to(other)
    elif kind == "pipe":
        os.mkfifo(left)
    with nobody():

        def main() -> None:
            if kind == "read-only folder":
                (folder / "data" / "inner").mkdir(mode=0o555)
            save_npz(data / "inner" / "a.npz" if kind == "read-only folder" else path, x=np.arange(3))

        if kind in ("link", "pipe"):
            call(main, folder, MODELS=str(data))
        else:
            with pytest.raises(SystemExit, match=r"99_script.py: .*a\.npz can't be used: ") as end:
                call(main, folder, MODELS=str(data))
            assert "\n" not in end.value.code
    assert not left.exists()
    assert other.read_bytes() == b"other"
    if kind in ("link", "pipe"):
        assert load_npz(path, "")["x"].tolist() == [0, 1, 2]
    if kind == "write-protected":
        assert path.read_bytes() == b"kept"


def test_rollouts_with_names_that_are_no_text(tmp_path, some_rollouts):
    """A folder from another computer: names in another encoding, hidden files, folders, pipes."""
    name = os.fsdecode(b"rollout-\xff.npz")
    (tmp_path / name).write_bytes((some_rollouts / f"rollout-{ROLLOUT_TRACKS[0]}.npz").read_bytes())
    (tmp_path / "rollout-1.npz").mkdir()
    os.mkfifo(tmp_path / "rollout-2.npz")
    paths = rollouts.find(tmp_path)
    assert len(rollouts.held_out(path.name for path in paths)) == 1
    assert rollouts.summary(paths).startswith("3 rollouts (")
    assert [rollouts.length(path) > 0 for path in paths] == [False, False, True]
    assert [path.name for path, _ in rollouts.read_all(paths, set())] == [name]


@pytest.mark.parametrize(
    ("typed", "folder"),
    [
        ("~/x", "home/x"),
        ("~", "home"),
        ("x/", "x"),
        ("./x/../y", "y"),
        ("my data", "my data"),
        ("世界", "世界"),
        ("True", "True"),
        ("None", "None"),
        ("(1,2)", "(1,2)"),
        ("[1]", "[1]"),
        ("1e5", "1e5"),
        ("it's", "it's"),
        ("$HOME", "$HOME"),  # the shell has seen to it, or was told not to
        ("link", "target"),
        (os.fsdecode(b"x\xff"), os.fsdecode(b"x\xff")),
    ],
)
def test_a_folder_is_what_was_typed(tmp_path, monkeypatch, typed, folder):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "target").mkdir()
    (tmp_path / "link").symlink_to("target")
    monkeypatch.setattr(sys, "argv", ["99_script.py", f"DATA={typed}"])
    namespace = {"__file__": "99_script.py", "DATA": "data"}
    script.run(lambda: save_npz(Path(namespace["DATA"], "a.npz"), x=np.arange(3)), namespace)
    assert (tmp_path / folder / "a.npz").exists()


def test_a_folder_that_is_a_link_to_nothing(tmp_path):
    (tmp_path / "data").symlink_to("/nowhere")
    with pytest.raises(SystemExit, match=r"99_script.py: DATA=.*data can't be used as a folder: File exists"):
        call(lambda: None, tmp_path)
