"""The top level: what wrong values and lengths are answered, word for word; how long a run is."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import pytest
from omegaconf import DictConfig, OmegaConf

from resnet_train.config.dataset import known_num_train, num_train_images
from resnet_train.config.run import Config, check_lengths, steps_per_epoch, total_steps
from resnet_train.errors import ConfigError

DURATION = "expected a duration such as 5, '5 epochs' or '400 steps', got"
MULTISTEP = "schedule=multistep epochs=10 schedule.milestones"
# Overrides, and the whole message.
MESSAGES: list[tuple[str, str]] = [
    # top level
    ("name='a b'", "name: expected letters, digits and . _ + - (at most 100), got 'a b'"),
    ("name=''", "name: expected letters, digits and . _ + - (at most 100), got ''"),
    ("name=.hidden", "name: expected letters, digits and . _ + - (at most 100), got '.hidden'"),
    ("steps=100", "epochs=200 and steps=100 contradict each other: give one; for 100 steps add epochs=null"),
    ("epochs=null", "epochs: expected a length for the run, got neither epochs nor steps; try epochs=10"),
    ("epochs=0", "epochs: expected a number >= 1, got 0"),
    ("epochs=null steps=0", "steps: expected a number >= 1 and <= 1e+12, got 0"),
    (
        f"epochs=null steps={10**20 - 1}",
        f"steps: expected a number >= 1 and <= 1e+12, got {10**20 - 1}",
    ),
    (
        f"epochs={10**12}",
        f"epochs: expected at most 1e+12 steps, got {10**12} = {390625 * 10**9} steps",
    ),
    ("batch_size=0", "batch_size: expected a number >= 1, got 0"),
    ("accumulate=0", "accumulate: expected a number >= 1, got 0"),
    ("batch_size=100 accumulate=3", "batch_size (100) must be divisible by accumulate (3); try batch_size=99"),
    ("batch_size=2 accumulate=3", "batch_size (2) must be divisible by accumulate (3); try batch_size=3"),
    ("label_smoothing=1", "label_smoothing: expected a number >= 0 and < 1, got 1.0"),
    (
        "class_weights=many",
        "class_weights: expected none, inverse, sqrt or a list with a number for each class, got 'many'",
    ),
    ("class_weights=[1,0]", "class_weights[1]: expected a number > 0, got 0"),
    ("class_weights=[1,x]", "class_weights[1]: expected a number, got 'x'"),
    ("clip_grad_norm=0", "clip_grad_norm: expected a number > 0, got 0.0"),
    ("ema_decay=0", "ema_decay: expected a number > 0 and < 1, got 0.0"),
    ("ema_decay=1", "ema_decay: expected a number > 0 and < 1, got 1.0"),
    ("seed=-1", "seed: expected a number >= 0, got -1"),
    (
        "early_stop.patience=5",
        "early_stop.patience: expected a validation split, since the test images choose nothing, got 5 without one; "
        "hold images out with dataset.val_size=N, or leave it out",
    ),
    ("early_stop.patience=0 dataset.val_size=10", "early_stop.patience: expected a number >= 1, got 0"),
    ("early_stop.min_delta=1", "early_stop.min_delta: expected a number >= 0 and < 1, got 1.0"),
    (
        "max_time=2",
        "max_time: expected a time such as '2 h', '90 min', '45 s' or '1:30:00', got '2'; max_time=null sets no limit",
    ),
    ("freeze=['layer 1']", "freeze: expected names of modules, as in [conv1,bn1,layer1], got 'layer 1'"),
    ("freeze=[bn1,conv1,bn1]", "freeze: expected each module once, got bn1 twice; leave one out"),
    ("device=gpu", "device: expected auto, cpu, cuda, cuda:N or mps, got 'gpu'"),
    ("device=cuda:x", "device: expected auto, cpu, cuda, cuda:N or mps, got 'cuda:x'"),
    (
        "precision=b16",
        "precision: expected one of auto, fp32, tf32, bf16, fp16, got 'b16'; did you mean precision=bf16?",
    ),
    ("channels_last=maybe", "channels_last: expected one of auto, true, false, got 'maybe'"),
    ("graph=True device=cpu", "graph=true needs a CUDA device, got device=cpu; try graph=auto"),
    (
        "kernels=fused channels_last=false",
        "kernels=fused needs channels_last, got channels_last=false; try kernels=auto",
    ),
    (
        "precision=tf32 device=cpu",
        "precision=tf32 needs a CUDA device, got device=cpu; try precision=bf16 or precision=fp32",
    ),
    (
        "precision=fp16 device=cpu",
        "precision=fp16 needs a CUDA device, got device=cpu; try precision=bf16 or precision=fp32",
    ),
    ("eval_every=0", "eval_every: expected more than 0, got 0"),
    ("eval_every=often", f"eval_every: {DURATION} 'often'"),
    ("log_every=0", "log_every: expected a number >= 1, got 0"),
    ("checkpoint.every='0 steps'", "checkpoint.every: expected more than 0, got 0 steps"),
    ("checkpoint.every=-1", f"checkpoint.every: {DURATION} -1"),
    ("checkpoint.keep=0", "checkpoint.keep: expected a number >= 1, got 0"),
    # lengths
    ("batch_size=50001", "batch_size: expected at most the 50000 training images, got 50001; try batch_size=50000"),
    (
        "dataset=synthetic dataset.val_size=4900",
        "batch_size: expected at most the 100 training images (dataset.val_size=4900), got 128; try batch_size=100",
    ),
    (
        "dataset.train_size=1",
        "batch_size: expected at most the 1 training images (dataset.train_size=1), got 128; try batch_size=1",
    ),
    (
        "epochs=10 schedule.warmup=11",
        "schedule.warmup: expected at most the run's 3907 steps (epochs=10), got 11 = 4297 steps; "
        "try schedule.warmup=0",
    ),
    (
        "epochs=null steps=399 schedule.warmup='400 steps'",
        "schedule.warmup: expected at most the run's 399 steps, got 400 steps; try schedule.warmup=0",
    ),
    (
        f"{MULTISTEP}=[5,2]",
        "schedule.milestones: expected ascending, got [5, 2] = [1954, 782] steps",
    ),
    (
        f"{MULTISTEP}=[1,391 steps]",
        "schedule.milestones: expected ascending, got [1, 391 steps] = [391, 391] steps",
    ),
    (
        f"{MULTISTEP}=[5,10]",
        "schedule.milestones: expected all before the end of the run's 3907 steps (epochs=10), got 10 = 3907 steps",
    ),
    (
        "schedule=multistep epochs=null steps=1000 schedule.milestones=[1000 steps]",
        "schedule.milestones: expected all before the end of the run's 1000 steps, got 1000 steps",
    ),
]


@pytest.mark.parametrize(("overrides", "message"), MESSAGES, ids=[overrides for overrides, _ in MESSAGES])
def test_wrong_values_are_answered(overrides: str, message: str, refusal: Callable[[str], str]) -> None:
    assert refusal(overrides) == message


@pytest.mark.parametrize(
    "overrides",
    [
        f"batch_size=128 accumulate=128 epochs=1 seed={2**63 - 1}",
        "batch_size=50000 epochs=1 schedule.warmup='1 step'",
        "precision=fp16 device=cuda:1 clip_grad_norm=0.5 ema_decay=0.999 label_smoothing=0.1",
        "eval_every=0.5 checkpoint.every='400 steps' name=a.b_c+d-1",
    ],
)
def test_values_at_the_edge_are_accepted(overrides: str, checked: Callable[[str], Config]) -> None:
    checked(overrides)


def test_answers_come_through_hydra_too(composed: Callable[..., DictConfig]) -> None:
    with pytest.raises(ConfigError, match=r"^batch_size: expected a number >= 1, got 0$"):
        OmegaConf.to_object(composed("model=resnet18", "batch_size=0"))


@pytest.mark.parametrize(
    ("overrides", "num_train", "per_epoch", "total"),
    [
        ("epochs=200", 50_000, Fraction(50_000, 128), 78_125),
        ("epochs=10", 50_000, Fraction(50_000, 128), 3907),
        ("epochs=null steps=64000", 50_000, Fraction(50_000, 128), 64_000),
        ("dataset=cifar100 dataset.val_size=5000 epochs=1", 45_000, Fraction(45_000, 128), 352),
        ("dataset.val_size=5000 dataset.train_size=1000 batch_size=300 epochs=3", 1000, Fraction(10, 3), 10),
        ("dataset=synthetic dataset.val_size=500 batch_size=100 epochs=2", 4500, Fraction(45), 90),
    ],
)
def test_length_of_a_run(
    overrides: str, num_train: int, per_epoch: Fraction, total: int, checked: Callable[[str], Config]
) -> None:
    config = checked(overrides)
    assert known_num_train(config.dataset) == num_train
    assert steps_per_epoch(config, num_train) == per_epoch
    assert total_steps(config, num_train) == total


def test_images_are_counted_when_they_are_seen(
    composed: Callable[..., DictConfig], converted: Callable[[DictConfig], Config]
) -> None:
    config = converted(composed("dataset=imagefolder", "dataset.root=photos", "dataset.val_size=20"))
    assert known_num_train(config.dataset) is None
    assert num_train_images(config.dataset, 500) == 480
    with pytest.raises(ConfigError, match=r"^dataset\.val_size: expected fewer than the 20 training images, got 20$"):
        num_train_images(config.dataset, 20)
    with pytest.raises(
        ConfigError,
        match=r"^batch_size: expected at most the 100 training images \(dataset\.val_size=20\), got 128; try .*=100$",
    ):
        check_lengths(config, 100)
