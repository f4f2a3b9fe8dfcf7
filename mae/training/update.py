"""The compiled step: a loss, its gradients averaged over all ranks, and one update of the optimiser."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, Union

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from mae.device.context import all_mean, float_status
from mae.training.optim import LARS, AdamW, LossScale

Optimizer = Union[AdamW, LARS]
BUCKET_BYTES = 32 << 20  # a ViT-B's gradients fill 14 buckets; torch's DDP uses 25 MB


class Gradients(nn.Cell):
    """Returns the loss of one batch on this rank and its gradients, both multiplied by the loss scale.

    The loss is (1,) float32. On a device that saturates it is (2,): the second value is 1 if anything overflowed or was
    not a number, else 0.
    """

    def __init__(self, loss: nn.Cell, parameters: Sequence[Parameter]) -> None:
        super().__init__(auto_prefix=False)
        self.value_and_grad = ms.value_and_grad(loss, None, parameters)
        status = float_status()
        self.saturates = status is not None
        if status is not None:
            self.clear, self.read = status
        self.values = 2 if self.saturates else 1
        self.no_fault = Tensor(np.zeros(8, np.int32))

    def construct(self, *batch: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        if not self.saturates:
            loss, gradients = self.value_and_grad(*batch)
            return loss.reshape(1), gradients
        images = ops.depend(batch[0], self.clear(self.no_fault))
        loss, gradients = self.value_and_grad(images, *batch[1:])
        status = self.read(ops.depend(self.no_fault, (loss, gradients)))
        return ops.stack((loss, (status != 0).astype(ms.float32).max())), gradients


class Combine(nn.Cell):
    """Averages the loss and the gradients over all ranks, and returns the gradients' norm as well.

    They are sent in buckets of whole parameters, in the model's order. A bucket waits only for its own gradients, so
    the gradients of late layers are sent while those of early layers are still computed.
    """

    def __init__(self, parameters: Sequence[Parameter], ranks: int, values: int) -> None:
        super().__init__()
        self.spans = bucket_spans([4 * p.size for p in parameters], BUCKET_BYTES)
        self.buckets = nn.CellList(
            [
                _Bucket([p.shape for p in parameters[first:last]], ranks, number, values if number == 0 else 0)
                for number, (first, last) in enumerate(self.spans)
            ]
        )

    def construct(self, values: Tensor, gradients: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...], Tensor]:
        averaged, squares = gradients[:0], ops.zeros((), ms.float32)
        for bucket, span in zip(self.buckets, self.spans):
            own = gradients[span[0] : span[1]]
            if span[0] == 0:  # the bucket that is computed last
                own = (values,) + own
            own, square = bucket(own)
            averaged, squares = averaged + own, squares + square
        return averaged[0], averaged[1:], ops.sqrt(squares)


class _Bucket(nn.Cell):
    """Averages tensors over all ranks by one all-reduce of a flat tensor; also returns the sum of their squares."""

    def __init__(self, shapes: list[tuple[int, ...]], ranks: int, number: int, values: int) -> None:
        super().__init__()
        self.ranks, self.values = ranks, values  # `values`: number of values before the gradients
        self.sizes = [math.prod(shape) for shape in ([(values,), *shapes] if values else shapes)]
        self.map = ops.HyperMap()
        if ranks > 1:
            self.all_mean = all_mean(number)

    def construct(self, tensors: tuple[Tensor, ...]) -> tuple[tuple[Tensor, ...], Tensor]:
        flat = ops.concat(self.map(_flat, tensors))  # one sum over it is 4 times faster than one sum per tensor
        if self.ranks > 1:
            flat = self.all_mean(flat)
            tensors = self.map(_shaped, ops.split(flat, self.sizes), tensors)
        if self.values:
            flat = flat[self.values :]
        return tensors, ops.square(flat).sum()


def bucket_spans(sizes: Sequence[int], bucket_bytes: int) -> list[tuple[int, int]]:
    """Return the first and last (exclusive) index of the consecutive `sizes`, in bytes, of each bucket.

    A size above `bucket_bytes` gets a bucket of its own. Buckets are filled from the end, where the backward pass
    starts.
    """
    spans, last, filled = [], len(sizes), 0
    for number in range(len(sizes) - 1, -1, -1):
        if filled and filled + sizes[number] > bucket_bytes:
            spans.append((number + 1, last))
            last, filled = number + 1, 0
        filled += sizes[number]
    return [(0, last), *reversed(spans)]


# HyperMap applies these to each parameter or gradient: a loop in `construct` takes twice as long to compile.


def _flat(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1)


def _shaped(part: Tensor, like: Tensor) -> Tensor:
    return part.reshape(like.shape)


def _mean(count: int, total: Tensor, last: Tensor) -> Tensor:
    return (total + last) / count


def _scaled(factor: Tensor, gradient: Tensor) -> Tensor:
    return gradient * factor


def _or_zero(applied: Tensor, gradient: Tensor) -> Tensor:
    return ops.select(applied > 0, gradient, ops.zeros_like(gradient))


def _cleared(total: Parameter, gradient: Tensor) -> Tensor:
    return ops.assign(total, ops.zeros_like(gradient))


def _moved(share: float, applied: Tensor, average: Parameter, parameter: Parameter) -> Tensor:
    return ops.assign(average, average + (1 - share) * applied * (parameter - average))


class _ScaledLoss(nn.Cell):
    def __init__(self, loss: nn.Cell, scale: Parameter) -> None:
        super().__init__(auto_prefix=False)
        self.loss, self.scale = loss, scale

    def construct(self, *batch: Tensor) -> Tensor:
        return self.loss(*batch) * self.scale


class StepResult(NamedTuple):
    """The result of an update, in the order of the tensor that it returns."""

    loss: float  # mean over ranks and accumulated batches
    grad_norm: float  # before clipping
    loss_scale: float  # of the next update
    overflows: int  # updates skipped so far
    halted: int  # updates since training halted, including the one that halted it; 0: training runs
    saturated: bool  # True: the device saturated a number, so a finite loss and norm mean nothing

    @classmethod
    def read(cls, tensor: Tensor) -> StepResult:
        """Return the result after waiting for the device."""
        loss, grad_norm, loss_scale, overflows, halted, saturated = tensor.asnumpy().tolist()
        return cls(loss, grad_norm, loss_scale, int(overflows), int(halted), saturated > 0)


class Update(nn.Cell):
    """One optimiser update, from one batch per rank and the batches that `Accumulate` has added before.

    Args:
        loss: a cell that maps a batch to its mean loss.
        optimizer: optimiser of the trained parameters.
        ranks: number of processes that train together.
        accum_iter: batches per update, averaged; sums are float32.
        clip_grad: largest norm of the whole gradient; a longer one is scaled down to it (as torch's clip_grad_norm_).
        ema: decay per update of an exponential moving average of the parameters.
        dynamic_scale: scale the loss, for float16.
    """

    def __init__(
        self,
        loss: nn.Cell,
        optimizer: Optimizer,
        *,
        ranks: int,
        accum_iter: int,
        clip_grad: float | None = None,
        ema: float | None = None,
        dynamic_scale: bool = False,
    ) -> None:
        super().__init__(auto_prefix=False)
        self.loss_scale = LossScale(dynamic=dynamic_scale)
        scaled = _ScaledLoss(loss, self.loss_scale.scale) if dynamic_scale else loss
        self.gradients = Gradients(scaled, optimizer.params)
        self.optimizer = optimizer
        self.accum_iter, self.clip_grad, self.ema = accum_iter, clip_grad, ema
        self.dynamic_scale = dynamic_scale
        self.state = [*optimizer.state, *self.loss_scale.state]
        self.combine = Combine(optimizer.params, ranks, self.gradients.values)
        self.map = ops.HyperMap()
        if accum_iter > 1:
            self.sums = optimizer.params.clone("accumulated", init="zeros")
            values = Tensor(np.zeros(self.gradients.values, np.float32))
            self.loss_sum = Parameter(values, name="accumulated_loss", requires_grad=False)
        if ema is not None:
            self.averages = optimizer.params.clone("ema")
            self.state += list(self.averages)

    def construct(self, lr: Tensor, *batch: Tensor) -> Tensor:
        """Learning rate () float32 and a batch -> the values of `StepResult` (6,) float32."""
        values, gradients = self.gradients(*batch)
        if self.accum_iter > 1:
            values = (values + self.loss_sum) / self.accum_iter
            gradients = self.map(ops.partial(_mean, self.accum_iter), self.sums, gradients)
        values, gradients, norm = self.combine(values, gradients)
        loss = values[0]
        saturated = values[1] if self.gradients.saturates else ops.zeros((), ms.float32)
        factor = ops.ones((), ms.float32)
        if self.dynamic_scale:
            factor = 1 / self.loss_scale.scale
            loss, norm = loss * factor, norm * factor
        applied, scale, overflows, halted = self.loss_scale(loss, norm, saturated)
        if self.clip_grad is not None:
            factor = factor * ops.minimum(self.clip_grad / (norm + 1e-6), 1.0)
        if self.dynamic_scale or self.clip_grad is not None:
            gradients = self.map(ops.partial(_scaled, factor), gradients)
        if self.gradients.saturates:  # all gradients are finite, and a 910A broadcasts no booleans on its AI cores
            gradients = self.map(ops.partial(_scaled, applied), gradients)
        else:
            gradients = self.map(ops.partial(_or_zero, applied), gradients)
        report = ops.stack((loss, norm, scale, overflows, halted, saturated))
        done = ops.depend(report, self.optimizer(gradients, lr, applied))
        if self.accum_iter > 1:
            done = ops.depend(done, ops.assign(self.loss_sum, ops.zeros_like(values)))
            done = ops.depend(done, self.map(_cleared, self.sums, gradients))
        if self.ema is not None:
            moved = ops.partial(_moved, self.ema, applied)
            done = ops.depend(done, self.map(moved, self.averages, self.optimizer.params))
        return done


class Accumulate(nn.Cell):
    """Adds one batch's gradients and loss to the sums of an `Update`."""

    def __init__(self, update: Update) -> None:
        super().__init__(auto_prefix=False)
        self.gradients = update.gradients
        self.sums, self.loss_sum = update.sums, update.loss_sum
        self.map = ops.HyperMap()

    def construct(self, *batch: Tensor) -> Tensor:
        """A batch -> its loss, as `Gradients` returns it."""
        values, gradients = self.gradients(*batch)
        values = ops.depend(values, ops.assign_add(self.loss_sum, values))
        return ops.depend(values, self.map(ops.assign_add, self.sums, gradients))
