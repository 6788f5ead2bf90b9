"""The gradient of weights by AMX: computed with tiles in software, and reachable by name alone."""

from __future__ import annotations

import ctypes
import platform
import subprocess
from pathlib import Path

import pytest
import torch

from resnet_train.errors import ConfigError
from resnet_train.kernels import choose, native
from resnet_train.kernels.experimental import amx

SOURCE = Path(amx.__file__).parent / "csrc" / "conv_weight_grad.cpp"


@pytest.fixture(scope="module")
def in_software(compiler: str, tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """``csrc/conv_weight_grad.cpp`` with tiles in software: everything of it but the instructions themselves."""
    if platform.machine() != "x86_64":
        pytest.skip("AMX is of x86")
    target = tmp_path_factory.mktemp("amx") / "conv_weight_grad.so"
    header = Path(__file__).with_name("amx_in_software.h")
    options = ["-std=c++17", "-O2", "-march=native", "-fopenmp", "-shared", "-fPIC", "-include", str(header)]
    subprocess.run([compiler, *options, "-o", str(target), str(SOURCE)], check=True, timeout=120)
    library = ctypes.CDLL(str(target))
    library.conv_weight_grad.argtypes = [*[ctypes.c_void_p] * 3, *[ctypes.c_long] * 5]
    library.conv_weight_grad.restype = None
    return library


# (images, height, width, in, out), in an order in which buffers grow and shrink
SHAPES = [
    (1, 1, 1, 16, 16),
    (3, 8, 8, 16, 32),
    (16, 8, 8, 64, 64),
    (5, 7, 9, 48, 16),
    (2, 4, 6, 16, 16),
    (33, 6, 5, 32, 16),
    (2, 40, 33, 16, 16),
    (1, 3, 3, 16, 16),
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gradient_of_the_weights_in_software(in_software: ctypes.CDLL, shape: tuple[int, ...]) -> None:
    count, height, width, channels_in, channels_out = shape
    draws = torch.Generator().manual_seed(0)
    x = torch.randn(count, height, width, channels_in, generator=draws).bfloat16()
    dy = torch.randn(count, height, width, channels_out, generator=draws).bfloat16()
    found = torch.full((channels_out, 3, 3, channels_in), torch.nan)
    in_software.conv_weight_grad(x.data_ptr(), dy.data_ptr(), found.data_ptr(), *shape)
    expected = torch.nn.grad.conv2d_weight(
        x.permute(0, 3, 1, 2).double(),
        (channels_out, channels_in, 3, 3),
        dy.permute(0, 3, 1, 2).double(),
        padding=1,
    )
    torch.testing.assert_close(found.permute(0, 3, 1, 2).double(), expected, rtol=1e-4, atol=1e-4)


def chosen(name: str, precision: str = "bf16", device: str = "cpu") -> choose.Backend:
    return choose.choose_backend(
        name,
        activation="relu",
        device=torch.device(device),
        precision=precision,
        compiled=False,
        channels_last=True,
    )


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("name", ["auto", "fused"])
def test_it_is_not_taken_unless_it_is_named(name: str) -> None:
    assert "AMX" not in chosen(name).reason


@pytest.mark.usefixtures("compiler")
def test_by_name() -> None:
    try:
        amx.load_conv_weight_grad()
    except native.Unavailable as error:
        expected = f"but {error}; try kernels=auto"
        with pytest.raises(ConfigError, match=rf"^kernels: .* kernels=experimental_amx needs, {expected}$"):
            chosen("experimental_amx")
    else:
        backend = chosen("experimental_amx")
        assert backend.name == "experimental_amx"
        assert backend.reason.startswith("the gradients of 3x3 convolutions' weights with AMX; batch norm, ")


@pytest.mark.parametrize(
    ("precision", "device", "why"),
    [
        ("fp32", "cpu", "AMX multiplies bf16, this run computes in fp32"),
        ("bf16", "cuda", "AMX is of the CPU, this runs on cuda"),
    ],
)
def test_where_it_is_of_no_use(precision: str, device: str, why: str) -> None:
    with pytest.raises(ConfigError) as raised:
        chosen("experimental_amx", precision, device)
    assert str(raised.value) == (
        f"kernels: expected to find what kernels=experimental_amx needs, but {why}; try kernels=auto"
    )


def test_convolutions_that_it_does_not_serve_are_those_of_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """And those that it serves are PyTorch's forward: the library itself is asked for in the backward pass."""
    monkeypatch.setattr(amx, "load_conv_weight_grad", lambda: pytest.fail("nothing has asked for a gradient"))
    torch.manual_seed(0)
    layer = amx.Conv2d(16, 32, 3, padding=1, bias=False).to(memory_format=torch.channels_last)
    x = torch.randn(2, 16, 8, 8).contiguous(memory_format=torch.channels_last)
    layer(x).sum().backward()  # in float32
    assert layer.weight.grad is not None
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, expected = layer(x.bfloat16()), torch.nn.functional.conv2d(x, layer.weight, padding=1)
    assert type(found.grad_fn).__name__ == "_Conv3x3Backward"
    assert torch.equal(found, expected)


def test_the_gradients_of_a_convolution(in_software: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(amx, "load_conv_weight_grad", lambda: in_software)
    torch.manual_seed(0)
    layer = amx.Conv2d(16, 32, 3, padding=1, bias=False).to(memory_format=torch.channels_last)
    x = torch.randn(4, 16, 8, 8).bfloat16().contiguous(memory_format=torch.channels_last).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x)
    gradient = torch.randn_like(y)
    y.backward(gradient)
    assert x.grad is not None and layer.weight.grad is not None
    weight = layer.weight.detach().bfloat16().double()
    expected = torch.nn.grad.conv2d_weight(x.detach().double(), weight.shape, gradient.double(), padding=1)
    torch.testing.assert_close(layer.weight.grad.double(), expected, rtol=1e-4, atol=1e-3)
    expected = torch.nn.grad.conv2d_input(x.shape, weight, gradient.double(), padding=1)
    # PyTorch's own, which rounds to bf16 on the way where the processor does not multiply it.
    torch.testing.assert_close(x.grad.double(), expected, rtol=2**-6, atol=3e-2)
