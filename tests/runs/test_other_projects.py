"""Weights that other projects write, in their names and files: the network here computes the same function with them.

The networks below are written down from what those projects compute: names of the modules, order of the operations,
place of the strides, kind of the shortcuts, pooling.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision import models

from resnet_train.cli.compose import load_config
from resnet_train.data.dataset import load_dataset
from resnet_train.data.stream import EvalData
from resnet_train.models.build import build_model
from resnet_train.models.resnet import OPTION_A, OPTION_B, CifarResNet, ResNet
from resnet_train.runs.weights import read_weights
from resnet_train.training.state import load_weights


def conv3x3(inplanes: int, planes: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inplanes, planes, 3, stride, 1, bias=False)


class Shortcut(nn.Sequential):
    """``shortcut.0`` and ``shortcut.1``, empty where the shape stays."""

    def __init__(self, inplanes: int, planes: int, stride: int) -> None:
        projection = [nn.Conv2d(inplanes, planes, 1, stride, bias=False), nn.BatchNorm2d(planes)]
        super().__init__(*projection if stride != 1 or inplanes != planes else [])


class Pad(nn.Module):
    """akamaster's option A: every second pixel, a quarter of the new channels of zeros on each side."""

    def __init__(self, planes: int) -> None:
        super().__init__()
        self.planes = planes

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.planes // 4, self.planes // 4), "constant", 0)


class Basic(nn.Module):
    """A basic block of both projects: the sum stands before the last ReLU."""

    def __init__(self, inplanes: int, planes: int, stride: int, option: str) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv3x3(inplanes, planes, stride), nn.BatchNorm2d(planes)
        self.conv2, self.bn2 = conv3x3(planes, planes), nn.BatchNorm2d(planes)
        padded = option == "A" and stride != 1
        self.shortcut: nn.Module = Pad(planes) if padded else Shortcut(inplanes, planes, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += self.shortcut(x)
        return F.relu(out)


class Narrow(nn.Module):
    """kuangliu's bottleneck: the stride stands in the 3x3 convolution."""

    def __init__(self, inplanes: int, planes: int, stride: int, _option: str) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inplanes, planes, 1, bias=False), nn.BatchNorm2d(planes)
        self.conv2, self.bn2 = conv3x3(planes, planes, stride), nn.BatchNorm2d(planes)
        self.conv3, self.bn3 = nn.Conv2d(planes, 4 * planes, 1, bias=False), nn.BatchNorm2d(4 * planes)
        self.shortcut = Shortcut(inplanes, 4 * planes, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        out += self.shortcut(x)
        return F.relu(out)


class Theirs(nn.Module):
    """A network of either project: a 3x3 convolution, stages, the mean over all pixels, ``linear``."""

    def __init__(self, block: type[Basic] | type[Narrow], blocks: list[int], planes: int, option: str = "B") -> None:
        super().__init__()
        expansion = 4 if block is Narrow else 1
        self.conv1, self.bn1 = conv3x3(3, planes), nn.BatchNorm2d(planes)
        inplanes, self.stages = planes, len(blocks)
        for stage, number in enumerate(blocks):
            strides = [1 if stage == 0 else 2] + [1] * (number - 1)
            made = []
            for stride in strides:
                made.append(block(inplanes, planes * 2**stage, stride, option))
                inplanes = planes * 2**stage * expansion
            setattr(self, f"layer{stage + 1}", nn.Sequential(*made))
        self.linear = nn.Linear(inplanes, 10)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        for stage in range(self.stages):
            out = getattr(self, f"layer{stage + 1}")(out)
        out = F.avg_pool2d(out, out.shape[3])
        return self.linear(out.view(out.shape[0], -1))  # type: ignore[no-any-return]


def torchvisions(depth: int, *, small: bool = False) -> nn.Module:
    """Its own network; ``small``: with the first layers that people exchange for 32x32 images, as with timm."""
    network = models.get_model(f"resnet{depth}", num_classes=10)
    if small:
        network.conv1, network.maxpool = conv3x3(3, 64), nn.Identity()
    assert isinstance(network, nn.Module)
    return network


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[], nn.Module], int]] = {
    "akamaster's resnet20": (lambda: Theirs(Basic, [3] * 3, 16, "A"), lambda: CifarResNet(20), 32),
    "akamaster's option B": (lambda: Theirs(Basic, [3] * 3, 16, "B"), lambda: CifarResNet(20, OPTION_B), 32),
    "akamaster's resnet56": (lambda: Theirs(Basic, [9] * 3, 16, "A"), lambda: CifarResNet(56, OPTION_A), 32),
    "kuangliu's ResNet18": (lambda: Theirs(Basic, [2] * 4, 64), lambda: ResNet(18), 32),
    "kuangliu's ResNet50": (lambda: Theirs(Narrow, [3, 4, 6, 3], 64), lambda: ResNet(50), 32),
    "torchvision's resnet18": (lambda: torchvisions(18), lambda: ResNet(18, stem="imagenet"), 64),
    "torchvision's resnet50": (lambda: torchvisions(50), lambda: ResNet(50, stem="imagenet"), 64),
    "timm's for small images": (lambda: torchvisions(34, small=True), lambda: ResNet(34), 32),
}
Weights = dict[str, Tensor]


def legacy(content: Any, path: Path) -> None:
    torch.save(content, path, _use_new_zipfile_serialization=False)


def as_tensors(content: Weights, path: Path) -> None:
    safetensors.torch.save_file(content, path)


def prefixed(weights: Weights, prefix: str) -> Weights:
    return {f"{prefix}{name}": tensor for name, tensor in weights.items()}


# Name of the file: how it is written, and what around the weights.
FILES: dict[str, tuple[Callable[[Any, Path], None], Callable[[Weights], Any]]] = {
    "bare.pt": (torch.save, lambda weights: weights),
    "pytorch_model.bin": (torch.save, lambda weights: weights),
    "model.safetensors": (as_tensors, lambda weights: weights),
    "compiled.safetensors": (as_tensors, lambda weights: prefixed(weights, "_orig_mod.")),
    "model.th": (legacy, lambda weights: {"state_dict": prefixed(weights, "module."), "best_prec1": 91.7}),
    "ckpt.pth": (torch.save, lambda weights: {"net": prefixed(weights, "module."), "acc": 95.4, "epoch": 199}),
    "both.pth": (torch.save, lambda weights: {"model": prefixed(weights, "_orig_mod.module."), "epoch": 3}),
}


@pytest.fixture(scope="module")
def trained() -> Callable[[str], nn.Module]:
    """A network with weights, scales and running statistics that are nowhere their initial ones."""

    def made(name: str) -> nn.Module:
        torch.manual_seed(0)
        network = NETWORKS[name][0]()
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None and module.running_var is not None
                for tensor, low, high in (
                    (module.weight.data, 0.3, 0.9),
                    (module.bias.data, -0.2, 0.2),
                    (module.running_mean, -0.2, 0.2),
                    (module.running_var, 0.5, 1.5),
                ):
                    tensor.uniform_(low, high)
        return network.eval()

    return made


def assert_the_same_function(theirs: nn.Module, ours: nn.Module, size: int) -> None:
    images = torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected, logits = theirs(images), ours.eval()(images)
    assert expected.std() > 0.01, "logits that say nothing"
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-6 * float(expected.abs().max()))


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_the_same_function(trained: Callable[[str], nn.Module], tmp_path: Path, name: str) -> None:
    theirs = trained(name)
    torch.save({"state_dict": prefixed(theirs.state_dict(), "module.")}, tmp_path / "weights.pth")
    _, build, size = NETWORKS[name]
    ours = build()
    assert load_weights(ours, read_weights(tmp_path / "weights.pth"), classifier_may_differ=False) == []
    assert_the_same_function(theirs, ours, size)


@pytest.mark.slow
@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("name", ["akamaster's resnet20", "kuangliu's ResNet18"])
def test_every_kind_of_file(trained: Callable[[str], nn.Module], tmp_path: Path, name: str, file: str) -> None:
    theirs = trained(name)
    write, around = FILES[file]
    write(around(theirs.state_dict()), tmp_path / file)
    ours = NETWORKS[name][1]()
    assert load_weights(ours, read_weights(tmp_path / file), classifier_may_differ=False) == []
    assert_the_same_function(theirs, ours, 32)


def test_half_precision(trained: Callable[[str], nn.Module], tmp_path: Path) -> None:
    """akamaster trains with ``--half``: what was rounded is loaded as it is."""
    theirs = trained("akamaster's resnet20").half()
    torch.save(theirs.state_dict(), tmp_path / "half.th")
    ours = CifarResNet(20)
    assert load_weights(ours, read_weights(tmp_path / "half.th")) == []
    assert ours.conv1.weight.dtype == torch.float32
    assert_the_same_function(theirs.float(), ours, 32)


# Correct ones of the 10,000 test images of CIFAR-10, as the errors in akamaster's README say: 8.27, 7.37, 6.90, 6.61 %.
PUBLISHED = {"resnet20-12fca82f": 9173, "resnet32-d509ac18": 9263, "resnet44-014dd654": 9310, "resnet56-4bfd9763": 9339}


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_weights_give_their_published_error(name: str, cifar10_root: Path) -> None:
    """Files of akamaster/pytorch_resnet_cifar10, from the folder that RESNET_TRAIN_PUBLISHED names."""
    path = Path(os.environ.get("RESNET_TRAIN_PUBLISHED", "")) / f"{name}.th"
    if not path.is_file():
        pytest.skip(
            "no pretrained_models/ of akamaster/pytorch_resnet_cifar10; name its folder in RESNET_TRAIN_PUBLISHED"
        )
    source = (f"dataset.root={cifar10_root}", "dataset.download=false")
    normalisation = ("dataset.mean=[0.485, 0.456, 0.406]", "dataset.std=[0.229, 0.224, 0.225]")
    config = load_config([f"model={name.partition('-')[0]}", *source, *normalisation])
    model = build_model(config.model, num_classes=10, seed=0).eval()
    assert load_weights(model, read_weights(path), classifier_may_differ=False) == []
    test = load_dataset(config.dataset, seed=0).test
    data = EvalData(test, batch_size=500, mean=config.dataset.mean, std=config.dataset.std, device=torch.device("cpu"))
    with torch.inference_mode():
        correct = sum(int((model(images).argmax(1) == labels).sum()) for images, labels in data)
    assert (correct, len(test)) == (PUBLISHED[name], 10_000)
