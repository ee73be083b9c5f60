"""Time of a training step on this CPU, in comparison with the official PyTorch code, and by part of the network."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial

from neonext_ms.common.cli import THREADS_HELP, Parser, batch_size, comma_list, int_range, positive_int, run, threads
from neonext_ms.common.environment import prepare_environment
from neonext_ms.common.errors import InputError, ToolchainError
from neonext_ms.common.processors import thread_count

from .measure import EXECUTE, Parts, interleave
from .official_torch import OfficialProcess, check_torch, official_options
from .statistics import ratio, summary

DESCRIPTION = """\
Time of a training step on this CPU, in comparison with the official PyTorch code, and by part of the network.

    python -m neonext_ms.benchmarks.train_step [--model neonext_t.released_224] [--image-size 224] [--batch 4,8]
        [--torch PYTHON --official REPOSITORY]

`step` is the step of `neonext-train`, with its check of gradients and statistics. `bare` is forward, backward and
AdamW alone, as the official code is timed. NEONEXT_CPU_OPS=0 measures MindSpore's own operations."""

# A thread pool spins for some milliseconds after its work, which must not overlap the turn of the other code.
_REST_SECONDS = 0.05


def _official(args: argparse.Namespace, options: dict, size: int, batch: int) -> OfficialProcess:
    """Start the official code, which makes a step for each line.

    Raises:
        ToolchainError: the interpreter of `--torch` cannot run it.
    """
    try:
        return OfficialProcess(args.torch, "step.py", args.official, args.threads, batch, size, json.dumps(options))
    except InputError as error:
        raise ToolchainError(str(error)) from error


def _official_step(official: OfficialProcess) -> Parts:
    time.sleep(_REST_SECONDS)
    return Parts({EXECUTE: official.send("step")["seconds"]})


class _Ours:
    """Training steps of one model at one batch size, for square images of `size` pixels."""

    def __init__(self, name: str, batch: int, size: int):
        import mindspore as ms
        import numpy as np
        from mindspore import Tensor

        from neonext_ms.models.factory import create_model
        from neonext_ms.training.result import last, result_of
        from neonext_ms.training.step import TrainStep

        self.ms, self.np = ms, np
        self._last, self._result_of = last, result_of
        self.model = create_model(name)
        self.trainer = TrainStep(self.model)
        classes = self.model.architecture.num_classes
        images = np.random.RandomState(0).standard_normal((batch, 3, size, size)).astype(np.float32)
        targets = np.eye(classes, dtype=np.float32)[np.arange(batch) % 10]
        self._batch = images, targets
        self._tensors = Tensor(images), Tensor(targets)
        self.bare = self._make_bare()

    def step(self) -> Parts:
        """Make a step of `neonext-train`."""
        return _timed(lambda: self.trainer([self._batch], 1e-3))

    def _make_bare(self) -> Callable[[], Parts]:
        """Return a step of forward, backward and AdamW only."""
        ms, ops, last = self.ms, self.ms.ops, self._last
        model, optimizer = self.model, self.trainer.optimizer
        factor, rate, count, keep = (ms.Tensor(self.np.float32(value)) for value in (1, 1e-3, 100, 1))

        def forward(images, targets):
            return -(targets * ops.log_softmax(model(images), -1)).sum(-1).mean()

        gradients = ms.value_and_grad(forward, None, optimizer.weights)

        @ms.jit
        def step(images, targets):
            loss, computed = gradients(images, targets)
            return last(loss.reshape(1), optimizer.update(computed, factor, rate, count, keep))

        return lambda: _timed(lambda: self._result_of(step, *self._tensors))

    def parts(self, rounds: int) -> dict[str, float]:
        """Return milliseconds, forward and backward, by part of the network: median of one times its number."""
        milliseconds: dict[str, float] = {}
        x = self.ms.Tensor(self._batch[0])
        for name, cell, count in self._cells():
            milliseconds[name] = milliseconds.get(name, 0.0) + count * self._time(cell, x, rounds)
            x = cell(x)
        milliseconds["AdamW"] = self._time_optimizer(rounds)
        return milliseconds

    def _cells(self):
        """Yield name, cell and number of occurrences of every part, once for each shape, in the order of the data."""
        model, depths = self.model, self.model.architecture.per_stage_layers
        yield "stem", model.stem, 1
        for stage, depth in enumerate(depths):
            content = getattr(model, f"stage_{stage + 1}")[0].ops.content
            for name in ("neocell", "norm", "fc_1", "act", "fc_2", "layer_scale"):
                if getattr(content, name) is not None:
                    yield name, getattr(content, name), depth
            if stage < len(depths) - 1:
                yield "downsample", getattr(model, f"downsample_{stage + 1}"), 1
        yield "head", model.head, 1

    def _time(self, cell, x, rounds: int) -> float:
        ms, last = self.ms, self._last
        upstream = ms.ops.ones_like(cell(x))
        weights = ms.ParameterTuple(cell.trainable_params())

        def product(x):
            return (cell(x) * upstream).sum()

        # A cell without weights has only the gradient of its input.
        gradient = ms.grad(product, 0, weights) if len(weights) else ms.grad(product, 0)

        @ms.jit
        def both(x):
            return last(ms.ops.ones(1), gradient(x))

        return self._median(both, [x], rounds)

    def _time_optimizer(self, rounds: int) -> float:
        ms, optimizer, last = self.ms, self.trainer.optimizer, self._last
        zeros = tuple(ms.ops.zeros_like(weight) for weight in optimizer.weights)
        factor, rate, count, keep = (ms.Tensor(self.np.float32(value)) for value in (1, 0, 1, 0))

        @ms.jit
        def update(gradients):
            return last(ms.ops.ones(1), optimizer.update(gradients, factor, rate, count, keep))

        return self._median(update, [zeros], rounds)

    def _median(self, graph, inputs: Sequence, rounds: int) -> float:
        measured = interleave({"": lambda: self._result_of(graph, *inputs)}, rounds=rounds)
        return summary(measured.samples[""]).p50 * 1e3


def _timed(call: Callable[[], object]) -> Parts:
    time.sleep(_REST_SECONDS)
    start = time.perf_counter()
    call()
    return Parts({EXECUTE: time.perf_counter() - start})


def _measure(args: argparse.Namespace) -> None:
    """Print medians in milliseconds by batch size, and ratios to the official code if it is given."""
    prepare_environment(args.threads)
    import mindspore as ms

    from neonext_ms.models.registry import model_config
    from neonext_ms.ops.cpu.operators import available

    ms.set_device("CPU")
    config = model_config(args.model)
    kernels = "with" if available(ms.float32) else "without"
    print(f"{args.model}, MindSpore {ms.__version__} {kernels} C++ kernels, {args.threads} threads")
    size = args.image_size or config.image_size[0]
    for batch in args.batch:
        ours = _Ours(args.model, batch, size)
        work: dict[str, Callable[[], Parts]] = {"step": ours.step, "bare": ours.bare}
        with contextlib.ExitStack() as stack:
            versions = ""
            if args.torch:
                official = _official(args, official_options(config.architecture), size, batch)
                stack.callback(official.close)
                work["official"] = partial(_official_step, official)
                versions = f", torch {official.versions['torch']}"
            print(f"batch {batch}, {args.rounds} rounds, load {os.getloadavg()[0]:.1f} before{versions}")
            measured = interleave(work, rounds=args.rounds)
        if measured.partial:
            raise KeyboardInterrupt
        for name, seconds in measured.samples.items():
            about = summary(seconds)
            line = f"  {name:9} {about.p50 * 1e3:7.0f} ms (spread {about.spread:.0%})"
            if args.torch and name != "official":
                other = ratio(seconds, measured.samples["official"])
                noise = "" if other.sure else "; too noisy to rely on"
                line += (
                    f", {other.median_ratio:.2f} times the official code "
                    f"(95 % interval {other.low:.2f} to {other.high:.2f}{noise})"
                )
            print(line)
        for name, milliseconds in ours.parts(max(3, args.rounds)).items():
            print(f"  {name:12} {milliseconds:7.1f} ms forward and backward, alone")


def _main(argv: Sequence[str] | None = None) -> None:
    parser = Parser(prog="python -m neonext_ms.benchmarks.train_step", description=DESCRIPTION)
    parser.add_argument("--model", default="neonext_t.released_224", help="named model with random weights")
    parser.add_argument(
        "--batch", type=comma_list(batch_size), default=(4, 8), metavar="SIZES", help="batch sizes (default 4,8)"
    )
    parser.add_argument(
        "--image-size", type=int_range(32, 1024), metavar="SIDE", help="height and width (default: those of the model)"
    )
    parser.add_argument("--rounds", type=positive_int, default=15, help="timed steps of each (default 15)")
    parser.add_argument("--threads", type=threads, default=thread_count(), help=THREADS_HELP)
    parser.add_argument("--torch", metavar="PYTHON", help="add the official PyTorch model, in this interpreter")
    parser.add_argument("--official", metavar="REPOSITORY", help="clone of HapKoM/neonext, for --torch")
    args = parser.parse_args(argv)
    check_torch(args.torch, args.official)
    _measure(args)


if __name__ == "__main__":
    sys.exit(run(_main))
