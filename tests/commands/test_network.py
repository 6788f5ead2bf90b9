"""``summary=true``: the table against the papers' figures, and that it is all that happens."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from resnet_train import run
from resnet_train.commands.network import network_table
from resnet_train.config.run import Config
from resnet_train.errors import ConfigError
from resnet_train.models.build import build_model
from resnet_train.models.count import num_parameters
from tests.conftest import Shell

Compose = Callable[..., Config]
IMAGENET = ("model.stem=imagenet", "dataset=synthetic", "dataset.num_classes=1000", "dataset.image_size=224")
NUMBER = r"([\d,]+)"


def totals(table: str) -> tuple[int, int]:
    """Parameters and multiply-adds of the last line."""
    found = re.search(rf"^total +{NUMBER} +{NUMBER}$", table, re.MULTILINE)
    assert found
    return int(found[1].replace(",", "")), int(found[2].replace(",", ""))


def cells(table: str, name: str) -> list[str]:
    """The numbers of a row, and its shape."""
    (line,) = [line for line in table.splitlines() if line.startswith(name)]
    return line.removeprefix(name).split()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("depth", "millions"),
    [(20, "0.27"), (32, "0.46"), (44, "0.66"), (56, "0.85"), (110, "1.7"), (1202, "19.4")],
)
def test_parameters_are_those_of_the_paper(compose: Compose, depth: int, millions: str) -> None:
    """He et al. 2015, table 6."""
    parameters, _ = totals(network_table(compose(f"model=resnet{depth}")))
    assert f"{parameters / 1e6:.{len(millions.partition('.')[2])}f}" == millions


@pytest.mark.slow
@pytest.mark.parametrize(("depth", "billions"), [(18, 1.8), (34, 3.6), (50, 4.1), (101, 7.8), (152, 11.5)])
def test_multiply_adds_are_those_of_the_paper(compose: Compose, depth: int, billions: float) -> None:
    """He et al. 2015, table 1; bottlenecks as torchvision documents them, since the stride is in the 3x3."""
    _, multiply_adds = totals(network_table(compose(f"model=resnet{depth}", *IMAGENET)))
    assert multiply_adds / 1e9 == pytest.approx(billions, abs=0.07)


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        ("model=resnet20",),
        ("model=plain18", "model.conv_bias=true"),
        ("model=resnet56", "model.preactivation=true", "model.shortcut=B"),
        ("model=resnet34", "model.preactivation=true", "dataset=fashion_mnist"),
        ("model=resnet1202", "model.width=4"),
        ("model=resnet152", *IMAGENET),
    ],
    ids=" ".join,
)
def test_rows_add_up_and_fit_a_terminal(compose: Compose, overrides: tuple[str, ...]) -> None:
    """Stages, and what stands outside of them, make the total; so do the rows inside of a stage."""
    config = compose(*overrides)
    table = network_table(config)
    assert max(map(len, table.splitlines())) <= 80
    _, body, _ = re.split(r"^-+$", table, flags=re.MULTILINE)
    sums = {"outer": [0, 0], "inner": [0, 0]}
    for line in body.strip().splitlines():
        _, _, *numbers = re.split(r" {2,}", line.strip())
        counts = [int(number.replace(",", "")) for number in numbers[:2]]
        kinds = ["inner"] if line.startswith("  ") else ["outer"] if " block" in line else [*sums]
        for kind in kinds:
            sums[kind] = [one + other for one, other in zip(sums[kind], counts, strict=True)]
    assert sums["inner"] == sums["outer"] == list(totals(table))
    num_classes = 1000 if "dataset.num_classes=1000" in overrides else 10
    network = build_model(config.model, num_classes=num_classes, seed=0, channels=config.dataset.channels)
    assert sums["inner"][0] == num_parameters(network)


def test_rows(compose: Compose) -> None:
    table = network_table(compose("model=resnet20"))
    assert table.startswith("resnet20 for cifar10: images 3x32x32, 10 classes\n")
    assert cells(table, "conv1 3x3") == ["16x32x32", "464", "442,368", "3", "1"]
    assert cells(table, "layer2, 3 blocks") == ["32x16x16", "51,072", "12,976,128", "37", "2"]
    assert len(re.findall(r"^  [012]\.conv[12] 3x3", table, re.MULTILINE)) == 18
    assert cells(table, "fc") == ["10", "650", "640", "109"]
    assert "\n0.27 M parameters, 40.6 M multiply-adds per image\n" in table


@pytest.mark.slow
def test_equal_blocks_of_deep_networks_share_a_row(compose: Compose) -> None:
    table = network_table(compose("model=resnet1202"))
    assert cells(table, "layer1, 200 blocks") == cells(table, "  0-199 [3x3, 3x3]")
    assert len(re.findall(r"^  0 \[3x3/2, 3x3\]", table, re.MULTILINE)) == 2
    assert len(re.findall(r"^  1-199 \[3x3, 3x3\]", table, re.MULTILINE)) == 2
    assert len(table.splitlines()) < 30


def test_the_document_shows_what_is_printed(compose: Compose, root: Path) -> None:
    table, _, _ = network_table(compose("model=resnet56")).partition("\n\nParameters include")
    assert f"```text\n{table}\n```" in (root / "docs/configuration.md").read_text()


def test_classes_of_image_folders_are_counted(compose: Compose, tmp_path: Path) -> None:
    for split in ("train", "val"):
        for name in ("ants", "bees", "wasps"):
            (tmp_path / split / name).mkdir(parents=True)
    table = network_table(compose("dataset=imagefolder", f"dataset.root={tmp_path}", "dataset.image_size=64"))
    assert table.startswith("resnet20 for imagefolder: images 3x64x64, 3 classes\n")
    shutil.rmtree(tmp_path / "train")
    with pytest.raises(ConfigError, match=r"^dataset\.root: expected train/ and val/ .* in .*, got no train/; "):
        network_table(compose("dataset=imagefolder", f"dataset.root={tmp_path}"))


@pytest.mark.slow
def test_nothing_is_read_or_written(shell: Shell) -> None:
    """No CIFAR-10 there, and none is looked for; the same as a sweep is refused."""
    environment = {"RESNET_TRAIN_DATA": str(shell.folder / "nowhere")}
    code, out, err = shell.call("summary=true", **environment)
    assert (code, err) == (0, "")
    assert totals(out) == (269_722, 40_551_040)
    code, out, err = shell.call("-m", "summary=true", "seed=0,1", **environment)
    assert (code, out) == (2, "")
    assert err == "resnet-train: summary: expected one network, got a sweep (-m); leave -m and its lists out\n"
    assert list(shell.folder.iterdir()) == []


@pytest.mark.slow
def test_the_network_of_a_run(tiny: Compose, shell: Shell) -> None:
    run(tiny("epochs=null", "steps=1", "dataset.num_classes=7"), directory=shell.folder / "run")
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in (shell.folder / "run").rglob("*.*")}
    code, out, err = shell.call("resume=run", "summary=true")
    assert (code, err) == (0, "")
    assert out.startswith("resnet8 for synthetic: images 3x16x16, 7 classes\n")
    assert before == {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in before}


@pytest.mark.slow
def test_the_classes_of_a_run_whose_images_are_gone(
    compose: Compose, tiny_overrides: tuple[str, ...], tmp_path: Path
) -> None:
    for number in range(12):
        path = tmp_path / "images" / ("val" if number % 2 else "train") / f"class {number // 4}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (20 * number, 0, 0)).save(path)
    plain = [override for override in tiny_overrides if not override.startswith("dataset")]
    source = ("dataset=imagefolder", f"dataset.root={tmp_path / 'images'}", "dataset.image_size=8")
    config = compose(*plain, *source, "batch_size=6", "epochs=1", "dataset.augment.crop_padding=1")
    run(config, directory=tmp_path / "run")
    shutil.rmtree(tmp_path / "images")
    assert "images 3x8x8, 3 classes\n" in network_table(config, tmp_path / "run")


def test_python_is_refused_in_one_line(tiny: Compose) -> None:
    with pytest.raises(ConfigError, match=r"^summary: expected false, got true, which shows something"):
        run(tiny("summary=true"))
