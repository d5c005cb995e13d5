"""Other people's computers: variables, settings, output, signals, cores, the GPU: pipeline/environment.py."""

import itertools
import mmap
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

from models.car_racing import CarRacing64
from pipeline import environment, rollouts
from pipeline.progress import Progress
from tests.conftest import ROOT, refused, run_script, script_module

import numpy as np
import pytest


def run(code: str, folder: Path, command: str = '"$@"', **variables: str) -> subprocess.CompletedProcess:
    """Run `code` as a script in `folder` through a shell `command`; its own command line is "$@"."""
    path = folder / "98_script.py"
    path.write_text(code, "utf-8")
    env = {name: value for name, value in os.environ.items() if name not in environment.VARIABLES}
    shell = ["bash", "-c", f"set -o pipefail; {command}", "bash", sys.executable, str(path)]
    env |= {"PYTHONPATH": str(ROOT)} | variables
    return subprocess.run(shell, capture_output=True, cwd=folder, env=env, timeout=120)


LIBRARIES = """
from pipeline import plots, video
from models import vae  # imports TensorFlow without its notices
import keras, matplotlib, numpy
from keras.src.backend import config
print(keras.backend.backend(), keras.config.floatx(), keras.config.image_data_format(), keras.config.epsilon())
print(keras.config.max_epochs(), keras.config.max_steps_per_epoch())
rc = matplotlib.rcParams
print(rc["backend"].lower(), rc["figure.dpi"], rc["text.usetex"], rc["savefig.format"], rc["axes.spines.top"])
with plots.figure("a.png", "a") as axes:
    axes.plot([1, 2])
"""


def test_settings_made_for_other_projects_change_nothing(tmp_path):
    settings = '{"floatx": "float16", "epsilon": 0.1, "backend": "jax", "image_data_format": "channels_first"}'
    style = "backend: TkAgg\nfigure.dpi: 300\ntext.usetex: True\nsavefig.format: pdf\nno.such.key: 1\n"
    for name, text in (
        (".keras/keras.json", settings),
        (".config/matplotlib/matplotlibrc", style),
        ("matplotlibrc", style),  # in the folder that it is started in
        ("elsewhere", style),
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    variables = {
        "HOME": str(tmp_path),
        "KERAS_HOME": f"{tmp_path}/.keras",
        "KERAS_BACKEND": "jax",
        "KERAS_MAX_EPOCHS": "1",
        "KERAS_MAX_STEPS_PER_EPOCH": "1",
        "KERAS_NNX_ENABLED": "true",
        "TF_XLA_FLAGS": "--nonsense",
        "TF_USE_LEGACY_KERAS": "1",
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
        "MATPLOTLIBRC": f"{tmp_path}/elsewhere",
        "MPLCONFIGDIR": "/proc/nowhere",
        "PYTHONWARNINGS": "error",
    }
    result = run(LIBRARIES, tmp_path, **variables)
    assert result.stderr == b""
    assert result.stdout.decode().splitlines() == [
        "tensorflow float32 channels_last 1e-07",
        "None None",
        "agg 110.0 False png False",
    ]
    assert (tmp_path / ".keras/keras.json").read_text() == settings


PRINTS = '''
"""ε"""
import sys, time
from pipeline import script
DATA = "data"  # σ – 世界
def main():
    for i in range(3):
        print("ε σ – 世界", i, flush=True)
        time.sleep(0.1)
    print("ö", file=sys.stderr)
    open("done", "w").close()
script.run(main, globals())
'''


@pytest.mark.parametrize(
    ("command", "variables", "stdout"),
    [
        ('"$@"', {"PYTHONIOENCODING": "latin-1"}, "? ? ? ?? 0\n? ? ? ?? 1\n? ? ? ?? 2\n"),
        ('"$@"', {"PYTHONIOENCODING": "ascii:strict"}, "? ? ? ?? 0\n? ? ? ?? 1\n? ? ? ?? 2\n"),
        ('"$@"', {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}, None),
        ('"$@"', {"PYTHONUNBUFFERED": "1"}, "ε σ – 世界 0\nε σ – 世界 1\nε σ – 世界 2\n"),
        ('"$@" | head -1', {}, "ε σ – 世界 0\n"),
        ('"$@" 2>&1 | head -1', {}, "ε σ – 世界 0\n"),
        ('"$@" >&-', {}, ""),
        ('"$@" <&- >&- 2>&-', {}, ""),
        ('"$@" > /dev/full', {}, ""),
        ('"$@" > /dev/full 2>&1', {}, ""),
    ],
)
def test_output_never_ends_a_run(tmp_path, command, variables, stdout):
    result = run(PRINTS, tmp_path, command, **variables)
    assert (tmp_path / "done").exists()
    assert result.returncode == 0
    assert b"Traceback" not in result.stderr
    if stdout is not None:
        encoding = variables.get("PYTHONIOENCODING", "utf-8").partition(":")[0]
        assert result.stdout.decode(encoding) == stdout
    if command in ('"$@" | head -1', '"$@" > /dev/full'):
        assert b"standard output is gone" in result.stderr.splitlines()[0]
        assert len(result.stderr.splitlines()) == 2


def test_a_pipe_that_does_not_wait_gets_everything(tmp_path):
    read, write = os.pipe()
    os.set_blocking(write, False)
    code = (
        "from pipeline import script\nDATA = 'data'\ndef main():\n    print('x' * 300_000)\nscript.run(main, globals())"
    )
    (tmp_path / "98_script.py").write_text(code)
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, "98_script.py"], cwd=tmp_path, env=env, stdout=write) as process:
        os.close(write)
        time.sleep(0.5)
        with open(read, "rb") as file:
            assert len(file.read()) == 300_001
    assert process.returncode == 0


def test_help_is_read_as_utf_8(tmp_path):
    variables = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0", "PYTHONOPTIMIZE": "2"}
    result = run(PRINTS, tmp_path, '"$@" --help', **variables)
    assert (result.returncode, result.stderr) == (0, b"")
    assert b'DATA = "data"' in result.stdout


def test_a_file_gets_nothing_that_is_printed_after_stdout_was_closed(tmp_path):
    """What is opened first would get the number of the closed standard output, and all that C code prints."""
    code = "from pipeline import UserError\nimport os\nfile = open('a', 'wb')\nos.write(1, b'printed')\n"
    run(code, tmp_path, '"$@" >&-')
    assert (tmp_path / "a").read_bytes() == b""


@pytest.mark.parametrize(
    ("columns", "term", "expected"),
    [
        (20, "xterm", ["\r\x1b[K1/2 rollouts, 1.0/s"[: 4 + 19], "\r\x1b[K2/2 rollouts, 1.0/s"[: 4 + 19]]),
        (80, "xterm", ["\r\x1b[K1/2 rollouts, 1.0/s, 0:01 left", "\r\x1b[K2/2 rollouts, 1.0/s, 0:02"]),
        (0, "xterm", ["\r\x1b[K1/2 rollouts, 1.0/s, 0:01 left", "\r\x1b[K2/2 rollouts, 1.0/s, 0:02"]),
        (80, "dumb", ["2/2 rollouts, 1.0/s, 0:02"]),
    ],
)
def test_progress_on_a_terminal(monkeypatch, columns, term, expected):
    import fcntl
    import struct
    import termios

    here, there = pty.openpty()
    fcntl.ioctl(there, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    now = itertools.count(0, 1)
    monkeypatch.setattr("pipeline.progress.time.monotonic", lambda: next(now))
    monkeypatch.setenv("TERM", term)
    monkeypatch.delenv("COLUMNS", raising=False)
    with open(there, "w") as terminal:
        monkeypatch.setattr(sys, "stdout", terminal)
        monkeypatch.setattr(sys, "__stdout__", terminal)  # what shutil asks for the size
        shown = Progress(2, "rollouts")
        shown.update(1)
        shown.update(2)
    text = b""
    while not text.endswith(b"\n"):
        text += os.read(here, 1000)
    os.close(here)
    text = text.decode().replace("\r\n", "\n")
    assert text == "".join(expected) + "\n"


SWALLOWS = """
import os, signal
try:
    os.kill(os.getpid(), signal.{})
    for _ in range(1000): pass
except BaseException:
    pass
raise ImportError("swallowed")
"""


@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM"])
@pytest.mark.parametrize(("script", "module"), [("01_generate_data.py", "cv2"), ("02_train_vae.py", "keras")])
def test_ctrl_c_in_an_import_that_swallows_it(tmp_path, script, module, number):
    (tmp_path / f"{module}.py").write_text(SWALLOWS.format(number))
    command = [sys.executable, str(ROOT / script), f"DATA={tmp_path / 'data'}", f"MODELS={tmp_path / 'models'}"]
    result = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(tmp_path)})
    assert result.returncode == 130
    assert result.stderr.strip() == f"{script}: stopped. The same command continues from what is saved."


def test_ctrl_c_at_any_moment(tmp_path):
    """From when our first line runs (Python itself needs some 50 ms) to when it works."""
    command = [sys.executable, str(ROOT / "06_visualise.py"), f"DATA={tmp_path}", f"MODELS={ROOT / 'models/trained'}"]
    for moment in (0.3, 0.6, 1.0, 1.6, 2.5, 4.0):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        time.sleep(moment)
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=20)
        assert process.returncode == 130, (moment, told)
        assert told.strip() == "06_visualise.py: stopped. The same command continues from what is saved.", moment


TWICE = """
import os, signal, time
from pipeline import script
DATA = "data"
def main():
    try:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(20)
    finally:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(20)
script.run(main, globals())
"""


def test_a_second_ctrl_c_does_not_wait(tmp_path):
    begun = time.monotonic()
    result = run(TWICE, tmp_path)
    assert result.returncode == 130
    assert result.stderr.decode().strip() == "98_script.py: stopped. The same command continues from what is saved."
    assert time.monotonic() - begun < 15


IN_A_CALLBACK = """
import ctypes, os, signal, time, weakref
from pipeline import script
DATA = "data"
def kill(*_):
    os.kill(os.getpid(), signal.SIGINT)
class Dies:
    pass
def destructor():
    Dies.__del__ = kill
    Dies()
def weak_reference():
    dies = Dies()
    reference = weakref.ref(dies, kill)
    del dies
def foreign_code():
    ctypes.CFUNCTYPE(None)(kill)()
def main():
    {}()
    time.sleep(20)
script.run(main, globals())
"""


@pytest.mark.parametrize("callback", ["destructor", "weak_reference", "foreign_code"])
def test_ctrl_c_is_not_lost_where_no_exception_gets_out(tmp_path, callback):
    result = run(IN_A_CALLBACK.format(callback), tmp_path)
    assert result.returncode == 130
    assert result.stderr.decode().strip() == "98_script.py: stopped. The same command continues from what is saved."


AT_THE_END = """
import os, signal
from pipeline import script
DATA = "data"
class Last:
    def __del__(self, kill=os.kill, pid=os.getpid(), number=signal.SIGINT):
        kill(pid, number)
last = Last()  # goes when Python clears the modules
def main():
    print("done")
script.run(main, globals())
"""


def test_ctrl_c_when_all_is_done(tmp_path):
    result = run(AT_THE_END, tmp_path)
    assert (result.returncode, result.stdout, result.stderr) == (0, b"done\n", b"")


def test_a_background_job_goes_on_after_ctrl_c(tmp_path):
    code = "import os, signal\nfrom pipeline import script\nDATA = 'data'\n"
    code += "def main():\n    os.kill(os.getpid(), signal.SIGINT)\n    print('on')\nscript.run(main, globals())"
    assert run(code, tmp_path, "trap '' INT; \"$@\"").stdout == b"on\n"


def test_no_more_workers_than_cores_that_may_be_used():
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("cores can't be chosen here")
    one = {min(os.sched_getaffinity(0))}
    for name in ("01_generate_data.py", "05_train_controller.py", "06_visualise.py", "07_dream_train.py"):
        code = f"import runpy; print(runpy.run_path({name!r})['WORKERS'])"
        options = {"capture_output": True, "text": True, "cwd": ROOT}
        command = [sys.executable, "-c", code]
        bound = subprocess.run(command, preexec_fn=lambda: os.sched_setaffinity(0, one), **options)
        assert bound.stdout == "1\n", bound.stderr
    assert environment.usable_cores() <= len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("groups", "files", "cores"),
    [
        ("0::/\n", {"cpu.max": "150000 100000"}, 1.5),
        ("0::/\n", {"cpu.max": "max 100000"}, np.inf),
        ("0::/a/b\n", {"a/cpu.max": "400000 100000", "a/b/cpu.max": "max 100000"}, 4),
        ("0::/a/b\n", {"cpu.max": "300000 100000", "a/cpu.max": "400000 100000"}, 3),
        ("0::/../other\n", {"cpu.max": "300000 100000"}, 3),
        ("4:cpu,cpuacct:/d\n1:name=systemd:/\n", {"d/cpu.cfs_quota_us": "50000", "d/cpu.cfs_period_us": "100000"}, 0.5),
        ("4:cpu,cpuacct:/d\n", {"cpu.cfs_quota_us": "-1", "cpu.cfs_period_us": "100000"}, np.inf),
        ("4:memory:/d\n", {"d/cpu.cfs_quota_us": "50000", "d/cpu.cfs_period_us": "100000"}, np.inf),
        ("0::/\n", {"cpu.max": "nonsense"}, np.inf),
        (None, {}, np.inf),
    ],
)
def test_the_quota_of_a_container(tmp_path, monkeypatch, groups, files, cores):
    own = tmp_path / "own"
    if groups is not None:
        own.write_text(groups)
    root = tmp_path / "cgroup"
    for name, text in files.items():
        path = root / ("cpu,cpuacct" if "cfs" in name else "") / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    found = environment._quota(root, own)
    assert found == cores
    monkeypatch.setattr(environment, "_affinity", lambda: 64)
    monkeypatch.setattr(environment, "_quota", lambda: found)
    assert environment.usable_cores() == (64 if cores == np.inf else max(1, int(cores)))


def test_threads_that_tensorflow_computes_with(monkeypatch):
    for text, expected in (("3", 3), ("0", 5), ("many", 5), (None, 5)):
        monkeypatch.setattr(environment, "_affinity", lambda: 5)
        monkeypatch.delenv("TF_NUM_INTRAOP_THREADS", raising=False)
        if text:
            monkeypatch.setenv("TF_NUM_INTRAOP_THREADS", text)
        assert environment.threads() == expected


def test_a_gpu_is_left_alone_and_its_memory_is_not_all_taken(monkeypatch):
    """There is none here: that TensorFlow still knows the variable is what can be seen."""
    assert os.environ["TF_FORCE_GPU_ALLOW_GROWTH"] == "true"
    import tensorflow as tf

    library = next(Path(tf.__file__).parent.glob("libtensorflow_framework.*"))
    with open(library, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        assert content.find(b"TF_FORCE_GPU_ALLOW_GROWTH") >= 0
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.setenv("HIP_VISIBLE_DEVICES", "0")
    environment.hide_gpu()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "-1"


@pytest.mark.parametrize(
    ("script", "arguments", "told"),
    [
        ("01_generate_data.py", ["LEAVE_SHARE=1.5"], "LEAVE_SHARE=1.5 must be 0 to 1"),
        ("01_generate_data.py", ["MOVING_START_SHARE=0.7", "LEAVE_SHARE=0.4"], "together at most 1"),
        ("03_series.py", ["EPISODE_START_SHARE=2"], "EPISODE_START_SHARE=2.0 must be 0 to 1"),
        ("06_visualise.py", ["FRAME_SKIP=51"], "FRAME_SKIP"),
        ("06_visualise.py", ["MAX_DREAM_STEPS=3"], "FRAME_SKIP"),
        ("02_train_vae.py", ["SEED=-1"], "SEED=-1 must be at least 0"),
    ],
)
def test_numbers_that_make_no_sense_together(tmp_path, script, arguments, told):
    result = run_script(script, *arguments, f"DATA={tmp_path}", f"MODELS={tmp_path}")
    assert told in refused(result)


def test_01_says_which_rollouts_were_made_with_other_constants(tmp_path):
    options = ("WORKERS=1", f"DATA={tmp_path}", f"MODELS={tmp_path}")
    assert (
        run_script("01_generate_data.py", "ROLLOUTS=2", "MAX_STEPS=5", "MAX_ACTION_REPEAT=1", *options).returncode == 0
    )
    result = run_script("01_generate_data.py", "ROLLOUTS=3", "MAX_STEPS=7", *options)
    assert (result.returncode, result.stderr) == (0, "")
    told = "2 of them were made with different settings (MAX_STEPS: 5 → 7, MAX_ACTION_REPEAT: 1 → 10)"
    assert told in result.stdout
    assert "rollout-1000000.npz, the last rollout-1000001.npz" in result.stdout
    generate, env = script_module("01_generate_data.py"), CarRacing64("fast")
    for seed, steps, hold in ((1_000_001, 5, 1), (1_000_002, 7, 10)):  # the workers too know what the shell said
        generate.MAX_ACTION_REPEAT = hold
        found = rollouts.read(tmp_path / "rollouts" / f"rollout-{seed}.npz")
        np.testing.assert_array_equal(found["action"], generate.random_rollout(env, seed, steps)["action"])


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_what_only_the_start_needed_is_given_back(tmp_path):
    """Pages of code, which come back when they are needed, and freed memory."""
    script = tmp_path / "script.py"
    script.write_text(
        """
import re
from pathlib import Path
from pipeline import environment
import cv2, numpy as np

def kilobytes(name):
    return int(re.search(name + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

picture = np.arange(192, dtype=np.uint8).reshape(8, 8, 3)
small = cv2.resize(picture, (3, 3), interpolation=cv2.INTER_AREA)
blocks = [bytes(50_000) for _ in range(2000)]
del blocks[:-1]  # the last one keeps the heap from shrinking by itself
before = kilobytes("RssFile"), kilobytes("RssAnon")
environment.release_memory()
after = kilobytes("RssFile"), kilobytes("RssAnon")
assert after[0] < before[0] - 5_000, (before, after)
assert after[1] < before[1] - 50_000, (before, after)
assert (cv2.resize(picture, (3, 3), interpolation=cv2.INTER_AREA) == small).all()
"""
    )
    subprocess.run([sys.executable, script], check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
