"""Modules that stay as they are while the rest trains (``freeze``), as transfer learning wants it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from torch import nn

from resnet_train.config.checks import nearest_name
from resnet_train.errors import ConfigError
from resnet_train.models.count import num_parameters
from resnet_train.runs.console import count


def freeze(model: nn.Module, names: Sequence[str]) -> None:
    """Let the modules of ``model`` that have these names keep their weights and their batch-norm statistics.

    Their parameters take no gradient, so that no optimizer holds them: neither momentum nor weight decay moves them.
    Their batch norms stay in evaluation mode: they normalise by the statistics that they have, and take none in. This
    has to come before the optimizer is built, and after kernels are put in.

    Raises `ConfigError` for names that are no modules with weights, and where nothing is left to train.
    """
    modules = dict(model.named_modules())
    for name in names:
        if name not in modules or not num_parameters(modules[name]):
            raise ConfigError(_unknown(name, model))
        modules[name].requires_grad_(False)
        for module in modules[name].modules():
            if isinstance(module, nn.BatchNorm2d):
                kind: type = type(module)
                module.__class__ = _kept_in_evaluation(kind)
                module.eval()
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ConfigError(f"freeze: expected something that is left to train, got every module; leave {names[-1]} out")


def _unknown(name: str, model: nn.Module) -> str:
    found = [known for known, module in model.named_modules() if known and num_parameters(module)]
    nearest = nearest_name(name, found)
    hint = f"; did you mean {nearest}?" if nearest else ""
    outer = ", ".join(known for known in found if "." not in known)
    inner = next(known for known in found if "." in known)
    return f"freeze: expected modules that have weights, of {outer}, or inside them as {inner}, got {name!r}{hint}"


@cache
def _kept_in_evaluation(norm: type) -> type[nn.BatchNorm2d]:
    """``norm``, plain or of a backend, as a class that ``train()`` of the network leaves in evaluation mode.

    Fused norms look at their mode: without a gradient to compute they take the kernel of evaluation, else PyTorch's
    operations.
    """

    class Frozen(norm):  # type: ignore[misc]
        def train(self, _mode: bool = True) -> Frozen:
            """Go into evaluation mode, whatever is asked for."""
            return super().train(False)  # type: ignore[no-any-return]

    return Frozen


def frozen_in_words(model: nn.Module, names: Sequence[str]) -> str:
    """For the header of a run; empty where everything trains."""
    if not names:
        return ""
    frozen = sum(parameter.numel() for parameter in model.parameters() if not parameter.requires_grad)
    return (
        f"{', '.join(names)}, with the statistics of the norms in them: {count(frozen)} of "
        f"{count(num_parameters(model))} parameters"
    )
