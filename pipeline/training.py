"""What Keras's own callbacks don't promise: a run of `fit` that is killed at any moment continues exactly there."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline import UserError, environment
from pipeline.files import load_npz, save_npz, suppress_stderr
from pipeline.progress import Progress

import numpy as np

with suppress_stderr():
    import keras

DEFINED_ELSEWHERE = ("EPOCHS", "DATA", "MODELS")  # a finished run can be prolonged, folders can be moved


def keras_seed(seed: int) -> int:
    """Any seed as Keras and TensorFlow take one: below 2^32."""
    return seed % 2**32


class EpochMeans:
    """The running means of an epoch that a `train_step` or `test_step` returns.

    A plain object, so that Keras does not save them with the model's weights.
    """

    def __init__(self, *names: str) -> None:
        self.metrics = [keras.metrics.Mean(name) for name in names]

    def update(self, *values: Any, weight: Any = None) -> dict[str, Any]:
        """Add the values of a batch, in the order of the names, each counted `weight` times; returns the means."""
        for metric, value in zip(self.metrics, values):
            metric.update_state(value, weight)
        return {metric.name: metric.result() for metric in self.metrics}


class ResumableTraining(keras.callbacks.Callback):
    """Keeps a run of `fit` on disk: after each epoch its checkpoint, and the weights if they are the best so far.

    The checkpoint is one `.npz`: the model's weights, the optimizer's variables, the history, and the `settings` and
    `data` (any text that tells it from other data) they belong to. All files are whole or not there. `restore` puts a
    model back where the last run stopped, and refuses a checkpoint of other settings or data. With batches that depend
    on the seed and the epoch alone, a run in parts ends with the same numbers as one in one go.

    The best epoch is the one with the lowest `val_loss`, also across a resume; `save_weights` is called then.
    """

    def __init__(
        self,
        path: Path,
        weights_path: Path,
        producer: str,
        settings: dict[str, Any],
        data: str,
        save_weights: Callable[[], None],
        batch_size: int,
    ) -> None:
        super().__init__()
        self.path, self.weights_path, self.producer, self.save_weights = path, weights_path, producer, save_weights
        self.batch_size = batch_size  # in frames, to show how many a second there are
        self.epochs, self.fine_tune = settings["EPOCHS"], settings["FINE_TUNE"]
        self.settings = {name: value for name, value in settings.items() if name not in DEFINED_ELSEWHERE}
        self.settings["the data"] = data
        self.history: list[dict[str, float]] = []

    def start_from(self, model: keras.Model, validation: Any) -> None:
        """Begin a new run from the weights that `model` has: as epoch 0 they are what further training has to beat."""
        metrics = model.evaluate(validation, verbose=0, return_dict=True)
        self.history.append({"epoch": 0, **{f"val_{name}": float(value) for name, value in metrics.items()}})

    def restore(self, model: keras.Model) -> int:
        """Put the compiled `model` and its optimizer where the last run stopped; returns how many epochs are done.

        0 where there is no checkpoint, or with FINE_TUNE where it is finished or of other settings: a new run begins.
        Raises `UserError` where it is damaged, or of other settings without FINE_TUNE.
        """
        model.optimizer.build(model.trainable_variables)
        if not self.path.exists():
            return 0
        cure = f"delete {self.path} to start again, or train {self.weights_path.name} further with FINE_TUNE=True"
        if not self.weights_path.exists():
            raise UserError(f"{self.path} is there but {self.weights_path} is not: delete {self.path} to start again")
        arrays = load_npz(self.path, self.producer)
        try:
            found, history = json.loads(str(arrays["settings"])), json.loads(str(arrays["history"]))
            changed = [name for name in self.settings if found.get(name) != self.settings[name]]
            if changed and not self.fine_tune:
                changes = ", ".join(f"{name}: {found.get(name)} → {self.settings[name]}" for name in changed)
                raise UserError(f"{self.path} was made with different settings ({changes}): {cure}")
            if self.fine_tune and (changed or history[-1]["epoch"] >= self.epochs):
                return 0
            for kind, variables in (("model", model.weights), ("optimizer", model.optimizer.variables)):
                for place, variable in enumerate(variables):
                    array = arrays[f"{kind}_{place:02}"]
                    if not np.isfinite(array).all():
                        raise ValueError("numbers that are not finite")
                    variable.assign(array)
        except (KeyError, IndexError, ValueError, TypeError, AttributeError):
            raise UserError(f"{self.path} is not a checkpoint of this {model.name}: {cure}") from None
        if (threads := int(arrays.get("threads", environment.threads()))) != environment.threads():
            print(
                f"{self.path} was made with {threads} threads, here are {environment.threads()}: sums are added up in "
                "another order. The run continues, but ends with other numbers"
            )
        self.history = history
        return history[-1]["epoch"]

    @property
    def best(self) -> dict[str, float]:
        """The entry of the best epoch in the history."""
        return min(self.history, key=lambda entry: entry["val_loss"])

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        """A new line of progress."""
        self.epoch = epoch + 1  # Keras counts from 0
        self.progress = Progress(
            self.params["steps"] * self.batch_size, "frames", f"epoch {self.epoch}/{self.epochs}: "
        )

    def on_train_batch_end(self, batch: int, logs: dict[str, float]) -> None:
        """Raises `UserError` when the loss is not finite: nothing of this epoch has been written."""
        if not np.isfinite(logs["loss"]):
            raise UserError(
                f"the loss is {logs['loss']} at step {batch + 1} of epoch {self.epoch}; "
                "the last good weights are kept. Try a lower LEARNING_RATE"
            )
        self.progress.update((batch + 1) * self.batch_size, f"loss {logs['loss']:.2f}")

    def on_epoch_end(self, epoch: int, logs: dict[str, float]) -> None:
        """Keep the weights if they are the best so far, then the checkpoint."""
        self.history.append({"epoch": self.epoch, **{name: float(value) for name, value in logs.items()}})
        is_best = self.history[-1] is self.best
        if is_best:
            self.save_weights()
        self.save()
        metrics = ", ".join(
            f"{name} {logs[name]:.3f}"
            for name in sorted(logs, key=lambda name: "loss" not in name)
            if name != "learning_rate"
        )
        print(f"epoch {self.epoch}: {metrics}{' (best so far)' if is_best else ''}", flush=True)

    def on_train_end(self, logs: dict | None = None) -> None:
        """With FINE_TUNE nothing may have become better."""
        if self.best["epoch"] == 0:
            print(f"no epoch was better than the weights that training began with: {self.weights_path} keeps those")

    def save(self) -> None:
        """Write the checkpoint."""
        kinds = (("model", self.model.weights), ("optimizer", self.model.optimizer.variables))
        arrays: dict[str, Any] = {
            f"{kind}_{place:02}": np.asarray(variable)
            for kind, variables in kinds
            for place, variable in enumerate(variables)
        }
        texts: dict[str, Any] = {
            "settings": np.array(json.dumps(self.settings)),
            "history": np.array(json.dumps(self.history)),
        }
        save_npz(self.path, threads=np.array(environment.threads()), **texts, **arrays)
