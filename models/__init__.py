"""The three models (V, M, C), the two worlds (real and dreamed) and what the scripts share."""

import importlib.util
import os
import sys

if importlib.util.find_spec("tensorflow") is None:
    sys.exit("the packages are missing here: run `make` once, then .venv/bin/python instead of python")

# Before TensorFlow and pygame are imported: no log lines that a user can do nothing about, no screen needed.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
# After Ctrl-C the workers end with their parent; what multiprocessing then cleans up, a user need not know.
os.environ.setdefault("PYTHONWARNINGS", "ignore:resource_tracker:UserWarning")


def _told(kind: type[BaseException], error: BaseException, trace) -> None:
    """Ctrl-C while a script is still importing: one line, and exit code 130, as later by `settings.run`."""
    if issubclass(kind, KeyboardInterrupt):
        print("stopped before it began", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


sys.excepthook = _told
