"""Steps of a recording against the same steps made one by one, with a graph that is emulated on the CPU.

Whatever a recording or a replay does, a run ends with the bits of one without them.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from resnet_train.config.run import Config
from resnet_train.errors import RunError
from resnet_train.runs.directory import lock
from resnet_train.runs.interrupt import StopSignal
from resnet_train.runs.summary import Summary, read_summary
from resnet_train.seeding import seed_everything
from resnet_train.training.clock import Clock
from resnet_train.training.cuda_graph import GraphedStep, LaunchedStep
from resnet_train.training.loop import complete
from resnet_train.training.session import open_session
from resnet_train.training.setup import build
from resnet_train.training.state import TrainState
from resnet_train.training.step import Step, StepOptions, evaluate, grad_norm
from tests.training.emulated_graph import EmulatedRecorder, Operation, tensors

CPU = torch.device("cpu")
Make = Callable[..., Any]
AssertSame = Callable[[Any, Any], None]

EVERYTHING = StepOptions(label_smoothing=0.1, clip_grad_norm=0.05, accumulate=4, ema_decay=0.9)
OPTIONS = [
    StepOptions(),
    StepOptions(precision="bf16"),
    StepOptions(precision="fp16", clip_grad_norm=0.1),
    EVERYTHING,
    replace(EVERYTHING, precision="bf16"),
]
OPTIMIZERS = [{"optimizer": "sgd"}, {"optimizer": "sgd", "momentum": 0.0}, {"optimizer": "adamw"}]
# A scale of 2^10 overflows nothing; with 2^126 about every second step does. In the gate is every seventh combination:
# any two values of different columns meet in them.
COLUMNS: list[list[Any]] = [OPTIONS, OPTIMIZERS, [None, 2.0**10, 2.0**126], [False, True], [0.0, 0.3]]
TABLE = list(itertools.product(*COLUMNS))
GATE = TABLE[::7]


@pytest.fixture
def deterministic() -> Iterator[None]:
    """Replays then have to be equal to the bit."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(params=["exact", "bounds"])
def exact_or_not(request: pytest.FixtureRequest) -> None:
    """Both ways to compare a replay with the step that it stands for."""
    if request.param == "exact":
        request.getfixturevalue("deterministic")


@pytest.fixture
def compare(small_state: Make, small_batch: Make, assert_same: AssertSame) -> Callable[..., GraphedStep]:
    """Make steps both ways, each from its own state, and compare all that they leave to the bit."""
    launched: dict[str, list[Any]] = {}  # what the steps leave that are not recorded
    predicted: dict[str, Tensor] = {}  # classes that the network sees in the images of the trial

    def predictions(options: StepOptions, distributions: bool, others: dict[str, Any]) -> Tensor:
        state, found = small_state(**others), []

        def forward(images: Tensor) -> Tensor:
            logits: Tensor = state.model(images)
            found.append(logits.detach().argmax(1))
            return logits

        step = LaunchedStep(state, options=options, device=CPU, forward=forward)
        for number in range(GraphedStep.WARM_UP + 1):
            found.clear()
            make_step(state, step, small_batch(number, distributions=distributions), number)
        return torch.cat(found)

    def batch_of(number: int, distributions: bool, right: Tensor) -> tuple[Tensor, Tensor]:
        """In the trial every image is classified rightly, so that the accuracy shows each operation behind it."""
        images, labels = small_batch(number, distributions=distributions)
        if number == GraphedStep.WARM_UP:
            labels = (torch.nn.functional.one_hot(right, 4) + labels) / 2 if distributions else right
        return images, labels

    def steps_of(
        state: TrainState, step: Step, options: StepOptions, count: int, distributions: bool, right: Tensor
    ) -> Iterator[Any]:
        for number in range(count):
            yield (
                make_step(state, step, batch_of(number, distributions, right), number),
                vars(state.optimizer).keys(),
                tree_map_only(Tensor, Tensor.clone, state.state_dict()),  # a deep copy takes five times as long
            )
            if number == 4:
                evaluate(state.eval_model, [small_batch(number)], precision=options.precision)

    def run(
        recorder: EmulatedRecorder,
        options: StepOptions = OPTIONS[0],
        *,
        steps: int = 6,
        distributions: bool = False,
        **others: Any,
    ) -> GraphedStep:
        others["ema"] = options.ema_decay is not None
        name = f"{options} {steps} {distributions} {others}"
        if name not in launched:
            predicted[name] = predictions(options, distributions, others)
            one = small_state(**others)
            plain = LaunchedStep(one, options=options, device=CPU)
            launched[name] = list(steps_of(one, plain, options, steps, distributions, predicted[name]))
        state = small_state(**others)
        graphed = GraphedStep(state, options=options, recorder=recorder)
        made = steps_of(state, graphed, options, steps, distributions, predicted[name])
        for number, (left, expected) in enumerate(zip(made, launched[name], strict=True)):
            assert_same(left, expected, f"step {number}")
        return graphed

    return run


def make_step(state: TrainState, step: Step, batch: tuple[Tensor, Tensor], number: int) -> list[str]:
    """Loss, accuracy and norm of the gradient, to the last digit; the learning rate is another at each step."""
    seed_everything(0, "dropout", number)
    output = step(*batch, lr=0.01 * (number + 1))
    return [value.item().hex() for value in (output.loss, output.accuracy, grad_norm(state, output))]


@pytest.mark.slow
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=str)
def test_replays_make_the_same_steps(compare: Make, options: StepOptions, optimizer: dict[str, Any]) -> None:
    loss_scale = 2.0**10 if options.precision == "fp16" else None
    graphed = compare(EmulatedRecorder(), options, **optimizer, loss_scale=loss_scale, dropout=0.3)
    assert graphed.outcome.graph, graphed.outcome.reason


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "optimizer", "loss_scale", "distributions", "dropout"),
    [pytest.param(*row, marks=[pytest.mark.thorough] * (row not in GATE)) for row in TABLE],
    ids=str,
)
def test_replays_make_the_same_steps_with_every_option(
    compare: Make,
    options: StepOptions,
    optimizer: dict[str, Any],
    loss_scale: float | None,
    distributions: bool,
    dropout: float,
) -> None:
    others = {"loss_scale": loss_scale, "distributions": distributions, "dropout": dropout}
    recorder = EmulatedRecorder()
    graphed = compare(recorder, options, steps=10, **optimizer, **others)
    assert graphed.outcome.graph or (loss_scale == 2.0**126 and not recorder.operations), graphed.outcome.reason


def test_any_two_options_are_met_together() -> None:
    for first, second in itertools.combinations(range(len(COLUMNS)), 2):
        met = {(str(row[first]), str(row[second])) for row in GATE}
        assert len(met) == len(COLUMNS[first]) * len(COLUMNS[second])


def test_a_step_that_overflows_is_not_taken_for_a_trial(compare: Make) -> None:
    """Nothing of the optimizer would show in it. In float16 the scale is halved until the gradients fit."""
    options, recorder = StepOptions(precision="fp16"), EmulatedRecorder()
    graphed = compare(recorder, options, steps=5, loss_scale=2.0**26)
    assert (graphed.outcome.reason, recorder.operations) == ("not tried before step 4 of a session", [])
    graphed = compare(recorder, options, steps=14, loss_scale=2.0**26)
    assert graphed.outcome.graph
    assert 2 < recorder.replays < 2 + 9


def test_a_learning_rate_of_zero_does_not_hide_that_it_was_recorded(small_state: Make, small_batch: Make) -> None:
    graphed = GraphedStep(small_state(), options=OPTIONS[0], recorder=EmulatedRecorder(replayed=keeps_its_rate))
    for step in range(4):
        graphed(*small_batch(step), lr=0.0)
    assert "optimizer" not in graphed.outcome.reason
    assert graphed.outcome.reason == "a replay differs from the step that it stands for, in the parameters"


@pytest.mark.slow
def test_a_run_continued_from_a_checkpoint(small_state: Make, small_batch: Make, assert_same: AssertSame) -> None:
    whole, first, second = (small_state(ema=True) for _ in range(3))
    launched = LaunchedStep(whole, options=EVERYTHING, device=CPU)
    for step in range(12):
        make_step(whole, launched, small_batch(step), step)
    graphed = GraphedStep(first, options=EVERYTHING, recorder=EmulatedRecorder())
    for step in range(6):
        make_step(first, graphed, small_batch(step), step)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    continued = GraphedStep(second, options=EVERYTHING, recorder=EmulatedRecorder())
    for step in range(6, 12):
        make_step(second, continued, small_batch(step), step)
    assert graphed.outcome.graph
    assert continued.outcome.graph
    assert_same(second.state_dict(), whole.state_dict())


def test_results_outlive_the_next_replay(small_state: Make, small_batch: Make) -> None:
    graphed = GraphedStep(small_state(), options=OPTIONS[0], recorder=EmulatedRecorder())
    outputs = [graphed(*small_batch(step), lr=0.1) for step in range(8)]
    assert len({output.loss.item() for output in outputs}) == 8


# ------------------------------------------------------------------------------------------------ what may go wrong

FAULTY = [
    (OPTIONS[0], {}),
    (OPTIONS[2], {"loss_scale": 2.0**10, "dropout": 0.3, "optimizer": "adamw"}),
    pytest.param(EVERYTHING, {"distributions": True}, marks=pytest.mark.thorough),  # some 600 operations
]
# Operations at which a fault is planted, about: spread over the whole step.
SAMPLES = [25, pytest.param(100, marks=pytest.mark.thorough)]


@pytest.mark.parametrize(("options", "others"), FAULTY, ids=str)
@pytest.mark.parametrize("at", [0, 50, 120])
def test_a_recording_that_fails(
    compare: Make, caplog: pytest.LogCaptureFixture, options: StepOptions, others: dict[str, Any], at: int
) -> None:
    recorder = EmulatedRecorder(refuse_at=at)
    with caplog.at_level("INFO"):
        graphed = compare(recorder, options, **others)
    assert (len(recorder.operations), recorder.replays) == (at, 0)
    assert graphed.outcome.reason.startswith(f"it failed: operation {at}, ")
    expected = f"graph: steps are made operation by operation, with the same results: {graphed.outcome.reason}"
    assert caplog.messages == [expected]


@pytest.mark.slow
@pytest.mark.parametrize("sample", SAMPLES)
@pytest.mark.parametrize(("options", "others"), FAULTY, ids=str)
def test_a_recording_that_fails_anywhere(
    compare: Make, options: StepOptions, others: dict[str, Any], sample: int
) -> None:
    whole = EmulatedRecorder()
    assert compare(whole, options, steps=5, **others).outcome.graph
    for at in range(0, len(whole.operations), 1 + len(whole.operations) // sample):
        graphed = compare(EmulatedRecorder(refuse_at=at), options, steps=5, **others)
        assert graphed.outcome.reason.startswith(f"it failed: operation {at}, ")


def test_a_step_that_reads_a_value_is_not_recorded(small_state: Make, small_batch: Make) -> None:
    state = small_state()

    def forward(images: Tensor) -> Tensor:
        logits: Tensor = state.model(images)
        return logits if logits.max().item() < 1e9 else logits / 2

    graphed = GraphedStep(state, options=OPTIONS[0], recorder=EmulatedRecorder(), forward=forward)
    for step in range(5):
        graphed(*small_batch(step), lr=0.1)
    expected = "it failed: operation not permitted when stream is capturing: _local_scalar_dense"
    assert (graphed.outcome.graph, graphed.outcome.reason) == (False, expected)


def does_nothing(_number: int, _operation: Operation) -> None:
    """A graph that was recorded on another device is empty."""


def keeps_its_rate(_number: int, operation: Operation) -> None:
    """The learning rate of the step that is recorded, as a number would be."""
    lr = operation.kwargs.get("lr")
    if isinstance(lr, Tensor):
        now = lr.clone()
        lr.copy_(vars(operation).setdefault("first_lr", now))
        operation.replay()
        lr.copy_(now)
    else:
        operation.replay()


def counts_none(_number: int, operation: Operation) -> None:
    """Of the images whose label was found."""
    operation.replay()
    if "aten.eq" in str(operation.call):
        operation.result.zero_()


def moves_too_far(name: str, argument: int) -> Callable[[int, Operation], None]:
    """By a tenth, in what an operation writes to."""

    def replayed(_number: int, operation: Operation) -> None:
        if name not in str(operation.call):
            return operation.replay()
        changed = tensors(operation.args[argument])
        before = [tensor.clone() for tensor in changed]
        operation.replay()
        for tensor, old in zip(changed, before, strict=True):
            tensor.add_(tensor - old, alpha=0.1)
        return None

    return replayed


FAULTS = {
    "does nothing": (does_nothing, "loss of a replay is nan"),
    "counts none": (counts_none, "the accuracy of a replay is 0, expected "),
    "keeps its rate": (keeps_its_rate, "in the parameters"),
    "parameters": (moves_too_far("_fused_", 0), "in the parameters"),
    "statistics": (moves_too_far("native_batch_norm.", 3), "in the running_mean"),
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize(("options", "others"), FAULTY, ids=str)
@pytest.mark.usefixtures("exact_or_not")
def test_replays_that_are_wrong(compare: Make, options: StepOptions, others: dict[str, Any], fault: str) -> None:
    replayed, reason = FAULTS[fault]
    graphed = compare(EmulatedRecorder(replayed=replayed), options, **others)
    assert reason in graphed.outcome.reason


@pytest.mark.parametrize("momentum", [2, 3])
@pytest.mark.usefixtures("exact_or_not")
def test_momentum_that_is_wrong(compare: Make, momentum: int) -> None:
    optimizer = "sgd" if momentum == 2 else "adamw"
    graphed = compare(EmulatedRecorder(replayed=moves_too_far("_fused_", momentum)), optimizer=optimizer)
    assert "in the optimizer's " in graphed.outcome.reason


def wrong_at(number: int, *, left_out: bool) -> Callable[[int, Operation], None]:
    """One operation is left out, or what it writes is off by a tenth, a whole number by one."""

    def replayed(at: int, operation: Operation) -> None:
        if at != number or not left_out:
            operation.replay()
        if at == number and not left_out:
            for tensor in operation.written:
                tensor.mul_(1.1) if tensor.is_floating_point() else tensor.add_(1)

    return replayed


@pytest.mark.slow
@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize("left_out", [True, False])
@pytest.mark.parametrize("sample", SAMPLES)
@pytest.mark.parametrize(("options", "others"), FAULTY, ids=str)
def test_replays_that_are_wrong_by_one_operation(
    compare: Make, options: StepOptions, others: dict[str, Any], sample: int, left_out: bool
) -> None:
    """Some make no difference: what is written over, a comparison that is off and stays on its side."""
    whole = EmulatedRecorder()
    assert compare(whole, options, **others).outcome.graph
    memory = ("aten.empty", "aten.new_")  # these operations compute nothing
    numbers = [at for at, one in enumerate(whole.operations) if not str(one.call).startswith(memory)]
    numbers = numbers[:: 1 + len(numbers) // sample]
    found = [
        not compare(EmulatedRecorder(replayed=wrong_at(at, left_out=left_out)), options, **others).outcome.graph
        for at in numbers
    ]
    assert sum(found) > 0.9 * len(found)


@pytest.mark.parametrize("recorder", [EmulatedRecorder(refuse_at=9), EmulatedRecorder(replayed=does_nothing)])
def test_a_graph_that_was_asked_for(small_state: Make, small_batch: Make, recorder: EmulatedRecorder) -> None:
    graphed = GraphedStep(small_state(), options=OPTIONS[0], recorder=recorder, required=True)
    for step in range(3):
        graphed(*small_batch(step), lr=0.1)
    with pytest.raises(RunError, match=r"^graph: expected to record a step as a CUDA graph, but .*; try graph=auto$"):
        graphed(*small_batch(3), lr=0.1)


# --------------------------------------------------------------------------------------------------------- whole runs


def train(config: Config, directory: Path, recorder: EmulatedRecorder | None) -> Summary:
    """A run whose steps are recorded, if there is a ``recorder``."""
    run = build(config)
    options = StepOptions(precision=run.plan.precision)
    step: Step = LaunchedStep(run.state, options=options, device=CPU)
    if recorder is not None:
        step = GraphedStep(run.state, options=options, recorder=recorder)
    run = replace(run, train_step=step)
    with lock(directory) as held, StopSignal() as stop:
        session = open_session(run, config, directory, lock=held, clock=Clock(), command="", invocation=None)
        return complete(run, session, config, stop)


@pytest.mark.slow
def test_the_summary_and_the_log_say_what_became_of_it(
    tiny: Callable[..., Config], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = tiny("epochs=1", "log_every=1", "kernels=plain")
    metrics = []
    for name, recorder in {
        "none": None,
        "replayed": EmulatedRecorder(),
        "fails": EmulatedRecorder(refuse_at=7),
    }.items():
        (tmp_path / name).mkdir()
        with caplog.at_level("INFO"):
            train(config, tmp_path / name, recorder)
        summary = read_summary(tmp_path / name)
        assert summary is not None
        assert summary.graph == (name == "replayed")
        if recorder is not None:
            assert sum(summary.graph_reason in message for message in caplog.messages) == 1
        metrics.append((tmp_path / name / "metrics.csv").read_text())
    assert summary.graph_reason.startswith("it failed: operation 7, ")
    assert metrics[0] == metrics[1] == metrics[2]
