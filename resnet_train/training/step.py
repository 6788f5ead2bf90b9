"""One training step and one evaluation, for every precision and option. Knows nothing of files, epochs or config."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from resnet_train.training.optim import zero_momentum
from resnet_train.training.state import TrainState

Forward = Callable[[Tensor], Tensor]  # images (B, C, H, W) to logits (B, classes)


@dataclass(frozen=True)
class StepOptions:
    """What one step does besides the obvious."""

    precision: str = (
        "fp32"  # fp32, tf32, bf16, fp16: of convolutions and matrix multiplications; parameters stay float32
    )
    accumulate: int = 1  # micro-batches
    label_smoothing: float = 0.0
    class_weights: Tensor | None = None  # (classes,), on the device
    clip_grad_norm: float | None = None
    ema_decay: float | None = None


@dataclass(frozen=True)
class StepOutput:
    """Results of one step, left on the device: reading one is a synchronisation."""

    loss: Tensor  # (), mean over the batch
    accuracy: Tensor  # (), fraction of the batch whose (likeliest) label was found
    grad_norm: Tensor | None  # (), before clipping; where it clips, else None: ask `grad_norm`


@dataclass(frozen=True)
class Health:
    """Whether training has diverged after a step; left on the device, as all that is read now and then."""

    grad_norm: Tensor  # (), of the last gradient, before clipping
    largest: Tensor  # (), magnitude in weights, statistics and optimizer state: not finite where one of them is not
    culprit: Callable[[], str]  # the name of that one


class Step(Protocol):
    """One step of a state that it knows, by whatever path."""

    def __call__(self, images: Tensor, labels: Tensor, *, lr: float) -> StepOutput:
        """See `train_step`."""
        ...


@dataclass(frozen=True)
class Evaluation:
    """Sums over every image of a split, turned into means once."""

    loss: float
    accuracy: float  # in [0, 1]
    correct: int
    count: int
    logits: Tensor | None = None  # (N, classes) float32 on the CPU, if they were to be kept


def train_step(
    state: TrainState,
    images: Tensor,
    labels: Tensor,
    *,
    lr: float | Tensor,
    options: StepOptions,
    forward: Forward | None = None,
) -> StepOutput:
    """Make one step: change ``state`` in place and count it.

    ``images`` ``(B, C, H, W)``; ``labels`` int64 ``(B,)`` or a distribution ``(B, classes)``; ``lr`` a number, or a
    tensor ``()`` on the device; ``forward``: the model itself unless another way through it is given, such as a
    compiled one. No synchronisation with the device.
    """
    for group in state.optimizer.param_groups:
        group["lr"] = lr
    if not state.model.training:
        state.model.train()
    if not state.optimizer.state:
        zero_momentum(state.optimizer)
    state.optimizer.zero_grad(set_to_none=True)
    losses, correct = [], []
    for images_, labels_ in zip(images.chunk(options.accumulate), labels.chunk(options.accumulate), strict=True):
        with autocast(images.device, options.precision):
            logits = (state.model if forward is None else forward)(images_)
        loss = training_loss(at_least_float(logits), labels_, options)
        state.scaler.scale(loss if options.accumulate == 1 else loss / options.accumulate).backward()
        losses.append(loss.detach())
        target = labels_ if labels_.ndim == 1 else labels_.argmax(1)
        correct.append((logits.detach().argmax(1) == target).sum())
    state.scaler.unscale_(state.optimizer)
    norm = None
    if options.clip_grad_norm is not None:
        norm = total_norm(state.model)
        clip_grads_with_norm_(state.model.parameters(), options.clip_grad_norm, norm)
    state.scaler.step(state.optimizer)
    state.scaler.update()
    if state.ema is not None and options.ema_decay is not None:
        update_ema(state.ema, state.model, decay=options.ema_decay)
    state.step += 1
    if options.accumulate == 1:  # the same without kernels of its own
        return StepOutput(losses[0], correct[0] / len(labels), norm)
    return StepOutput(torch.stack(losses).mean(), torch.stack(correct).sum() / len(labels), norm)


def training_loss(logits: Tensor, labels: Tensor, options: StepOptions) -> Tensor:
    """Mean cross-entropy ``()``; with class weights the weighted sum over the number of images.

    Not over the sum of their weights, as PyTorch has it for labels that are numbers: so micro-batches add up to the
    batch, and a label counts the same as the distribution that is 1 there.
    """
    smoothing, weights = options.label_smoothing, options.class_weights
    if weights is None:
        return F.cross_entropy(logits, labels, label_smoothing=smoothing)
    total = F.cross_entropy(logits, labels, weights.to(logits.dtype), label_smoothing=smoothing, reduction="sum")
    return total / len(labels)


def allow_tf32(precision: str) -> None:
    """Let CUDA round the inputs of float32 matrix multiplications to TF32's 10 bits if asked for: process-wide."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Please use the new API settings to control TF32")  # of torch 2.9
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"


def grad_norm(state: TrainState, output: StepOutput) -> Tensor:
    """Norm ``()`` of the gradient of the last step, before clipping: only of use until the next step begins.

    Apart from `train_step`, since a hundred small sums are a hundredth of a step of a thin network, and few are read.
    """
    return total_norm(state.model) if output.grad_norm is None else output.grad_norm


def health(state: TrainState, output: StepOutput) -> Health:
    """Of ``state`` after the step that gave ``output``: only of use until the next step begins."""
    largest = get_total_norm([tensor for _, tensor in _state_tensors(state)], norm_type=math.inf)
    return Health(grad_norm(state, output), largest, partial(_first_not_finite, state))


def _state_tensors(state: TrainState) -> Iterator[tuple[str, Tensor]]:
    """What a step changes for good, by name."""
    for name, tensor in (*state.model.named_parameters(), *state.model.named_buffers()):
        if tensor.is_floating_point():
            yield name, tensor.detach()
        for key, value in state.optimizer.state.get(tensor, {}).items():
            if torch.is_tensor(value) and value.shape == tensor.shape:
                yield f"{key} of {name}", value


def _first_not_finite(state: TrainState) -> str:
    return next(name for name, tensor in _state_tensors(state) if not tensor.isfinite().all())


def total_norm(model: nn.Module) -> Tensor:
    """Norm ``()`` of the gradient over all parameters."""
    return get_total_norm([parameter.grad for parameter in model.parameters() if parameter.grad is not None])


@torch.no_grad()
def update_ema(average: nn.Module, model: nn.Module, *, decay: float) -> None:
    """Move ``average`` towards ``model`` by ``1 - decay``; batch-norm statistics too, counters are copied.

    By one operation for all tensors of a kind, which is a few kernels on a GPU; the result is that of ``lerp_`` on one
    tensor after another, to the bit.
    """
    averaged, current = ([*network.parameters(), *network.buffers()] for network in (average, model))
    pairs = list(zip(averaged, current, strict=True))
    moved = [pair for pair in pairs if pair[0].is_floating_point()]
    torch._foreach_lerp_([one for one, _ in moved], [other for _, other in moved], 1 - decay)
    copied = [pair for pair in pairs if not pair[0].is_floating_point()]
    if copied:
        torch._foreach_copy_([one for one, _ in copied], [other for _, other in copied])


@torch.inference_mode()
def evaluate(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], *, precision: str, keep_logits: bool = False
) -> Evaluation:
    """Loss and accuracy over every image of ``batches``: sums, divided once; one synchronisation, at the end."""
    kept: list[Tensor] = []
    was_training = model.training
    model.eval()
    loss_sum, correct, count = None, None, 0
    for images, labels in batches:
        with autocast(images.device, precision):
            logits = model(images)
        batch_loss = F.cross_entropy(at_least_float(logits), labels, reduction="sum")
        batch_correct = (logits.argmax(1) == labels).sum()
        loss_sum = batch_loss if loss_sum is None else loss_sum + batch_loss
        correct = batch_correct if correct is None else correct + batch_correct
        count += len(labels)
        if keep_logits:
            kept.append(at_least_float(logits))
    model.train(was_training)
    if loss_sum is None or correct is None:
        raise ValueError("nothing to evaluate: the split is empty")
    all_logits = torch.cat(kept).cpu() if kept else None
    return Evaluation(loss_sum.item() / count, correct.item() / count, int(correct.item()), count, all_logits)


def at_least_float(logits: Tensor) -> Tensor:
    """Half precision to float32, for a loss whose digits count; float32 and float64 stay what they are."""
    return logits if logits.dtype == torch.float64 else logits.float()


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The same code path for every precision; switched off for fp32 and tf32."""
    dtype = torch.float16 if precision == "fp16" else torch.bfloat16
    return torch.autocast(device.type, dtype=dtype, enabled=precision in ("bf16", "fp16"))
