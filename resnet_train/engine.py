"""One training step and one evaluation, for every precision and option. Knows nothing of files, epochs or config."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from resnet_train import native
from resnet_train.state import TrainState

Forward = Callable[[Tensor], Tensor]  # images (B, 3, H, W) to logits (B, classes)


@dataclass(frozen=True)
class StepOptions:
    """What one update does besides the obvious."""

    precision: str = "fp32"  # fp32, tf32, bf16, fp16: of convolutions and products; parameters stay float32
    accumulate: int = 1  # micro-batches
    label_smoothing: float = 0.0
    clip_grad_norm: float | None = None
    ema_decay: float | None = None


@dataclass(frozen=True)
class StepOutput:
    """Results of one update, left on the device: reading one is a synchronisation."""

    loss: Tensor  # (), mean over the batch
    accuracy: Tensor  # (), share of the batch whose (likeliest) label was found
    grad_norm: Tensor | None  # (), before clipping; where it clips, else None: ask `grad_norm`


class Update(Protocol):
    """One update of a state that it knows, by whatever path."""

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


def train_step(
    state: TrainState,
    images: Tensor,
    labels: Tensor,
    *,
    lr: float | Tensor,
    options: StepOptions,
    forward: Forward | None = None,
) -> StepOutput:
    """Make one update of ``state`` in place and count it.

    ``images`` ``(B, 3, H, W)``; ``labels`` int64 ``(B,)`` or a distribution ``(B, classes)``; ``lr`` a number, or a
    tensor ``()`` on the device; ``forward``: the model itself unless another way through it is given, such as a
    compiled one. No synchronisation with the device.
    """
    for group in state.optimizer.param_groups:
        group["lr"] = lr
    if not state.model.training:
        state.model.train()
    state.optimizer.zero_grad(set_to_none=True)
    losses, correct = [], []
    for images_, labels_ in zip(images.chunk(options.accumulate), labels.chunk(options.accumulate), strict=True):
        with autocast(images.device, options.precision):
            logits = (state.model if forward is None else forward)(images_)
        loss = F.cross_entropy(at_least_float(logits), labels_, label_smoothing=options.label_smoothing)
        state.scaler.scale(loss / options.accumulate).backward()
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
        update_average(state.ema, state.model, decay=options.ema_decay)
    state.step += 1
    return StepOutput(torch.stack(losses).mean(), torch.stack(correct).sum() / len(labels), norm)


class GraphedStep:
    """`train_step` recorded once as a CUDA graph, from the forward pass to the moving average: one launch an update.

    The first updates are made one by one, since libraries set themselves up and momentum is allocated then, and the
    learning rate is a tensor from the first of them on, so that an update is the same to the bit whether it is among
    the first of a session or not. All updates need the shapes of the first one. ``state`` must not be loaded from a
    checkpoint after that, nor updated in another way.
    """

    WARM_UP = 3  # updates before the recording; PyTorch's notes on CUDA graphs ask for that many

    def __init__(self, state: TrainState, *, options: StepOptions, forward: Forward | None = None) -> None:
        self._state, self._options, self._forward = state, options, forward
        self._graph: torch.cuda.CUDAGraph | None = None
        self._updates = 0

    def __call__(self, images: Tensor, labels: Tensor, *, lr: float) -> StepOutput:
        """See `train_step`. What it returns is the caller's own: the next replay does not change it."""
        if self._updates == 0:
            self._images, self._labels = torch.empty_like(images), torch.empty_like(labels)
            self._lr = torch.empty((), device=images.device)
        self._images.copy_(images)
        self._labels.copy_(labels)
        self._lr.fill_(lr)
        if self._updates < self.WARM_UP:
            output = self._step_aside(images.device)
        else:
            if self._graph is None:
                self._record()
            assert self._graph is not None
            self._graph.replay()
            self._state.step += 1
            loss, accuracy, *norm = self._results.clone()
            output = StepOutput(loss, accuracy, norm[0] if norm else None)
        self._updates += 1
        for group in self._state.optimizer.param_groups:
            group["lr"] = lr  # what a checkpoint holds
        return output

    def _step(self) -> StepOutput:
        return train_step(
            self._state, self._images, self._labels, lr=self._lr, options=self._options, forward=self._forward
        )

    def _step_aside(self, device: torch.device) -> StepOutput:
        """An update on a stream of its own, where PyTorch wants those before a recording."""
        here, aside = torch.cuda.current_stream(device), torch.cuda.Stream(device)
        aside.wait_stream(here)
        with torch.cuda.stream(aside):
            output = self._step()
        here.wait_stream(aside)
        return output

    def _record(self) -> None:
        """Record an update, which computes nothing."""
        state = self._state
        groups = [group for group in state.optimizer.param_groups if "capturable" in group]
        for group in groups:
            group["capturable"] = True  # AdamW asks for it; its counters are on the device in any case
        self._graph = torch.cuda.CUDAGraph()
        # Thread-local: a checkpoint may be on its way to the disk meanwhile.
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            output = self._step()
            norm = [] if output.grad_norm is None else [output.grad_norm]
            self._results = torch.stack([output.loss, output.accuracy, *norm])
        for group in groups:
            group["capturable"] = False
        state.step -= 1  # counted by train_step, but not made yet


def set_products(precision: str) -> None:
    """Whether CUDA may round the inputs of float32 products to TF32's 10 bits: only if asked for, for the process."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"


def grad_norm(state: TrainState, output: StepOutput) -> Tensor:
    """Norm ``()`` of the gradient of the last update, before clipping: only of use until the next update begins.

    Apart from `train_step`, since a hundred small sums are a hundredth of a step of a thin network, and few are read.
    """
    return total_norm(state.model) if output.grad_norm is None else output.grad_norm


def total_norm(model: nn.Module) -> Tensor:
    """Norm ``()`` of the gradient over all parameters."""
    return get_total_norm([parameter.grad for parameter in model.parameters() if parameter.grad is not None])


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, *, decay: float) -> None:
    """Move ``average`` towards ``model`` by ``1 - decay``; batch-norm statistics too, counters are copied."""
    for averaged, current in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
        if averaged.is_floating_point():
            averaged.lerp_(current, 1 - decay)
        else:
            averaged.copy_(current)


@torch.inference_mode()
def evaluate(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], *, precision: str) -> Evaluation:
    """Loss and accuracy over every image of ``batches``: sums, divided once; one synchronisation, at the end."""
    native.return_free_memory()  # training's tensors are of other sizes
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
    model.train(was_training)
    native.return_free_memory()
    if loss_sum is None or correct is None:
        raise ValueError("nothing to evaluate: the split is empty")
    return Evaluation(loss_sum.item() / count, correct.item() / count, int(correct.item()), count)


def at_least_float(logits: Tensor) -> Tensor:
    """Half precision to float32, for a loss whose digits count; float32 and float64 stay what they are."""
    return logits if logits.dtype == torch.float64 else logits.float()


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The same code path for every precision; switched off for fp32 and tf32."""
    dtype = torch.float16 if precision == "fp16" else torch.bfloat16
    return torch.autocast(device.type, dtype=dtype, enabled=precision in ("bf16", "fp16"))
