"""Whether a device computes what the CPU computes: PyTorch on MPS has been wrong without a word."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from resnet_train.errors import ConfigError
from resnet_train.models.count import channels_of

# Both in float32. The loss of a network at its start is near log(classes), and its gradient's norm of that order;
# float32 in another order differs by some 1e-5 of that after a hundred layers. What is wrong differs by more than this.
LOSS_TOLERANCE, GRADIENT_TOLERANCE = 1e-3, 1e-2


def check_against_cpu(
    model: nn.Module, device: torch.device, *, image_size: int, num_classes: int, num_images: int = 8
) -> None:
    """Compare one batch forward and backward on ``device`` with the CPU; raises `ConfigError` where they differ.

    ``model`` lies on either, and is left as it is.
    """
    draws = torch.Generator().manual_seed(0)
    images = torch.randn(num_images, channels_of(model), image_size, image_size, generator=draws)
    labels = torch.randint(num_classes, (num_images,), generator=draws)
    (here, there), (norm_here, norm_there) = zip(
        *(_loss_and_gradient(model, images, labels, where) for where in (torch.device("cpu"), device)), strict=True
    )
    loss_differs = not abs(here - there) <= LOSS_TOLERANCE * max(1.0, abs(here))  # NaN differs
    if loss_differs or not abs(norm_here - norm_there) <= GRADIENT_TOLERANCE * norm_here:
        raise ConfigError(
            f"device: {device} computes this network wrongly with PyTorch {torch.__version__}: expected loss "
            f"{here:.6g} and gradient norm {norm_here:.6g} as on the CPU, got {there:.6g} and {norm_there:.6g}; "
            f"try device=cpu, or another PyTorch"
        )


def _loss_and_gradient(model: nn.Module, images: Tensor, labels: Tensor, device: torch.device) -> tuple[float, float]:
    copied = copy.deepcopy(model).to(device).train()
    for module in copied.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0  # it draws other numbers on each device
    loss = F.cross_entropy(copied(images.to(device)), labels.to(device))
    loss.backward()
    gradients = [parameter.grad for parameter in copied.parameters() if parameter.grad is not None]
    return loss.item(), torch.nn.utils.get_total_norm(gradients).item()
