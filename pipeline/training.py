"""Where a training run was when it stopped, so that the same command goes on from there (02 and 04).

Arrays and JSON in one `.npz`: the model's weights, the optimizer's variables, the history, and the constants and data
they belong to. It is written after each epoch, whole or not at all.
"""

import json
from pathlib import Path

from pipeline import UserError
from pipeline.files import load_npz, save_npz

import numpy as np


class Checkpoint:
    """The checkpoint of one training run of a script.

    `constants` is the script's `globals()`: an unfinished run of the same constants and the same `data` (any text that
    tells it from others) is taken up again, one of others never.
    """

    def __init__(self, path: Path, weights: Path, constants: dict, data: str) -> None:
        self.path, self.weights, self.producer = path, weights, Path(constants["__file__"]).name
        self.epochs, self.go_on = constants["EPOCHS"], constants["GO_ON"]
        free = ("EPOCHS", "DATA", "MODELS")  # a finished run can be prolonged, folders can be moved
        self.constants = {name: constants[name] for name in constants if name.isupper() and name not in free}
        self.constants["the data"] = data

    def resume(self, model, optimizer) -> list[dict] | None:
        """Put `model` and `optimizer` where the last run left them and return its history, an entry an epoch.

        None where there is none, or with GO_ON where it is finished or of other constants: then a new run begins.
        Raises `UserError` where it is damaged, or of other constants without GO_ON.
        """
        if not self.path.exists():
            return None
        cure = f"delete {self.path} to start anew, or go on from {self.weights.name} as it is with GO_ON=True"
        if not self.weights.exists():
            raise UserError(f"{self.path} is there but {self.weights} is not: delete {self.path} to start anew")
        arrays = load_npz(self.path, self.producer)
        try:
            constants, history = json.loads(str(arrays["constants"])), json.loads(str(arrays["history"]))
            differ = [name for name in self.constants if constants.get(name) != self.constants[name]]
            if differ and not self.go_on:
                told = "; ".join(f"{name} was {constants.get(name)}, is {self.constants[name]}" for name in differ)
                raise UserError(f"{self.path} is of other constants ({told}): {cure}")
            if self.go_on and (differ or history[-1]["epoch"] >= self.epochs):
                return None
            for kind, variables in (("model", model.weights), ("optimizer", optimizer.variables)):
                for place, variable in enumerate(variables):
                    array = arrays[f"{kind}_{place:02}"]
                    if not np.isfinite(array).all():
                        raise ValueError("numbers that are not finite")
                    variable.assign(array)
        except (KeyError, IndexError, ValueError, TypeError, AttributeError):
            raise UserError(f"{self.path} is no checkpoint of this {model.name}: {cure}") from None
        return history

    def save(self, history: list[dict], model, optimizer) -> None:
        """Keep where the run is after the epochs in `history`."""
        arrays = {f"model_{place:02}": np.asarray(variable) for place, variable in enumerate(model.weights)}
        arrays |= {f"optimizer_{place:02}": np.asarray(variable) for place, variable in enumerate(optimizer.variables)}
        texts = {"constants": np.array(json.dumps(self.constants)), "history": np.array(json.dumps(history))}
        save_npz(self.path, **texts, **arrays)
