"""``diagnostics=true``: what goes on inside a network while it trains, in TensorBoard, at each evaluation.

- Histograms of the weights of each convolution and of the classifier, and of their gradients in the last step, whose
  norms are curves. The gradients are those that the optimizer saw: unscaled, summed over micro-batches, clipped.
- Mean, standard deviation and share of zeros of what each block gives for the first images of the evaluated split,
  in the network as it is evaluated.
- The accuracy of each class, and once, at the beginning, the graph of the network.

Nothing of it changes the training, to the bit: parameters and gradients are only read, and the extra forward pass is
that of an evaluation. Nothing is fatal either: what fails is told in the log, and left out from there on.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from resnet_train.config.model import ModelConfig
from resnet_train.models.build import build_model
from resnet_train.models.preact import PreActBasicBlock, PreActBottleneck
from resnet_train.models.resnet import BasicBlock, Bottleneck
from resnet_train.runs.console import printable
from resnet_train.runs.metrics_table import Row
from resnet_train.runs.tensorboard import ACTIVATIONS, GRADIENT_NORMS, PER_CLASS_ACCURACY, Histogram, TensorBoard
from resnet_train.training.setup import Run
from resnet_train.training.step import at_least_float, autocast

NUM_BINS = 64  # of a histogram
NUM_IMAGES = 128  # whose activations are looked at
BLOCKS = (BasicBlock, Bottleneck, PreActBasicBlock, PreActBottleneck)

logger = logging.getLogger(__name__)


class Diagnostics:
    """Shows the insides of a network; does nothing unless it is ``enabled``."""

    def __init__(self, tensorboard: TensorBoard, *, enabled: bool) -> None:
        self._tensorboard = tensorboard
        self.enabled = enabled

    @contextmanager
    def _surviving(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # whatever it is, memory included: the training goes on without
            logger.warning("no diagnostics from here on: %s: %s", type(error).__name__, error)
            self.enabled = False

    def begin(self, config: ModelConfig, run: Run) -> None:
        """Show the graph, unless an earlier session did."""
        if not self.enabled or self._tensorboard.shows_graph:
            return
        with self._surviving(), warnings.catch_warnings():
            from torch.utils.tensorboard._pytorch_graph import graph

            warnings.simplefilter("ignore")  # the tracer, without which torch.utils.tensorboard has no graph, is old
            # A network as it stands in models/: fused operations would show as one node of the backend.
            classes, channels = len(run.classes), run.train_data.split.images.shape[-1]
            plain = build_model(config, num_classes=classes, seed=run.seed, channels=channels, channels_last=False)
            definition, _ = graph(plain, torch.zeros(1, channels, run.image_size, run.image_size))
            self._tensorboard.write_graph(definition)

    def write(self, run: Run, logits: Tensor | None) -> None:
        """Show everything else after an evaluation, before the next step; ``logits`` are those of the evaluation."""
        if not self.enabled:
            return
        with self._surviving(), torch.inference_mode():
            gradients, step = layer_gradients(run.state.model), run.state.step
            row = {**norms(gradients), **activations(run)}
            if logits is not None:
                labels = run.eval_data[run.watched].split.labels.cpu()
                row |= class_accuracies(logits, labels, run.classes)
            self._tensorboard.write(step, row)
            tensors = {f"weights/{name}": layer.weight for name, layer in layers(run.state.model)}
            tensors |= {f"gradients/{name}": grad for name, grad in gradients.items()}
            self._tensorboard.write_histograms(step, histograms(tensors))


def layers(model: nn.Module) -> Iterator[tuple[str, nn.Conv2d | nn.Linear]]:
    """Convolutions and the classifier, by name."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            yield name, module


def layer_gradients(model: nn.Module) -> dict[str, Tensor]:
    """The gradients of the weights of those."""
    return {name: layer.weight.grad for name, layer in layers(model) if layer.weight.grad is not None}


def norms(gradients: dict[str, Tensor]) -> Row:
    """The norm of each gradient; one synchronisation with the device."""
    values = torch.stack(torch._foreach_norm(list(gradients.values()))).tolist() if gradients else []
    return {f"{GRADIENT_NORMS}/{name}": value for name, value in zip(gradients, values, strict=True)}


def histograms(tensors: dict[str, Tensor]) -> dict[str, Histogram]:
    """A histogram of each tensor whose values are finite; two synchronisations with the device."""
    flat = {name: tensor.float().flatten() for name, tensor in tensors.items()}
    moments = torch.stack(
        [torch.stack([*values.aminmax(), values.sum(), values.square().sum()]) for values in flat.values()]
    )
    found = {
        name: row for name, row, finite in zip(flat, moments.tolist(), moments.isfinite().all(1), strict=True) if finite
    }
    ranges = {name: (low, high) if low < high else (low - 0.5, low + 0.5) for name, (low, high, *_) in found.items()}
    counts = [flat[name].histc(NUM_BINS, *limits) for name, limits in ranges.items()]
    listed = torch.stack(counts).tolist() if counts else []
    return {
        name: Histogram(*ranges[name], counts=bins, total=total, squares=squares)
        for (name, (_, _, total, squares)), bins in zip(found.items(), listed, strict=True)
    }


def activations(run: Run) -> Row:
    """Mean, standard deviation and share of zeros of what each block gives for a batch of the evaluated split."""
    model, measured = run.state.eval_model, dict[str, Tensor]()

    def note(name: str, output: Tensor) -> None:
        values = at_least_float(output)
        std, mean = torch.std_mean(values)
        measured[name] = torch.stack([mean, std, (values == 0).to(values.dtype).mean()])

    images, _ = next(iter(run.eval_data[run.watched]))
    hooks = [
        module.register_forward_hook(lambda _, __, output, name=name: note(name, output))
        for name, module in model.named_modules()
        if isinstance(module, BLOCKS)
    ]
    was_training = model.training
    try:
        model.eval()
        with autocast(images.device, run.plan.precision):
            model(images[:NUM_IMAGES])
    finally:
        model.train(was_training)
        for hook in hooks:
            hook.remove()
    values = torch.stack(list(measured.values())).tolist()
    return {
        f"{group}/{name}": value
        for name, row in zip(measured, values, strict=True)
        for group, value in zip(ACTIVATIONS, row, strict=True)
    }


def class_accuracies(logits: Tensor, labels: Tensor, classes: tuple[str, ...]) -> Row:
    """How many images of each class are found, in [0, 1]; classes without images are left out."""
    hits = torch.bincount(labels[logits.argmax(1) == labels], minlength=len(classes)).tolist()
    support = torch.bincount(labels, minlength=len(classes)).tolist()
    return {
        f"{PER_CLASS_ACCURACY}/{printable(name)}": hit / number
        for name, hit, number in zip(classes, hits, support, strict=True)
        if number
    }
