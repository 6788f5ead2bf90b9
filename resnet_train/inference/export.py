"""Write a trained network to a file for other programs, and believe that file only once it was run.

The network is the plain one, in fp32, for evaluation, with the weights that the run evaluates. What was written is
loaded from its file, run on real images and compared with the original (`check`). Only then it takes its name, with
a model card beside it: whatever goes wrong leaves nothing behind, and older files as they were.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from resnet_train.data.augment import normalise
from resnet_train.errors import RunError
from resnet_train.inference.card import model_card
from resnet_train.inference.check import Check, compare, in_batches
from resnet_train.inference.classifier import TorchNetwork
from resnet_train.inference.exported import IN_FP32, METADATA_FILE, load_exported, quiet
from resnet_train.inference.spec import Spec, public_command
from resnet_train.inference.trained import Trained, build_network
from resnet_train.runs import atomic
from resnet_train.runs.saved import saved_invocation

PLAN = replace(IN_FP32, channels_last=False)  # readers of a file expect weights in their usual order in memory


@dataclass(frozen=True)
class Exported:
    """What was written."""

    path: Path
    card: Path
    spec: Spec
    check: Check


class Deployed(nn.Module):
    """A network with what stands before and behind it: uint8 ``(N, S, S, C)`` to probabilities ``(N, classes)``."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, spec: Spec) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(spec.mean))
        self.register_buffer("std", torch.tensor(spec.std))

    def forward(self, images: Tensor) -> Tensor:
        """Probabilities float32 ``(N, classes)``."""
        logits: Tensor = self.network(normalise(images, self.mean, self.std))
        return logits.softmax(1)


def export(trained: Trained, path: Path, *, card: Path, images: Tensor, raw: bool = False) -> Exported:
    """Write the network to ``path``, in the format of its ending, and a model card to ``card`` in the same folder.

    Args:
        trained: the network as its run left it.
        path: ends in .onnx, .pt2 or .safetensors; what is there is replaced.
        card: a file of Markdown; what is there is replaced.
        images: real ones, uint8 ``(N, S, S, C)``, on which the file is tried.
        raw: normalised floats in and logits out, instead of bytes and probabilities. Of a safetensors file that is so
            in any case: it holds weights and no graph.

    Raises:
        RunError: PyTorch cannot export it, or what it exported is not the original.
    """
    spec = exported_spec(trained, raw=raw or path.suffix == ".safetensors")
    network = network_of(trained)
    with _folder(path.parent) as temporary:
        file = temporary / path.name
        write(network, spec, file)
        check = compare(
            load_exported(file, device="cpu").network, TorchNetwork(network, spec, PLAN), in_batches(images)
        )
        (temporary / card.name).write_text(model_card(trained, spec, check, file=path.name), encoding="utf-8")
        file.chmod((temporary / card.name).stat().st_mode)  # that of the umask, which safetensors' own is not
        for target in (path, card):
            atomic.sync(temporary / target.name)
        for target in (path, card):
            atomic.replace(temporary / target.name, target)
    atomic.sync_folder(path.parent)
    return Exported(path, card, spec, check)


def network_of(trained: Trained) -> nn.Module:
    """What is exported: the plain network on the CPU, in fp32, for evaluation."""
    classes = len(trained.classes)
    return build_network(
        trained.config, PLAN, trained.weights, num_classes=classes, source=f"the weights in {trained.path}"
    ).float()


def exported_spec(trained: Trained, *, raw: bool) -> Spec:
    """What the file says of itself; nothing of it tells where the run lay, or on whose machine."""
    command = "" if trained.summary is None else trained.summary.command
    if command.startswith("resnet-train") and trained.directory is not None:
        said = saved_invocation(trained.directory)
        command = public_command(said.flags, said.overrides)
    else:  # a program of the user's own, whose name and arguments are nobody's business
        command = ""
    return replace(trained.spec(), command=command, raw=raw)


def write(network: nn.Module, spec: Spec, file: Path) -> None:
    """Write ``network``, on the CPU and in fp32, in the format of the ending of ``file``; raises `RunError`."""
    if file.suffix == ".safetensors":
        weights = {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}
        # What other readers of weights for PyTorch look for first.
        safetensors.torch.save_file(weights, file, metadata={"format": "pt", **spec.to_metadata()})
        return
    try:
        with quiet():
            program = traced(network, spec)
            if file.suffix == ".onnx":
                write_onnx(program, spec, file)
            else:
                extra = {METADATA_FILE: json.dumps(spec.to_metadata())}
                torch.export.save(program, file, extra_files=extra)
    except OSError:
        raise
    except Exception as error:  # an exporter's own, many
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise RunError(f"PyTorch {torch.__version__} cannot export this network: {reason}") from error


def traced(network: nn.Module, spec: Spec) -> torch.export.ExportedProgram:
    """The graph of ``network`` for batches of any size on any device, without traces of the files it was traced in."""
    size, channels = spec.image_size, spec.channels
    # Two images: the axis of a batch of one is taken for a constant (pytorch#157621).
    raw = torch.zeros(2, channels, size, size)
    example = raw if spec.raw else torch.zeros(2, size, size, channels, dtype=torch.uint8)
    module = network if spec.raw else Deployed(network, spec).eval()
    program = torch.export.export(module, (example,), dynamic_shapes=_dynamic())
    for part in program.graph_module.modules():
        for node in list(part.graph.nodes) if isinstance(part, torch.fx.GraphModule) else ():
            node.meta.pop("stack_trace", None)  # paths of whoever exports
            if node.target is torch.ops.aten._assert_tensor_metadata.default:  # that the images lie on a CPU
                part.graph.erase_node(node)
    program.graph_module.recompile()
    return program


def _dynamic() -> tuple[dict[int, Any]]:
    return ({0: torch.export.Dim("batch")},)


def write_onnx(program: torch.export.ExportedProgram, spec: Spec, file: Path) -> None:
    """Write ``program`` as one file of ONNX: input ``images``, output ``probabilities`` or ``logits``."""
    found = torch.onnx.export(
        program,
        (),
        dynamo=True,
        external_data=False,
        dynamic_shapes=_dynamic(),
        input_names=["images"],
        output_names=["logits" if spec.raw else "probabilities"],
        verbose=False,
    )
    assert found is not None
    model: Any = found.model
    for part in (*model.graph.all_nodes(), *model.graph.inputs, *model.graph.outputs):
        part.metadata_props.clear()  # of the exporter, for those who debug it: a tenth of the file
    model.metadata_props.update(spec.to_metadata())
    found.save(file, external_data=False)


@contextmanager
def _folder(wanted: Path) -> Iterator[Path]:
    """A temporary folder in ``wanted``, which is made; after an exception neither is left."""
    made = [folder for folder in (wanted, *wanted.parents) if not folder.exists()]
    try:
        try:
            wanted.mkdir(parents=True, exist_ok=True)
            folder = tempfile.TemporaryDirectory(dir=wanted, prefix=".resnet-export-", ignore_cleanup_errors=True)
        except OSError as error:
            raise RunError(f"cannot write to {wanted}: {error.strerror or error}; choose another --output") from error
        with folder as temporary:
            yield Path(temporary)
    except BaseException:
        for empty in made:
            with suppress(OSError):  # somebody else put something there
                empty.rmdir()
        raise
