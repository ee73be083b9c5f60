"""A training step on this CPU against the official PyTorch code, round by round, and its time by part.

python -m neonext_ms.benchmarks.train_step [--model neonext_t.released_224] [--batch 4,8]
    [--torch OFFICIAL_REPOSITORY --torch-python PYTHON_WITH_TORCH]

`step` is the step of `neonext-train`, with its check of gradients and statistics; `bare` is forward, backward and
AdamW alone, which is what the official code is timed with. NEONEXT_CPU_OPS=0 measures MindSpore's own operations.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from ..architecture import Architecture
from ..commands.common import Parser, print_json, run
from ..errors import InputError, ToolchainError
from .timing import interleaved, ratio

# A thread pool spins for some milliseconds after its work, which must not fall into the other's turn.
_REST_SECONDS = 0.05
# The step of T unrolls into deeper calls than MindSpore allows by default.
_RECURSION = 20000


class _Official:
    """The official code in a process of its own, which makes a step when told."""

    def __init__(self, args: argparse.Namespace, options: dict, size: int, batch: int):
        script = Path(__file__).with_name("official_step.py")
        command = [args.torch_python, script, args.torch, args.threads, batch, size, json.dumps(options)]
        try:
            self._process = subprocess.Popen(
                list(map(str, command)),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env={**os.environ, "OMP_NUM_THREADS": str(args.threads)},
            )
        except OSError as error:
            raise ToolchainError(
                f"{args.torch_python}: cannot be run ({error.strerror}); --torch-python takes a Python that has torch"
            ) from error
        self.versions = self._read()

    def step(self) -> float:
        """Make a step and return its loss."""
        time.sleep(_REST_SECONDS)
        self._process.stdin.write("step\n")
        self._process.stdin.flush()
        return self._read()["loss"]

    def _read(self) -> dict:
        line = self._process.stdout.readline()
        if not line:
            lines = self._process.stderr.read().strip().splitlines() or ["no message"]
            raise ToolchainError(f"the official code did not run: {lines[-1]}")
        return json.loads(line)

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()


class _Ours:
    """Steps of one model at one batch."""

    def __init__(self, name: str, batch: int):
        import mindspore as ms
        import numpy as np
        from mindspore import Tensor

        from ..models import create_model
        from ..training.step import TrainStep, last, result_of

        self.ms, self.np = ms, np
        self._last, self._result_of = last, result_of
        self.model = create_model(name)
        self.trainer = TrainStep(self.model)
        classes, size = self.model.architecture.num_classes, self._size(name)
        images = np.random.RandomState(0).standard_normal((batch, 3, size, size)).astype(np.float32)
        targets = np.eye(classes, dtype=np.float32)[np.arange(batch) % 10]
        self._batch = images, targets
        self._tensors = Tensor(images), Tensor(targets)
        self.bare = self._make_bare()

    @staticmethod
    def _size(name: str) -> int:
        from ..registry import model_config

        return model_config(name).image_size[0]

    def step(self) -> float:
        """The step of `neonext-train`."""
        time.sleep(_REST_SECONDS)
        return self.trainer([self._batch], 1e-3).loss

    def _make_bare(self) -> Callable[[], float]:
        """Forward, backward and AdamW, nothing else."""
        ms, ops, last = self.ms, self.ms.ops, self._last
        model, optimizer = self.model, self.trainer.optimizer
        rate, count, keep = (ms.Tensor(self.np.float32(value)) for value in (1e-3, 100, 1))

        def forward(images, targets):
            return -(targets * ops.log_softmax(model(images), -1)).sum(-1).mean()

        gradients = ms.value_and_grad(forward, None, optimizer.weights)

        @ms.jit
        def step(images, targets):
            loss, found = gradients(images, targets)
            return last(loss.reshape(1), optimizer.update(found, rate, count, keep))

        def call():
            time.sleep(_REST_SECONDS)
            return float(self._result_of(step, *self._tensors)[0])

        return call

    def parts(self, rounds: int) -> dict[str, float]:
        """Milliseconds, forward and backward, of the parts of the network: medians of each alone, times its number."""
        found: dict[str, float] = {}
        x = self.ms.Tensor(self._batch[0])
        for name, cell, count in self._cells():
            found[name] = found.get(name, 0.0) + count * self._time(cell, x, rounds)
            x = cell(x)
        found["AdamW"] = self._time_optimizer(rounds)
        return found

    def _cells(self):
        """Every part once for each shape in the order of the data: name, cell, how often it occurs."""
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

        # Without weights only the input's gradient is asked for.
        gradient = ms.grad(product, 0, weights) if len(weights) else ms.grad(product, 0)

        @ms.jit
        def both(x):
            return last(ms.ops.ones(1), gradient(x))

        return self._median(both, [x], rounds)

    def _time_optimizer(self, rounds: int) -> float:
        ms, optimizer, last = self.ms, self.trainer.optimizer, self._last
        zeros = tuple(ms.ops.zeros_like(weight) for weight in optimizer.weights)
        rate, count, keep = (ms.Tensor(self.np.float32(value)) for value in (0, 1, 0))

        @ms.jit
        def update(gradients):
            return last(ms.ops.ones(1), optimizer.update(gradients, rate, count, keep))

        return self._median(update, [zeros], rounds)

    def _median(self, graph, inputs: Sequence, rounds: int) -> float:
        seconds = interleaved({"": lambda: self._result_of(graph, *inputs)}, rounds)[""]
        return statistics.median(seconds) * 1e3


def _official_options(architecture: Architecture) -> dict:
    """The official keyword arguments for this architecture, as JSON can carry them."""
    if architecture.downsample != "official" or "," in architecture.kernel_spec:
        raise InputError("the official code cannot build this model; measure another one, or leave out --torch")
    names = ("num_classes", "per_stage_layers", "dims", "shifts", "layer_scale_init_value", "linear_bias")
    return {"kernel_spec": architecture.kernel_spec, **{name: getattr(architecture, name) for name in names}}


def measure(args: argparse.Namespace) -> dict:
    """Medians in milliseconds, and ratios to the official code if it is given, by batch size."""
    # Read when MindSpore is imported.
    os.environ["OMP_NUM_THREADS"] = str(args.threads)
    import mindspore as ms

    from ..ops.cpu.operators import available
    from ..registry import model_config

    ms.set_device("CPU")
    ms.set_recursion_limit(_RECURSION)
    config = model_config(args.model)
    result = {
        "model": args.model,
        "threads": args.threads,
        "mindspore": ms.__version__,
        "kernels": available(ms.float32),
        "batches": {},
    }
    for batch in args.batch:
        ours = _Ours(args.model, batch)
        work = {"step": ours.step, "bare": ours.bare}
        official = None
        if args.torch:
            official = _Official(args, _official_options(config.architecture), config.image_size[0], batch)
            result["torch"] = official.versions["torch"]
            work["official"] = official.step
        load = os.getloadavg()[0]
        try:
            seconds = interleaved(work, args.rounds)
        finally:
            if official is not None:
                official.close()
        row = {"rounds": args.rounds, "load_before": load}
        seconds = {name: [value - _REST_SECONDS for value in values] for name, values in seconds.items()}
        for name, values in seconds.items():
            low, middle, high = statistics.quantiles(values, n=4)
            row[name] = {"ms": middle * 1e3, "quartiles": [low * 1e3, high * 1e3]}
            if official is not None and name != "official":
                middle, low, high = ratio(values, seconds["official"])
                row[name].update({"ratio": middle, "ratio_quartiles": [low, high]})
        if not args.no_parts:
            row["parts_ms"] = ours.parts(max(3, args.rounds))
        result["batches"][batch] = row
    return result


def _batches(text: str) -> list[int]:
    try:
        sizes = [int(part) for part in text.split(",")]
    except ValueError:
        sizes = [0]
    if min(sizes) < 1:
        raise InputError(f"--batch {text!r}: expected whole numbers of at least 1, such as 4,8")
    return sizes


def _main(argv: Sequence[str] | None = None) -> None:
    parser = Parser(prog="python -m neonext_ms.benchmarks.train_step", description=__doc__)
    parser.add_argument("--model", default="neonext_t.released_224", help="a named model with random weights")
    parser.add_argument("--batch", type=_batches, default=[4, 8], help="batch sizes (default 4,8)")
    parser.add_argument("--rounds", type=int, default=15, help="timed steps of each (default 15)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--torch", metavar="FOLDER", help="the official repository, to compare with")
    parser.add_argument("--torch-python", metavar="FILE", default=sys.executable, help="a Python that has torch")
    parser.add_argument("--no-parts", action="store_true", help="leave out the times by part")
    parser.add_argument("--json", action="store_true")
    result = measure(args := parser.parse_args(argv))
    if args.json:
        print_json(result)
        return
    print(
        f"{result['model']}, MindSpore {result['mindspore']} {'with' if result['kernels'] else 'without'} C++ kernels, "
        f"{'torch ' + result['torch'] + ', ' if 'torch' in result else ''}{result['threads']} threads"
    )
    for batch, row in result["batches"].items():
        print(f"batch {batch}, {row['rounds']} rounds, load {row['load_before']:.1f} before")
        for name in ("step", "bare", "official"):
            if name not in row:
                continue
            low, high = row[name]["quartiles"]
            line = f"  {name:9} {row[name]['ms']:7.0f} ms (quartiles {low:.0f} to {high:.0f})"
            if "ratio" in row[name]:
                low, high = row[name]["ratio_quartiles"]
                line += f", {row[name]['ratio']:.2f} times the official code (quartiles {low:.2f} to {high:.2f})"
            print(line)
        for name, spent in row.get("parts_ms", {}).items():
            print(f"  {name:12} {spent:7.1f} ms forward and backward, alone")


if __name__ == "__main__":
    sys.exit(run(_main))
