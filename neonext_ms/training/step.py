"""One training step, and all state that it changes: the function that every run, test and benchmark uses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import mindspore as ms
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops

from neonext_ms.common.errors import InputError, listed
from neonext_ms.models.architecture import BATCH_NORM_EPS, STATISTICS
from neonext_ms.models.names import official_name
from neonext_ms.models.neonext import BATCH_NORM_KEEP, BatchNorm, DropPath, NeoNeXt
from neonext_ms.ops.cpu import operators

from .config.schema import OptimizerConfig, PrecisionConfig
from .optimizers import layer_rates, make_optimizer
from .precision import cast_model, first_scale
from .updates import each, partial

# As torch.nn.utils.clip_grad_norm_ has it.
_CLIP_EPS = 1e-6
_LEAST_SCALE = 1.0
# Of nested calls in a compiled graph. The default of 1,000 is too few for T.
_CALL_DEPTH = 20000

MODEL, EMA, OPTIMIZER, STEP = "model", "ema", "optimizer", "step"


@dataclass(frozen=True)
class StepResult:
    """What a step tells, over all cards.

    Attributes:
        loss: mean over the images.
        hits: images whose largest logit is that of the largest target.
        norm: of all gradients together, before clipping; not finite when they overflowed.
        applied: whether the weights changed; not where gradients or loss were not finite.
        scale: the loss scale that was used.
    """

    loss: float
    hits: int
    norm: float
    applied: bool
    scale: float


class TrainStep:
    """Forward, backward, reduction over cards, clipping, optimizer, moving average.

    Args:
        model: trained in place.
        optimizer: see `OptimizerConfig`, whose defaults are the paper's; learning rates are given step by step.
        ema_decay: of the moving average of weights and statistics, 0 for none.
        precision: see `PrecisionConfig`.
        freeze: parts of the model, such as "stem" and "stage_1", that stay as they are.
        world: number of cards; more than one needs `distributed.start`.
        jit: compile; else the same operations run one by one.
        sync_batch_norm: normalise over the batches of all cards.

    A step whose loss or gradients are not finite changes no weight, no moving average and no slot of the optimizer.
    """

    def __init__(
        self,
        model: NeoNeXt,
        optimizer: OptimizerConfig | None = None,
        ema_decay: float = 0.0,
        precision: PrecisionConfig | None = None,
        freeze: Sequence[str] = (),
        world: int = 1,
        jit: bool = True,
        sync_batch_norm: bool = False,
    ):
        optimizer, precision = optimizer or OptimizerConfig(), precision or PrecisionConfig()
        self.model = model
        self.config = optimizer
        self.world = world
        self._held = {official_name(p.name): p for p in model.get_parameters()}
        self.drop_path = _sample_drop_path(model)
        if sync_batch_norm and world > 1:
            _synchronise_batch_norm(model, world)
        trainable = freeze_parts(model, freeze)
        rates = layer_rates(
            [official_name(p.name) for p in trainable], model.architecture.per_stage_layers, optimizer.layer_decay
        )
        self.optimizer = make_optimizer(optimizer, trainable, rates)
        names = list(model.architecture.tensors())
        self._all = ParameterTuple([self._held[name] for name in names])
        self.ema_decay = ema_decay
        self.ema = ParameterTuple(
            [Parameter(Tensor(p.asnumpy().copy()), name=f"ema.{p.name}") for p in self._all] if ema_decay else []
        )
        statistics = [self._held[name] for name in names if name.endswith(STATISTICS) and not _inside(name, freeze)]
        self._statistics = ParameterTuple(statistics)
        scale, self.dynamic_scale = first_scale(precision)
        self._growth_interval = precision.growth_interval
        self._updates = _scalar("updates", 0)
        self._scale = _scalar("scale", scale)
        self._good = _scalar("good", 0)
        self._sums = ParameterTuple(
            [Parameter(Tensor(np.zeros(w.shape, np.float32)), name=f"sum.{w.name}") for w in self.optimizer.weights]
            if optimizer.accumulate > 1
            else []
        )
        self._gradients = ms.value_and_grad(
            _Forward(cast_model(model, precision), self._scale), None, self.optimizer.weights, has_aux=True
        )
        self._all_reduce = ops.AllReduce() if world > 1 else None
        if jit:
            ms.set_recursion_limit(_CALL_DEPTH)
        self._step = ms.jit(self._make_step()) if jit else self._make_step()
        self._accumulate = ms.jit(self._make_accumulate()) if jit else self._make_accumulate()

    def __call__(self, batches: Sequence[tuple], rate: float) -> StepResult:
        """Make one update.

        Args:
            batches: as many as `accumulate` says, each `(images, targets)` or `(images, targets, keep)`: float32
                `(N, 3, H, W)`, float32 `(N, classes)`, and with drop path float32 `(blocks with drop path, N)`, 0 or 1
                over the share kept (see `drop_path_rates`).
            rate: the learning rate.

        Raises:
            InputError: another number of batches.
        """
        if len(batches) != self.config.accumulate:
            raise InputError(
                f"a step takes {self.config.accumulate} batches (optimizer.accumulate), got {len(batches)}"
            )
        told = [result_of(self._accumulate, *self._inputs(batch)) for batch in batches[:-1]]
        told.append(result_of(self._step, *self._inputs(batches[-1]), Tensor(np.float32(rate))))
        loss, hits = np.mean([values[0] for values in told]), sum(values[1] for values in told)
        _, _, norm, applied, scale = told[-1]
        return StepResult(float(loss), round(float(hits)), float(norm), bool(applied), float(scale))

    @property
    def drop_path_rates(self) -> list[float]:
        """Drop-path rate of each block that has one, in the order of the rows of `keep`."""
        return [rate for stage in self.model.architecture.drop_path_rates() for rate in stage if rate > 0]

    @property
    def messages(self) -> list[int]:
        """Numbers in each message that a step sends to the other cards; see `_averages`."""
        told = 2 + sum(statistic.size for statistic in self._statistics)
        normalised = [cell.gamma.size for _, cell in self.model.cells_and_names() if _synchronised(cell)]
        # Mean and variance, forward and backward.
        return [*normalised * 4, told] * self.config.accumulate + [sum(w.size for w in self.optimizer.weights)]

    @property
    def updates(self) -> int:
        """Updates made, skipped ones not counted."""
        return int(self._updates.asnumpy())

    @property
    def scale(self) -> float:
        """The loss scale of the next step."""
        return float(self._scale.asnumpy())

    def weights(self, ema: bool = False) -> dict[str, np.ndarray]:
        """Weights and statistics, or their moving average, float32 by official name."""
        held = self.ema if ema else self._all
        return {name: p.asnumpy().copy() for name, p in zip(self.model.architecture.tensors(), held, strict=True)}

    def state(self) -> dict[str, np.ndarray]:
        """Everything that the next step depends on but the batch: arrays by `model.NAME`, `ema.NAME`, ..."""
        return {name: parameter.asnumpy().copy() for name, parameter in self._state().items()}

    def load_state(self, arrays: Mapping[str, np.ndarray], source: str = "state") -> None:
        """The inverse of `state`.

        Raises:
            InputError: arrays are missing, unexpected or misshapen, each named; nothing is changed then.
        """
        state = self._state()
        problems = [f"missing: {name}" for name in state if name not in arrays]
        problems += [f"unexpected: {name}" for name in arrays if name not in state]
        problems += [
            f"misshapen: {name} is {tuple(arrays[name].shape)}, expected {tuple(parameter.shape)}"
            for name, parameter in state.items()
            if name in arrays and tuple(arrays[name].shape) != tuple(parameter.shape)
        ]
        if problems:
            raise InputError(
                f"{source}: it does not fit this configuration ({len(problems)} problems); resume with the "
                f"configuration that it was made with:\n{listed(problems)}"
            )
        for name, parameter in state.items():
            # In place: a compiled graph does not notice `set_data`.
            ops.assign(parameter, Tensor(np.array(arrays[name], np.float32)))

    def _state(self) -> dict[str, Parameter]:
        names = list(self.model.architecture.tensors())
        state = {f"{MODEL}.{name}": parameter for name, parameter in zip(names, self._all, strict=True)}
        if self.ema_decay:
            state.update({f"{EMA}.{name}": p for name, p in zip(names, self.ema, strict=True)})
        for slot, parameters in self.optimizer.slots.items():
            for weight, parameter in zip(self.optimizer.weights, parameters, strict=True):
                state[f"{OPTIMIZER}.{slot}.{official_name(weight.name)}"] = parameter
        state.update({f"{STEP}.{p.name}": p for p in (self._updates, self._scale, self._good)})
        return state

    def _inputs(self, batch: tuple) -> tuple[Tensor, ...]:
        keep = batch[2] if len(batch) > 2 else np.ones((max(1, len(self.drop_path_rates)), len(batch[0])), np.float32)
        if self.drop_path is not None and self.drop_path.shape != keep.shape:
            self.drop_path.set_data(Tensor(np.ones(keep.shape, np.float32)), slice_shape=True)
        return tuple(Tensor(np.ascontiguousarray(part, np.float32)) for part in (*batch[:2], keep))

    def _make_pass(self):
        """Forward and backward of one batch: gradients of the scaled loss, and `[loss, hits]`."""
        drop_path, gradients = self.drop_path, self._gradients
        statistics, world, all_reduce = self._statistics, self.world, self._all_reduce
        sizes = (2, *(statistic.size for statistic in statistics))

        def run(images, targets, keep):
            if drop_path is not None:
                ops.assign(drop_path, keep)
            before = each(_copy, statistics)
            (_, loss, logits), found = gradients(images, targets)
            hits = (logits.argmax(1) == targets.argmax(1)).astype(ms.float32).sum()
            # A batch that gives no finite loss leaves no trace in the statistics.
            finite = ops.isfinite(loss)
            told = ops.stack((loss, hits))
            after = each(_copy, statistics)
            if world > 1:
                # Every card has the same statistics after every step.
                means = _averages(all_reduce, world, (told, *after), sizes)
                after = means[1:]
                told = ops.stack((means[0][0], means[0][1] * world))
                finite = ops.isfinite(told[0])
            each(partial(_settle, finite), statistics, after, before)
            return found, told

        return run

    def _make_accumulate(self):
        run, sums, share, scale = self._make_pass(), self._sums, 1 / self.config.accumulate, self._scale

        def accumulate(images, targets, keep):
            gradients, told = run(images, targets, keep)
            return last(told, each(partial(_add, share / scale), sums, gradients))

        return accumulate

    def _make_step(self):
        run, optimizer, ema, everything = self._make_pass(), self.optimizer, self.ema, self._all
        sums, share, world, clip_norm = self._sums, 1 / self.config.accumulate, self.world, self.config.clip_norm
        updates, scale, good = self._updates, self._scale, self._good
        ema_share = 1 - self.ema_decay
        dynamic, interval, all_reduce = self.dynamic_scale, float(self._growth_interval), self._all_reduce
        sizes = tuple(weight.size for weight in optimizer.weights)

        def step(images, targets, keep, rate):
            used = scale * 1
            gradients, told = run(images, targets, keep)
            # What the gradients have to be multiplied with.
            unit = 1 / used
            if len(sums) > 0:
                gradients = each(partial(_total, share * unit), sums, gradients)
                each(_clear, sums)
                unit = unit * 0 + 1
            if world > 1:
                gradients = _averages(all_reduce, world, gradients, sizes)
            norm = ops.sqrt(ops.stack(each(partial(_squares, unit), gradients)).sum())
            finite = ops.logical_and(ops.isfinite(norm), ops.isfinite(told[0]))
            applied = finite.astype(ms.float32)
            if clip_norm > 0:
                unit = unit * _clip(norm, clip_norm)
            factor = ops.select(finite, unit, ops.zeros_like(unit))
            done = optimizer.update(each(partial(_usable, factor), gradients), rate, updates + 1, applied)
            # The average takes what the optimizer has just written.
            if len(ema) > 0:
                done = (done, each(partial(_average, ema_share * applied), ema, everything))
            ops.assign_add(updates, applied)
            if dynamic:
                grown = (good + 1) * applied
                full = (grown >= interval).astype(ms.float32)
                factor = applied * (1 + full) + (1 - applied) * 0.5
                ops.assign(scale, ops.maximum(scale * factor, Tensor(np.float32(_LEAST_SCALE))))
                ops.assign(good, grown * (1 - full))
            return last(ops.concat((told, ops.stack((norm, applied, used)))), done)

        return step


def _averages(all_reduce, world: int, tensors, sizes):
    """Means of tensors over all cards, in one message: many small ones would spend their time on waiting."""
    flat = all_reduce(ops.concat(each(_flat, tensors))) / world
    return each(_shaped, ops.split(flat, sizes), tensors)


def _flat(tensor):
    return tensor.reshape(-1)


def _shaped(flat, like):
    return flat.reshape(like.shape)


def _copy(tensor):
    return ops.deepcopy(tensor)


def _settle(finite, statistic, after, before):
    return ops.assign(statistic, ops.select(finite, after, before))


def _add(share, total, tensor):
    return ops.assign_add(total, tensor * share)


def _total(share, total, tensor):
    return total + tensor * share


def _clear(total):
    return ops.assign(total, ops.zeros_like(total))


def _squares(factor, tensor):
    if operators.usable(tensor.dtype):
        return operators.sum_of_squares(tensor, factor.reshape(1)).reshape(())
    tensor = tensor * factor
    return (tensor * tensor).sum()


def _usable(factor, tensor):
    """The tensor times the factor; zeros for the factor 0, even where the tensor is not finite."""
    if operators.usable(tensor.dtype):
        return operators.scaled(tensor, factor.reshape(1))
    return ops.select(factor > 0, tensor * factor, ops.zeros_like(tensor))


def last(result, done):
    """The result, once `done` is computed."""
    result = ops.depend(result, done)
    if operators.usable(result.dtype):
        result = operators.finished(result)
    return result


def result_of(graph, *inputs) -> np.ndarray:
    """What a graph that ends with `last` computes; other threads have the processor meanwhile."""
    finish = operators.Finish()
    result = graph(*inputs)
    finish.wait()
    return result.asnumpy()


def _average(share, average, tensor):
    return ops.assign(average, average * (1 - share) + tensor * share)


def _clip(norm, largest: float):
    return ops.minimum(largest / (norm + _CLIP_EPS), ops.ones_like(norm))


def _scalar(name: str, value: float) -> Parameter:
    return Parameter(Tensor(np.float32(value)), name=name, requires_grad=False)


class _Forward(nn.Cell):
    """Images and soft targets to the scaled loss, the loss and the logits."""

    def __init__(self, model: nn.Cell, scale: Parameter):
        super().__init__(auto_prefix=False)
        self.model = model
        self.scale = scale

    def construct(self, images, targets):
        logits = self.model(images).astype(ms.float32)
        loss = -(targets * ops.log_softmax(logits, -1)).sum(-1).mean()
        return loss * self.scale, loss, logits


class SampledDropPath(nn.Cell):
    """Stochastic depth by a row of factors given from outside, so that it can be repeated exactly."""

    def __init__(self, keep: Parameter, row: int):
        super().__init__()
        self.keep = keep
        self.row = row

    def construct(self, x):
        if self.training:
            x = x * self.keep[self.row].reshape(-1, 1, 1, 1)
        return x


def _sample_drop_path(model: NeoNeXt) -> Parameter | None:
    """Let the model's drop path follow one Parameter, `(blocks with drop path, N)`, which is returned."""
    owners = [cell for _, cell in model.cells_and_names() if isinstance(getattr(cell, "drop_path", None), DropPath)]
    if not owners:
        return None
    keep = Parameter(Tensor(np.ones((len(owners), 1), np.float32)), name="drop_path.keep", requires_grad=False)
    for row, owner in enumerate(owners):
        owner.drop_path = SampledDropPath(keep, row)
    return keep


def _inside(name: str, parts: Sequence[str]) -> bool:
    return name.partition(".")[0] in parts


def freeze_parts(model: NeoNeXt, parts: Sequence[str]) -> list[Parameter]:
    """Put the model into training but for the named parts; return the Parameters that are left to train.

    Raises:
        InputError: the model has no such part.
    """
    known = [name for name, _ in model.name_cells().items()]
    for part in parts:
        if part not in known:
            raise InputError(f"model.freeze: the model has no part {part!r}; expected among {', '.join(known)}")
    model.set_train(True)
    for part in parts:
        getattr(model, part).set_train(False)
    return [p for p in model.trainable_params() if not _inside(p.name, parts)]


class _SyncBatchNorm(nn.Cell):
    """What a `BatchNorm` computes while it trains, over the batches of all cards, which are of one size."""

    def __init__(self, world: int):
        super().__init__()
        self.world = world
        self.all_reduce = ops.AllReduce()

    def construct(self, x, gamma, beta, moving_mean, moving_variance):
        count = x.shape[0] * x.shape[2] * x.shape[3] * self.world
        mean = self.all_reduce(x.sum((0, 2, 3))) / count
        centred = x - mean.reshape(1, -1, 1, 1)
        variance = self.all_reduce((centred * centred).sum((0, 2, 3))) / count
        share = 1 - BATCH_NORM_KEEP
        ops.assign(moving_mean, moving_mean * BATCH_NORM_KEEP + ops.stop_gradient(mean) * share)
        unbiased = ops.stop_gradient(variance) * (count / (count - 1))
        ops.assign(moving_variance, moving_variance * BATCH_NORM_KEEP + unbiased * share)
        scale = gamma * ops.rsqrt(variance + BATCH_NORM_EPS)
        return centred * scale.reshape(1, -1, 1, 1) + beta.reshape(1, -1, 1, 1)


def _synchronised(cell: nn.Cell) -> bool:
    return isinstance(cell, BatchNorm) and isinstance(cell.exact, _SyncBatchNorm)


def _synchronise_batch_norm(model: NeoNeXt, world: int) -> None:
    for _, cell in model.cells_and_names():
        if isinstance(cell, BatchNorm):
            cell.exact = _SyncBatchNorm(world)


__all__ = ["SampledDropPath", "StepResult", "TrainStep", "freeze_parts"]
