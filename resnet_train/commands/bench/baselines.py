"""The loops that users have today: the one of tutorials, and what a careful user makes of it."""

from __future__ import annotations

import os
from collections.abc import Generator
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset
from torchvision import transforms

from resnet_train.config.run import Config
from resnet_train.data.dataset import Dataset
from resnet_train.models.build import build_model


class PILImages(TorchDataset[tuple[Tensor, int]]):
    """PIL image, transform, label: what torchvision.datasets.CIFAR10 does."""

    def __init__(self, pixels: Any, labels: list[int], transform: transforms.Compose) -> None:
        self._pixels, self._labels, self._transform = pixels, labels, transform

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """One augmented image."""
        return self._transform(Image.fromarray(self._pixels[index])), self._labels[index]


def usable_cores() -> int:
    """Cores that this process may use, which can be fewer than the machine has."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # Windows, macOS
        return os.cpu_count() or 1


def loader_of(config: Config, dataset: Dataset, *, pin_memory: bool, persistent_workers: bool) -> DataLoader[Any]:
    """torchvision's transforms on PIL images, a worker for each core."""
    transform = transforms.Compose(
        [
            transforms.RandomCrop(dataset.image_size, padding=config.dataset.augment.crop_padding),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(config.dataset.mean, config.dataset.std),
        ]
    )
    pixels = dataset.train.images.numpy()
    pixels = pixels[..., 0] if pixels.shape[-1] == 1 else pixels  # a grey image of Pillow has no axis for channels
    return DataLoader(
        PILImages(pixels, dataset.train.labels.tolist(), transform),
        batch_size=config.batch_size,
        shuffle=True,
        num_workers=usable_cores(),
        drop_last=True,
        pin_memory=pin_memory,
        persistent_workers=persistent_workers,
    )


def baseline(
    config: Config, dataset: Dataset, device: torch.device, *, precision: str, tuned: bool
) -> Generator[None, None, None]:
    """The loop of tutorials, as it is or tuned, one step for each item."""
    pin_memory = tuned and device.type == "cuda"
    loader = loader_of(config, dataset, pin_memory=pin_memory, persistent_workers=tuned)
    model = build_model(
        config.model, num_classes=len(dataset.classes), seed=config.seed, channels=config.dataset.channels
    )
    model = model.to(device, memory_format=torch.channels_last if tuned else torch.contiguous_format)  # type: ignore[call-overload]
    model.train()
    torch.backends.cudnn.benchmark = tuned  # the process is this loop's own
    fused = tuned and device.type in ("cpu", "cuda")
    optimizer = torch.optim.SGD(model.parameters(), lr=config.optim.lr, momentum=0.9, weight_decay=5e-4, fused=fused)
    scaler = torch.amp.GradScaler("cuda", enabled=tuned and precision == "fp16")
    dtype = torch.float16 if precision == "fp16" else torch.bfloat16
    running_loss, correct, total = 0.0, 0, 0
    while True:
        for images, targets in loader:
            images, targets = images.to(device, non_blocking=tuned), targets.to(device, non_blocking=tuned)
            if tuned:
                images = images.contiguous(memory_format=torch.channels_last)
            optimizer.zero_grad()
            with torch.autocast(device.type, dtype=dtype, enabled=tuned and precision != "fp32"):
                outputs = model(images)
                loss = F.cross_entropy(outputs, targets)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            if not tuned:
                running_loss += loss.item()
                correct += (outputs.argmax(1) == targets).sum().item()
                total += len(targets)
            yield
