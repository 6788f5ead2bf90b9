"""One training step against the loop that everybody would write, and evaluation against one large batch."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from resnet_train.config.dataset import AugmentConfig
from resnet_train.data.dataset import Split
from resnet_train.data.stream import TrainData
from resnet_train.models.resnet import CifarResNet
from resnet_train.models.variant import Variant
from resnet_train.training import optim
from resnet_train.training.state import TrainState
from resnet_train.training.step import StepOptions, allow_tf32, evaluate, grad_norm, train_step, update_ema


class Scaled(nn.Module):
    """Logits are the pixels times a weight of 1."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1) * self.weight


def small_resnet() -> nn.Module:
    torch.manual_seed(0)
    return CifarResNet(8, Variant("A", width=0.25), num_classes=4)


def no_norm() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(4 * 6 * 6, 4))


def batch(count: int = 8, size: int = 8, seed: int = 0) -> tuple[Tensor, Tensor]:
    draws = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, size, size, generator=draws), torch.randint(4, (count,), generator=draws)


def distribution(count: int = 8) -> Tensor:
    return torch.rand(count, 4, generator=torch.Generator().manual_seed(1)).softmax(1)


def state_of(model: nn.Module, *, ema: bool = False, loss_scale: float | None = None) -> TrainState:
    return TrainState(
        model,
        optim.sgd(model, lr=1.0, momentum=0.9, nesterov=True, weight_decay=1e-2, decay_norm_and_bias=False),
        torch.amp.GradScaler("cpu", enabled=loss_scale is not None, init_scale=loss_scale or 1.0),
        copy.deepcopy(model).requires_grad_(False).eval() if ema else None,
    )


def assert_same_weights(first: nn.Module, second: nn.Module) -> None:
    for (name, one), other in zip(first.state_dict().items(), second.state_dict().values(), strict=True):
        assert torch.equal(one, other), name


class Reference:
    """The obvious loop: CrossEntropyLoss, backward, clip_grad_norm_, SGD, and an average beside it."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.average = copy.deepcopy(model), copy.deepcopy(model)
        decayed = [parameter for parameter in self.model.parameters() if parameter.ndim > 1]
        others = [parameter for parameter in self.model.parameters() if parameter.ndim <= 1]
        groups: list[dict[str, object]] = [{"params": decayed, "weight_decay": 1e-2}, {"params": others}]
        # The fused kernel rounds differently from the others in the last bit.
        self.optimizer = torch.optim.SGD(groups, lr=1.0, momentum=0.9, nesterov=True, fused=True)

    def step(self, images: Tensor, labels: Tensor, lr: float, options: StepOptions) -> tuple[float, float]:
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        criterion = nn.CrossEntropyLoss(label_smoothing=options.label_smoothing)
        self.model.train()
        self.optimizer.zero_grad()
        size = len(images) // options.accumulate
        losses = []
        for start in range(0, len(images), size):
            loss = criterion(self.model(images[start : start + size]), labels[start : start + size])
            (loss / options.accumulate).backward()
            losses.append(loss.item())
        limit = float("inf") if options.clip_grad_norm is None else options.clip_grad_norm
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), limit)
        self.optimizer.step()
        for averaged, current in zip(self.average.state_dict().values(), self.model.state_dict().values(), strict=True):
            if averaged.dtype == torch.float32:
                averaged.copy_(torch.lerp(averaged, current, 1 - (options.ema_decay or 0.0)))
            else:
                averaged.copy_(current)
        return sum(losses) / len(losses), norm.item()


@pytest.mark.parametrize(
    ("options", "labels"),
    [
        (StepOptions(), None),
        (StepOptions(), distribution()),
        (StepOptions(label_smoothing=0.1), None),
        (StepOptions(label_smoothing=0.1), distribution()),
        (StepOptions(clip_grad_norm=0.05), None),
        (StepOptions(clip_grad_norm=1e6), None),
        (StepOptions(accumulate=4), None),
        (StepOptions(ema_decay=0.9), None),
        (StepOptions(accumulate=2, label_smoothing=0.2, clip_grad_norm=0.1, ema_decay=0.5), distribution()),
    ],
)
def test_steps_are_those_of_the_obvious_loop_bit_for_bit(options: StepOptions, labels: Tensor | None) -> None:
    model = small_resnet()
    state, reference = state_of(model, ema=options.ema_decay is not None), Reference(model)
    for step, lr in enumerate((0.1, 0.5, 0.01)):
        images, drawn = batch(seed=step)
        targets = drawn if labels is None else labels
        state.model.eval()  # as an evaluation may have left it
        output = train_step(state, images, targets, lr=lr, options=options)
        loss, norm = reference.step(images, targets, lr, options)
        assert output.loss.item() == pytest.approx(loss, rel=1e-6)
        assert grad_norm(state, output).item() == norm, "before clipping"
        assert (output.grad_norm is None) == (options.clip_grad_norm is None), "measured where it is needed"
        assert_same_weights(state.model, reference.model)
        assert state.step == step + 1
    if options.ema_decay is not None:
        assert_same_weights(state.eval_model, reference.average)
    assert all(parameter.grad is not None for parameter in state.model.parameters())


@pytest.mark.parametrize("accumulate", [2, 4, 8])
def test_micro_batches_add_up_to_the_gradient_of_the_batch(accumulate: int) -> None:
    whole, pieces = state_of(no_norm()), state_of(no_norm())
    images, labels = batch()
    for step in range(3):
        expected = train_step(whole, images, labels, lr=0.1, options=StepOptions())
        output = train_step(pieces, images, labels, lr=0.1, options=StepOptions(accumulate=accumulate))
        torch.testing.assert_close(vars(output), vars(expected), msg=f"step {step}")
        torch.testing.assert_close(pieces.model.state_dict(), whole.model.state_dict())


def test_the_learning_rate_is_the_one_given() -> None:
    """With a learning rate of 0 nothing moves but the statistics of batch norm."""
    state = state_of(small_resnet())
    before = copy.deepcopy(state.model)
    train_step(state, *batch(), lr=0.0, options=StepOptions())
    for parameter, old in zip(state.model.parameters(), before.parameters(), strict=True):
        assert torch.equal(parameter, old)
    assert [group["lr"] for group in state.optimizer.param_groups] == [0.0, 0.0]
    moved = [
        (small_resnet().get_parameter("fc.weight") - stepped(lr).get_parameter("fc.weight")).norm() for lr in (0.1, 0.3)
    ]
    torch.testing.assert_close(3 * moved[0], moved[1])


def stepped(lr: float) -> nn.Module:
    state = state_of(small_resnet())
    train_step(state, *batch(), lr=lr, options=StepOptions())
    return state.model


def test_clipping_limits_the_gradient_and_leaves_its_norm_reported() -> None:
    reported, norms = [], []
    for limit in (None, 0.01, 1e6):
        state = state_of(small_resnet())
        output = train_step(state, *batch(), lr=0.1, options=StepOptions(clip_grad_norm=limit))
        reported.append(grad_norm(state, output).item())
        gradients = [parameter.grad.flatten() for parameter in state.model.parameters() if parameter.grad is not None]
        norms.append(torch.cat(gradients).norm().item())
    assert reported[0] > 0.01
    assert len(set(reported)) == 1
    assert norms == pytest.approx([reported[0], 0.01, reported[0]], rel=1e-3)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize(
    ("labels", "accuracy"),
    [
        (torch.tensor([0, 1, 2, 0]), 0.75),
        (torch.tensor([1, 2, 0, 0]), 0.0),
        (torch.tensor([2, 2, 2, 2]), 0.5),
        (torch.tensor([[0.6, 0.4, 0.0], [0.5, 0.3, 0.2], [0.0, 0.1, 0.9], [0.3, 0.3, 0.4]]), 0.75),
        (torch.tensor([[0.2, 0.4, 0.4], [0.5, 0.3, 0.2], [0.0, 0.9, 0.1], [0.3, 0.3, 0.4]]), 0.25),
    ],
)
def test_accuracy_is_the_fraction_whose_likeliest_label_was_found(
    labels: Tensor, accuracy: float, accumulate: int
) -> None:
    images = torch.eye(3)[[0, 1, 2, 2]]  # logits in favour of 0, 1, 2, 2
    output = train_step(state_of(Scaled()), images, labels, lr=0.1, options=StepOptions(accumulate=accumulate))
    assert output.accuracy.item() == accuracy


def test_bf16_computes_in_bf16_and_keeps_float32() -> None:
    outputs, norms = {}, {}
    for precision in ("fp32", "bf16"):
        state = state_of(small_resnet(), ema=True)
        logits: list[torch.dtype] = []
        state.model.register_forward_hook(lambda _module, _inputs, out, seen=logits: seen.append(out.dtype))
        options = StepOptions(precision=precision, ema_decay=0.9)
        outputs[precision] = train_step(state, *batch(), lr=0.1, options=options)
        norms[precision] = grad_norm(state, outputs[precision])
        assert logits == [torch.float32 if precision == "fp32" else torch.bfloat16]
        for tensor in (*state.model.state_dict().values(), *state.eval_model.state_dict().values()):
            assert tensor.dtype in (torch.float32, torch.int64)
        for entry in state.optimizer.state.values():
            assert entry["momentum_buffer"].dtype == torch.float32
    assert outputs["bf16"].loss.dtype == torch.float32
    # bf16 has 8 bits of significand; through nine layers a few of its roundings (0.4 %) add up
    torch.testing.assert_close(outputs["bf16"].loss, outputs["fp32"].loss, rtol=0.02, atol=0)
    torch.testing.assert_close(norms["bf16"], norms["fp32"], rtol=0.1, atol=0)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_small_resnet_learns_one_batch_by_heart(precision: str) -> None:
    state, (images, labels) = state_of(small_resnet()), batch(16)
    for _ in range(60):
        output = train_step(state, images, labels, lr=0.1, options=StepOptions(precision=precision))
    assert output.loss.item() < 0.05
    assert output.accuracy.item() == 1.0
    assert state.step == 60


def test_a_scaled_loss_gives_the_same_step() -> None:
    """Bit for bit: the scale is a power of two. The gradient is unscaled before it is measured and clipped."""
    options = StepOptions(clip_grad_norm=0.05, accumulate=2)
    plain, scaled = (state_of(small_resnet(), loss_scale=scale) for scale in (None, 2.0**10))
    for seed in range(2):
        outputs = [train_step(state, *batch(seed=seed), lr=0.1, options=options) for state in (plain, scaled)]
        assert vars(outputs[0]) == vars(outputs[1])
    assert_same_weights(plain.model, scaled.model)


def test_a_gradient_that_overflows_changes_nothing_but_the_scale() -> None:
    state = state_of(Scaled(), loss_scale=2.0**120)
    output = train_step(state, 1e4 * torch.eye(3), torch.tensor([1, 2, 0]), lr=0.1, options=StepOptions())
    assert output.loss.isfinite()
    assert not grad_norm(state, output).isfinite()
    assert state.model.get_parameter("weight").item() == 1.0
    assert (state.scaler.get_scale(), state.step) == (2.0**119, 1)


@pytest.mark.parametrize("loaded", [False, True])
@pytest.mark.parametrize("fused", [True, False])
def test_after_a_first_step_that_overflows_momentum_is_zero(fused: bool, loaded: bool) -> None:
    """Not what lay in the memory before: blocks of a parameter's size are filled with it and freed."""
    state = state_of(Scaled(), loss_scale=2.0**120)
    weight = nn.Parameter(torch.ones(64, 64))
    state.model.weight = weight
    state.optimizer = torch.optim.SGD([weight], lr=1.0, momentum=0.9, nesterov=True, fused=fused)
    if loaded:
        state.load_state_dict(copy.deepcopy(state.state_dict()))

    def forward(images: Tensor) -> Tensor:
        return images.flatten(1) * weight[:3, :3]

    filled = [torch.full((64, 64), 1e6) for _ in range(64)]
    del filled
    train_step(state, 1e4 * torch.eye(3), torch.tensor([1, 2, 0]), lr=0.1, options=StepOptions(), forward=forward)
    assert torch.equal(weight, torch.ones(64, 64))
    assert torch.equal(state.optimizer.state[weight]["momentum_buffer"], torch.zeros(64, 64))
    train_step(state, 1e-30 * torch.eye(3), torch.tensor([1, 2, 0]), lr=0.1, options=StepOptions(), forward=forward)
    assert torch.allclose(weight, torch.ones(64, 64))


def test_the_average_moves_by_what_the_decay_leaves() -> None:
    average, model = nn.BatchNorm1d(2), nn.BatchNorm1d(2)
    with torch.no_grad():
        model.weight.fill_(3.0)
        model.running_mean.fill_(8.0)  # type: ignore[union-attr]
        model.num_batches_tracked.fill_(5)  # type: ignore[union-attr]
    update_ema(average, model, decay=0.75)
    assert average.weight.tolist() == [1.5, 1.5]
    assert average.running_mean.tolist() == [2.0, 2.0]  # type: ignore[union-attr]
    assert average.num_batches_tracked == 5


def test_in_float64_the_loss_is_float64() -> None:
    state, (images, labels) = state_of(small_resnet().double()), batch()
    output = train_step(state, images.double(), labels, lr=0.1, options=StepOptions())
    assert output.loss.dtype == torch.float64
    assert evaluate(state.model, [(images.double(), labels)], precision="fp32").count == 8


@pytest.fixture
def tf32() -> Iterator[None]:
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


@pytest.mark.usefixtures("tf32")
@pytest.mark.parametrize("precision", ["tf32", "fp32", "bf16", "fp16"])
def test_matrix_multiplications_use_tf32_only_if_asked_for(precision: str) -> None:
    """PyTorch's own default lets convolutions do it."""
    allow_tf32("fp32" if precision == "tf32" else "tf32")
    allow_tf32(precision)
    assert torch.backends.cuda.matmul.allow_tf32 == torch.backends.cudnn.allow_tf32 == (precision == "tf32")


# ------------------------------------------------------------------------------------------- what a device must not see


class Synchronisations(TorchDispatchMode):
    """Notes operations that make the host wait for the device, or that send it a number from a Python object."""

    WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "equal", "is_nonzero")
    SENDING = ("lift_fresh",)  # torch.tensor(...)

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in self.WAITING + self.SENDING:
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


EVERY_OPTION = [
    StepOptions(),
    StepOptions(precision="bf16"),
    StepOptions(label_smoothing=0.1, clip_grad_norm=0.05, accumulate=4, ema_decay=0.9),
]


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("loss_scale", [None, 2.0**10])
@pytest.mark.parametrize("labels", [None, distribution()], ids=["labels", "distribution"])
@pytest.mark.parametrize("options", EVERY_OPTION, ids=str)
def test_no_step_waits_for_the_device(
    options: StepOptions, labels: Tensor | None, loss_scale: float | None, optimizer: str
) -> None:
    """Nor could it be recorded as a CUDA graph."""
    state = state_of(small_resnet(), ema=options.ema_decay is not None, loss_scale=loss_scale)
    if optimizer == "adamw":
        state.optimizer = optim.adamw(
            state.model, lr=1, beta1=0.9, beta2=0.99, eps=1e-8, weight_decay=0.1, decay_norm_and_bias=False
        )
    images, drawn = batch()
    train_step(state, images, drawn if labels is None else labels, lr=0.1, options=options)
    with Synchronisations() as synchronisations:
        output = train_step(state, images, drawn if labels is None else labels, lr=torch.tensor(0.1), options=options)
        on_the_way = list(synchronisations.seen)
        output.loss.item()
    assert on_the_way == ["lift_fresh"]  # the learning rate, which the test makes
    assert synchronisations.seen[-1] == "_local_scalar_dense", "it would have been seen"


@pytest.mark.parametrize(
    "augment",
    [
        {},
        {"cutout": 4},
        {"crop_mode": "reflect"},
        {"mixup": 0.2},
        {"cutmix": 1.0},
    ],
    ids=str,
)
def test_no_batch_waits_for_the_device(augment: dict[str, Any]) -> None:
    options = {"crop_padding": 2, "crop_mode": "zeros", "flip": True, "cutout": 0, "mixup": 0.0, "cutmix": 0.0}
    data = TrainData(
        Split(torch.zeros(32, 8, 8, 3, dtype=torch.uint8), torch.zeros(32, dtype=torch.int64)),
        batch_size=8,
        seed=0,
        augment=AugmentConfig(**{**options, **augment}),
        mean=[0.5] * 3,
        std=[0.2] * 3,
        num_classes=10,
        device=torch.device("cpu"),
    )
    data.batch(0)  # what is drawn for the epoch
    with Synchronisations() as synchronisations:
        data.batch(1)
    assert synchronisations.seen == []


def test_a_learning_rate_in_a_tensor_is_the_same() -> None:
    states = [state_of(small_resnet()) for _ in range(2)]
    for step in range(3):
        for state, lr in zip(states, (0.25, torch.tensor(0.25)), strict=True):  # exact in float32
            train_step(state, *batch(seed=step), lr=lr, options=StepOptions())
    assert_same_weights(states[0].model, states[1].model)


# ----------------------------------------------------------------------------------------------------------- evaluation


@pytest.fixture
def trained() -> nn.Module:
    """With batch-norm statistics that are not those of the beginning."""
    state = state_of(small_resnet())
    for seed in range(3):
        train_step(state, *batch(seed=seed), lr=0.05, options=StepOptions())
    return state.model


@pytest.mark.parametrize("batch_size", [1, 4, 7, 23, 100])
def test_sums_over_batches_of_any_size_are_those_of_one_batch(trained: nn.Module, batch_size: int) -> None:
    images, labels = batch(23)
    found = evaluate(trained, zip(images.split(batch_size), labels.split(batch_size), strict=True), precision="fp32")
    trained.eval()
    with torch.no_grad():
        logits = trained(images)
    correct = int((logits.argmax(1) == labels).sum())
    assert 0 < correct < 23
    assert (found.correct, found.count, found.accuracy) == (correct, 23, correct / 23)
    assert found.loss == pytest.approx(nn.CrossEntropyLoss()(logits, labels).item(), rel=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_evaluation_leaves_no_trace(trained: nn.Module, training: bool) -> None:
    trained.train(training)
    before = copy.deepcopy(trained.state_dict())
    with_graph: list[bool] = []
    trained.register_forward_hook(lambda _module, _inputs, out: with_graph.append(out.requires_grad))
    evaluate(trained, [batch(5), batch(3)], precision="fp32")
    assert all(module.training == training for module in trained.modules())
    torch.testing.assert_close(trained.state_dict(), before, rtol=0, atol=0)
    assert with_graph == [False, False]


def test_training_continues_after_an_evaluation_as_if_there_had_been_none() -> None:
    disturbed, undisturbed = (state_of(small_resnet(), ema=True) for _ in range(2))
    for seed in range(3):
        for state in (disturbed, undisturbed):
            train_step(state, *batch(seed=seed), lr=0.1, options=StepOptions(ema_decay=0.9))
        evaluate(disturbed.model, [batch(4)], precision="fp32")
        evaluate(disturbed.eval_model, [batch(4)], precision="bf16")
    assert_same_weights(disturbed.model, undisturbed.model)
    assert_same_weights(disturbed.eval_model, undisturbed.eval_model)


def test_evaluation_in_bf16_is_close_to_that_in_fp32(trained: nn.Module) -> None:
    seen: list[torch.dtype] = []
    trained.register_forward_hook(lambda _module, _inputs, out: seen.append(out.dtype))
    scores = {precision: evaluate(trained, [batch(23)], precision=precision) for precision in ("fp32", "bf16")}
    assert seen == [torch.float32, torch.bfloat16]
    assert scores["bf16"].loss == pytest.approx(scores["fp32"].loss, rel=0.02)


def test_nothing_to_evaluate(trained: nn.Module) -> None:
    with pytest.raises(ValueError, match=r"^nothing to evaluate: the split is empty$"):
        evaluate(trained, [], precision="fp32")
    assert trained.training
