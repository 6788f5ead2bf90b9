"""Weights that do not fit: the table, the one line, and overrides that do make them fit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from resnet_train.cli.compose import load_config
from resnet_train.cli.main import main
from resnet_train.config.run import Config
from resnet_train.errors import ConfigError
from resnet_train.models.build import build_model
from resnet_train.models.recognise import Recognised, recognise
from resnet_train.models.resnet import CifarResNet, ResNet
from resnet_train.train import run
from resnet_train.training.state import load_weights

Compose = Callable[..., Config]
Weights = dict[str, torch.Tensor]


@pytest.fixture
def network(compose: Compose) -> Callable[..., CifarResNet | ResNet]:
    """``network("model=resnet18", num_classes=100)``."""

    def built(*overrides: str, num_classes: int = 10) -> CifarResNet | ResNet:
        return build_model(compose(*overrides).model, num_classes=num_classes, seed=0)

    return built


def refusal(model: torch.nn.Module, weights: Weights, **options: Any) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load_weights(model, weights, **options)
    return caught.value


@pytest.mark.slow
@pytest.mark.parametrize(
    ("here", "there", "advice"),
    [
        (["model=resnet20"], ["model=resnet32"], "model=resnet32"),
        (["model=resnet20"], ["model=resnet20", "model.depth=26"], "model.depth=26"),
        (["model=resnet18"], ["model=resnet20", "model.depth=26"], "model=resnet20 model.depth=26"),
        (["model=resnet20"], ["model=resnet20", "model.shortcut=B"], "model.shortcut=B"),
        (["model=resnet20", "model.shortcut=B"], ["model=resnet32"], "model=resnet32 model.shortcut=A"),
        (["model=resnet20"], ["model=resnet20", "model.width=0.3"], "model.width=0.296875"),
        (["model=resnet20", "model.width=0.5"], ["model=resnet44"], "model=resnet44 model.width=1.0"),
        (["model=resnet20"], ["model=resnet18"], "model=resnet18"),
        (["model=resnet18"], ["model=resnet18", "model.stem=imagenet"], "model.stem=imagenet"),
        (["model=resnet18", "model.stem=imagenet"], ["model=resnet18"], "model.stem=cifar"),
        (["model=resnet18"], ["model=resnet34", "model.stem=imagenet"], "model=resnet34 model.stem=imagenet"),
        (["model=resnet20"], ["model=resnet20", "model.preactivation=true"], "model.preactivation=true"),
        (["model=resnet20", "model.conv_bias=true"], ["model=resnet20"], "model.conv_bias=false"),
        (
            ["model=resnet18", "model.width=0.125"],
            ["model=resnet50", "model.width=0.125"],
            "model=resnet50 model.width=0.125",
        ),
    ],
    ids=str,
)
def test_the_advice_makes_them_fit(
    network: Callable[..., CifarResNet | ResNet], here: list[str], there: list[str], advice: str
) -> None:
    weights = network(*there).state_dict()
    error = refusal(network(*here), weights)
    assert str(error).endswith(f"; try {advice}"), error
    model = network(*here, *advice.split())
    assert load_weights(model, weights) == []
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


@pytest.mark.slow
def test_the_table(network: Callable[..., CifarResNet | ResNet]) -> None:
    weights = network("model=resnet18", "model.stem=imagenet", num_classes=1000).state_dict()
    weights = {**weights, "\x1b[2J": torch.ones(1)}
    del weights["layer4.1.bn2.bias"]
    error = refusal(network("model=resnet18"), weights, source="init_from: the weights in x.pt")
    assert str(error) == (
        "init_from: the weights in x.pt are of another network: 3 tensors do not fit, first conv1.weight "
        "(expected (64, 3, 3, 3), got (64, 3, 7, 7)); no network here has exactly these tensors; "
        "give the weights of one that has"
    )
    assert error.details.splitlines() == [
        "tensor             expected       got",
        "conv1.weight       (64, 3, 3, 3)  (64, 3, 7, 7)",
        "layer4.1.bn2.bias  (512,)         none",
        "\\x1b[2J            none           (1,)",
    ]


def test_a_long_table_is_cut(network: Callable[..., CifarResNet | ResNet]) -> None:
    error = refusal(network("model=resnet20"), network("model=resnet32").state_dict())
    lines = error.details.splitlines()
    assert lines[1].split() == ["layer1.3.conv1.weight", "none", "(16,", "16,", "3,", "3)"]
    assert (len(lines), lines[-1]) == (22, "and 52 more")
    assert max(map(len, lines)) < 80


@pytest.mark.slow
def test_the_classifier_may_differ_or_not(network: Callable[..., CifarResNet | ResNet]) -> None:
    """It may where a run begins with the weights; not where they are evaluated."""
    weights = network("model=resnet20", num_classes=100).state_dict()
    assert load_weights(network("model=resnet20"), weights) == [
        "fc.weight is (100, 64) there and (10, 64) here",
        "fc.bias is (100,) there and (10,) here",
    ]
    error = refusal(network("model=resnet20"), weights, classifier_may_differ=False)
    assert str(error).endswith("; try dataset=cifar100")
    weights = network("model=resnet32", num_classes=7).state_dict()
    error = refusal(network("model=resnet20"), weights, classifier_may_differ=False)
    assert str(error).endswith("; try model=resnet32 a data set of 7 classes")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, Recognised(CifarResNet, 8, "cifar", "A", 1.0, False, False, 10)),
        ({"bn1.num_batches_tracked": None}, Recognised(CifarResNet, 8, "cifar", "A", 1.0, False, False, 10)),
        ({"bn1.weight": None}, None),
        ({"conv1.weight": (10**9, 3, 3, 3), "fc.weight": (10, 10**9)}, None),
        ({"conv1.weight": ()}, None),
        ({"fc.weight": (10, 0)}, None),
        ({"layer1.7.conv1.weight": (16, 16, 3, 3)}, None),
        ({f"layer1.{block}.conv1.weight": (16, 16, 3, 3) for block in range(3000)}, None),
    ],
)
def test_what_is_recognised(changes: dict[str, Any], expected: Recognised | None) -> None:
    shapes: dict[str, Any] = {name: tuple(tensor.shape) for name, tensor in CifarResNet(8).state_dict().items()}
    shapes = {name: shape for name, shape in (shapes | changes).items() if shape is not None}
    assert recognise(shapes) == expected


@pytest.mark.slow
def test_on_the_command_line(
    tiny_overrides: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(CifarResNet(14).state_dict(), tmp_path / "weights.pth")
    arguments = [*tiny_overrides, f"init_from={tmp_path / 'weights.pth'}", f"hydra.run.dir={tmp_path / 'run'}"]
    assert main(arguments, run) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].split() == ["tensor", "expected", "got"]
    assert lines[-1].startswith(
        f"resnet-train: init_from: the weights in {tmp_path}/weights.pth are of another network: "
    )
    assert lines[-1].endswith("; try model.depth=14 model.width=1.0")
    assert len(lines) == 1 + 20 + 1 + 1
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_weights_for_colours_in_a_network_of_grey_images() -> None:
    grey, colour = (build_model(load_config([]).model, num_classes=10, seed=0, channels=number) for number in (1, 3))
    shapes = r"\(expected \(16, 1, 3, 3\), got \(16, 3, 3, 3\)\)"
    with pytest.raises(ConfigError, match=rf"first conv1\.weight {shapes}; try dataset\.channels=3$"):
        load_weights(grey, colour.state_dict())
