"""What the scripts share and no model knows: constants, files, progress, workers, plots. Knows no car, no V, M or C."""

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


class UserError(Exception):
    """Something the user can mend: `script.run` prints it as one line, without a traceback, and exits with 1."""


def _excepthook(kind: type[BaseException], error: BaseException, trace) -> None:
    """Ctrl-C while a script is still importing: one line, and exit code 130, as later by `script.run`."""
    if issubclass(kind, KeyboardInterrupt):
        print("stopped before it began", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


sys.excepthook = _excepthook
