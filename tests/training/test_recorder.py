"""Steps of a recorded CUDA graph against the same steps made one by one."""

from __future__ import annotations

import copy
import threading

import pytest
import torch
from torch import Tensor

from resnet_train.models.resnet import CifarResNet
from resnet_train.models.variant import Variant
from resnet_train.training import optim
from resnet_train.training.cuda_graph import GraphedStep
from resnet_train.training.state import TrainState
from resnet_train.training.step import StepOptions, evaluate, grad_norm, train_step

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


def batch(seed: int) -> tuple[Tensor, Tensor]:
    draws = torch.Generator().manual_seed(seed)
    return torch.randn(8, 3, 8, 8, generator=draws).cuda(), torch.randint(4, (8,), generator=draws).cuda()


def distribution() -> Tensor:
    return torch.rand(8, 4, generator=torch.Generator().manual_seed(1)).softmax(1)


def state_on_cuda(*, optimizer: str = "sgd", ema: bool = False, fp16: bool = False) -> TrainState:
    torch.manual_seed(0)
    model = CifarResNet(8, Variant("A", width=0.25), num_classes=4).to("cuda", memory_format=torch.channels_last)
    if optimizer == "adamw":
        chosen: torch.optim.Optimizer = optim.adamw(
            model, lr=1, beta1=0.9, beta2=0.99, eps=1e-8, weight_decay=0.1, decay_norm_and_bias=False
        )
    else:
        chosen = optim.sgd(model, lr=1, momentum=0.9, nesterov=True, weight_decay=1e-2, decay_norm_and_bias=False)
    average = copy.deepcopy(model).requires_grad_(False).eval() if ema else None
    return TrainState(model, chosen, torch.amp.GradScaler("cuda", enabled=fp16), average)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("labels", [None, distribution()], ids=["labels", "distribution"])
@pytest.mark.parametrize(
    "options",
    [
        StepOptions(),
        StepOptions(precision="bf16"),
        StepOptions(label_smoothing=0.1, clip_grad_norm=0.05, accumulate=4, ema_decay=0.9),
        StepOptions(precision="fp16", clip_grad_norm=0.1),
    ],
    ids=str,
)
def test_a_graph_makes_the_same_steps(options: StepOptions, labels: Tensor | None, optimizer: str) -> None:
    """One by one, recorded from the fourth on, and with a checkpoint copied by another thread meanwhile."""
    ema, fp16 = options.ema_decay is not None, options.precision == "fp16"
    states = [state_on_cuda(optimizer=optimizer, ema=ema, fp16=fp16) for _ in range(2)]
    graphed = GraphedStep(states[1], options=options)
    for step in range(8):
        images, drawn = batch(step)
        targets = drawn if labels is None else labels.cuda()
        lr = 0.01 * (step + 1)
        expected = train_step(states[0], images, targets, lr=torch.tensor(lr, device="cuda"), options=options)
        norms = [grad_norm(states[0], expected)]
        writer = threading.Thread(target=lambda: [value.cpu() for value in states[1].model.state_dict().values()])
        writer.start()
        output = graphed(images, targets, lr=lr)
        writer.join()
        norms.append(grad_norm(states[1], output))
        torch.testing.assert_close(output.loss, expected.loss, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(norms[1], norms[0], rtol=1e-3, atol=1e-5)
        assert states[1].step == step + 1
        assert [group["lr"] for group in states[1].optimizer.param_groups] == [lr, lr]
        evaluate(states[1].eval_model, [(images, drawn)], precision=options.precision)
    torch.testing.assert_close(states[1].model.state_dict(), states[0].model.state_dict(), rtol=1e-3, atol=1e-4)


def test_outputs_of_a_graph_outlive_the_next_replay() -> None:
    graphed = GraphedStep(state_on_cuda(), options=StepOptions())
    outputs = [graphed(*batch(step), lr=0.1) for step in range(8)]
    assert len({output.loss.item() for output in outputs}) == 8
