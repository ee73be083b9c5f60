"""One run of the benchmark: every subject is loaded, checked and timed in turns, batch by batch."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from neonext_ms.common.errors import InputError, UsageError
from neonext_ms.common.files import sha256, temporary_folder
from neonext_ms.common.signals import unhurried_from_now
from neonext_ms.common.text import format_size
from neonext_ms.runtime.base import Runtime, Settings, Signature
from neonext_ms.runtime.open import default_runtime

from . import gemm
from .inputs import DEFAULT_SIZE, check_batches, random_images
from .measure import MEASURING, interleave, timed
from .subjects import Subject

DEFAULT_BATCHES = (1, 8)
PHOTO = (375, 500)
PHOTO_SAMPLES = 15


@dataclass(frozen=True)
class Conditions:
    """Conditions of a measurement.

    Attributes:
        batches: batch sizes, or None for 1, 8 and those that the files fix.
        image_size: height and width for models that leave them open.
        rounds: largest number of calls of every subject at every batch.
        seconds: time limit of every batch, without warm-up.
        threads: intra-op threads on the CPU; the process is bound to as many cores.
        device: number of the accelerator.
        gemm: whether to time each model's own matrix products too.
        seed: random seed of the images and of the order in a round.
    """

    batches: tuple[int, ...] | None = None
    image_size: tuple[int, int] | None = None
    rounds: int = 100
    seconds: float = 60.0
    threads: int = 1
    device: int = 0
    gemm: bool = True
    seed: int = 0

    def settings(self, batch: int | None = None, image_size: tuple[int, int] | None = None) -> Settings:
        """Return the settings of a runtime under these conditions."""
        return Settings(batch, image_size, self.threads, self.device)


@dataclass
class _Prepared:
    """A subject with the signature, the image size and the batch sizes that it is measured with."""

    subject: Subject
    signature: Signature
    image_size: tuple[int, int]
    batches: list[int]
    work: dict[int, gemm.Work] = field(default_factory=dict)
    relative_l2: float | None = None

    def describe(self) -> dict:
        """Return plain values for the result."""
        subject, signature = self.subject, self.signature
        return {
            "label": subject.label,
            "model": subject.model,
            "form": subject.form,
            "runtime": subject.runtime,
            "file": Path(subject.path).name,
            "bytes": os.path.getsize(subject.path),
            "sha256": sha256(subject.path),
            "input": {"name": signature.name, "dtype": signature.dtype, "layout": signature.layout},
            "image_size": list(self.image_size),
            "relative_l2": self.relative_l2,
            "notes": list(subject.notes),
        }


def run(
    subjects: Sequence[Subject],
    conditions: Conditions,
    folder: Path,
    status: Callable[[str], None] = lambda step: None,
    progress: Callable[[str, int, int], None] | None = None,
) -> dict:
    """Measure subjects, and return the parts of a result besides machine and versions, as plain values.

    GEMM graphs are written to `folder`. `status` is called with the name of each step, `progress` after each round, as
    in `measure.interleave`.

    Raises:
        InputError: a model cannot be loaded, its input does not fit, or it fails or returns NaN.
        KeyboardInterrupt: the run was interrupted before anything was measured. An interruption after that ends the
            run, and the result is marked partial.
    """
    session = _Session(conditions, folder, status, progress)
    with _bound_to(conditions.threads) as cores:
        try:
            prepared = session.prepare(subjects)
            batches, partial = session.measure(prepared)
            try:
                preprocessing = [] if partial else session.preprocessing(prepared)
            except KeyboardInterrupt:
                preprocessing, partial = [], True
        finally:
            for make in {subject.runtime: subject.make for subject in subjects}.values():
                if isinstance(make, type) and issubclass(make, Runtime):
                    make.shutdown()
    settings = {name: getattr(conditions, name) for name in ("rounds", "seconds", "threads", "seed")}
    return {
        "partial": partial,
        "settings": {**settings, "cores": cores},
        "subjects": [p.describe() for p in prepared],
        "batches": batches,
        "preprocessing": preprocessing,
        "notes": list(dict.fromkeys(session.notes)),
    }


@contextlib.contextmanager
def _bound_to(threads: int) -> Iterator[list[int]]:
    """Bind this process and its children to as many cores as there are threads, where the system can do that."""
    if not hasattr(os, "sched_setaffinity"):
        yield []
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[:threads])
    try:
        yield sorted(os.sched_getaffinity(0))
    finally:
        os.sched_setaffinity(0, before)


class _Session:
    """State of a run; the arguments are those of `run`."""

    def __init__(self, conditions: Conditions, folder: Path, status: Callable[[str], None], progress):
        self.conditions, self.folder, self.status, self.progress = conditions, folder, status, progress
        self.notes: list[str] = []

    def prepare(self, subjects: Sequence[Subject]) -> list[_Prepared]:
        """Read the signature of every subject, and choose its image size and batch sizes."""
        conditions = self.conditions
        prepared = []
        for subject in subjects:
            self.status(f"reading {subject.label}")
            with subject.make() as runtime:
                signature = runtime.describe(subject.path, conditions.settings())
            try:
                size = signature.size(subject.label, conditions.image_size, DEFAULT_SIZE)
            except UsageError as error:
                # Of several models only this one does not fit.
                raise InputError(str(error)) from error
            if None in signature.fixed_size and subject.form == "file" and conditions.image_size is None:
                self.notes.append(
                    f"{subject.label} leaves the image size open; measured at {format_size(size)} (--image-size)"
                )
            prepared.append(_Prepared(subject, signature, size, []))
        fixed = {batch for p in prepared for batch in p.signature.batches or ()}
        open_batch = any(p.signature.batches is None for p in prepared)
        asked = conditions.batches or tuple(sorted(fixed | (set(DEFAULT_BATCHES) if open_batch else set())))
        for p in prepared:
            p.batches = check_batches(p.subject.label, p.signature, asked)
            left_out = [batch for batch in asked if batch not in p.batches]
            if left_out:
                self.notes.append(
                    f"{p.subject.label} does not take batches of {', '.join(map(str, left_out))}; omitted there"
                )
        return prepared

    def measure(self, prepared: Sequence[_Prepared]) -> tuple[list[dict], bool]:
        """Measure every batch size; return plain values, and whether the run was interrupted.

        Raises:
            KeyboardInterrupt: the run was interrupted before anything was measured.
        """
        batches: list[dict] = []
        for batch in sorted({b for p in prepared for b in p.batches}):
            try:
                values, partial = self._measure_batch([p for p in prepared if batch in p.batches], batch)
            except KeyboardInterrupt:
                partial = True
            else:
                if values["rounds"]:
                    batches.append(values)
            if partial and not batches:
                raise KeyboardInterrupt
            if partial:
                return batches, True
        return batches, False

    def _report(self, step: str, done: int, total: int) -> None:
        if step == MEASURING:
            # A complete round is a result, which is printed and written after a signal too.
            unhurried_from_now()
        if self.progress:
            self.progress(step, done, total)

    def _measure_batch(self, group: Sequence[_Prepared], batch: int) -> tuple[dict, bool]:
        conditions = self.conditions
        with contextlib.ExitStack() as stack:
            calls: dict[str, Callable[[], object]] = {}
            rows: list[dict] = []
            outputs: dict[str, list[np.ndarray]] = {}
            for p in group:
                self.status(f"batch {batch}: loading {p.subject.label}")
                runtime = stack.enter_context(p.subject.make())
                runtime.load(p.subject.path, conditions.settings(batch, p.image_size))
                images = random_images(p.signature, batch, p.image_size, conditions.seed)
                result = runtime.run([images])
                _check_finite(p.subject.label, result)
                _compare(p, result, outputs)
                calls[p.subject.label] = timed(runtime, [images])
                rows.append({"label": p.subject.label, "kind": "model"})
            for label, p, products in self._reachable(group, batch):
                self.status(f"batch {batch}: {label}")
                call = self._load_gemm(stack, p, products, batch)
                if call is not None:
                    calls[label] = call
                    rows.append(
                        {"label": label, "kind": "gemm", "model": p.subject.model, "runtime": p.subject.runtime}
                    )
            self.status(f"batch {batch}")
            measured = interleave(
                calls,
                rounds=conditions.rounds,
                seconds=conditions.seconds,
                seed=conditions.seed,
                progress=self._report,
            )
        subjects = {p.subject.label: p for p in group}
        for row in rows:
            label = row["label"]
            row["stable"], row["samples"] = measured.stable[label], measured.samples[label]
            row["parts"] = measured.parts.get(label, {})
            if label in subjects and (work := _work(subjects[label], group, batch)):
                row["multiply_adds"], row["gemm_multiply_adds"] = work.multiply_adds, work.gemm_multiply_adds
        counts = {"rounds": measured.rounds, "warm_up_rounds": measured.warm_up_rounds, "seconds": measured.seconds}
        return {"batch": batch, **counts, "rows": rows}, measured.partial

    def _reachable(self, group: Sequence[_Prepared], batch: int) -> Iterator[tuple[str, _Prepared, gemm.Work]]:
        """Yield label, subject and work for each model and runtime whose matrix products are to be timed."""
        seen = set()
        for p in group:
            subject = p.subject
            if Path(subject.path).suffix.lower() != ".onnx" or subject.form in ("naive", "onnxslim"):
                continue
            try:
                work = gemm.work_of(subject.path, p.signature.shape_of(batch, p.image_size))
            except InputError as error:
                self.notes.append(f"no share of the GEMM rate for {subject.label}: {error}")
                continue
            p.work[batch] = work
            key = (subject.model, subject.runtime)
            if self.conditions.gemm and work.products and key not in seen:
                seen.add(key)
                at = "" if subject.runtime == default_runtime(subject.path) else f"@{subject.runtime}"
                yield f"GEMM of {subject.model}{at}", p, work

    def _load_gemm(self, stack: contextlib.ExitStack, p: _Prepared, work: gemm.Work, batch: int):
        """Load the matrix products of a subject; return a timed call, or None if that fails."""
        path = self.folder / "gemm.onnx"
        runtime: Runtime = p.subject.make()
        try:
            gemm.write_graph(work.products, path, self.conditions.seed)
            runtime.load(str(path), self.conditions.settings(batch, p.image_size))
            arrays = gemm.inputs_of(work.products, self.conditions.seed)
            runtime.run(arrays)
        except InputError as error:
            runtime.close()
            self.notes.append(f"no share of the GEMM rate for {p.subject.label}: {error}")
            return None
        finally:
            path.unlink(missing_ok=True)
        stack.enter_context(runtime)
        return timed(runtime, arrays)

    def preprocessing(self, prepared: Sequence[_Prepared]) -> list[dict]:
        """Time decoding, resizing, cropping and normalising one photograph in one thread, for each image size."""
        import time

        from PIL import Image

        from neonext_ms.images.images import load_images
        from neonext_ms.images.preprocessing import Preprocessing

        self.status("preprocessing")
        rows = []
        with temporary_folder() as folder:
            path = str(folder / "photo.jpg")
            small = np.random.default_rng(0).integers(0, 256, (12, 16, 3), np.uint8)
            Image.fromarray(small).resize(PHOTO[::-1], Image.Resampling.BICUBIC).save(path, quality=90)
            for size in sorted({p.image_size for p in prepared}):
                samples = []
                for _ in range(PHOTO_SAMPLES):
                    start = time.perf_counter()
                    load_images([path], Preprocessing(), size)
                    samples.append(time.perf_counter() - start)
                # The first ones import the decoder and fill its caches.
                rows.append({"image_size": list(size), "photo": list(PHOTO), "samples": samples[5:]})
        return rows


def _check_finite(label: str, outputs: Sequence[np.ndarray]) -> None:
    for output in outputs:
        if np.issubdtype(output.dtype, np.floating) and not np.isfinite(output).all():
            kind = "NaN" if np.isnan(output).any() else "infinite"
            raise InputError(
                f"{label}: it returns {kind} values for random images, so its time says nothing about a working "
                "model. Check its weights."
            )


def _compare(p: _Prepared, result: list[np.ndarray], outputs: dict[str, list[np.ndarray]]) -> None:
    """Record the deviation of a form from the first form of the same network."""
    first = outputs.setdefault(p.subject.model, result)
    if first is result or p.relative_l2 is not None or first[0].shape != result[0].shape:
        return
    expected = first[0].astype(np.float64)
    norm = np.linalg.norm(expected)
    p.relative_l2 = float(np.linalg.norm(result[0] - expected) / norm) if norm else None


def _work(p: _Prepared, group: Sequence[_Prepared], batch: int) -> gemm.Work | None:
    """Return the work of a subject's own graph, or of the first graph of the same model."""
    if p.subject.form in ("folded", "plain", "file"):
        return p.work.get(batch)
    return next((q.work[batch] for q in group if q.subject.model == p.subject.model and batch in q.work), None)
