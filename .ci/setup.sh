#!/bin/sh
# Builds .venv, once: `make` calls this before anything that needs it. Without root; of the system it takes only
# Python with its headers and a C++ compiler. `sh .ci/setup.sh check` only says what is missing, one line for each.
# PYTHON, CXX and CC choose other ones. POSIX sh, for Linux and macOS.
set -u
unset CDPATH PYTHONHOME PYTHONPATH # what is set for other projects would only mislead
cd "$(dirname "$0")/.." || exit 1

BUILD="swig==4.5.1 setuptools==84.2.1 wheel==0.48.0" # box2d-py and gym come as source; these build them
TOOLS="pytest==9.2.0 ruff==0.17.6 mypy==2.4.1"
ROOM=4200 # MB: 2,500 that .venv takes, 750 of downloads while they are unpacked, and as much in pip's own cache

log=.venv/setup.log
stamp=.venv/whole # what .venv was made from; written last, so a .venv without it is half-built

say() { echo "set-up: $*" >&2; }
lack() {
    say "$@"
    lacking=1
}
wanted() { cat requirements.txt .ci/setup.sh; }
whole() { test -e $stamp && test "$(wanted)" = "$(cat $stamp)" && .venv/bin/python -c "" 2>/dev/null; }

# What one wants to know of a Python, a line each; the first line is all that an old one has to understand.
probe='
import sys
print("%d.%d" % sys.version_info[:2])
import importlib.util, platform, sysconfig
# Not the python of an activated environment: that may be the .venv which is about to be made anew.
print(getattr(sys, "_base_executable", sys.executable) if sys.prefix != sys.base_prefix else sys.executable)
print("yes" if importlib.util.find_spec("ensurepip") and importlib.util.find_spec("venv") else "no")
print(sysconfig.get_path("include"))
print("%s-%s" % (platform.system(), platform.machine()))
print(platform.libc_ver()[0] or "-")
print(sysconfig.get_config_var("CC") or "cc")
print(sysconfig.get_config_var("CXX") or "c++")
'

# Sets version, python, venv, include, machine, libc, cc and cxx; false if $1 is no Python that runs (pyenv's shims
# may stand in PATH and not run) or not one for us.
ask() {
    {
        read -r version
        read -r python
        read -r venv
        read -r include
        read -r machine
        read -r libc
        read -r cc
        read -r cxx
    } <<EOF
$("$1" -c "$probe" 2>/dev/null)
EOF
    case $version in
        3.11 | 3.12 | 3.13) test -n "$python" ;;
        "") false ;;
        *)
            seen="${seen:+$seen, }$1 is $version"
            false
            ;;
    esac
}

# The first Python that has all it takes, else the first of the right version.
find_python() {
    seen=
    first=
    if test -n "${PYTHON:-}"; then set -- "$PYTHON"; else set -- python3.12 python3.11 python3; fi
    for name; do
        if ask "$name"; then
            if test "$venv" = yes && test -e "$include/Python.h"; then return; fi
            first=${first:-$name}
        fi
    done
    test -n "$first" && ask "$first"
}

compiles() { # compiles and links a line of C++ with the compiler $1
    printf '#include <algorithm>\nint main() { return std::min(0, 1); }\n' >"$scratch/try.cpp"
    # shellcheck disable=SC2086 # $1 may bring options along
    $1 "$scratch/try.cpp" -o "$scratch/try" 2>"$scratch/error"
}

# What Python itself was built with is what its packages are compiled with. Where that is not here, another one.
find_compiler() {
    if test -n "${CXX:-}"; then
        compiles "$CXX"
        return
    fi
    if command -v "${cc%% *}" >/dev/null && compiles "$cxx"; then return; fi
    for cxx in c++ g++ clang++; do
        if command -v $cxx >/dev/null && compiles $cxx; then
            export CC="${CC:-$cxx}" CXX=$cxx
            return
        fi
    done
    false
}

check() {
    lacking=0
    if find_python; then
        case $machine in
            Linux-x86_64 | Linux-aarch64 | Darwin-arm64) ;;
            Darwin-x86_64) lack "TensorFlow 2.21 has no package for Intel Macs, nor for an Intel Python on Apple silicon. There: brew install python@3.12 with Apple silicon's own brew; else use Linux (a virtual machine will do)." ;;
            *) lack "TensorFlow 2.21 has no package for $machine: it takes Linux on x86_64 or aarch64, or macOS on Apple silicon (Windows: in WSL)." ;;
        esac
        case $machine-$libc in
            Linux-*-glibc | Darwin-*) ;;
            Linux-*) lack "TensorFlow 2.21 needs glibc, which this Linux (Alpine?) does without: use a Debian, Ubuntu or Fedora container." ;;
        esac
        test "$venv" = yes ||
            lack "ensurepip is missing from Python $version. Debian/Ubuntu: sudo apt install python$version-venv; Fedora: sudo dnf install python$version; macOS: brew install python@$version"
        test -e "$include/Python.h" ||
            lack "Python.h is missing for Python $version. Debian/Ubuntu: sudo apt install python$version-dev; Fedora: sudo dnf install python$version-devel; macOS: brew install python@$version"
    else
        lack "Python 3.11 or 3.12 is missing${PYTHON:+ at PYTHON=$PYTHON}${seen:+ ($seen)}. Debian/Ubuntu: sudo apt install python3.12-venv python3.12-dev (or 3.11); Fedora: sudo dnf install python3.12-devel; macOS: brew install python@3.12; anywhere: uv python install 3.12. Elsewhere than in PATH: make PYTHON=/path/to/python3.12"
        cc=cc cxx=c++
    fi
    scratch=$(mktemp -d) || return 1
    if ! find_compiler; then
        why=$(grep -v '^ *$' "$scratch/error" 2>/dev/null | head -n 1)
        lack "a C++ compiler that works is missing${CXX:+ at CXX=$CXX}${why:+ ($why)}. Debian/Ubuntu: sudo apt install g++; Fedora: sudo dnf install gcc-c++; macOS: xcode-select --install"
    fi
    rm -rf "$scratch"
    if test -w .; then
        # shellcheck disable=SC2046 # one word a column
        set -- $(df -Pk . 2>/dev/null | tail -n 1)
        free=${4:-}
        case $free in
            "" | *[!0-9]*) ;; # a df that speaks otherwise: pip will tell
            *)
                # A half-built .venv goes first, so its room counts as free.
                old=$(du -sk .venv 2>/dev/null | cut -f 1)
                free=$(((free + ${old:-0}) / 1024))
                test $free -ge $ROOM ||
                    lack "disk space is missing: set-up takes $ROOM MB, $free MB are free in $PWD. Free some (Debian/Ubuntu: sudo apt clean; Fedora: sudo dnf clean all; macOS: brew cleanup; ~/.cache/pip), or clone to another disk."
                ;;
        esac
    else
        lack "$PWD can't be written to. Clone into a folder of your own."
    fi
    return $lacking
}

failed() {
    grep -v '^WARNING' $log | tail -n 15 >&2
    say "failed, see above (whole log: $log). Is there a network? make tries again from the start."
    exit 1
}
do_quietly() { "$@" >>$log 2>&1 </dev/null || failed; }

build() {
    began=$(date +%s)
    say "building .venv with Python $version, once: downloads 0.8 GB, takes 3 minutes besides; log in $log"
    rm -rf .venv && mkdir -p .venv/tmp || exit 1
    trap 'echo >&2; say "stopped; make starts it again"; exit 130' INT TERM
    # Not /tmp: it may be small, or forbid running what is built in it. Not what the user set for other projects.
    TMPDIR=$PWD/.venv/tmp
    PATH=$PWD/.venv/bin:$PATH # swig must be found here
    PIP_USER=0 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1 PIP_PROGRESS_BAR=off
    export TMPDIR PATH PIP_USER PIP_DISABLE_PIP_VERSION_CHECK PIP_NO_INPUT PIP_PROGRESS_BAR
    unset PIP_TARGET PIP_PREFIX PIP_ROOT
    do_quietly "$python" -m venv .venv
    # shellcheck disable=SC2086 # a word a package
    do_quietly .venv/bin/python -m pip install $BUILD
    # shellcheck disable=SC2086
    do_quietly .venv/bin/python -m pip install --no-build-isolation -r requirements.txt $TOOLS
    rm -rf .venv/tmp
    wanted >$stamp
    say ".venv is ready ($(($(date +%s) - began)) s)"
}

if test "${1:-}" = check; then
    check
    exit
fi
if whole; then exit; fi
check || exit 1
# Two at once (make test beside make demo) take turns: the kernel holds the lock, and lets go however this ends.
if test "${1:-}" != locked; then
    export PYTHON="$python"
    exec "$python" -c '
import fcntl, os, sys
folder = os.open(".", os.O_RDONLY)
os.set_inheritable(folder, True)
try:
    fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    print("set-up: another one is building .venv here; waiting for it", file=sys.stderr, flush=True)
    fcntl.flock(folder, fcntl.LOCK_EX)
except OSError:
    pass  # a network disk without locks
os.execvp("sh", ["sh", ".ci/setup.sh", "locked"])
'
fi
build
