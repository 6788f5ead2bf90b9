"""The same (seed, purpose) gives the same stream, any other gives another, and nobody else's is touched."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator

import pytest
import torch

from resnet_train.seeding import derive, generator, seed_everything, set_deterministic

PURPOSES: list[tuple[str | int, ...]] = [
    (),
    ("init",),
    ("shuffle",),
    ("augment",),
    *itertools.product(["shuffle", "augment"], range(12)),
    ("shuffle", 1, 1),
]


@pytest.fixture(autouse=True)
def _global_state_is_put_back() -> Iterator[None]:
    deterministic = torch.are_deterministic_algorithms_enabled()
    cudnn = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    python_state = random.getstate()
    with torch.random.fork_rng():
        yield
    random.setstate(python_state)
    torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = cudnn


@pytest.mark.parametrize(
    ("seed", "purpose", "expected"),
    [
        (0, ("shuffle", 1), 9039233566760333659),
        (0, ("shuffle", 0), 7559419572821201577),
        (1, ("shuffle", 1), 508638173547539399),
        (0, ("init",), 1519069808562059438),
    ],
)
def test_derived_seeds_never_change(seed: int, purpose: tuple[str | int, ...], expected: int) -> None:
    """Another value here means that no earlier run can be repeated."""
    assert derive(seed, *purpose) == expected


def test_every_seed_purpose_and_epoch_has_its_own_stream() -> None:
    """Seed 0 among them; (1, 11) and (11, 1) are told apart."""
    derived = [derive(seed, *purpose) for seed in (*range(12), 2**31, 2**63, 2**80) for purpose in PURPOSES]
    assert len(set(derived)) == len(derived)
    assert all(0 <= value < 2**63 for value in derived)


@pytest.mark.parametrize("seed", [0, 1, 2**80])
def test_generator_repeats_itself(seed: int) -> None:
    first, second = (torch.rand(100, generator=generator(seed, "augment", 7)) for _ in range(2))
    assert torch.equal(first, second)


def test_generators_differ() -> None:
    """Two permutations of 1000 agree in one place on average, and in ten of them nowhere near often."""
    permutations = [
        torch.randperm(1000, generator=generator(seed, *purpose))
        for seed, purpose in [(0, ("a", 0)), (1, ("a", 0)), (0, ("a", 1)), (1, ("a", 1)), (0, ("b", 0))]
    ]
    for first, second in itertools.combinations(permutations, 2):
        assert (first == second).sum() < 10


def test_generator_leaves_the_global_state_alone() -> None:
    torch_state, python_state = torch.get_rng_state(), random.getstate()
    torch.rand(10, generator=generator(0, "shuffle", 1))
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert random.getstate() == python_state
    assert generator(0, "shuffle", 1).device.type == "cpu"


def test_seed_everything_seeds_torch_and_python() -> None:
    def draws(seed: int, *purpose: str | int) -> tuple[list[float], float]:
        seed_everything(seed, *purpose)
        return torch.rand(3).tolist(), random.random()

    assert draws(0, "init") == draws(0, "init")
    streams = [draws(0, "init"), draws(1, "init"), draws(0, "dropout"), draws(0, "dropout", 1)]
    for first, second in itertools.combinations(streams, 2):
        assert first[0] != second[0]
        assert first[1] != second[1]
    seed_everything(0, "init")
    assert torch.rand(3).tolist() == torch.rand(3, generator=generator(0, "init")).tolist()


@pytest.mark.parametrize("enabled", [True, False])
def test_set_deterministic(enabled: bool) -> None:
    set_deterministic(not enabled)
    set_deterministic(enabled)
    assert torch.are_deterministic_algorithms_enabled() is enabled
    assert torch.backends.cudnn.deterministic is enabled
    assert torch.backends.cudnn.benchmark is not enabled
