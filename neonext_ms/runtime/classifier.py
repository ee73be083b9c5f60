"""A model of images in any runtime: batches of any number in, and its outputs, or the logits of a classifier, out."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from neonext_ms.common.errors import InputError
from neonext_ms.common.text import format_size, printable

from .base import Runtime, Settings, Signature, run_in_chunks

if TYPE_CHECKING:
    from typing_extensions import Self

    from .onnx import Conventions

# float16 rounds each probability by up to 5e-4 of itself.
_SUM_TOLERANCE = 2e-3
_NO_LOGITS = ("TopK", "ArgMax", "ArgMin", "NonMaxSuppression")
_NOISE_IMAGES = 4
# Of one input: 2 GiB in float32.
_MOST_NUMBERS = 1 << 29
# A few bytes of a file can repeat a logit any number of times; the largest sets of labels have 30,000.
_MOST_CLASSES = 1_000_000


def softmax(logits: np.ndarray) -> np.ndarray:
    """Return probabilities, float64 (N, classes), of logits (N, classes)."""
    logits = np.asarray(logits, np.float64)
    # Infinite logits give NaN; the caller reports them.
    with np.errstate(invalid="ignore"):
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        return powers / powers.sum(axis=1, keepdims=True)


def sum_to_one(rows: np.ndarray) -> bool:
    """Return whether all rows are probabilities of classes that exclude each other."""
    return bool((rows >= 0).all() and (abs(rows.sum(axis=1, dtype=np.float64) - 1) < _SUM_TOLERANCE).all())


class ImageModel:
    """A loaded model of images. `outputs_of` computes; `close` frees it (or use it in a `with` block).

    Args:
        runtime: runtime of the model; it is closed with the model.
        path: the model file.
        settings: options of the model; `batch` is chosen here, and `image_size` is needed where the file leaves the
            size open.

    Attributes:
        name: name of the runtime, such as "onnxruntime" or "mindspore".
        path: the model file.
        input_size: height and width of the input.
        batch: images that one call of the model takes, or None for any number.
        outputs: names of the outputs; empty if the file has none.
        weights: dtype of the weights, if the file states it.
        metadata: metadata of the file; among the keys may be `labels` (list of str), `preprocessing` (as
            `Preprocessing.to_dict`), `image_size` ([height, width]), `shifts` and `activation`.
        notes: messages to show to the user.

    Raises:
        InputError: no such file, or not a model of images.
        UsageError: an option is missing or contradicts the file.
    """

    def __init__(self, runtime: Runtime, path: str, settings: Settings):
        self.name, self.path, self._runtime = runtime.name, path, runtime
        self._largest = 0
        try:
            signature = runtime.describe(path, settings)
            self._accept(signature)
            self._open(signature, settings)
        except BaseException:
            runtime.close()
            raise

    def _accept(self, signature: Signature) -> None:
        """Raise an `InputError` for a model that cannot be used here."""
        if signature.dtype not in ("float32", "float16", "float64") or signature.channels != 3:
            raise InputError(
                f"{self.path}: expected an input of floating-point images (N, 3, H, W), found {signature.name!r} of "
                f"{signature.describe()}. Export the model without built-in preprocessing."
            )

    def _open(self, signature: Signature, settings: Settings) -> None:
        """Load the model."""
        self._dtype, self._channels_last = signature.dtype, signature.layout == "NHWC"
        self.outputs, self.weights, self.metadata = signature.outputs, signature.weights, dict(signature.metadata)
        self.input_size = signature.size(self.path, settings.image_size)
        self.batch = max(signature.batches) if signature.batches else None
        if (self.batch or 1) * 3 * math.prod(self.input_size) > _MOST_NUMBERS:
            raise InputError(
                f"{self.path}: its input is too large (got a batch of {self.batch or 1} images of "
                f"{format_size(self.input_size)}, expected at most {_MOST_NUMBERS:,} numbers). Export it for fewer or "
                "smaller images."
            )
        self._runtime.load(self.path, replace(settings, batch=self.batch, image_size=self.input_size))
        label = self._runtime.label
        self.notes = [*self._runtime.notes, *([f"{self.name}: {label}"] if label else [])]
        if not self.metadata and self.path.lower().endswith((".onnx", ".mindir", ".om", ".ms")):
            missing = "no metadata in it" if self.path.lower().endswith(".onnx") else "no manifest beside it"
            self.notes.append(
                f"{printable(self.path)}: {missing}, so it has no labels, and images get the official "
                "preprocessing unless an option says otherwise"
            )

    def outputs_of(self, images: np.ndarray) -> list[np.ndarray]:
        """Compute the outputs for prepared images.

        A model of fixed batch is fed in chunks, the last one filled up with zeros whose outputs are cut off.

        Args:
            images: float32 (N, 3, H, W) of the model's `input_size`, at least one.

        Returns:
            float32 (N, ...), in the order of `outputs`.

        Raises:
            InputError: another shape or dtype, or the model fails.
        """
        values = run_in_chunks(self._run, self._checked(images), self._step(len(images)))
        return [value.astype(np.float32, copy=False) for value in values]

    def _checked(self, images: np.ndarray) -> np.ndarray:
        """Return images as an array; an `InputError` says that they are of another shape or dtype."""
        images = np.asarray(images)
        if images.ndim != 4 or images.shape[1:] != (3, *self.input_size) or images.dtype != np.float32:
            raise InputError(
                f"{self.path}: expected float32 images of shape (N, 3, {self.input_size[0]}, {self.input_size[1]}), "
                f"got {images.dtype} {images.shape}"
            )
        return images

    def _step(self, count: int) -> int | None:
        """Return the number of images that the model is given at once, when `count` are to be run."""
        if self.batch or self._runtime.largest_batch is None:
            return self.batch
        # It only grows, so that a smaller last batch is not compiled for once more.
        self._largest = max(self._largest, min(count, self._runtime.largest_batch))
        return self._largest

    def _run(self, images: np.ndarray) -> list[np.ndarray]:
        """Return the outputs of one batch."""
        inputs = images.transpose(0, 2, 3, 1) if self._channels_last else images
        outputs = self._runtime.run([np.ascontiguousarray(inputs, self._dtype)])
        if self.outputs and len(outputs) != len(self.outputs):
            raise InputError(f"{self.path}: found {len(outputs)} outputs, where the file says {len(self.outputs)}")
        for output in outputs:
            if not output.ndim or len(output) != len(images):
                raise InputError(
                    f"{self.path}: expected {len(images)} results for {len(images)} images, got an output of shape "
                    f"{output.shape}"
                )
        return list(outputs)

    def close(self) -> None:
        """Free the model; nothing can be computed afterwards."""
        self._runtime.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_) -> None:
        self.close()


class Classifier(ImageModel):
    """A loaded classifier of images. `run` computes.

    Attributes:
        classes: number of logits per image.
        probabilities: whether the model ends in a softmax, a sigmoid or the like, so that its outputs are
            probabilities; None before it was run on images.

    Raises:
        InputError: no such file, or not a classifier of images.
        UsageError: an option is missing or contradicts the file.
    """

    def _accept(self, signature: Signature) -> None:
        super()._accept(signature)
        named = "logits" in signature.outputs
        if len(signature.outputs) > 1 and not named:
            names = ", ".join(map(printable, signature.outputs))
            raise InputError(
                f"{self.path}: expected one output, or one called 'logits'; found {names}. Export the model with its "
                "head to classify images."
            )
        self._logits = signature.outputs.index("logits") if named else None

    def _open(self, signature: Signature, settings: Settings) -> None:
        super()._open(signature, settings)
        self.probabilities: bool | None = None
        if not self.metadata and self.conventions.ending in _NO_LOGITS:
            raise InputError(
                f"{self.path}: its output comes from an operator {self.conventions.ending}. Export the model with its "
                "logits as output."
            )
        # A model that does not state its number of classes is run on zeros.
        zeros = np.zeros((self.batch or 1, 3, *self.input_size), np.float32)
        self.classes: int = signature.classes or self._run(zeros)[0].shape[1]
        if self.classes < 2:
            raise InputError(
                f"{self.path}: expected a logit for each of two or more classes (got {self.classes} value per image). "
                "A model that answers yes or no, or with the number of a class, cannot be used."
            )
        if self.classes > _MOST_CLASSES:
            raise InputError(
                f"{self.path}: has {self.classes:,} classes, more than the {_MOST_CLASSES:,} of any dataset"
            )
        labels = self.metadata.get("labels")
        if labels and len(labels) != self.classes:
            raise InputError(
                f"{self.path}: its metadata has {len(labels)} labels, but the model has {self.classes} classes. "
                "Export it again with the right labels."
            )

    def run(self, images: np.ndarray) -> np.ndarray:
        """Compute the logits of prepared images.

        Args:
            images: prepared images, as for `outputs_of`; N may be 0.

        Returns:
            float32 (N, classes).

        Raises:
            InputError: another shape or dtype, or the model fails.
        """
        if not len(self._checked(images)):
            return np.empty((0, self.classes), np.float32)
        (logits,) = self.outputs_of(images)
        if logits.shape[1] != self.classes:
            raise InputError(f"{self.path}: expected {self.classes} logits per image, got {logits.shape[1]}")
        return logits

    def classify(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Compute logits and probabilities of prepared images; the two are the same for a model that ends in a softmax.

        Args:
            images: see `run`.

        Returns:
            Outputs of the model, float32 (N, classes), and probabilities, float64 (N, classes).

        Raises:
            InputError: see `run`; or the outputs of the first images are probabilities and these are not.
        """
        outputs = self.run(images)
        if self.probabilities is None and len(outputs):
            self.probabilities = self._are_probabilities(outputs)
        if not self.probabilities:
            return outputs, softmax(outputs)
        values = outputs.astype(np.float64)
        if (values < 0).any():
            raise InputError(
                f"{self.path}: the outputs of earlier images are probabilities, but these have negative values (down "
                f"to {values.min():g}). Export the model with its logits as output."
            )
        return outputs, values

    def _are_probabilities(self, outputs: np.ndarray) -> bool:
        """Return whether outputs are probabilities: by the graph, or because these and those of noise are from 0 to 1.

        Raises:
            InputError: they are of a softmax that is not over the classes, or percentages.
        """
        if not np.isfinite(outputs).all() or (outputs < 0).any():
            return False
        ending = self.conventions.ending
        sums = outputs.sum(axis=1, dtype=np.float64)
        # Probabilities of 8 bit are multiples of about 1/256; of many classes, most round to 0.
        if ending == "Softmax" and not self.conventions.rounded and not sum_to_one(outputs):
            raise InputError(
                f"{self.path}: its softmax is not over the classes (the outputs of an image sum to {sums.max():g}). "
                "Export the model with its logits as output."
            )
        if ending in ("Softmax", "Sigmoid"):
            return True
        if (abs(sums - 100) < 100 * _SUM_TOLERANCE).all():
            raise InputError(
                f"{self.path}: its outputs sum to 100, like percentages. Export the model with its logits as output."
            )
        # One image can have such logits by chance, different images cannot. A head of zeros has them too.
        if not 0 < outputs.max() < 1 + _SUM_TOLERANCE:
            return False
        noise = np.random.RandomState(0).normal(0, 1, (_NOISE_IMAGES, 3, *self.input_size)).astype(np.float32)
        others = self.run(noise)
        return bool(((others >= 0) & (others < 1 + _SUM_TOLERANCE)).all())

    @cached_property
    def conventions(self) -> Conventions:
        """The conventions of an ONNX file, read when they are asked for; none of any other file."""
        from .onnx import Conventions, conventions

        return conventions(self.path) if self.path.lower().endswith(".onnx") else Conventions()

    def _run(self, images: np.ndarray) -> list[np.ndarray]:
        """Return the logits of one batch, as the only output."""
        outputs = super()._run(images)
        if self._logits is None and len(outputs) != 1:
            raise InputError(f"{self.path}: expected a model with one output, found {len(outputs)}")
        logits = outputs[self._logits or 0]
        if logits.ndim != 2:
            raise InputError(
                f"{self.path}: expected logits of shape ({len(images)}, classes) for {len(images)} images, got "
                f"{logits.shape}; is it a classifier?"
            )
        if logits.dtype.kind in "biu":
            raise InputError(
                f"{self.path}: expected logits in floating point, got {logits.dtype}. Export the model with its logits "
                "as output."
            )
        return [logits]
