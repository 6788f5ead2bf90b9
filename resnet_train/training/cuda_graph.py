"""The step as one CUDA graph."""

from __future__ import annotations

import torch
from torch import Tensor

from resnet_train.training.state import TrainState
from resnet_train.training.step import Forward, StepOptions, StepOutput, train_step


class GraphedStep:
    """`train_step` recorded once as a CUDA graph, from the forward pass to the moving average: one launch per step.

    The first steps are made one by one, since libraries set themselves up and momentum is allocated then, and the
    learning rate is a tensor from the first of them on, so that a step is the same to the bit whether it is among the
    first of a session or not. All steps need the shapes of the first one. ``state`` must not be loaded from a
    checkpoint after that, nor changed in another way.
    """

    WARM_UP = 3  # steps before the recording; PyTorch's notes on CUDA graphs ask for that many

    def __init__(self, state: TrainState, *, options: StepOptions, forward: Forward | None = None) -> None:
        self._state, self._options, self._forward = state, options, forward
        self._graph: torch.cuda.CUDAGraph | None = None
        self._steps = 0

    def __call__(self, images: Tensor, labels: Tensor, *, lr: float) -> StepOutput:
        """See `train_step`. What it returns is the caller's own: the next replay does not change it."""
        if self._steps == 0:
            self._images, self._labels = torch.empty_like(images), torch.empty_like(labels)
            self._lr = torch.empty((), device=images.device)
        self._images.copy_(images)
        self._labels.copy_(labels)
        self._lr.fill_(lr)
        if self._steps < self.WARM_UP:
            output = self._step_aside(images.device)
        else:
            if self._graph is None:
                self._record()
            assert self._graph is not None
            self._graph.replay()
            self._state.step += 1
            loss, accuracy, *norm = self._results.clone()
            output = StepOutput(loss, accuracy, norm[0] if norm else None)
        self._steps += 1
        for group in self._state.optimizer.param_groups:
            group["lr"] = lr  # what a checkpoint holds
        return output

    def _step(self) -> StepOutput:
        return train_step(
            self._state, self._images, self._labels, lr=self._lr, options=self._options, forward=self._forward
        )

    def _step_aside(self, device: torch.device) -> StepOutput:
        """A step on a stream of its own, where PyTorch wants those before a recording."""
        here, aside = torch.cuda.current_stream(device), torch.cuda.Stream(device)
        aside.wait_stream(here)
        with torch.cuda.stream(aside):
            output = self._step()
        here.wait_stream(aside)
        return output

    def _record(self) -> None:
        """Record a step, which computes nothing."""
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
