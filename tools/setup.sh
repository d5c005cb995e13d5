#!/bin/sh
# Builds .venv, once: `make` calls this before anything that needs it. It finds a Python, or has uv bring one; the rest
# is setup.py's. PYTHON, CXX and CC choose other ones. POSIX sh, for Linux and macOS, without root.
set -u
unset CDPATH PYTHONHOME PYTHONPATH # what is set for other projects would only mislead
cd "$(dirname "$0")/.." || exit 1

say() { echo "set-up: $*" >&2; }

# .venv/whole is what .venv was made from. It is written last, so a .venv without it is half-built.
if test -e .venv/whole && test "$(cat requirements.txt tools/setup.sh tools/setup.py)" = "$(cat .venv/whole)" &&
    .venv/bin/python -c "" 2>/dev/null; then exit; fi

if test "$(uname -sm)" = "Linux x86_64" && test -r /proc/cpuinfo && ! grep -qw avx /proc/cpuinfo; then
    say "TensorFlow 2.21 needs a processor with AVX, which this one does without. Use a computer from 2012 or later; in a virtual machine, give it the host's processor (QEMU: -cpu host)."
    exit 1
fi

# Prints the version. Exit code 0: this Python has all it takes; 3: another version; 4: the right one without some parts.
probe='
import sys
print("%d.%d" % sys.version_info[:2])
if not (3, 11) <= sys.version_info[:2] <= (3, 13):
    sys.exit(3)
import importlib.util, os, sysconfig
header = os.path.join(sysconfig.get_path("include"), "Python.h")
sys.exit(0 if importlib.util.find_spec("ensurepip") and os.path.exists(header) else 4)
'

# Sets python: the first one that has all it takes, else one that uv brings, else the first of the right version.
find_python() {
    seen=
    first=
    if test -n "${PYTHON:-}"; then set -- "$PYTHON"; else set -- python3.13 python3.12 python3.11 python3; fi
    for python; do
        version=$("$python" -c "$probe" 2>/dev/null)
        case $? in
            0) return ;;
            3) seen="${seen:+$seen, }$python is $version" ;;
            4) first=${first:-$python} ;;
        esac
    done
    if test -z "${PYTHON:-}" && command -v uv >/dev/null; then
        say "no Python 3.11 to 3.13 with all its parts is in PATH; uv brings 3.13"
        UV_PYTHON_INSTALL_BIN=0 uv python install 3.13 && python=$(uv python find --managed-python 3.13) && return
    fi
    python=$first
    test -n "$python"
}

if find_python; then exec "$python" tools/setup.py; fi
say "Python 3.11, 3.12 or 3.13 is missing${PYTHON:+ at PYTHON=$PYTHON}${seen:+ ($seen)}. Debian/Ubuntu: sudo apt install python3-venv python3-dev g++; Fedora: sudo dnf install python3.13-devel gcc-c++; macOS: brew install python@3.13. Where that is too old or too new: install uv (https://docs.astral.sh/uv), and make brings its own. Elsewhere than in PATH: make PYTHON=/path/to/python3.13"
exit 1
