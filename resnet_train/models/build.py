"""From the configuration of a model to the network."""

from __future__ import annotations

import torch

from resnet_train.config.model import CifarResNetConfig, ModelConfig, ResNetConfig
from resnet_train.models.resnet import CifarResNet, ResNet
from resnet_train.models.variant import Variant
from resnet_train.seeding import seed_everything


def build_model(
    config: ModelConfig, *, num_classes: int, seed: int, channels: int = 3, channels_last: bool = True
) -> CifarResNet | ResNet:
    """The network on the CPU for images of ``channels``, its weights drawn from the seed alone."""
    variant = Variant(
        shortcut=config.shortcut,  # type: ignore[arg-type]  # checked in the configuration, as those below
        residual=config.residual,
        width=config.width,
        preactivation=config.preactivation,
        dropout=config.dropout,
        activation=config.activation,  # type: ignore[arg-type]
        conv_bias=config.conv_bias,
        init=config.init,  # type: ignore[arg-type]
        zero_init_residual=config.zero_init_residual,
    )
    seed_everything(seed, "init")
    model: CifarResNet | ResNet
    match config:
        case CifarResNetConfig():
            model = CifarResNet(config.depth, variant, num_classes=num_classes, channels=channels)
        case ResNetConfig():
            model = ResNet(
                config.depth,
                variant,
                stem=config.stem,  # type: ignore[arg-type]
                num_classes=num_classes,
                channels=channels,
            )
        case _:
            raise TypeError(f"no network for {type(config).__name__}")
    return model.to(memory_format=torch.channels_last) if channels_last else model
