"""A training run: epochs of steps, validation, checkpoints, and all the ways in which a run can end."""

from __future__ import annotations

import contextlib
import math
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import mindspore as ms
import numpy as np

from neonext_ms.checkpoint.checkpoint import save_checkpoint
from neonext_ms.checkpoint.infer_architecture import infer_architecture
from neonext_ms.checkpoint.metadata import SCALES
from neonext_ms.common.errors import InputError, NeoNextError, UsageError
from neonext_ms.common.files import atomic
from neonext_ms.common.processors import thread_count
from neonext_ms.common.signals import killed_child
from neonext_ms.common.text import format_size, list_names, plural
from neonext_ms.images.folder import CLASS_RULES
from neonext_ms.models.neonext import NeoNeXt

from . import distributed
from .config.changes import changes
from .config.load import config_yaml
from .config.schema import Config
from .console import ProgressLine, StepWindow, epoch_text
from .data.datasets import open_dataset
from .data.image_sets import BrokenImages, check_data, describe_data
from .data.loader import ReadingStoppedError, TrainBatch, TrainLoader, validation_batches
from .fine_tuning import ScalesOf, check_quantize, find_scales
from .optimizers import full_rate
from .plan import check_network, make_plan
from .precision import check_precision
from .reader_watch import killed_text
from .result import StepResult
from .run_state import CHECKPOINTS, Checkpoints, Progress, find_state, locked
from .runlog import RunLog, describe_run, write_predictions, write_run
from .schedule import activation_share, learning_rate
from .step import MODEL, TrainStep
from .stop_signals import StopSignals
from .validation import Evaluation, Evaluator


@dataclass(frozen=True)
class _Launched:
    """A step that has started.

    Attributes:
        before: position of the run before it.
        result: its results.
        rate: its learning rate.
        images: indices of its images.
    """

    before: Progress
    result: StepResult
    rate: float
    images: Sequence[int]


class StoppedError(Exception):
    """A signal or `run.stop_after` ended the run. Its state is saved."""


class NotFiniteError(InputError):
    """A loss or gradient that is NaN or infinite. The state before it is saved."""


class Trainer:
    """A training run.

    Args:
        config: configuration; `run.output` must be set.
        resume: path of a checkpoint or run, or "auto" for the newest checkpoint in `run.output` if there is one.
        command: command line, for `run.json`.
        note: called with messages to show to the user.
        report: called with the results of every epoch as text.
        shard: rank and number of parts of the training images, if not those of the card; for tests.
        scales_of: function that makes the scales of a network to train in 8 bit, called by the first card of a new run.

    Raises:
        InputError, UsageError: the configuration, the data or the checkpoint is invalid. Nothing is written then.
    """

    def __init__(
        self,
        config: Config,
        resume: str | None = None,
        command: Sequence[str] = (),
        note: Callable[[str], None] = lambda text: None,
        report: Callable[[str], None] = lambda text: None,
        shard: tuple[int, int] | None = None,
        scales_of: ScalesOf | None = None,
    ):
        if config.run.output is None:
            raise UsageError("run.output is not set. Name the folder of the run.")
        self.config = config
        self.output = Path(config.run.output)
        self.command = list(command)
        self.cards = distributed.start(config.run.device)
        self.note = note if self.cards.first else lambda text: None
        self.report = report if self.cards.first else lambda text: None
        check_precision(config.precision, ms.get_context("device_target"))
        self.checkpoints = Checkpoints(self.output / CHECKPOINTS, config.run.keep)
        resumed = find_state(self.output, self.checkpoints, resume, self.note)
        check_quantize(config, resumed is not None)
        self.train_images, self.val_images = open_dataset(config.data)
        if self.train_images.classes != self.val_images.classes:
            raise InputError("training and validation images have different classes")
        recorded = resumed[2].data if resumed else {}
        if resumed:
            check_data(recorded, describe_data(self.train_images, self.val_images), str(resumed[0]))
        self.plan = make_plan(config, self.train_images, self.val_images, recorded.get("classes"), self.note)
        scales = (
            find_scales(config.quantize, self.plan, self.train_images, resumed, scales_of, self.cards, self.note)
            if config.quantize.enabled
            else None
        )
        if scales:
            self.plan.metadata[SCALES] = scales.to_dict()
        self._scales = scales
        # All cards start from the weights of the first one; the step keeps them equal from then on.
        self.step = self._make_step(self.cards.broadcast(self.plan.weights), self.plan.blend_from)
        self.loader = TrainLoader(
            self.train_images,
            config,
            self.plan.size,
            self.step.drop_path_rates,
            shard or (self.cards.rank, self.cards.world),
            self._stops_reading,
        )
        self.log: RunLog | None = None
        self.evaluator = Evaluator(replace(self.plan.architecture, drop_path=0.0), self.cards, config.run.jit, scales)
        data = describe_data(self.train_images, self.val_images)
        self.progress = Progress(seed=config.run.seed, world=self.cards.world, config=config.to_dict(), data=data)
        if scales:
            self.progress = replace(self.progress, scales=scales.to_dict())
        if resumed:
            self._continue(*resumed)
        self.broken = BrokenImages(config.data.broken_limit)
        self.global_batch = config.data.batch_size * self.cards.world * config.optimizer.accumulate
        self.rate = full_rate(config.optimizer, self.global_batch)
        self._signals = StopSignals()
        self._saved: Progress | None = None
        self._launched: list[_Launched] = []
        self._window = StepWindow()

    def run(self) -> dict:
        """Train to the end.

        Returns:
            Results as plain values, such as `steps`, `best`, `last`, `files` and `seconds`.

        Raises:
            NotFiniteError: a loss or gradient is NaN or infinite.
            InputError: too many images are broken, the disk is full, ...; the message says what to do.
            StoppedError: a signal or `run.stop_after` ended the run. Its state is saved.
        """
        with locked(self.output) if self.cards.first else contextlib.nullcontext(), self._signals:
            if self.cards.first:
                with atomic(self.output / "config.yaml") as staged:
                    staged.write_text(config_yaml(self.config), encoding="utf-8")
                start = {**describe_run(self.command), "cards": self.cards.world, "step": self.progress.step}
                write_run(self.output, start)
                self.log = RunLog(self.output, self.progress.step)
            try:
                return self._train()
            except ReadingStoppedError:
                self._stop(None)
                raise
            except (NeoNextError, OSError, MemoryError):
                raise
            except Exception as error:
                # MindSpore reports it with errors of many kinds.
                if killed := self._signals.killed or killed_child():
                    raise InputError(killed_text(killed)) from error
                raise

    def _make_step(self, weights: Mapping[str, np.ndarray], blend_from: str | None) -> TrainStep:
        config = self.config
        return TrainStep(
            NeoNeXt.from_architecture(self.plan.architecture, weights),
            config.optimizer,
            config.ema.decay,
            config.precision,
            config.model.freeze,
            self.cards.world,
            config.run.jit,
            config.run.sync_batch_norm,
            blend_from,
            self._scales,
            config.parallel.bucket_mb,
            stop_on_failure=True,
            recompute=config.run.recompute,
        )

    def _end_blend(self) -> None:
        """Rebuild the step without the activation that the network has changed from, which it would still compute."""
        share = activation_share(self.config.schedule, self.progress.step, self.loader.updates_per_epoch)
        if self.step.share is not None and share == 1:
            state = self.step.state()
            self.step = self._make_step(self.step.weights(), None)
            self.step.load_state(state)

    def _stops_reading(self) -> bool:
        """Return whether to give up waiting for images; several cards can only stop together, after a step."""
        return self._signals.number is not None and self.cards.world == 1

    def _train(self) -> dict:
        start = time.monotonic()
        schedule, per_epoch = self.config.schedule, self.loader.updates_per_epoch
        self._announce()
        last: dict[str, Evaluation] = {}
        speed: dict[str, float] = {}
        line = ProgressLine(self.cards.first, schedule.epochs, per_epoch, self.global_batch)
        while self.progress.epoch < schedule.epochs:
            epoch_start = time.monotonic()
            self._end_blend()
            speed = self._speed(self._epoch(line))
            line.clear()
            # Cards that drifted apart would go on silently, each with its own network.
            self.cards.check_same(self.step.weights(), "weights")
            epoch = self.progress.epoch
            if (epoch + 1) % self.config.run.validate_every == 0 or epoch + 1 == schedule.epochs:
                last = self._validate(epoch, time.monotonic() - epoch_start, speed)
            self.progress = replace(self.progress, epoch=epoch + 1, done=0)
            self._save()
        if not last:
            # A run that is resumed after its last epoch trains nothing, but still has results.
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
        """Train for the rest of the epoch; return the seconds per step, or None after a single step.

        The first step is not counted, because it may compile.
        """
        line.start()
        counted_from: float | None = None
        counted = 0
        self._window = StepWindow()
        for group in self._groups():
            self._launch(group)
            first = counted_from is None
            if first or self._reads():
                self._read_results()
                self._signals.step_taken()
            line.update(self.progress, self._window)
            if first:
                counted_from = time.monotonic()
            else:
                counted += 1
            if self._logs():
                self._log_steps()
            self._stop_or_save(line)
        return (time.monotonic() - counted_from) / counted if counted_from is not None and counted else None

    def _launch(self, group: Sequence[TrainBatch]) -> None:
        """Start a step. Its results are read later, so that this process can prepare the next one meanwhile."""
        self._report_broken([text for batch in group for text in batch.broken])
        schedule, per_epoch = self.config.schedule, self.loader.updates_per_epoch
        rate = learning_rate(schedule, self.rate, self.progress.step, per_epoch)
        share = activation_share(schedule, self.progress.step, per_epoch)
        result = self.step([batch.inputs for batch in group], rate, share)
        images = [index for batch in group for index in batch.indices]
        self._launched.append(_Launched(self.progress, result, rate, images))
        # A skipped step counts, so that the schedule and the position in the data do not depend on overflows.
        self.progress = replace(self.progress, step=self.progress.step + 1, done=self.progress.done + 1)

    def _reads(self) -> bool:
        """Return whether the results of the steps so far are needed now.

        Cards exchange nothing but gradients between two such steps, so they must all agree on them.
        """
        return self._logs() or self._saves() or self._ends()

    def _saves(self) -> bool:
        every = self.config.run.checkpoint_every
        return every > 0 and self.progress.step % every == 0

    def _logs(self) -> bool:
        end = self.progress.done == self.loader.updates_per_epoch
        return end or self.progress.step % self.config.run.log_every == 0

    def _ends(self) -> bool:
        """Return whether this process knows that the run ends after this step."""
        signalled = self._signals.number is not None and self.cards.world == 1
        return signalled or self.progress.step == self.config.run.stop_after

    def _read_results(self) -> None:
        """Wait for all steps that have started, and report overflows.

        Raises:
            NotFiniteError: a loss or gradient is NaN or infinite.
        """
        launched, self._launched = self._launched, []
        for step in launched:
            if not step.result.applied:
                self._handle_overflow(step)
            self._window.add(step.result, step.rate, self.global_batch)

    def _log_steps(self) -> None:
        """Write a line of the log for the steps since the last one."""
        window, self._window = self._window, StepWindow()
        if self.log and window.last is not None:
            self.log.step(window.row(self.progress, self.step.updates))

    def _stop_or_save(self, line: ProgressLine) -> None:
        """Save if it is time to, and end the run if it is to end after this step."""
        if not self._reads():
            return
        # All cards stop after the same step, whichever of them got the signal; else the others would wait forever.
        if self.cards.any(self._signals.number is not None) or self._ends():
            self._stop(line)
        if self._saves():
            self._save()

    def _speed(self, seconds: float | None) -> dict[str, float]:
        """Return images per second, and with several cards the share of a step that its messages take alone."""
        # Before the check of `seconds`: all cards have to take part.
        exchange = self.cards.exchange_seconds(self.step.messages) if self.cards.world > 1 else None
        if not seconds:
            return {}
        speed = {"images_per_second": round(self.global_batch / seconds, 1)}
        return speed if exchange is None else {**speed, "communication": round(min(1.0, exchange / seconds), 4)}

    def _groups(self) -> Iterator[list[TrainBatch]]:
        """Yield the remaining batches of this epoch.

        A signal to the process group also ends the workers that read images. MindSpore reports them as failed, which is
        the end of the run and not a defect.
        """
        groups = self.loader.epoch(self.progress.epoch, self.progress.done)
        while True:
            try:
                group = next(groups, None)
            except InputError:
                raise
            except Exception:
                self._signals.killed = self._signals.killed or killed_child()
                if self._signals.number is None and self._signals.killed is None:
                    raise
                self._stop(None)
            if group is None:
                return
            yield group

    def _stop(self, line: ProgressLine | None) -> None:
        if line:
            line.clear()
        path = self._save()
        reason = f"run.stop_after={self.config.run.stop_after}"
        if self._signals.killed is not None:
            saved = f"The state after step {self.progress.step} is saved in {path}. "
            raise InputError(killed_text(self._signals.killed, saved))
        if self._signals.number is not None:
            reason = signal.Signals(self._signals.number).name
        raise StoppedError(f"{reason} after step {self.progress.step}: saved {path}. Resume with --resume auto.")

    def _handle_overflow(self, launched: _Launched) -> None:
        """Report a step that overflowed, or end the run if a smaller loss scale cannot help.

        It cannot if the loss itself is not finite, or if the scale is fixed or already at its minimum. The steps that
        started after such a one have changed nothing (`stop_on_failure`).
        """
        result, step = launched.result, launched.before.step + 1
        if math.isfinite(result.loss) and result.scale > result.next_scale:
            self.note(f"step {step} overflowed and is skipped; loss scale {result.scale:g} -> {result.next_scale:g}")
            if self.log:
                self.log.event("overflow", {"step": step, "scale": result.next_scale})
            return
        self.progress = launched.before
        what = "the loss" if not math.isfinite(result.loss) else "a gradient"
        saved = ""
        if self.log:
            # The skipped step has changed nothing, so this is the state before it.
            images = [self.train_images.name(i) for i in launched.images]
            saved = self.log.failure(step, what, self.step.state(), self.progress, self.plan.metadata, images)
        raise NotFiniteError(
            f"step {step} (epoch {self.progress.epoch}): {what} is not a finite number. {saved}Lower optimizer.lr, set "
            "optimizer.clip_norm, or check these images."
        )

    def _report_broken(self, messages: Sequence[str]) -> None:
        for text in self.broken.add(messages):
            # Printed by every card, since each reads other images.
            print(f"note: skipped: {text}", file=sys.stderr)
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
            self.val_images, self.config, self.plan.preprocessing, self.plan.size, (self.cards.rank, self.cards.world),
            self._stops_reading,
        )  # fmt: skip
        for batch in batches:
            # A run that is resumed at the end of an epoch begins with its validation.
            if self._stops_reading():
                self._stop(None)
            self._report_broken(batch[3])
            yield batch

    def _validate(self, epoch: int, seconds: float, speed: dict[str, float]) -> dict[str, Evaluation]:
        results = self._evaluate()
        row = {"step": self.progress.step, "epoch": epoch, "seconds": round(seconds, 2), **speed}
        for name, result in results.items():
            prefix = "" if name == "model" else f"{name}_"
            row |= {f"{prefix}{key}": round(getattr(result, key), 6) for key in ("loss", "top1", "top5")}
        if self.log:
            self.log.epoch(row)
        self.report(epoch_text(epoch, self.config.schedule.epochs, results, speed, seconds))
        for name, result in results.items():
            if result.top1 > self.progress.best.get("top1", -1):
                best = {"epoch": epoch, "step": self.progress.step, "weights": name, "top1": result.top1}
                self.progress = replace(self.progress, best=best)
                self._write_weights("best", name)
                if self.cards.first:
                    write_predictions(self.output, self.val_images, result.predicted.tolist())
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
        self._read_results()
        if self.cards.first and self._saved != self.progress:
            self.checkpoints.save(self.step.state(), self.progress, self.plan.metadata)
        self._saved = self.progress
        # No card may end, or report the file, before it is complete.
        self.cards.wait()
        return self.checkpoints.path(self.progress.step)

    def _continue(self, path: Path, arrays, progress: Progress) -> None:
        shapes = {name.partition(".")[2]: a.shape for name, a in arrays.items() if name.partition(".")[0] == MODEL}
        network = infer_architecture(shapes, str(path))
        check_network(network, self.plan.architecture, str(path), "Resume with the configuration of that run.")
        if progress.scales and not self.config.quantize.enabled:
            raise InputError(f"{path}: a run with quantize.enabled. Set it, or start a new run with --init.")
        self.step.load_state(arrays, str(path))
        if changed := changes(progress.config, self.progress.config):
            self.note(f"the configuration changed, so the resumed run will differ:\n{list_names(changed)}")
        if progress.world != self.cards.world:
            self.note(
                f"the run had {plural(progress.world, 'card')} and now has {self.cards.world}, so the resumed run will "
                "differ"
            )
        now = self.progress
        self.progress = replace(progress, seed=now.seed, world=now.world, config=now.config, data=now.data)
        self.note(f"resumed from {path}: epoch {progress.epoch}, step {progress.step}")

    def _announce(self) -> None:
        optimizer, cards, network = self.config.optimizer, self.cards.world, self.plan.architecture
        self.note(
            f"{network.parameters():,} parameters, activation {network.activation}, input "
            f"{format_size((3, *self.plan.size))}, {len(self.train_images):,} training and "
            f"{len(self.val_images):,} validation images in "
            f"{plural(len(self.train_images.classes), 'class', 'classes')} ({CLASS_RULES[self.plan.classes_by]}), "
            f"{plural(self.loader.updates_per_epoch, 'step')} per epoch, {plural(thread_count(), 'CPU thread')}"
        )
        self.note(
            f"learning rate {self.rate:.4g} for {self.global_batch} images per step ({self.config.data.batch_size} x "
            f"{plural(cards, 'card')} x {optimizer.accumulate}), scaled from {optimizer.lr:.4g} for "
            f"{optimizer.reference_batch} by the rule {optimizer.lr_rule!r}"
        )
