"""Every image of a split through a trained network, and every measure of the result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tqdm import tqdm

from resnet_train.config.run import Config
from resnet_train.data.dataset import Dataset, Split, load_dataset
from resnet_train.errors import ConfigError
from resnet_train.inference.augmented import ask
from resnet_train.inference.classifier import Classifier
from resnet_train.runs.data_identity import class_differences, differences
from resnet_train.runs.summary import Summary
from resnet_train.training.scores import Mistakes, Scores, mistakes, score

SPLITS = ("test", "val", "train")


@dataclass(frozen=True)
class Asked:
    """What an evaluation is to do."""

    split: str
    tta: str = "none"
    tta_below: float = 1.0  # only images of which the network is less sure are augmented


@dataclass(frozen=True)
class Evaluation:
    """The result of one evaluation."""

    asked: Asked
    scores: Scores
    mistakes: Mistakes
    augmented: int  # images of which several views were looked at
    images: Split

    def plain(self) -> dict[str, Any]:
        """For a JSON file."""
        return {"split": self.asked.split, "tta": self.asked.tta, "augmented": self.augmented, **self.scores.plain()}


def split_of(config: Config, name: str) -> tuple[Split, Dataset]:
    """The images of a split as the run saw them, not augmented; raises `ConfigError` where there is no such split."""
    dataset = load_dataset(config.dataset, seed=config.seed)
    split = {"test": dataset.test, "val": dataset.val, "train": dataset.train}[name]
    if split is None:
        raise ConfigError(
            "--split: expected a split of this run, got val, and none of its images are held out "
            "(dataset.val_size=0); try --split test"
        )
    return split, dataset


def check_data(dataset: Dataset, classes: Sequence[str], saved: Any) -> list[str]:
    """In what the data differ from those of the run (``saved``, None where it is not known).

    Raises `ConfigError` where the classes are not those that the network knows.
    """
    if different := class_differences(classes, dataset.classes):
        raise ConfigError(
            f"the images are of other classes than the network was trained on: {'; '.join(different)}; name the data "
            f"set with dataset=NAME or dataset.root=FOLDER"
        )
    return [] if saved is None else differences(saved, dataset.identity)


def evaluate(classifier: Classifier, split: Split, asked: Asked) -> Evaluation:
    """Ask ``classifier`` for every image of ``split``, with a bar on the terminal."""
    found, augmented = [], 0
    with tqdm(total=len(split), desc=asked.split, unit=" images", disable=None, leave=False) as bar:
        for images in split.images.split(classifier.batch_size):
            logits, number = ask(classifier.logits, images, kind=asked.tta, below=asked.tta_below)
            found.append(logits)
            augmented += number
            bar.update(len(images))
    logits = torch.cat(found)
    scores = score(logits, split.labels, classes=classifier.classes)
    return Evaluation(asked, scores, mistakes(logits, split.labels), augmented, split)


def own_score(summary: Summary | None, asked: Asked, step: int) -> tuple[int, int] | None:
    """Correct images and all images by the run's own summary; None where it speaks of something else."""
    found = None if summary is None or asked.tta != "none" else summary.last.get(asked.split)
    return (found.correct, found.count) if found is not None and found.step == step and asked.split != "train" else None
