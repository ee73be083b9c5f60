"""The training step and all the state that it changes. Every run, test and benchmark uses this one step.

A step does the following, in this order. The gradients are those of the loss times the loss scale.

1. Forward and backward pass of each batch. BatchNorm updates its statistics in the forward pass; they are restored if
   the loss is not finite.
2. Sum over the batches (`accumulate`), then mean over the cards. Averaging before the norm makes clipping and the check
   for overflow the same on every card and independent of the number of cards. Gradients travel in buckets, those of the
   last layers first: backward computes them first, and their message does not wait for the rest (`distributed`).
3. Global norm of the unscaled gradients. It is not finite if any gradient overflowed, so it is the only check needed.
4. Unscaling and clipping in one multiplication, and zeros instead of gradients if the step is skipped.
5. Optimizer with `keep` 1 or 0, then the moving average of what the optimizer has written.
6. Update of a dynamic loss scale.

A call starts the step and returns; `StepResult` waits when it is read. A run reads it every `log_every` steps only, and
everything that depends on it before, such as skipping a step, is decided in the graph.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import mindspore as ms
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops

from neonext_ms.common.errors import InputError
from neonext_ms.common.text import list_names, plural
from neonext_ms.models.architecture import STATISTICS
from neonext_ms.models.names import official_name
from neonext_ms.models.neonext import NeoBottleneck, NeoNeXt
from neonext_ms.models.scales import Scales
from neonext_ms.ops.cpu import operators

from .config.schema import OptimizerConfig, PrecisionConfig
from .controlled import blend_activations, sample_drop_path
from .distributed import DEFAULT_BUCKET_MB, bucket_sums, buckets
from .fake_quantize import FakeQuantized
from .optimizers import each, layer_rates, make_optimizer, partial, zeros_like_weights
from .precision import cast_model, first_scale
from .result import StepResult, last
from .sync_batch_norm import is_synchronised, synchronise_batch_norm

# The value in torch.nn.utils.clip_grad_norm_.
_CLIP_EPS = 1e-6
_LEAST_SCALE = 1.0
# Limit of nested calls in a compiled graph. The default of 1,000 is too low for NeoNeXt-T.
CALL_DEPTH = 20000

# Prefix of the model's arrays in a state.
MODEL = "model"


class TrainStep:
    """A training step: forward, backward, mean over cards, clipping, optimizer, moving average.

    A step whose loss or gradients are not finite changes no weight, no moving average and no optimizer state.

    Args:
        model: model to train in place.
        optimizer: options of the optimizer, by default the paper's; its learning rate is an argument of each step.
        ema_decay: decay of the moving average of weights and statistics, 0 for none.
        precision: number formats and loss scale.
        freeze: parts of the model, such as "stem" and "stage_1", that stay unchanged.
        world: number of cards; more than one requires `distributed.start`.
        bucket_mb: size in MB (2^20 bytes) of the messages in which gradients travel between cards.
        jit: whether to compile the step; if false, the same operations run one by one.
        sync_batch_norm: whether to normalise over the batches of all cards.
        blend_from: activation that the network changes from, by the argument `share` of each step; None if it has its
            own from the start.
        scales: scales of the layers to train in 8 bit, with BatchNorm's statistics as they are; None for none.
        stop_on_failure: whether no later step changes anything after one that no smaller loss scale can help, for
            results that are read after the next step has started.
        recompute: whether the backward pass computes the linear layers of the blocks again instead of keeping their
            outputs; without effect on blocks that the CPU computes with one kernel.
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
        blend_from: str | None = None,
        scales: Scales | None = None,
        bucket_mb: float = DEFAULT_BUCKET_MB,
        stop_on_failure: bool = False,
        recompute: bool = False,
    ):
        optimizer, precision = optimizer or OptimizerConfig(), precision or PrecisionConfig()
        self.model = model
        self.config = optimizer
        self.world = world
        self._running: StepResult | None = None
        self.drop_path = sample_drop_path(model)
        self.share = blend_activations(model, blend_from) if blend_from else None
        if sync_batch_norm and world > 1:
            synchronise_batch_norm(model, world)
        if recompute:
            _recompute_blocks(model)
        trainable = _freeze_parts(model, freeze)
        rates = layer_rates(
            [official_name(p.name) for p in trainable], model.architecture.per_stage_layers, optimizer.layer_decay
        )
        self.optimizer = make_optimizer(optimizer, trainable, rates)
        self._names = list(model.architecture.tensors())
        parameters = {official_name(p.name): p for p in model.get_parameters()}
        self._all = ParameterTuple([parameters[name] for name in self._names])
        self.ema_decay = ema_decay
        self.ema = ParameterTuple(
            [Parameter(Tensor(p.asnumpy().copy()), name=f"ema.{p.name}") for p in self._all] if ema_decay else []
        )
        self._statistics = ParameterTuple(
            [
                parameters[name]
                for name in self._names
                if name.endswith(STATISTICS) and not _inside(name, freeze) and scales is None
            ]
        )
        network = model if scales is None else FakeQuantized(model, scales)
        scale, self.dynamic_scale = first_scale(precision)
        self._growth_interval = precision.growth_interval
        self._updates = _scalar("updates", 0)
        self._scale = _scalar("scale", scale)
        self._good = _scalar("good", 0)
        self._stopped = _scalar("stopped", 0) if stop_on_failure else None
        # With a single batch the gradients go straight to the optimizer.
        self._sums = zeros_like_weights("sum", self.optimizer.weights if optimizer.accumulate > 1 else [])
        self._gradients = ms.value_and_grad(
            _Forward(cast_model(network, precision), self._scale), None, self.optimizer.weights, has_aux=True
        )
        self._all_reduce = ops.AllReduce() if world > 1 else None
        self._buckets = buckets([w.size for w in self.optimizer.weights], bucket_mb)
        if jit:
            ms.set_recursion_limit(CALL_DEPTH)
        elif ms.get_context("device_target") == "CPU":
            # A queue between Python and the operations hides the launches of an accelerator. On a CPU it only costs
            # time, milliseconds for each operation where threads are scarce.
            ms.set_context(pynative_synchronize=True)
        self._step = ms.jit(self._make_step()) if jit else self._make_step()
        self._accumulate = ms.jit(self._make_accumulate()) if jit else self._make_accumulate()

    def __call__(self, batches: Sequence[tuple], rate: float, share: float = 1.0) -> StepResult:
        """Make one update.

        Args:
            batches: `accumulate` batches, each `(images, targets)` or `(images, targets, keep)`: float32
                `(N, 3, H, W)`, float32 `(N, classes)`, and float32 `(blocks with drop path, N)` of drop-path factors,
                0 or 1 / (1 - rate) (see `drop_path_rates`).
            rate: learning rate.
            share: share of the network's own activation, 0 to 1; the rest is that of `blend_from`.

        Raises:
            InputError: the number of batches is not `accumulate`.
        """
        if len(batches) != self.config.accumulate:
            raise InputError(
                f"training step: wrong number of batches (got {len(batches)}, expected {self.config.accumulate}, which "
                "is optimizer.accumulate)"
            )
        if self.share is not None:
            # The step before may still read it.
            self._wait()
            ops.assign(self.share, Tensor(np.float32(share)))
        finish = operators.Finish(graphs=len(batches))
        try:
            results = [self._accumulate(*self._inputs(batch)) for batch in batches[:-1]]
            results.append(self._step(*self._inputs(batches[-1]), Tensor(np.float32(rate))))
        except BaseException:
            finish.give_up()
            raise
        self._running = StepResult(results, finish)
        return self._running

    def _wait(self) -> None:
        """Wait for the last step, which may still write."""
        if self._running is not None:
            self._running.wait()

    @property
    def drop_path_rates(self) -> list[float]:
        """Drop-path rate of each block that has one, in the order of the rows of `keep`."""
        return [rate for stage in self.model.architecture.drop_path_rates() for rate in stage if rate > 0]

    @property
    def messages(self) -> list[int]:
        """Number of values in each message that a step sends to the other cards, in their order."""
        pass_results = 2 + sum(statistic.size for statistic in self._statistics)
        synchronised = [cell.gamma.size for _, cell in self.model.cells_and_names() if is_synchronised(cell)]
        # A synchronised BatchNorm sends mean and variance, in the forward and in the backward pass.
        batch = [*synchronised * 4, pass_results]
        sizes = [0] * (max(self._buckets) + 1)
        for weight, bucket in zip(self.optimizer.weights, self._buckets, strict=True):
            sizes[bucket] += weight.size
        return batch * self.config.accumulate + sizes

    @property
    def updates(self) -> int:
        """Number of updates, without skipped steps."""
        self._wait()
        return int(self._updates.asnumpy())

    @property
    def scale(self) -> float:
        """Loss scale of the next step."""
        self._wait()
        return float(self._scale.asnumpy())

    def weights(self, ema: bool = False) -> dict[str, np.ndarray]:
        """Return weights and statistics, or their moving average, as float32 arrays by official name."""
        self._wait()
        parameters = self.ema if ema else self._all
        return {name: p.asnumpy().copy() for name, p in zip(self._names, parameters, strict=True)}

    def state(self) -> dict[str, np.ndarray]:
        """Return everything that the next step depends on except the batch: arrays by `model.NAME`, `ema.NAME`, ..."""
        self._wait()
        return {name: parameter.asnumpy().copy() for name, parameter in self._state().items()}

    def load_state(self, arrays: Mapping[str, np.ndarray], source: str = "state") -> None:
        """Restore what `state` returned.

        Raises:
            InputError: arrays are missing, unexpected or of the wrong shape, each named. Nothing is changed then.
        """
        state = self._state()
        problems = [f"missing: {name}" for name in state if name not in arrays]
        problems += [f"unexpected: {name}" for name in arrays if name not in state]
        problems += [
            f"wrong shape: {name} (got {tuple(arrays[name].shape)}, expected {tuple(parameter.shape)})"
            for name, parameter in state.items()
            if name in arrays and tuple(arrays[name].shape) != tuple(parameter.shape)
        ]
        if problems:
            raise InputError(
                f"{source}: does not match this configuration ({plural(len(problems), 'problem')}). Resume with the "
                f"configuration of that run:\n{list_names(problems)}"
            )
        self._wait()
        if self._stopped is not None:
            ops.assign(self._stopped, Tensor(np.float32(0)))
        for name, parameter in state.items():
            # In place, because a compiled graph keeps the old tensor after `set_data`.
            ops.assign(parameter, Tensor(np.array(arrays[name], np.float32)))

    def _state(self) -> dict[str, Parameter]:
        state = {f"{MODEL}.{name}": p for name, p in zip(self._names, self._all, strict=True)}
        if self.ema_decay:
            state.update({f"ema.{name}": p for name, p in zip(self._names, self.ema, strict=True)})
        for slot, parameters in self.optimizer.slots.items():
            for weight, parameter in zip(self.optimizer.weights, parameters, strict=True):
                state[f"optimizer.{slot}.{official_name(weight.name)}"] = parameter
        # Gradient sums are not part of it: they are empty between two steps.
        state.update({f"step.{p.name}": p for p in (self._updates, self._scale, self._good)})
        return state

    def _inputs(self, batch: tuple) -> tuple[Tensor, ...]:
        keep = batch[2] if len(batch) > 2 else np.ones((max(1, len(self.drop_path_rates)), len(batch[0])), np.float32)
        if self.drop_path is not None and self.drop_path.shape != keep.shape:
            # A Parameter has a fixed shape; this one follows the batch size.
            self._wait()
            self.drop_path.set_data(Tensor(np.ones(keep.shape, np.float32)), slice_shape=True)
        return tuple(Tensor(np.ascontiguousarray(part, np.float32)) for part in (*batch[:2], keep))

    def _make_pass(self):
        """Return a function for one batch.

        Its results are the gradients of the scaled loss, `[loss, hits]`, whether the batch counts (its loss is finite
        and nothing has stopped the training), and the restored statistics, to depend on.
        """
        drop_path, gradients_of, stopped = self.drop_path, self._gradients, self._stopped
        statistics, world, all_reduce = self._statistics, self.world, self._all_reduce
        sizes = (2, *(statistic.size for statistic in statistics))

        def run(images, targets, keep):
            if drop_path is not None:
                ops.assign(drop_path, keep)
            # Copies, since BatchNorm overwrites its statistics in the forward pass.
            before = each(_copy, statistics) if len(statistics) > 0 else ()
            (_, loss, logits), gradients = gradients_of(images, targets)
            hits = (logits.argmax(1) == targets.argmax(1)).astype(ms.float32).sum()
            finite = ops.isfinite(loss)
            result = ops.stack((loss, hits))
            after = each(_copy, statistics) if len(statistics) > 0 else ()
            if world > 1:
                # Each card has statistics of its own batches; their mean keeps all cards equal. The loss is averaged
                # in the same message, so that all cards take the same decision about the step.
                means = _averages(all_reduce, world, (result, *after), sizes)
                after = means[1:]
                result = ops.stack((means[0][0], means[0][1] * world))
                finite = ops.isfinite(result[0])
            if stopped is not None:
                finite = ops.logical_and(finite, stopped == 0)
            # One batch with NaN would spoil the running statistics for good.
            restored = each(partial(_restore_unless, finite), statistics, after, before) if len(statistics) > 0 else ()
            return gradients, result, finite, restored

        return run

    def _make_accumulate(self):
        """Return a function that adds the unscaled gradients of one batch to the sums."""
        run, sums, share, scale = self._make_pass(), self._sums, 1 / self.config.accumulate, self._scale
        stopped = self._stopped

        def accumulate(images, targets, keep):
            gradients, result, counts, restored = run(images, targets, keep)
            # Cards are averaged once per update, after the last batch, not here.
            done: tuple = (restored, each(partial(_add, share / scale), sums, gradients))
            if stopped is not None:
                # A loss that is not finite has no cure, so nothing after it counts.
                done = (*done, ops.assign(stopped, 1 - counts.astype(ms.float32)))
            return last(result, done)

        return accumulate

    def _make_step(self):
        """Return a function that makes the update; its result is the last part of a `StepResult`."""
        run, optimizer, ema, everything = self._make_pass(), self.optimizer, self.ema, self._all
        sums, share, world, clip_norm = self._sums, 1 / self.config.accumulate, self.world, self.config.clip_norm
        updates, scale, good = self._updates, self._scale, self._good
        ema_share = 1 - self.ema_decay
        dynamic, interval, stopped = self.dynamic_scale, float(self._growth_interval), self._stopped
        reduce_sums = bucket_sums(self._buckets) if world > 1 else ()

        def step(images, targets, keep, rate):
            # A copy: the Parameter changes at the end of this step.
            used_scale = scale * 1
            gradients, result, counts, restored = run(images, targets, keep)
            # Every change of a Parameter is in it. MindSpore may drop one that the result does not depend on.
            done: tuple = (restored,)
            # Factor that unscales the gradients. It is applied together with clipping, to read and write them once.
            unit = 1 / used_scale
            if len(sums) > 0:
                gradients = each(partial(_total, share * unit), sums, gradients)
                done = (*done, each(_clear, sums))
                # The sums are unscaled already.
                unit = unit * 0 + 1
            if world > 1:
                gradients = each(partial(_mean, world), reduce_sums, gradients)
            norm = _norm(unit, gradients)
            # The loss is checked too: where it is infinite, log-softmax may still have finite gradients.
            finite = ops.logical_and(ops.isfinite(norm), ops.isfinite(result[0]))
            if stopped is not None:
                finite = ops.logical_and(finite, stopped == 0)
            applied = finite.astype(ms.float32)
            if clip_norm > 0:
                unit = unit * _clip(norm, clip_norm)
            # A factor of 0 stands for zeros; multiplying would leave NaN and infinity in them.
            factor = ops.select(finite, unit, ops.zeros_like(unit))
            changed = optimizer.update(gradients, factor, rate, updates + 1, applied)
            if len(ema) > 0:
                # After the update, so that the average takes the new weights.
                changed = _average(ema, each(partial(_after, changed), everything), ema_share * applied)
            done = (*done, changed, ops.assign_add(updates, applied))
            next_scale = used_scale
            if dynamic:
                # Double after `interval` updates without overflow, halve after an overflow.
                grown = (good + 1) * applied
                full = (grown >= interval).astype(ms.float32)
                factor = applied * (1 + full) + (1 - applied) * 0.5
                next_scale = ops.maximum(used_scale * factor, Tensor(np.float32(_LEAST_SCALE)))
                if stopped is not None:
                    next_scale = ops.select(counts, next_scale, used_scale)
                done = (*done, ops.assign(scale, next_scale), ops.assign(good, grown * (1 - full)))
            if stopped is not None:
                # A smaller scale, if there is one, helps after an overflow, but not if the loss is not finite.
                helped = ops.logical_and(counts, next_scale < used_scale)
                goes_on = ops.logical_or(finite, helped).astype(ms.float32)
                done = (*done, ops.assign(stopped, 1 - goes_on))
            return last(ops.concat((result, ops.stack((norm, applied, used_scale, next_scale)))), done)

        return step


def _averages(all_reduce, world: int, tensors, sizes):
    """Return means of small tensors over all cards, sent as one message."""
    flat = all_reduce(ops.concat(each(_flat, tensors))) / world
    return each(_shaped, ops.split(flat, sizes), tensors)


def _mean(world, reduce_sum, gradient):
    return reduce_sum(gradient) / world


def _flat(tensor):
    return tensor.reshape(-1)


def _shaped(flat, like):
    return flat.reshape(like.shape)


def _copy(tensor):
    return ops.deepcopy(tensor)


def _restore_unless(finite, statistic, after, before):
    return ops.assign(statistic, ops.select(finite, after, before))


def _add(share, total, tensor):
    return ops.assign_add(total, tensor * share)


def _total(share, total, tensor):
    return total + tensor * share


def _clear(total):
    return ops.assign(total, ops.zeros_like(total))


def _norm(factor, gradients):
    """Return the global norm of the gradients times the factor."""
    if operators.usable(gradients[0].dtype):
        return ops.sqrt(operators.sum_of_squares(gradients, factor.reshape(1)).reshape(()))
    return ops.sqrt(ops.stack(each(partial(_squares, factor), gradients)).sum())


def _squares(factor, tensor):
    tensor = tensor * factor
    return (tensor * tensor).sum()


def _after(done, tensor):
    return ops.depend(tensor, done)


def _average(averages, tensors, share):
    if operators.usable(ms.float32):
        return operators.moving_average(share.reshape(1), averages, tensors)
    return each(partial(_moved, share), averages, tensors)


def _moved(share, average, tensor):
    return ops.assign(average, average * (1 - share) + tensor * share)


def _clip(norm, largest: float):
    return ops.minimum(largest / (norm + _CLIP_EPS), ops.ones_like(norm))


def _scalar(name: str, value: float) -> Parameter:
    return Parameter(Tensor(np.float32(value)), name=name, requires_grad=False)


class _Forward(nn.Cell):
    """A network from images and soft targets to the scaled loss, the loss and the logits."""

    def __init__(self, model: nn.Cell, scale: Parameter):
        super().__init__(auto_prefix=False)
        self.model = model
        self.scale = scale

    def construct(self, images, targets):
        # The loss is float32 at every precision level.
        logits = self.model(images).astype(ms.float32)
        loss = -(targets * ops.log_softmax(logits, -1)).sum(-1).mean()
        return loss * self.scale, loss, logits


def _inside(name: str, parts: Sequence[str]) -> bool:
    return name.partition(".")[0] in parts


def _freeze_parts(model: NeoNeXt, parts: Sequence[str]) -> list[Parameter]:
    """Set the model to training mode except for the named parts, and return the Parameters to train.

    Raises:
        InputError: the model has no such part.
    """
    known = list(model.name_cells())
    for part in parts:
        if part not in known:
            raise InputError(f"model.freeze: the model has no part {part!r} (expected one of {', '.join(known)})")
    model.set_train(True)
    for part in parts:
        getattr(model, part).set_train(False)
    return [p for p in model.trainable_params() if not _inside(p.name, parts)]


def _recompute_blocks(model: NeoNeXt) -> None:
    """Mark what the backward pass computes again: all of a block behind its BatchNorm, which has statistics."""
    for _, cell in model.cells_and_names():
        if isinstance(cell, NeoBottleneck):
            for part in (cell.ops.content.fc_1, cell.ops.content.act):
                part.recompute(output_recompute=True)
