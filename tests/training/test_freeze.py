"""``freeze``: what is named stays as it is, to the bit, and the rest trains as PyTorch would train it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from resnet_train.config.run import Config
from resnet_train.errors import ConfigError
from resnet_train.models.build import build_model
from resnet_train.runs.checkpoint import read_checkpoint
from resnet_train.train import run
from resnet_train.training.setup import build
from tests.conftest import TINY, Shell

Tiny = Callable[..., Config]
FROZEN = "freeze=[conv1,bn1,layer1,layer2.0.bn1]"
LENGTH = ("epochs=null", "steps=9", "eval_every=2steps", "checkpoint.every=1steps", "checkpoint.keep=100")
# Wide enough for the fused kernels, whose channels come in sixteens.
WIDE = ("model.width=1", "model.shortcut=B")


def is_frozen(name: str) -> bool:
    return name.startswith(("conv1.", "bn1.", "layer1.", "layer2.0.bn1."))


@pytest.mark.slow
@pytest.mark.parametrize("optim", ["sgd", "adamw"])
@pytest.mark.parametrize("kernels", ["plain", "fused"])
@pytest.mark.usefixtures("compiler")
def test_what_is_frozen_stays_and_the_rest_trains(
    tiny: Tiny, tmp_path: Path, cut_back: Any, assert_same: Any, kernels: str, optim: str
) -> None:
    """Weights, statistics, counters and their moving averages; also behind evaluations, and when it is resumed."""
    options = (*WIDE, f"kernels={kernels}", f"optim={optim}", "optim.weight_decay=0.1", "ema_decay=0.9", FROZEN)
    config = tiny(*LENGTH, *options)
    run(config, directory=tmp_path / "run")
    first, last = (read_checkpoint(tmp_path / f"run/checkpoints/step-{step:08d}.pt")["state"] for step in (0, 9))
    for network in ("model", "ema"):
        for name, tensor in first[network].items():
            same = torch.equal(tensor, last[network][name])
            assert same == is_frozen(name), f"{network}: {name}"
    model = build(config).state.model
    trained = [name for name, _ in model.named_parameters() if not is_frozen(name)]
    assert len(last["optimizer"]["state"]) == len(trained), "no state for what is frozen"

    run(config, directory=cut_back(tmp_path / "run", tmp_path / "resumed", step=5))
    assert_same(last, read_checkpoint(tmp_path / "resumed/checkpoints/step-00000009.pt")["state"])
    assert (tmp_path / "run/metrics.csv").read_bytes() == (tmp_path / "resumed/metrics.csv").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("kernels", ["plain", "fused"])
@pytest.mark.parametrize("preactivation", ["false", "true"])
@pytest.mark.parametrize("frozen", [["layer2"], ["conv1", "bn1", "layer1"], ["layer1", "layer2", "layer3"]])
@pytest.mark.usefixtures("compiler")
def test_gradients_are_those_of_pytorch(tiny: Tiny, kernels: str, preactivation: str, frozen: list[str]) -> None:
    """With the norms in evaluation mode by hand; frozen in front of, between and behind what trains."""
    if preactivation == "true":
        frozen = [name for name in frozen if name != "bn1"]
    config = tiny(*WIDE, f"kernels={kernels}", f"model.preactivation={preactivation}", f"freeze=[{','.join(frozen)}]")
    built = build(config)
    model = built.state.model
    plain: nn.Module = build_model(config.model, num_classes=10, seed=0)
    for name, buffer in plain.named_buffers():  # statistics of no batch
        if name.endswith("running_mean"):
            buffer.fill_(0.1)
        elif name.endswith("running_var"):
            buffer.fill_(0.5)
    model.load_state_dict(plain.state_dict())
    plain.train()
    model.train()
    for name in frozen:
        plain.get_submodule(name).eval().requires_grad_(False)
    images, labels = built.train_data.batch(0)
    plain.double()
    F.cross_entropy(model(images), labels).backward()
    F.cross_entropy(plain(images.double()), labels).backward()
    expected = dict(plain.named_parameters())
    for name, parameter in model.named_parameters():
        other = expected[name].grad
        assert (parameter.grad is None) == (other is None) == any(name.startswith(f"{one}.") for one in frozen), name
        if parameter.grad is not None and other is not None:
            # A value next to zero may pass a ReLU in one precision alone; batch statistics would be off by half.
            assert (parameter.grad - other).norm() < 0.02 * other.norm(), name
    for name, buffer in model.named_buffers():
        torch.testing.assert_close(buffer, plain.get_buffer(name).to(buffer), rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            "layer5",
            "freeze: expected modules that have weights, of conv1, bn1, layer1, layer2, layer3, fc, or inside them as "
            "layer1.0, got 'layer5'; did you mean layer3?",
        ),
        ("layer1.1", "got 'layer1.1'; did you mean layer1.0?"),
        ("relu", "got 'relu'"),
        ("conv1.weight", "got 'conv1.weight'; did you mean conv1?"),
        (
            "conv1,bn1,layer1,layer2,layer3,fc",
            "freeze: expected something that is left to train, got every module; leave fc out",
        ),
    ],
)
def test_names_that_cannot_be_frozen(tiny: Tiny, names: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build(tiny(f"freeze=[{names}]"))
    assert message in str(caught.value)


@pytest.mark.slow
def test_a_refusal_leaves_nothing(shell: Shell) -> None:
    code, out, err = shell.call(*TINY, "freeze=[layer9]")
    assert (code, err.count("\n")) == (2, 1)
    assert "resnet-train: freeze: expected modules that have weights, of conv1, bn1" in err
    assert list(shell.folder.iterdir()) == []
    assert "Traceback" not in out


@pytest.mark.slow
def test_the_header_says_it_and_random_weights_are_warned_of(
    tiny: Tiny, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    short = ("epochs=null", "steps=1", "freeze=[conv1,bn1]")
    with caplog.at_level("INFO"):
        result = run(tiny(*short), directory=tmp_path / "random")
        assert "frozen     conv1, bn1, with the statistics of the norms in them: 116 of " in caplog.text
        assert "freeze keeps random weights, since nothing was loaded; name a run" in caplog.text
        caplog.clear()
        whole = run(tiny(*short[:2]), directory=tmp_path / "first")
        assert "freeze" not in caplog.text
        run(tiny(*short, f"init_from={tmp_path / 'first'}"), directory=tmp_path / "tuned")
        assert "random" not in caplog.text
        fc = ("freeze=[fc]", "dataset.num_classes=3", f"init_from={tmp_path / 'first'}")
        torch.save(read_checkpoint(tmp_path / "first/checkpoints/last.pt")["state"]["model"], tmp_path / "weights.pt")
        run(tiny(*short[:2], *fc[:2], f"init_from={tmp_path / 'weights.pt'}"), directory=tmp_path / "fc")
        assert "freeze keeps random weights, left as initialised: fc.weight is (10, 16) there" in caplog.text
    assert result.parameters == whole.parameters, "of the network, trained or not"


@pytest.mark.slow
def test_another_choice_is_another_run(tiny: Tiny, tmp_path: Path) -> None:
    run(tiny("epochs=1", "freeze=[conv1]"), directory=tmp_path)
    with pytest.raises(ConfigError, match=r"another run .*: freeze: saved \['conv1'\], requested \[\]\. Leave"):
        run(tiny("epochs=2"), directory=tmp_path)
    with pytest.raises(ConfigError, match=r"is of another network or optimizer"):
        run(tiny("epochs=2", "resume_force=true"), directory=tmp_path)


@pytest.mark.slow
def test_a_killed_run_ends_like_the_undisturbed_one(
    tiny: Tiny, shell: Shell, assert_same: Callable[[Any, Any], None]
) -> None:
    """Fine-tuning: `kill -9` in the middle, and the same command again."""
    run(tiny("epochs=1"), directory=shell.folder / "first")
    words = (FROZEN, "init_from=first", "ema_decay=0.9", "epochs=null", "steps=120", "checkpoint.every=10steps")
    assert shell.call(*TINY, *words, "hydra.run.dir=straight")[0] == 0
    started = shell.start(*TINY, *words, "hydra.run.dir=cut")
    shell.wait_for("cut/checkpoints/step-00000030.pt", started)
    os.kill(started.pid, signal.SIGKILL)
    started.communicate()
    assert not (shell.folder / "cut/summary.json").exists()
    code, out, err = shell.call(*TINY, *words, "hydra.run.dir=cut")
    assert (code, err) == (0, "")
    assert "resuming from" in out
    states = [read_checkpoint(shell.folder / name / "checkpoints/last.pt")["state"] for name in ("straight", "cut")]
    assert_same(*states)
    loaded = read_checkpoint(shell.folder / "first/checkpoints/last.pt")["state"]["model"]
    for name, tensor in loaded.items():
        assert torch.equal(tensor, states[1]["model"][name]) == is_frozen(name), name
