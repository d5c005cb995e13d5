"""What the sections of `make bench` share: a line of the table, and what the computer is."""

import os
import re
import statistics
import sys
from pathlib import Path

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
NUM_ENVS = 32  # cars in each worker
BENCH_TRACKS = range(3_000, 4_000)  # of no other use
TRAINED = "models/trained"


def row(name: str, rates: list[float], base: float | None = None) -> float:
    """Print a line of the table and return the median. `base` is what the ratio is taken to."""
    median = statistics.median(rates)
    ratio = f"{median / base:,.1f} ×" if base else ""
    print(f"| {name} | {median:,.0f} | {min(rates):,.0f}–{max(rates):,.0f} | {ratio} |", flush=True)
    return median


def isa() -> str:
    """The widest instruction set that TensorFlow's convolutions and matrix products can use here."""
    try:
        flags = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return os.uname().machine
    names = {"amx_bf16": "AMX", "avx512f": "AVX-512", "avx2": "AVX2"}
    return next((name for flag, name in names.items() if flag in flags), "SSE")


def processor() -> str:
    """The processor's own name."""
    try:
        return re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text()).group(1)
    except (OSError, AttributeError):
        return "unknown processor"


def head() -> str:
    """The first lines of the table."""
    computer = f"{processor()}, {CORES} cores, {isa()}, Python {sys.version.split()[0]}"
    return f"{computer}\n\n| what | a second | least–most | |\n|---|---|---|---|"
