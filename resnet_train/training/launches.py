"""The way through a network with fewer kernels, for a GPU: there a step of a thin network is made of launches."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

_HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


class FewLaunches:
    """A network in training, the same to the bit, with one operation where it has one for each layer.

    - In half precision autocast rounds the weights of each layer when that runs, and its gradients back one by one.
      Here all weights are rounded at once before, and all gradients at once behind.
    - The counters of the batch norms, which nothing reads, are counted up at once. Norms that count in a kernel of
      their own, such as those of `resnet_train.kernels.cuda`, are left alone.

    For one micro-batch each call, so that gradients of several are added up in float32, as by autocast. Parameters and
    buffers are looked up once: they may be written into, but not be exchanged for others.
    """

    def __init__(self, model: nn.Module, *, precision: str) -> None:
        self._model = model
        self._half = _HALF.get(precision)
        self._weights: dict[str, Tensor] = {}
        self._counters: dict[str, Tensor] = {}
        for name, module in model.named_modules():
            if type(module) in (nn.Conv2d, nn.Linear) and self._half is not None:
                parameters = module.named_parameters(recurse=False)
                # Frozen ones are left to autocast: rounded here, they would have gradients.
                self._weights |= {f"{name}.{key}": value for key, value in parameters if value.requires_grad}
            if type(module) is nn.BatchNorm2d and module.momentum is not None:
                self._counters |= {f"{name}.{key}": value for key, value in module.named_buffers() if value.ndim == 0}

    def __call__(self, images: Tensor) -> Tensor:
        """Logits ``(B, classes)`` of ``images`` ``(B, C, H, W)``, within the caller's autocast."""
        # A norm whose counter is None counts nothing, and momentum alone says how its statistics move.
        changed: dict[str, Any] = dict.fromkeys(self._counters)
        if self._counters:
            torch._foreach_add_(list(self._counters.values()), 1)
        if self._weights:
            changed |= zip(self._weights, _Rounded.apply(self._half, *self._weights.values()), strict=True)
        return functional_call(self._model, changed, (images,), tie_weights=False)  # type: ignore[no-any-return]


class _Rounded(torch.autograd.Function):
    """Tensors in another type, and their gradients in that of the tensors: each way one operation for all."""

    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.dtype = tensors[0].dtype
        return _cast(tensors, dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return None, *_cast(gradients, ctx.dtype)


def _cast(tensors: tuple[Tensor, ...], dtype: torch.dtype) -> tuple[Tensor, ...]:
    results = tuple(torch.empty_like(tensor, dtype=dtype) for tensor in tensors)  # strides too: else it is not at once
    torch._foreach_copy_(results, tensors)
    return results
