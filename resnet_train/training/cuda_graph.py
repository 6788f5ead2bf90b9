"""The step as one CUDA graph, tried on first use against the step that it stands for."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from resnet_train.errors import RunError
from resnet_train.runs.console import printable
from resnet_train.training.recorder import Recorder, Replay
from resnet_train.training.state import TrainState
from resnet_train.training.state_copy import StateCopy, disagreement
from resnet_train.training.step import Forward, StepOptions, StepOutput, train_step

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """Whether steps are replays by now, and why."""

    graph: bool
    reason: str


class LaunchedStep:
    """`train_step` with the learning rate on the device, operation by operation.

    A fused optimizer rounds a rate that it reads there to float32. `GraphedStep` cannot have it elsewhere, and with it
    here as well the two make the same steps.
    """

    def __init__(
        self, state: TrainState, *, options: StepOptions, device: torch.device, forward: Forward | None = None
    ) -> None:
        self._state, self._options, self._forward = state, options, forward
        self._lr = torch.empty((), device=device)

    def __call__(self, images: Tensor, labels: Tensor, *, lr: float) -> StepOutput:
        """See `train_step`."""
        self._lr.fill_(lr)
        output = train_step(self._state, images, labels, lr=self._lr, options=self._options, forward=self._forward)
        for group in self._state.optimizer.param_groups:
            group["lr"] = lr  # what a checkpoint holds
        return output


class GraphedStep:
    """`train_step` recorded once, from the forward pass to the moving average: one launch per step.

    The first steps of a session are made operation by operation, since libraries set themselves up and momentum is
    allocated then. The next one is the trial: it and a step with another batch and another learning rate are made so
    as well, then by replays of the recording, each from a copy of the same state, and compared (`_differs`). Whatever
    the outcome, the state is that of the step made operation by operation: no step of a run depends on whether the
    trial passed, as far as the kernels repeat to the bit.

    Where recording fails or a replay differs, all steps are made operation by operation, and the log and `outcome` say
    why; with ``required`` that is a `RunError`. An error that leaves the device unusable ends the run all the same.
    A step whose gradients overflow, or whose loss is not finite, shows too little: the next one is
    tried. For the trial the device holds four copies more of parameters, gradients, statistics and optimizer state.

    All steps need the shapes of the first one. ``state`` must not be loaded from a checkpoint after that, nor changed
    in another way.
    """

    WARM_UP = 3  # steps before the trial; PyTorch's notes on CUDA graphs ask for that many
    # What two computations of one step may differ by. With deterministic=true nothing; else kernels need not repeat to
    # the bit: sums by atomic operations (weight gradients of cuDNN), and in half precision the values that such a sum
    # rounds to the other side.
    # The loss: sums of float32 in another order are off by some 1e-5; one rounding of bfloat16 is 2^-8 = 0.4 %, and
    # logits are 5 of these at most. The movement of a tensor: 2^-8 for each layer that its gradient has come through,
    # at random, so sqrt(110) x 0.4 % = 4 % in the deepest usual network. What has to be found is far off: a graph that
    # does nothing or a layer left out by 1, a learning rate that was recorded as a number by 1 as well, since that of
    # the second step is half of the first. On an H200 no run went past them.
    LOSS, LOSS_IN_HALF = 1e-3, 2e-2  # of its value
    MOVEMENT = 5e-2
    ACCURACY = 5e-2, 2  # of the batch, and images: logits that are nearly equal may change places

    def __init__(
        self,
        state: TrainState,
        *,
        options: StepOptions,
        recorder: Recorder,
        forward: Forward | None = None,
        required: bool = False,
    ) -> None:
        self._state, self._options, self._forward = state, options, forward
        self._recorder, self._required = recorder, required
        self._replay: Replay | None = None
        self._results: Tensor | None = None  # of a replay: loss, accuracy, norm of the gradient where it clips
        self._steps = 0
        self.settled = False  # whether the trial is over, and with it what only first steps cost
        self.outcome = Outcome(False, f"not tried before step {self.WARM_UP + 1} of a session")

    def __call__(self, images: Tensor, labels: Tensor, *, lr: float) -> StepOutput:
        """See `train_step`. What it returns is the caller's own: the next replay does not change it.

        Raises `RunError` where a graph is required and cannot be had.
        """
        if self._steps == 0:
            self._images, self._labels = torch.empty_like(images), torch.empty_like(labels)
            self._lr = torch.empty((), device=images.device)
        if self._steps < self.WARM_UP or self.settled:
            output = self._make(images, labels, lr)
        else:
            output = self._try(images, labels, lr)
        self._steps += 1
        for group in self._state.optimizer.param_groups:
            group["lr"] = lr  # what a checkpoint holds
        return output

    def _make(self, images: Tensor, labels: Tensor, lr: float) -> StepOutput:
        """One step, by replay if there is a recording."""
        self._images.copy_(images)
        self._labels.copy_(labels)
        self._lr.fill_(lr)
        if self._replay is None:
            return self._recorder.run(self._step)
        self._replay()
        self._state.step += 1
        assert self._results is not None
        loss, accuracy, *norm = self._results.clone()
        return StepOutput(loss, accuracy, norm[0] if norm else None)

    def _step(self) -> StepOutput:
        return train_step(
            self._state, self._images, self._labels, lr=self._lr, options=self._options, forward=self._forward
        )

    def _record(self) -> None:
        """Record a step, which computes nothing."""

        def step() -> None:
            self._results = _scalars(self._step())

        counted = self._state.step
        with _capturable(self._state.optimizer):
            self._replay = self._recorder.record(step)
        self._state.step = counted  # by train_step, which has made none yet

    # --------------------------------------------------------------------------------------------------- the trial

    def _try(self, images: Tensor, labels: Tensor, lr: float) -> StepOutput:
        """Make a step, and find out whether a recording makes the same."""
        before, random = StateCopy.of(self._state), _random_state(images.device)
        # Nothing of the first batch may have been recorded as a constant; the step that stands comes last.
        cases = ((images.flip(0, 3), labels.flip(0).roll(1, 0), lr / 2 or 1e-3), (images, labels, lr))
        made: list[tuple[Tensor, StateCopy]] = []
        for case in cases:
            before.restore(self._state)
            random()
            output = self._make(*case)
            made.append((_scalars(output), StateCopy.of(self._state)))
        if not all(_shows_all(results, after, before) for results, after in made):
            return output
        random_after = _random_state(images.device)
        why_not = ""
        try:
            self._record()
            for case, expected in zip(cases, made, strict=True):
                before.restore(self._state)
                random()
                results = _scalars(self._make(*case))
                why_not = why_not or self._differs(results, StateCopy.of(self._state), expected, before)
        except Exception as error:  # whatever it is, the steps themselves do not need the recording
            why_not = "it failed: " + printable((str(error).splitlines() or [type(error).__name__])[0])
        if why_not:
            self._forget_recording()
        made[-1][1].restore(self._state)
        random_after()
        self._settle(why_not)
        return output

    def _differs(self, results: Tensor, after: StateCopy, expected: tuple[Tensor, StateCopy], before: StateCopy) -> str:
        """What of a replay is not as expected, as a reason; empty where it agrees."""
        exact = torch.are_deterministic_algorithms_enabled()
        found, wanted = results.tolist(), expected[0].tolist()
        loss = self.LOSS_IN_HALF if self._options.precision in ("bf16", "fp16") else self.LOSS
        share, number = self.ACCURACY
        limits = [loss * abs(wanted[0]), share + number / len(self._images), self.MOVEMENT * abs(wanted[-1])]
        for name, limit, one, other in zip(("loss", "accuracy", "gradient norm"), limits, found, wanted, strict=False):
            if not abs(one - other) <= (0.0 if exact else limit):  # NaN is not near
                return f"the {name} of a replay is {one:.6g}, expected {other:.6g}"
        kind = disagreement(after, expected[1], before, bound=0.0 if exact else self.MOVEMENT)
        return f"a replay differs from the step that it stands for, in the {kind}" if kind else ""

    def _forget_recording(self) -> None:
        """Let go of what a recording has left, wherever it stopped; values and counters are restored after that."""
        self._replay, self._results = None, None
        optimizer, scaler = self._state.optimizer, self._state.scaler
        optimizer.zero_grad(set_to_none=True)  # they lie in the memory of the recording
        for name in ("grad_scale", "found_inf"):  # for a fused step, from the scaler, which takes them away after it
            vars(optimizer).pop(name, None)
        if scaler.is_enabled():  # it may hold that the gradients are unscaled already
            self._state.scaler = torch.amp.GradScaler(self._images.device.type)

    def _settle(self, why_not: str) -> None:
        self.settled = True
        if not why_not:
            self.outcome = Outcome(True, "two replays agreed with the steps that they stand for")
            logger.info("graph: each step is one CUDA graph from now on: %s", self.outcome.reason)
            return
        self.outcome = Outcome(False, why_not)
        if self._required:
            raise RunError(f"graph: expected to record a step as a CUDA graph, but {why_not}; try graph=auto")
        logger.warning("graph: steps are made operation by operation, with the same results: %s", why_not)


def _scalars(output: StepOutput) -> Tensor:
    """Loss, accuracy and, where it clips, norm of the gradient: ``(2,)`` or ``(3,)``."""
    return torch.stack([value for value in (output.loss, output.accuracy, output.grad_norm) if value is not None])


def _shows_all(results: Tensor, after: StateCopy, before: StateCopy) -> bool:
    """Whether a step did all that steps do: its gradients did not overflow."""
    if before.loss_scale and after.loss_scale["scale"] < before.loss_scale["scale"]:
        return False
    return bool(results.isfinite().all())


def _random_state(device: torch.device) -> Callable[[], None]:
    """The state of the generator that steps draw from, as what restores it."""
    if device.type == "cuda":
        saved = torch.cuda.get_rng_state(device)
        return lambda: torch.cuda.set_rng_state(saved, device)
    saved = torch.get_rng_state()
    return lambda: torch.set_rng_state(saved)


@contextmanager
def _capturable(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Let AdamW be recorded: it asks for the flag, though its counters are on the device in any case."""
    groups = [group for group in optimizer.param_groups if "capturable" in group]
    for group in groups:
        group["capturable"] = True
    try:
        yield
    finally:
        for group in groups:
            group["capturable"] = False
