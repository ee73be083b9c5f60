"""The run: epochs of steps, validation, checkpoints, and every way in which it can end."""

from __future__ import annotations

import contextlib
import math
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import mindspore as ms
import numpy as np

from neonext_ms.checkpoint.checkpoint import save_checkpoint
from neonext_ms.checkpoint.infer_architecture import infer_architecture
from neonext_ms.common.errors import InputError, UsageError, listed
from neonext_ms.common.files import atomic, exclusive, explained
from neonext_ms.common.signals import in_main_thread
from neonext_ms.models.neonext import NeoNeXt

from . import distributed
from .config.schema import Config, config_yaml
from .console import ProgressLine
from .data.broken import BrokenImages
from .data.datasets import open_dataset
from .data.loader import TrainBatch, TrainLoader, validation_batches
from .optimizers import full_rate
from .plan import Plan, check_network, make_plan
from .precision import check_precision
from .run_state import Checkpoints, Progress, load_state, save_state
from .runlog import RunLog, describe_run, write_predictions, write_run
from .schedule import learning_rate
from .step import MODEL, StepResult, TrainStep
from .validation import Evaluation, Evaluator

CHECKPOINTS, CONFIG, FAILED = "checkpoints", "config.yaml", "failed"
# What may differ when a run goes on, and still give the same weights.
_FREE = ("run", "data.path", "data.workers", "data.processes", "data.cache", "data.val_batch_size", "data.broken_limit")


class StoppedError(Exception):
    """The run was told to end; its state is saved."""


class NotFiniteError(InputError):
    """The loss or a gradient became NaN or infinite; the state before it is saved."""


class Trainer:
    """A training run.

    Args:
        config: everything about it; `run.output` must be set.
        resume: "auto" to go on from the newest checkpoint in `run.output` if there is one, or the path of one.
        command: what was typed, for `run.json`.
        note: told what a person should hear, one line at a time.
        report: told the result of every epoch.
        shard: which part of the training images this process takes, if not that of its card.

    Raises:
        InputError, UsageError: something is not as it has to be; nothing was written then.
    """

    def __init__(
        self,
        config: Config,
        resume: str | None = None,
        command: Sequence[str] = (),
        note: Callable[[str], None] = lambda text: None,
        report: Callable[[str], None] = lambda text: None,
        shard: tuple[int, int] | None = None,
    ):
        if config.run.output is None:
            raise UsageError("run.output is not set; name the folder of the run")
        self.config = config
        self.output = Path(config.run.output)
        self.command = list(command)
        self.cards = distributed.start(config.run.device)
        self.note = note if self.cards.first else lambda text: None
        self.report = report if self.cards.first else lambda text: None
        check_precision(config.precision, ms.get_context("device_target"))
        self.checkpoints = Checkpoints(self.output / CHECKPOINTS, config.run.keep)
        resumed = self._find_state(resume)
        self.train_images, self.val_images = open_dataset(config.data)
        if len(self.train_images.classes) != len(self.val_images.classes):
            raise InputError("training and validation images have different classes")
        self.plan: Plan = make_plan(config, self.train_images, self.note)
        model = NeoNeXt.from_architecture(self.plan.architecture, self.cards.broadcast(self.plan.weights))
        self.step = TrainStep(
            model,
            config.optimizer,
            config.ema.decay,
            config.precision,
            config.model.freeze,
            self.cards.world,
            config.run.jit,
            config.run.sync_batch_norm,
        )
        self.loader = TrainLoader(
            self.train_images,
            config,
            self.plan.size,
            self.step.drop_path_rates,
            shard or (self.cards.rank, self.cards.world),
        )
        self.evaluator = Evaluator(replace(self.plan.architecture, drop_path=0.0), self.cards, config.run.jit)
        self.progress = Progress(seed=config.run.seed, world=self.cards.world, config=config.to_dict())
        if resumed:
            self._continue(*resumed)
        self.broken = BrokenImages(config.data.broken_limit)
        self.global_batch = config.data.batch_size * self.cards.world * config.optimizer.accumulate
        self.rate = full_rate(config.optimizer, self.global_batch)
        self._stop_signal: int | None = None
        self._saved: Progress | None = None

    def run(self) -> dict:
        """Train to the end.

        Returns:
            What came out, plain values: `steps`, `epochs`, `best`, `last`, `files`, `seconds`.

        Raises:
            NotFiniteError: NaN or infinity.
            InputError: too many broken images, a disk that is full, ...; the message says what to do.
            StoppedError: a signal or `run.stop_after` ended the run; its state is saved.
        """
        with self._alone(), self._signals():
            self._describe()
            self.log = RunLog(self.output, self.progress.step) if self.cards.first else None
            return self._train()

    def _train(self) -> dict:
        start = time.monotonic()
        schedule, per_epoch = self.config.schedule, self.loader.updates_per_epoch
        self._announce()
        last: dict[str, Evaluation] = {}
        speed: dict[str, float] = {}
        line = ProgressLine(self.cards.first, schedule.epochs, per_epoch, self.global_batch)
        while self.progress.epoch < schedule.epochs:
            epoch_start = time.monotonic()
            speed = self._speed(self._epoch(line))
            line.clear()
            self.cards.check_same(self.step.weights(), "weights")
            epoch = self.progress.epoch
            if (epoch + 1) % self.config.run.validate_every == 0 or epoch + 1 == schedule.epochs:
                last = self._validate(epoch, time.monotonic() - epoch_start, speed)
            self.progress = replace(self.progress, epoch=epoch + 1, done=0)
            self._save()
        if not last:
            last = self._evaluate()
        return {
            "output": str(self.output),
            "steps": self.progress.step,
            "updates": self.step.updates,
            "epochs": schedule.epochs,
            "global_batch": self.global_batch,
            "best": self.progress.best,
            "last": {name: result.figures() for name, result in last.items()},
            "files": self._write_final(),
            "skipped_images": len(self.broken.messages),
            **speed,
            "seconds": round(time.monotonic() - start, 1),
        }

    def _epoch(self, line: ProgressLine) -> float | None:
        """Train for what is left of the epoch; seconds that a step took, or None if there was only the first one.

        The first step of a process is not counted: it compiles.
        """
        config, per_epoch = self.config, self.loader.updates_per_epoch
        line.start()
        images = hits = 0
        losses: list[float] = []
        since, counted_from, counted = time.monotonic(), None, 0
        for group in self._groups():
            self._note_broken([text for batch in group for text in batch.broken])
            rate = learning_rate(config.schedule, self.rate, self.progress.step, per_epoch)
            result = self.step([batch.inputs for batch in group], rate)
            if not result.applied:
                self._skipped(result, group)
            self.progress = replace(self.progress, step=self.progress.step + 1, done=self.progress.done + 1)
            images, hits = images + self.global_batch, hits + result.hits
            losses.append(result.loss)
            line.show(self.progress, result, hits / images, self.step.scale)
            step = self.progress.step
            if counted_from is None:
                counted_from = time.monotonic()
            else:
                counted += 1
            if self.log and (step % config.run.log_every == 0 or self.progress.done == per_epoch):
                seconds = time.monotonic() - since
                self.log.step(
                    {
                        "step": step,
                        "epoch": self.progress.epoch,
                        "loss": _finite(np.mean(losses)),
                        "accuracy": hits / images,
                        "rate": rate,
                        "norm": _finite(result.norm),
                        "scale": result.scale,
                        "skipped": step - self.step.updates,
                        "images_per_second": round(images / seconds, 1),
                    }
                )
                images, hits, losses, since = 0, 0, [], time.monotonic()
            if self.cards.any(self._stop_signal is not None) or step == config.run.stop_after:
                self._stop(line)
            if config.run.checkpoint_every and step % config.run.checkpoint_every == 0:
                self._save()
        return (time.monotonic() - counted_from) / counted if counted else None

    def _speed(self, seconds: float | None) -> dict[str, float]:
        """Images a second, and with several cards the share of a step that its messages take when sent alone."""
        if self.cards.world == 1:
            return {"images_per_second": round(self.global_batch / seconds, 1)} if seconds else {}
        exchange = self.cards.exchange_seconds(self.step.messages)
        if not seconds:
            return {}
        speed = round(self.global_batch / seconds, 1)
        return {"images_per_second": speed, "communication": round(min(1.0, exchange / seconds), 4)}

    def _groups(self) -> Iterator[list[TrainBatch]]:
        """The batches that are left of this epoch; workers that a signal ended do not look like a defect."""
        groups = self.loader.epoch(self.progress.epoch, self.progress.done)
        while True:
            try:
                group = next(groups, None)
            except InputError:
                raise
            except Exception:
                if self._stop_signal is None:
                    raise
                self._stop(None)
            if group is None:
                return
            yield group

    def _stop(self, line: ProgressLine | None) -> None:
        if line:
            line.clear()
        path = self._save()
        why = f"run.stop_after={self.config.run.stop_after}"
        if self._stop_signal is not None:
            why = signal.Signals(self._stop_signal).name
        raise StoppedError(f"{why} after step {self.progress.step}: saved {path}; go on with --resume auto")

    def _skipped(self, result: StepResult, group: Sequence[TrainBatch]) -> None:
        """Say that a step overflowed, or end the run where no smaller loss scale can help."""
        step = self.progress.step + 1
        if self.step.dynamic_scale and math.isfinite(result.loss) and result.scale > self.step.scale:
            text = f"step {step} overflowed and is skipped; loss scale {result.scale:g} -> {self.step.scale:g}"
            self.note(text)
            if self.log:
                self.log.event("overflow", {"step": step, "scale": self.step.scale})
            return
        files = [self.train_images.name(i) for batch in group for i in batch.indices]
        what = "the loss" if not math.isfinite(result.loss) else "a gradient"
        saved = ""
        if self.cards.first:
            folder = self.output / FAILED
            state = folder / f"step-{step:09d}.safetensors"
            save_state(state, self.step.state(), self.progress, self.plan.metadata)
            names = state.with_suffix(".txt")
            with atomic(names) as staged:
                staged.write_text("".join(f"{name}\n" for name in files), encoding="utf-8", errors="surrogateescape")
            self.log.event("failed", {"step": step, "what": what, "state": str(state)})
            saved = (
                f"the state before it is {state}, the files of its batch are listed in {names}:\n{listed(files, 5)}\n"
            )
        raise NotFiniteError(
            f"step {step} (epoch {self.progress.epoch}): {what} is not a finite number; {saved}lower optimizer.lr, set "
            "optimizer.clip_norm, or look at these images"
        )

    def _note_broken(self, messages: Sequence[str]) -> None:
        for text in self.broken.add(messages):
            # On any card: each has seen images of its own.
            print(f"note: left out: {text}", file=sys.stderr)
            if self.log:
                self.log.event("broken", {"message": text})

    def _evaluate(self) -> dict[str, Evaluation]:
        results = {}
        for name in ("model", "ema") if self.config.ema.decay else ("model",):
            results[name] = self.evaluator(
                self.step.weights(ema=name == "ema"), self._validation(), len(self.val_images)
            )
        return results

    def _validation(self):
        batches = validation_batches(
            self.val_images, self.config, self.plan.preprocessing, self.plan.size, (self.cards.rank, self.cards.world)
        )
        for batch in batches:
            self._note_broken(batch[3])
            yield batch

    def _validate(self, epoch: int, seconds: float, speed: dict[str, float]) -> dict[str, Evaluation]:
        results = self._evaluate()
        row = {"step": self.progress.step, "epoch": epoch, "seconds": round(seconds, 2), **speed}
        for name, result in results.items():
            prefix = "" if name == "model" else f"{name}_"
            row |= {f"{prefix}{key}": round(getattr(result, key), 6) for key in ("loss", "top1", "top5")}
        if self.log:
            self.log.epoch(row)
        text = ", ".join(f"{name} top-1 {100 * r.top1:.2f} % (loss {r.loss:.4f})" for name, r in results.items())
        if speed:
            text += f"  {speed['images_per_second']:g} images/s"
        if "communication" in speed:
            text += f", {100 * speed['communication']:.1f} % of it communication"
        self.report(f"epoch {epoch + 1}/{self.config.schedule.epochs}  {text}  {seconds:.1f} s")
        for name, result in results.items():
            if result.top1 > self.progress.best.get("top1", -1):
                best = {"epoch": epoch, "step": self.progress.step, "weights": name, "top1": result.top1}
                self.progress = replace(self.progress, best=best)
                self._write_weights("best", name)
                if self.cards.first:
                    write_predictions(self.output, self.val_images, result.predicted)
        return results

    def _write_weights(self, stem: str, name: str) -> Path:
        path = self.output / f"{stem}.safetensors"
        if self.cards.first:
            save_checkpoint(path, self.step.weights(ema=name == "ema"), self.plan.metadata)
        return path

    def _write_final(self) -> dict[str, str]:
        files = {"model": str(self._write_weights("final", "model"))}
        if self.config.ema.decay:
            files["ema"] = str(self._write_weights("final_ema", "ema"))
        return {**files, "best": str(self.output / "best.safetensors")}

    def _save(self) -> Path:
        path = self.checkpoints.folder / f"step-{self.progress.step:09d}.safetensors"
        if self.cards.first and self._saved != self.progress:
            path = self.checkpoints.save(self.step.state(), self.progress, self.plan.metadata)
        self._saved = self.progress
        self.cards.wait()
        return path

    def _find_state(self, resume: str | None):
        """Path, arrays and progress to go on from, or None for a new run."""
        if resume is None:
            if self.checkpoints.paths():
                raise UsageError(
                    f"{self.output}: holds a run already; go on with --resume auto, or choose another folder with "
                    "run.output=FOLDER"
                )
            return None
        if resume == "auto":
            found = self.checkpoints.newest(self.note)
            if found is None:
                self.note(f"{self.output}: no checkpoint yet; starting from the beginning")
            return found
        path = Path(resume)
        if path.is_dir():
            folder = path / CHECKPOINTS if (path / CHECKPOINTS).is_dir() else path
            found = Checkpoints(folder, 1).newest(self.note)
            if found is None:
                raise InputError(f"{path}: no checkpoints there; name a run's folder or a file step-*.safetensors")
            return found
        return path, *load_state(path)

    def _continue(self, path: Path, arrays, progress: Progress) -> None:
        held = {name.partition(".")[2]: a.shape for name, a in arrays.items() if name.partition(".")[0] == MODEL}
        network = infer_architecture(held, str(path))
        check_network(network, self.plan.architecture, str(path), "resume with the configuration that it was made with")
        self.step.load_state(arrays, str(path))
        if changes := _changes(progress.config, self.progress.config):
            self.note("the configuration changed, so the run goes on but not as it would have:\n" + listed(changes))
        if progress.world != self.cards.world:
            self.note(f"the run had {progress.world} cards and has {self.cards.world} now; it cannot go on exactly")
        self.progress = replace(progress, seed=self.progress.seed, world=self.cards.world, config=self.progress.config)
        self.note(f"resumed from {path}: epoch {progress.epoch}, step {progress.step}")

    def _announce(self) -> None:
        optimizer, cards = self.config.optimizer, self.cards.world
        self.note(
            f"{self.plan.architecture.parameters():,} parameters, input 3x{self.plan.size[0]}x{self.plan.size[1]}, "
            f"{len(self.train_images):,} training and {len(self.val_images):,} validation images in "
            f"{len(self.train_images.classes):,} classes, {self.loader.updates_per_epoch:,} steps an epoch"
        )
        self.note(
            f"learning rate {self.rate:.4g} for {self.global_batch} images a step ({self.config.data.batch_size} x "
            f"{cards} cards x {optimizer.accumulate}), from {optimizer.lr:.4g} for {optimizer.reference_batch} by the "
            f"rule {optimizer.lr_rule!r}"
        )

    def _describe(self) -> None:
        if not self.cards.first:
            return
        with explained(self.output / CONFIG), atomic(self.output / CONFIG) as staged:
            staged.write_text(config_yaml(self.config), encoding="utf-8")
        write_run(self.output, {**describe_run(self.command), "cards": self.cards.world, "step": self.progress.step})

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Hold the run's folder, so that no second run writes into it."""
        if not self.cards.first:
            yield
            return
        with explained(self.output):
            self.output.mkdir(parents=True, exist_ok=True)
        with exclusive(self.output, wait=False) as held:
            if not held:
                raise InputError(
                    f"{self.output}: another run is writing there; wait for it, or choose another run.output"
                )
            yield

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Let SIGTERM and Ctrl-C end the run after the step that is being computed; a second one ends it at once."""

        def stop(number, frame):
            if self._stop_signal is not None:
                raise KeyboardInterrupt
            self._stop_signal = number

        before = {}
        for number in (signal.SIGTERM, signal.SIGINT) if in_main_thread() else ():
            before[number] = signal.signal(number, stop)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _changes(before: dict, after: dict) -> list[str]:
    """Keys whose values differ, with both values, but for those that change nothing."""
    found = []
    for part, values in after.items():
        for leaf, value in values.items():
            key = f"{part}.{leaf}"
            old = before.get(part, {}).get(leaf)
            if old != value and key not in _FREE and (part not in _FREE or leaf == "seed"):
                found.append(f"{key}: {old} -> {value}")
    return found
