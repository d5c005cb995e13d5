"""What the scripts share and no model knows: constants, files, progress, workers, plots. Knows no car, no V, M or C."""

import importlib.util
import sys

from pipeline import environment

if importlib.util.find_spec("tensorflow") is None:
    sys.exit("the packages are missing here: run `make` once, then .venv/bin/python instead of python")

environment.prepare()


class UserError(Exception):
    """Something the user can mend: `script.run` prints it as one line, without a traceback, and exits with 1."""
