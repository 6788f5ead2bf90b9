"""A run is resumed on the data that it was trained on, or refused; the split and ``init_from`` go by names."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from resnet_train.cli.compose import load_config
from resnet_train.config.run import Config
from resnet_train.data.dataset import load_dataset
from resnet_train.errors import ConfigError
from resnet_train.runs.checkpoint import read_checkpoint, write_checkpoint
from resnet_train.runs.data_identity import differences, identify
from resnet_train.runs.directory import read_config
from resnet_train.train import run

COLOURS = {"cats": (200, 40, 40), "dogs": (40, 40, 200)}


def write_image(path: Path, colour: tuple[int, int, int], number: int) -> None:
    """An image of one colour with a mark that tells it from all others."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((8, 8, 3), colour, np.uint8)
    pixels[0, 0] = (number, number // 256, 255)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Cats and dogs: 24 training and 4 test images of each."""
    for label, (name, colour) in enumerate(COLOURS.items()):
        for number in range(24):
            write_image(tmp_path / f"photos/train/{name}/{number}.png", colour, 100 * label + number)
        for number in range(4):
            write_image(tmp_path / f"photos/val/{name}/{number}.png", colour, 200 + 10 * label + number)
    return tmp_path / "photos"


def configured(photos: Path | str, *overrides: str, steps: int = 6) -> Config:
    small = ("dataset.image_size=8", "dataset.augment.crop_padding=0", "model.depth=8", "model.width=0.25")
    rest = ("batch_size=16", "device=cpu", "precision=fp32", "kernels=plain", "epochs=null", f"steps={steps}")
    return load_config(["dataset=imagefolder", f"dataset.root={photos}", *small, *rest, *overrides])


def rename_class(photos: Path) -> None:
    for split in ("train", "val"):
        (photos / split / "dogs").rename(photos / split / "ants")


def swap_classes(photos: Path) -> None:
    for split in ("train", "val"):
        (photos / split / "dogs").rename(photos / split / "other")
        (photos / split / "cats").rename(photos / split / "dogs")
        (photos / split / "other").rename(photos / split / "cats")


def add_class(photos: Path) -> None:
    write_image(photos / "train/birds/0.png", (0, 200, 0), 1)


def add_images(photos: Path) -> None:
    for number in range(3):
        write_image(photos / f"train/dogs/new-{number}.png", (1, 2, 3), number)


def replace_images(photos: Path) -> None:
    write_image(photos / "train/cats/7.png", (1, 2, 3), 1)
    (photos / "val/dogs/0.png").unlink()
    (photos / "train/dogs/7.png").rename(photos / "train/dogs/seven.png")


CHANGES = [
    (rename_class, "classes: dogs gone, ants new"),
    (add_class, "classes: birds new"),
    (swap_classes, "test/cats: 4 changed; test/dogs: 4 changed; train/cats: 24 changed; train/dogs: 24 changed"),
    (add_images, "train/dogs: 3 added"),
    (replace_images, "test/dogs: 1 removed; train/cats: 1 changed; train/dogs: 1 added, 1 removed"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("change", "named"), CHANGES, ids=lambda value: getattr(value, "__name__", ""))
def test_other_data_are_refused_by_name(
    photos: Path, tmp_path: Path, change: Callable[[Path], None], named: str
) -> None:
    directory = tmp_path / "run"
    run(configured(photos), directory=directory)
    before = read_checkpoint(directory / "checkpoints/last.pt")
    change(photos)
    with pytest.raises(ConfigError) as caught:
        run(configured(photos, steps=9), directory=directory)
    assert str(caught.value) == (
        f"resume: the data are not those of the run in {directory}: {named}. Bring them back, name their folder with "
        f"dataset.root=FOLDER, or start a new run"
    )
    assert read_checkpoint(directory / "checkpoints/last.pt")["classes"] == before["classes"] == ["cats", "dogs"]


@pytest.mark.slow
def test_other_data_can_be_forced_and_that_is_kept(photos: Path, tmp_path: Path) -> None:
    run(configured(photos), directory=tmp_path / "run")
    add_images(photos)
    summary = run(configured(photos, "resume_force=true", steps=9), directory=tmp_path / "run")
    assert summary.forced == ["after 6 steps: data: train/dogs: 3 added"]
    assert run(configured(photos, steps=12), directory=tmp_path / "run").steps == 12, "from here on these are the data"


@pytest.mark.slow
def test_a_copy_of_the_data_is_the_same_data(photos: Path, tmp_path: Path) -> None:
    """With other times of writing, in another place, without the cache."""
    run(configured(photos), directory=tmp_path / "run")
    shutil.copytree(photos, tmp_path / "moved", copy_function=shutil.copyfile)
    shutil.rmtree(tmp_path / "moved/.resnet-train-cache")
    shutil.rmtree(photos)
    assert run(configured(tmp_path / "moved", steps=9), directory=tmp_path / "run").steps == 9


@pytest.mark.slow
def test_a_relative_root_is_that_of_the_run(photos: Path, tmp_path: Path, shell: Any) -> None:
    """Another folder of the same name, where the run is resumed, has nothing to do with it."""
    overrides = ["dataset=imagefolder", "dataset.root=photos", "dataset.image_size=8", "dataset.cache=decoded"]
    overrides += ["dataset.augment.crop_padding=0", "model.depth=8", "model.width=0.25", "batch_size=16", "epochs=null"]
    code, _, err = shell.call(*overrides, "steps=6", "hydra.run.dir=run")
    assert code == 0, err
    saved = read_config(tmp_path / "run")
    assert saved is not None
    assert (saved["dataset"]["root"], saved["dataset"]["cache"]) == (str(photos), str(tmp_path / "decoded"))
    elsewhere = tmp_path / "elsewhere"
    write_image(elsewhere / "photos/train/cats/1.png", (0, 0, 0), 0)
    code, out, err = shell.call(f"resume={tmp_path / 'run'}", "steps=9", cwd=elsewhere)
    assert code == 0, err
    assert "dataset.root" not in out
    code, out, err = shell.call(*overrides, "steps=12", "hydra.run.dir=run")
    assert code == 0, err
    assert "dataset.root" not in out, "nor where the same command is given again"


def strip(directory: Path, **changes: Any) -> None:
    """Make the checkpoints of a run those of version 0.1.0, which noted the classes and nothing else."""
    for path in (directory / "checkpoints").glob("*.pt"):
        content = read_checkpoint(path)
        content.pop("data", None)
        write_checkpoint(path, content | changes)


@pytest.mark.slow
def test_a_run_of_version_0_1_0_is_compared_by_its_classes(
    photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run(configured(photos), directory=tmp_path / "run")
    strip(tmp_path / "run")
    shutil.copytree(tmp_path / "run", tmp_path / "second")
    with caplog.at_level("INFO"):
        run(configured(photos, steps=9), directory=tmp_path / "run")
    assert "version 0.1.0, which did not note its data: only the classes could be compared" in caplog.text
    rename_class(photos)
    with pytest.raises(ConfigError, match=r": classes: dogs gone, ants new\. Bring them back"):
        run(configured(photos, steps=9), directory=tmp_path / "second")


@pytest.mark.slow
def test_a_split_of_version_0_1_0_is_refused(photos: Path, tmp_path: Path) -> None:
    run(configured(photos, "dataset.val_size=6"), directory=tmp_path / "run")
    strip(tmp_path / "run")
    with pytest.raises(ConfigError, match=r": version 0\.1\.0 drew the images that are held out in another way: "):
        run(configured(photos, "dataset.val_size=6", steps=9), directory=tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("stripped", [False, True])
def test_val_chooses_beside_test_where_versions_before_scored_it(
    photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, *, stripped: bool
) -> None:
    run(configured(photos), directory=tmp_path / "run")  # as versions before did with test/ too
    if stripped:
        strip(tmp_path / "run")
    shutil.copytree(photos / "val", photos / "test")
    with pytest.raises(ConfigError, match=r": val/ chooses the best checkpoint and test/ is scored now; versions be"):
        run(configured(photos, steps=9), directory=tmp_path / "run")
    with caplog.at_level("INFO"):
        summary = run(configured(photos), directory=tmp_path / "new")
    assert "splits     val/ chooses the best checkpoint, test/ is scored once" in caplog.text
    assert summary.images == {"train": 48, "val": 8, "test": 8}
    assert "best on the validation split" in summary.result_rule


def table_of(photos: Path, **changed: str) -> Path:
    """The labels of ``photos`` as a table without splits; ``changed`` ones by the names of classes and files."""
    paths = sorted(path.relative_to(photos).as_posix() for path in photos.glob("train/*/*.png"))
    labels = {path: path.split("/")[1] for path in paths} | {f"train/{name}.png": to for name, to in changed.items()}
    table = photos / "labels.csv"
    table.write_text("path,label\n" + "".join(f"{path},{label}\n" for path, label in labels.items()), encoding="utf-8")
    return table


def test_a_class_that_cannot_be_measured_is_refused(photos: Path, tmp_path: Path) -> None:
    table = table_of(photos, **{"cats/1": "lynx"})
    with pytest.raises(
        ConfigError, match=r"expected test images of each class, .* got none of 'lynx' \(1 image\); add images, or say"
    ):
        run(configured(photos, f"dataset.labels={table}"), directory=tmp_path / "run")
    assert not (tmp_path / "run").exists() or not [*(tmp_path / "run").glob("**/*.pt")]


@pytest.mark.slow
def test_a_table_may_lie_elsewhere_and_not_say_another_thing(photos: Path, tmp_path: Path) -> None:
    directory = tmp_path / "run"
    run(configured(photos, f"dataset.labels={table_of(photos)}"), directory=directory)
    moved = table_of(photos).rename(tmp_path / "moved.csv")
    assert run(configured(photos, f"dataset.labels={moved}", steps=9), directory=directory).steps == 9
    other = table_of(photos, **{"cats/1": "dogs"})
    with pytest.raises(ConfigError, match=r": (train|test)/cats: 1 removed; (train|test)/dogs: 1 added\. Bring"):
        run(configured(photos, f"dataset.labels={other}", steps=12), directory=directory)
    lines = moved.read_text(encoding="utf-8").splitlines()[1:]
    splits = ("train", "val", "test")
    other.write_text(
        "path,label,split\n" + "".join(f"{line},{splits[number % 3]}\n" for number, line in enumerate(lines)),
        encoding="utf-8",
    )
    with pytest.raises(ConfigError, match=r": test/cats: .* removed; .*train/dogs: "):
        run(configured(photos, f"dataset.labels={other}", steps=12), directory=directory)


@pytest.mark.slow
def test_a_killed_run_on_a_table_goes_on_to_the_bit(photos: Path, shell: Any) -> None:
    table_of(photos)
    words = ["dataset=imagefolder", "dataset.root=photos", "dataset.labels=photos/labels.csv", "dataset.image_size=8"]
    words += ["dataset.augment.crop_padding=0", "model.depth=8", "model.width=0.25", "batch_size=16", "device=cpu"]
    words += ["kernels=plain", "epochs=null", "steps=300", "checkpoint.every=20steps"]
    code, out, err = shell.call(*words, "hydra.run.dir=straight")
    assert code == 0, err
    assert "splits     labels.csv has no splits: by a hash of each path 0.2 of the images are test images" in out
    started = shell.start(*words, "hydra.run.dir=killed")
    shell.wait_for("killed/checkpoints/step-00000040.pt", started)
    started.kill()
    started.communicate()
    assert not (shell.folder / "killed/summary.json").exists()
    table_of(photos, **{"cats/1": "dogs"})
    code, _, err = shell.call("resume=killed")
    assert code == 2 and re.search(r"cats: 1 removed; \w+/dogs: 1 added\. Bring .* dataset\.labels=FILE, or start", err)
    assert err.count("\n") == 1, err
    table_of(photos)
    (shell.folder / "elsewhere").mkdir()
    code, out, err = shell.call(f"resume={shell.folder / 'killed'}", cwd=shell.folder / "elsewhere")
    assert code == 0 and "resuming from" in out, err
    one, other = (
        read_checkpoint(shell.folder / name / "checkpoints/last.pt")["state"] for name in ("straight", "killed")
    )
    assert one["step"] == other["step"] == 300
    assert all(torch.equal(tensor, other["model"][name]) for name, tensor in one["model"].items())


SMALL = ("dataset=imagefolder", "dataset.image_size=8", "dataset.augment.crop_padding=0", "model.depth=8")
SMALL += ("model.width=0.25", "batch_size=16", "device=cpu", "epochs=null", "steps=6")
# By which each of three classes has a test image.
SPLIT = ("dataset.test_fraction=0.4",)


@pytest.mark.slow
def test_a_sweep_over_two_tables(photos: Path, shell: Any) -> None:
    """Of which one knows a third class; they are two experiments to the report."""
    three = table_of(photos, **{f"cats/{number}": "kittens" for number in range(12)}).rename(photos / "three.csv")
    two = table_of(photos)
    code, _, err = shell.call(
        "-m", *SMALL, f"dataset.root={photos}", f"dataset.labels={two},{three}", *SPLIT, "sweep=tables"
    )
    assert code == 0, err
    found = {
        read_config(path.parent)["dataset"]["labels"]: path.parent for path in shell.folder.glob("**/summary.json")
    }
    assert found.keys() == {str(two), str(three)}
    known = {table: read_checkpoint(path / "checkpoints/last.pt")["classes"] for table, path in found.items()}
    assert known == {str(two): ["cats", "dogs"], str(three): ["cats", "dogs", "kittens"]}
    code, out, err = shell.call(*map(str, found.values()), "--json", program="resnet-report")
    assert code == 0, err
    assert {group["n"] for group in json.loads(out)["groups"]} == {1}


@pytest.mark.slow
def test_the_labels_of_a_table_go_through_the_other_commands(photos: Path, shell: Any) -> None:
    table = table_of(photos, **{f"cats/{number}": "young, cats" for number in range(12)})
    table.write_text(table.read_text(encoding="utf-8").replace("young, cats", '"young, cats"'), encoding="utf-8")
    directory, image = shell.folder / "run", photos / "train/cats/3.png"
    run(configured(photos, f"dataset.labels={table}", *SPLIT), directory=directory)
    code, out, err = shell.call("run", "--json", program="resnet-eval")
    assert code == 0 and '"young, cats"' in out, err
    code, _, err = shell.call("run", "--format", "safetensors", program="resnet-export")
    assert code == 0, err
    (exported,) = directory.glob("**/*.safetensors")
    for trained in ("run", str(exported)):
        code, out, err = shell.call(trained, str(image), "--csv", "-", "--all", program="resnet-predict")
        assert code == 0 and "young, cats" in out, err
    moved = table.rename(shell.folder / "moved.csv")
    code, _, err = shell.call("run", program="resnet-eval")
    assert code == 2 and f"dataset.labels: expected {table}, got No such file or directory; add dataset.labels=" in err
    assert err.count("\n") == 1, err
    code, _, err = shell.call("run", f"dataset.labels={moved}", program="resnet-eval")
    assert code == 0, err


@pytest.mark.slow
def test_a_run_without_the_keys_of_today_is_resumed(photos: Path, tmp_path: Path) -> None:
    directory = tmp_path / "run"
    run(configured(photos), directory=directory)
    for path in (directory / "checkpoints").glob("*.pt"):
        content = read_checkpoint(path)
        for key in ("labels", "val_fraction", "test_fraction"):
            del content["config"]["dataset"][key]
        write_checkpoint(path, content)
    assert run(configured(photos, steps=9), directory=directory).steps == 9
    with pytest.raises(ConfigError, match=r"dataset\.test_fraction: saved 0\.2, requested 0\.3"):
        run(configured(photos, "dataset.test_fraction=0.3", steps=12), directory=directory)


# ----------------------------------------------------------------------------------------------------------- the split


def held_out(photos: Path, seed: int = 0) -> set[bytes]:
    data = load_dataset(configured(photos, "dataset.val_size=10").dataset, seed=seed)
    assert data.val is not None
    assert len(data.val) == 10
    train = {image.numpy().tobytes() for image in data.train.images}
    val = {image.numpy().tobytes() for image in data.val.images}
    assert not train & val
    return val


@pytest.mark.slow
def test_an_image_more_moves_at_most_one_other(photos: Path) -> None:
    before = held_out(photos)
    moves = []
    for number in range(10):
        write_image(photos / f"train/dogs/new-{number}.png", (9, 9, 9), number)
        after = held_out(photos)
        moves.append(len(before - after))
        before = after
    assert max(moves) == 1
    assert sum(moves) < 6, "ten of 48 to 58 are held out: few of ten new ones are among them"
    assert held_out(photos, seed=1) != before


# ----------------------------------------------------------------------------------------------------------- init_from


@pytest.mark.slow
def test_rows_of_the_classifier_go_by_the_names_of_the_classes(
    photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run(configured(photos), directory=tmp_path / "first")
    (photos / "train/cats/notes.txt").touch()
    add_class(photos)  # birds come first: cats and dogs have other rows now
    (photos / "train/dogs").rename(photos / "train/wolves")
    (photos / "val/dogs").rename(photos / "val/wolves")
    with caplog.at_level("INFO"):
        run(configured(photos, f"init_from={tmp_path / 'first'}", "checkpoint.keep=9"), directory=tmp_path / "second")
    source = read_checkpoint(tmp_path / "first/checkpoints/last.pt")["state"]["model"]
    start = read_checkpoint(tmp_path / "second/checkpoints/step-00000000.pt")["state"]["model"]
    for name in ("fc.weight", "fc.bias"):
        assert torch.equal(start[name][1], source[name][0]), "cats"
    assert not torch.equal(start["fc.weight"][2], source["fc.weight"][1]), "wolves are no dogs"
    assert "1 of the classifier's 3 rows, by the names of the classes; as initialised: birds, wolves" in caplog.text
    assert "left out   1 file: .txt 1" in caplog.text
    assert torch.equal(start["conv1.weight"], source["conv1.weight"])


@pytest.mark.parametrize(
    "saved",
    [5, {}, {"digest": "x", "classes": [1], "entries": {}}, {"digest": "x", "classes": ["a"], "entries": {"a": 1}}],
)
def test_what_a_stranger_says_of_the_data_is_no_identity(saved: object) -> None:
    found = identify(("a", "b"), {"train": 2}, "somewhere")
    assert differences(saved, found) == ["what the checkpoint says of its data is corrupt"]
