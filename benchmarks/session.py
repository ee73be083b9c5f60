"""One run of the benchmark: every subject loaded, checked and timed in turns, batch by batch."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from neonext_ms.common.errors import InputError
from neonext_ms.common.files import sha256

from . import gemm, inputs, runtimes
from .measure import Measurement, interleave
from .runtimes import Runtime, Settings
from .subjects import Subject

DEFAULT_BATCHES = (1, 8)
PHOTO = (375, 500)
PHOTO_SAMPLES = 15


@dataclass(frozen=True)
class Plan:
    """How to measure.

    Attributes:
        batches: sizes, or None for 1, 8 and what the files fix.
        image_size: for what leaves it open.
        rounds: calls of every subject at every batch, at most.
        seconds: time limit of every batch, without warm-up.
        threads: of a model on the CPU; the process is bound to as many cores.
        device: number of the accelerator.
        gemm: also time each model's own matrix products.
        seed: of images and of the order in a round.
    """

    batches: tuple[int, ...] | None = None
    image_size: tuple[int, int] | None = None
    rounds: int = 100
    seconds: float = 60.0
    threads: int = 1
    device: int = 0
    gemm: bool = True
    seed: int = 0

    def settings(self, batch: int, image_size: tuple[int, int]) -> Settings:
        """For a runtime."""
        return Settings(batch, image_size, self.threads, self.device)


@dataclass
class _Prepared:
    """A subject and what its file says."""

    subject: Subject
    input: inputs.ImageInput
    image_size: tuple[int, int]
    batches: list[int]
    work: dict[int, gemm.Work] = field(default_factory=dict)
    relative_l2: float | None = None

    def describe(self) -> dict:
        """Plain values for the result."""
        subject = self.subject
        return {
            "label": subject.label,
            "model": subject.model,
            "form": subject.form,
            "runtime": subject.runtime,
            "file": Path(subject.path).name,
            "bytes": os.path.getsize(subject.path),
            "sha256": sha256(subject.path),
            "input": {"name": self.input.name, "dtype": self.input.dtype, "layout": self.input.layout},
            "image_size": list(self.image_size),
            "relative_l2": self.relative_l2,
            "notes": list(subject.notes),
        }


def run(
    subjects: Sequence[Subject],
    plan: Plan,
    folder: Path,
    watch: Callable[[str], None] = lambda step: None,
    progress: Callable[[str, int, int], None] | None = None,
) -> dict:
    """Measure, and return what a result has besides machine and versions: plain values.

    Args:
        subjects: what to measure.
        plan: how.
        folder: for the GEMM graphs.
        watch: called with the name of each step.
        progress: as for `measure.interleave`.

    Raises:
        InputError: a model that cannot be loaded, whose input does not fit, that fails or returns NaN.
        KeyboardInterrupt: before anything was measured; later, what was measured is returned, marked partial.
    """
    notes: list[str] = []
    used = {subject.runtime: subject.make for subject in subjects}
    with _bound_to(plan.threads) as cores:
        try:
            prepared = _prepare(subjects, plan, notes, watch)
            batches, partial = [], False
            for batch in sorted({b for p in prepared for b in p.batches}):
                try:
                    group = [p for p in prepared if batch in p.batches]
                    found = _measure_batch(group, batch, plan, folder, notes, watch, progress)
                except KeyboardInterrupt:
                    if not batches:
                        raise
                    partial = True
                    break
                if found["rounds"]:
                    batches.append(found)
                partial = found.pop("partial")
                if partial:
                    break
            if not batches:
                raise KeyboardInterrupt
            try:
                preprocessing = [] if partial else _preprocessing(prepared, watch)
            except KeyboardInterrupt:
                preprocessing, partial = [], True
        finally:
            for make in used.values():
                if isinstance(make, type):
                    make.shutdown()
    return {
        "partial": partial,
        "settings": {
            "rounds": plan.rounds,
            "seconds": plan.seconds,
            "threads": plan.threads,
            "cores": cores,
            "seed": plan.seed,
        },
        "subjects": [p.describe() for p in prepared],
        "batches": batches,
        "preprocessing": preprocessing,
        "notes": list(dict.fromkeys(notes)),
    }


@contextlib.contextmanager
def _bound_to(threads: int) -> Iterator[list[int]]:
    """Bind this process and what it starts to as many cores as there are threads, where the system can do that."""
    if not hasattr(os, "sched_setaffinity"):
        yield []
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[:threads])
    try:
        yield sorted(os.sched_getaffinity(0))
    finally:
        os.sched_setaffinity(0, before)


def _prepare(subjects, plan: Plan, notes: list[str], watch) -> list[_Prepared]:
    prepared = []
    for subject in subjects:
        watch(f"reading {subject.label}")
        size = plan.image_size or inputs.DEFAULT_SIZE
        found = subject.make().describe(subject.path, plan.settings(1, size))
        size = found.size(subject.label, plan.image_size)
        open_size = None in (found.shape[2:] if found.layout == "NCHW" else found.shape[1:3])
        if open_size and subject.form == "file" and plan.image_size is None:
            notes.append(f"{subject.label} leaves the image size open; measured at {size[0]}x{size[1]} (--image-size)")
        prepared.append(_Prepared(subject, found, size, []))
    fixed = {batch for p in prepared for batch in p.input.batches or ()}
    open_batch = any(p.input.batches is None for p in prepared)
    asked = plan.batches or tuple(sorted(fixed | (set(DEFAULT_BATCHES) if open_batch else set())))
    for p in prepared:
        p.batches = inputs.check_batches(p.subject.label, p.input, asked)
        left_out = [batch for batch in asked if batch not in p.batches]
        if left_out:
            notes.append(f"{p.subject.label} does not take batches of {', '.join(map(str, left_out))}: left out there")
    return prepared


def _measure_batch(group, batch: int, plan: Plan, folder: Path, notes: list[str], watch, progress) -> dict:
    """Samples of one batch size, as plain values."""
    with contextlib.ExitStack() as stack:
        calls, rows = {}, []
        outputs: dict[str, list[np.ndarray]] = {}
        for p in group:
            watch(f"batch {batch}: loading {p.subject.label}")
            runtime = stack.enter_context(p.subject.make())
            runtime.load(p.subject.path, plan.settings(batch, p.image_size))
            images = p.input.images(batch, p.image_size, plan.seed)
            result = runtime.run([images])
            runtimes.check_finite(p.subject.label, result)
            _compare(p, result, outputs)
            calls[p.subject.label] = runtime.timed
            rows.append({"label": p.subject.label, "kind": "model"})
        for label, p, work in _reachable(group, batch, plan, notes):
            watch(f"batch {batch}: {label}")
            call = _load_gemm(stack, p, work, batch, plan, folder, notes)
            if call is not None:
                calls[label] = call
                rows.append({"label": label, "kind": "gemm", "model": p.subject.model, "runtime": p.subject.runtime})
        watch(f"batch {batch}")
        found = interleave(calls, rounds=plan.rounds, seconds=plan.seconds, seed=plan.seed, progress=progress)
    for row in rows:
        row.update(_samples(found, row["label"]))
    for p in group:
        work = _work(p, group, batch)
        row = next(row for row in rows if row["label"] == p.subject.label)
        if work is not None:
            row["multiply_adds"] = work.multiply_adds
            row["gemm_multiply_adds"] = work.gemm_multiply_adds
    return {
        "batch": batch,
        "rounds": found.rounds,
        "partial": found.partial,
        "warm_up_rounds": found.warm_up_rounds,
        "seconds": found.seconds,
        "rows": rows,
    }


def _samples(found: Measurement, label: str) -> dict:
    return {"stable": found.stable[label], "samples": found.samples[label], "parts": found.parts.get(label, {})}


def _compare(p: _Prepared, result: list[np.ndarray], outputs: dict[str, list[np.ndarray]]) -> None:
    """Forms of one network have to compute the same; how far they are apart goes into the result."""
    first = outputs.setdefault(p.subject.model, result)
    if first is result or p.relative_l2 is not None or first[0].shape != result[0].shape:
        return
    expected = first[0].astype(np.float64)
    norm = np.linalg.norm(expected)
    p.relative_l2 = float(np.linalg.norm(result[0] - expected) / norm) if norm else None


def _work(p: _Prepared, group: Sequence[_Prepared], batch: int) -> gemm.Work | None:
    """The work of a subject: that of its own graph, or of the first graph of the same model."""
    if p.subject.form in ("folded", "plain", "file"):
        return p.work.get(batch)
    return next((q.work[batch] for q in group if q.subject.model == p.subject.model and batch in q.work), None)


def _reachable(group, batch: int, plan: Plan, notes: list[str]) -> Iterator[tuple[str, _Prepared, gemm.Work]]:
    """Label, subject and work for each model and runtime whose matrix products are to be timed."""
    seen = set()
    for p in group:
        subject = p.subject
        if Path(subject.path).suffix.lower() != ".onnx" or subject.form in ("naive", "onnxslim"):
            continue
        try:
            work = gemm.work_of(subject.path, _shape(p, batch))
        except InputError as error:
            notes.append(f"no share of the GEMM rate for {subject.label}: {error}")
            continue
        p.work[batch] = work
        key = (subject.model, subject.runtime)
        if plan.gemm and work.products and key not in seen:
            seen.add(key)
            default = runtimes.choose_default(subject.path)
            at = "" if subject.runtime == default else f"@{subject.runtime}"
            yield f"GEMM of {subject.model}{at}", p, work


def _shape(p: _Prepared, batch: int) -> tuple[int, ...]:
    if p.input.layout == "NHWC":
        return (batch, *p.image_size, p.input.shape[3] or 3)
    return (batch, p.input.shape[1] or 3, *p.image_size)


def _load_gemm(stack, p: _Prepared, work: gemm.Work, batch: int, plan: Plan, folder: Path, notes: list[str]):
    path = folder / "gemm.onnx"
    runtime: Runtime = p.subject.make()
    try:
        gemm.write_graph(work.products, path, plan.seed)
        runtime.load(str(path), plan.settings(batch, p.image_size))
        runtime.run(gemm.inputs_of(work.products, plan.seed))
    except InputError as error:
        runtime.close()
        notes.append(f"no share of the GEMM rate for {p.subject.label}: {error}")
        return None
    finally:
        path.unlink(missing_ok=True)
    stack.enter_context(runtime)
    return runtime.timed


def _preprocessing(prepared: Sequence[_Prepared], watch) -> list[dict]:
    """Seconds to decode, resize, crop and normalise one photograph, in one thread, for each image size."""
    import tempfile
    import time

    from PIL import Image

    from neonext_ms.images.images import load_images
    from neonext_ms.images.preprocessing import Preprocessing

    watch("preprocessing")
    found = []
    with tempfile.TemporaryDirectory(prefix="neonext-") as folder:
        path = str(Path(folder) / "photo.jpg")
        small = np.random.default_rng(0).integers(0, 256, (12, 16, 3), np.uint8)
        Image.fromarray(small).resize(PHOTO[::-1], Image.Resampling.BICUBIC).save(path, quality=90)
        for size in sorted({p.image_size for p in prepared}):
            samples = []
            for _ in range(PHOTO_SAMPLES):
                start = time.perf_counter()
                load_images([path], Preprocessing(), size)
                samples.append(time.perf_counter() - start)
            # The first ones import the decoder and fill its caches.
            found.append({"image_size": list(size), "photo": list(PHOTO), "samples": samples[5:]})
    return found
