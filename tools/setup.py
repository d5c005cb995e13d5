"""Builds .venv with the Python that runs this (setup.sh found it), and says first what is missing, a line each."""

import fcntl
import importlib.util
import os
import platform
import re
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

BUILD = ["swig==4.5.1", "setuptools==84.2.1", "wheel==0.48.0"]  # box2d-py and gym come as source; these build them
TOOLS = ["pytest==9.2.0", "ruff==0.17.6", "mypy==2.4.1"]
ROOM = 4_200  # MB: 2,500 that .venv takes, 750 of downloads while they are unpacked, and as much in the cache
VENV = Path(".venv").absolute()
LOG = VENV / "setup.log"
STAMP = VENV / "whole"  # what .venv was made from, which setup.sh compares; written last
BITS = 64 if sys.maxsize > 2**32 else 32  # on a Raspberry Pi often 32, with a kernel of 64
VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"
# Variables of pip and uv that say where packages come from stay. The others were set for other projects.
SOURCES = re.compile("INDEX|FIND_LINKS|CERT|TLS|PROXY|HOST|CACHE|TIMEOUT|RETRIES|KEYRING|CONFIG_FILE|OFFLINE")
NO_NETWORK = re.compile("name resolution|not known|NewConnectionError|unreachable|dns error|error sending request")


def say(text: str) -> None:
    """Print a line to standard error."""
    print(f"set-up: {text}", file=sys.stderr, flush=True)


def cure(apt: str, dnf: str, mac: str) -> str:
    """What to do about it on three systems."""
    return f"Debian/Ubuntu: sudo apt install {apt}; Fedora: sudo dnf install {dnf}; macOS: {mac}"


def lacks() -> Iterator[str]:
    """What is missing here, a line for each thing."""
    system, machine = platform.system(), f"{platform.system()}-{platform.machine()}"
    if machine == "Darwin-x86_64":
        yield "TensorFlow 2.21 has no package for Intel Macs, nor for an Intel Python on Apple silicon. There: brew install python@3.13 with Apple silicon's own brew; else use Linux (a virtual machine will do)."  # noqa: E501
    elif machine not in ("Linux-x86_64", "Linux-aarch64", "Darwin-arm64") or BITS == 32:
        yield f"TensorFlow 2.21 has no package for a {BITS}-bit Python on {machine}: it takes 64 bits, and Linux on x86_64 or aarch64, or macOS on Apple silicon (Windows: in WSL)."  # noqa: E501
    if system == "Linux" and platform.libc_ver()[0] != "glibc":
        yield "TensorFlow 2.21 needs glibc, which this Linux (Alpine?) does without: use a Debian, Ubuntu or Fedora container."  # noqa: E501
    python, brew = f"python{VERSION}", f"brew install python@{VERSION}"
    if not importlib.util.find_spec("ensurepip"):
        yield f"ensurepip is missing from Python {VERSION}. {cure(f'{python}-venv', python, brew)}"
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        yield f"Python.h is missing for Python {VERSION}. {cure(f'{python}-dev', f'{python}-devel', brew)}"
    if why := no_compiler():
        at = f" at CXX={os.environ['CXX']}" if "CXX" in os.environ else ""
        yield f"a C++ compiler that works is missing{at} ({why}). {cure('g++', 'gcc-c++', 'xcode-select --install')}"
    if not os.access(".", os.W_OK):
        yield f"{os.getcwd()} can't be written to. Clone into a folder of your own."
    elif (free := free_megabytes()) < ROOM:
        yield f"disk space is missing: set-up takes {ROOM} MB, {free} MB are free in {os.getcwd()}. Free some (Debian/Ubuntu: sudo apt clean; Fedora: sudo dnf clean all; macOS: brew cleanup; ~/.cache/pip), or clone to another disk."  # noqa: E501


def no_compiler() -> str | None:
    """Why no C++ compiler works; None if one does. If that is not the one Python was built with, sets CC and CXX."""
    if "CXX" in os.environ:
        return compile_error(os.environ["CXX"])
    cc, own = (sysconfig.get_config_var(name) or name.lower() for name in ("CC", "CXX"))
    if shutil.which(shlex.split(cc)[0]) and compile_error(own) is None:
        return None
    errors = {name: compile_error(name) for name in ("c++", "g++", "clang++")}
    for name, error in errors.items():
        if error is None:
            os.environ |= {"CC": os.environ.get("CC", name), "CXX": name}
            return None
    return errors["c++"]


def compile_error(compiler: str) -> str | None:
    """Why `compiler` does not compile and link a line of C++; None if it does."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "try.cpp")
        source.write_text("#include <algorithm>\nint main() { return std::min(0, 1); }\n")
        command = [*shlex.split(compiler), str(source), "-o", f"{folder}/try"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, errors="replace")
        except OSError as error:
            return f"{compiler}: {error.strerror}"
    return done.stderr.strip().partition("\n")[0] if done.returncode else None


def free_megabytes() -> int:
    """Room on the disk. A half-built .venv goes first, so its room counts as free."""
    old = sum(path.lstat().st_blocks * 512 for path in VENV.rglob("*"))
    return (shutil.disk_usage(".").free + old) // 2**20


def take_turn() -> None:
    """Wait while another one builds .venv here. The kernel lets go when this process and all it started have ended."""
    folder = os.open(".", os.O_RDONLY)
    os.set_inheritable(folder, True)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        say("another one is building .venv here; waiting for it")
        fcntl.flock(folder, fcntl.LOCK_EX)
    except OSError:
        pass  # a network disk without locks


def environment() -> dict[str, str]:
    """The user's variables, less what would lead pip and uv elsewhere."""
    kept = {name: value for name, value in os.environ.items() if name[:3] not in ("PIP", "UV_") or SOURCES.search(name)}
    return kept | {
        "PATH": f"{VENV}/bin:{os.environ.get('PATH', os.defpath)}",  # swig must be found here
        "TMPDIR": f"{VENV}/tmp",  # /tmp may be small, or forbid running what is built in it
        "PIP_USER": "0",
        "PIP_NO_INPUT": "1",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PIP_PROGRESS_BAR": "off",
    }


def run(*command: object) -> bool:
    """Run `command` with its output in the log; a terminal is shown the seconds and the log's last line."""
    began, log = time.monotonic(), os.open(LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment(), close_fds=False
    )
    os.close(log)
    try:
        while process.poll() is None:
            time.sleep(0.1)
            if sys.stderr.isatty():
                last = LOG.read_text(errors="replace").strip().rpartition("\n")[2]
                print(f"\x1b[K{time.monotonic() - began:5.0f} s  {last[:64]}", end="\r", file=sys.stderr, flush=True)
    except KeyboardInterrupt:
        process.kill()
        raise
    return process.returncode == 0


def install() -> bool:
    """Install all packages: by uv, which takes half as long, else by pip, which may know a mirror that uv does not."""
    ways = [["uv", "pip", "install", "--python", f"{VENV}/bin/python"]] if shutil.which("uv") else []
    ways.append([f"{VENV}/bin/python", "-m", "pip", "install"])
    return any(run(*w, *BUILD) and run(*w, "--no-build-isolation", "-r", "requirements.txt", *TOOLS) for w in ways)


def build(wanted: str) -> int:
    """Make .venv anew; the exit code."""
    began = time.monotonic()
    say(f"building .venv with Python {VERSION}, once: 0.8 GB to download, 3 minutes besides; log in .venv/setup.log")
    subprocess.run(["rm", "-rf", VENV], check=True)
    (VENV / "tmp").mkdir(parents=True)
    # Not the python of an activated environment: that may be the .venv which was just removed.
    if not (run(getattr(sys, "_base_executable", sys.executable), "-m", "venv", VENV) and install()):
        lines = LOG.read_text(errors="replace").splitlines()
        if NO_NETWORK.search("\n".join(lines[-20:])):
            say("packages can't be downloaded. Is there a network? make tries again (log: .venv/setup.log)")
            return 1
        print(*[line for line in lines if not line.startswith("WARNING")][-15:], sep="\n", file=sys.stderr)
        say("failed, see above (whole log: .venv/setup.log). make tries again from the start")
        return 1
    subprocess.run(["rm", "-rf", VENV / "tmp"], check=True)
    STAMP.write_text(wanted, "utf-8")
    say(f".venv is ready ({time.monotonic() - began:.0f} s)")
    return 0


def main() -> int:
    """Say what is missing, or build .venv; the exit code."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    wanted = "".join(Path(name).read_text("utf-8") for name in ("requirements.txt", "tools/setup.sh", "tools/setup.py"))
    try:
        take_turn()
        if STAMP.exists() and STAMP.read_text("utf-8") == wanted:
            return 0
        lines = list(lacks())
        for line in lines:
            say(line)
        return 1 if lines else build(wanted)
    except KeyboardInterrupt:
        say("stopped; make starts it again")
        return 130


if __name__ == "__main__":
    sys.exit(main())
