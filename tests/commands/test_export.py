"""``resnet-export``: what it says, writes and refuses."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from resnet_train import load
from resnet_train.commands.export import main
from resnet_train.config.run import Config
from resnet_train.train import run
from tests.conftest import Shell

Answer = tuple[int, str, str]


@pytest.fixture(scope="module")
def trained(tiny: Callable[..., Config], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a run."""
    directory = tmp_path_factory.mktemp("runs") / "outputs/2026-01-31/12-00-00-tiny"
    run(tiny("epochs=1", "dataset.val_size=20", "name=tiny"), directory=directory)
    return directory


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., Answer]:
    """The command, called in a folder of its own: exit code, standard output and standard error."""
    monkeypatch.chdir(tmp_path)

    def called(*arguments: object) -> Answer:
        monkeypatch.setattr(sys, "argv", ["resnet-export", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        assert isinstance(ended.value.code, int)
        return ended.value.code, *capsys.readouterr()

    return called


@pytest.mark.slow
def test_a_folder_that_can_be_uploaded(trained: Path, call: Callable[..., Answer]) -> None:
    code, out, err = call(trained, "--format", "safetensors")
    assert (code, err) == (0, "")
    folder = trained / "export/safetensors"
    first, given, gives, check, file, card = out.splitlines()
    assert first == "tiny: best checkpoint, step 6"
    assert given == "input   float32 (N, 3, 16, 16), RGB in [0, 1], less mean, divided by std"
    assert gives == "output  float32 (N, 10), logits"
    assert check.startswith("check   20 images in batches of 1, 2 and 17: the same classes as the original, prob")
    assert (file, card) == (f"{folder / 'model.safetensors'} (0.0 MB)", str(folder / "README.md"))
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "model.safetensors"]
    assert load(folder / "model.safetensors").classes[3] == "pattern 3"

    code, out, err = call(trained, "--format", "safetensors")
    assert (code, out) == (2, "")
    assert err == (
        f"resnet-export: --output: expected a new file, got {folder / 'model.safetensors'}, which exists; --force "
        "replaces it\n"
    )
    assert call(trained, "--format", "safetensors", "--force")[0] == 0


@pytest.mark.slow
def test_a_named_file_has_its_card_beside_it(trained: Path, call: Callable[..., Answer], tmp_path: Path) -> None:
    """README.md of the folder is somebody else's there."""
    code, out, err = call(trained, "--output", "new/net.pt2", "--raw", "--checkpoint", "last", "--json")
    assert (code, err) == (0, "")
    told = json.loads(out)
    assert told.pop("largest_difference") < 1e-6
    path = tmp_path / "new/net.pt2"
    assert told.pop("weights_sha256") == load(path).spec.weights_sha256
    assert told == {
        "file": "new/net.pt2",
        "card": "new/net.md",
        "format": "pt2",
        "bytes": path.stat().st_size,
        "checkpoint": "last",
        "step": 6,
        "input": "float32 (N, 3, 16, 16), RGB in [0, 1], less mean, divided by std",
        "output": "float32 (N, 10), logits",
        "checked_images": 20,
    }
    assert sorted(one.name for one in path.parent.iterdir()) == ["net.md", "net.pt2"]


@pytest.mark.slow
def test_checkpoints(trained: Path, call: Callable[..., Answer], tmp_path: Path) -> None:
    """A file of a run, by itself or named beside its run; what it scored belongs to its own step alone."""
    file = trained / "checkpoints/step-00000006.pt"
    assert call(file, "--output", "a.safetensors")[:2][0] == 0
    assert call("latest", "--checkpoint", file, "--output", "b.safetensors")[0] == 2  # no runs here
    assert call(trained, "--checkpoint", file, "--output", "b.safetensors")[0] == 0
    a, b = (load(tmp_path / f"{name}.safetensors").spec for name in "ab")
    assert a == b
    assert a.accuracy is not None
    assert call(file)[2] == (
        "resnet-export: --output: expected a file or a folder, since a checkpoint alone has no place for it\n"
    )


def test_corrupt_checkpoints(trained: Path, call: Callable[..., Answer], tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    content = (trained / "checkpoints/last.pt").read_bytes()
    for corrupt in (b"", content[:1000], content[:-1]):
        path.write_bytes(corrupt)
        code, out, err = call(path, "--output", "a.safetensors")
        assert (code, out) == (2, "")
        assert err.startswith(
            f"resnet-export: {path}: expected a checkpoint of resnet-train, got one that is corrupt: "
        )
        assert err.endswith("; name another checkpoint\n") and len(err.splitlines()) == 1
    assert [one.name for one in tmp_path.iterdir()] == ["last.pt"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nothing",), "expected a run directory, a checkpoint or an exported file, got 'nothing', which does not exi"),
        (("latest",), "latest: expected a run under 'outputs', found none; name its directory"),
        (("model.onnx",), "expected a run directory or a checkpoint, got model.onnx, which is exported already"),
        (("RUN", "--format", "safetensors", "--raw"), "--raw: a safetensors file holds weights and no graph that"),
        (
            ("RUN", "--output", "a.onnx", "--format", "pt2"),
            "--output: expected a folder, or a file that ends in .pt2, g",
        ),
        (("RUN", "--output", "a.pth"), "--output: expected a folder, or a file that ends in .onnx, .pt2, .safetensors"),
        (("RUN", "--images", "cats"), "--images: expected files and folders, got cats, which does not exist"),
        (("RUN", "--checkpoint", "worst"), "--checkpoint: expected last, best or a file, got 'worst', which does not"),
        (
            ("RUN", "dataset.mean=[0,0,0]"),
            "expected overrides of dataset.root, dataset.cache, dataset.labels, dataset.",
        ),
        (
            ("RUN", "dataset.rot=x"),
            "expected overrides of dataset.root, dataset.cache, dataset.labels, dataset.download, dat",
        ),
    ],
    ids=str,
)
def test_wrong_requests(
    arguments: tuple[str, ...], message: str, trained: Path, call: Callable[..., Answer], tmp_path: Path
) -> None:
    (tmp_path / "model.onnx").write_text("")
    code, out, err = call(*(trained if word == "RUN" else word for word in arguments))
    assert (code, out) == (2, "")
    assert err.startswith(f"resnet-export: {message}")
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "a.onnx").exists()


@pytest.mark.slow
def test_questions_are_answered_without_torch(trained: Path, root: Path) -> None:
    """Help, wrong arguments, and what the extra is for."""
    probe = """
import sys
for name in ("onnxscript", "onnxruntime"):
    sys.modules[name] = None
from resnet_train.commands.export import main
for arguments in (["--help"], ["RUN", "--format", "tflite"], ["nothing"], [sys.argv[1]]):
    sys.argv = ["resnet-export", *arguments]
    try:
        main()
    except SystemExit as ended:
        print("exit", ended.code, flush=True)
assert "torch" not in sys.modules
"""
    done = subprocess.run(
        [sys.executable, "-c", probe, str(trained)], capture_output=True, text=True, cwd=root, check=True
    )
    assert [line for line in done.stdout.splitlines() if line.startswith("exit")] == ["exit 0", *["exit 2"] * 3]
    assert "example: resnet-export latest --format onnx" in done.stdout
    wrong, nothing, missing = done.stderr.splitlines()[-3:]
    assert "invalid choice: 'tflite'" in wrong
    assert nothing.startswith("resnet-export: expected a run directory")
    assert missing == ('resnet-export: --format onnx needs onnxscript, onnxruntime; pip install "resnet-train[export]"')


@pytest.mark.slow
def test_data_that_moved(compose: Callable[..., Config], call: Callable[..., Answer], tmp_path: Path) -> None:
    """Without images nothing is exported: they are found where they are now, or others are given."""
    draws, old, new = np.random.default_rng(0), tmp_path / "my cats", tmp_path / "moved"
    for number in range(24):
        folder = old / ("train" if number < 16 else "val") / ("cat" if number % 2 else "dog")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draws.integers(0, 256, (20, 25, 3), np.uint8)).save(folder / f"{number}.png")
    small = ("dataset.image_size=16", "model.depth=8", "model.width=0.25", "batch_size=8", "epochs=1")
    place = f"dataset.root='{old}'"
    config = compose("dataset=imagefolder", place, *small, "schedule.warmup=0", "precision=fp32", "device=cpu")
    run(config, directory=tmp_path / "run")
    old.rename(new)
    code, out, err = call("run", "--output", "a.safetensors")
    assert (code, out) == (2, "")
    assert err.startswith("resnet-export: cannot check the export without images: name some with --images FOLDER, or ")
    assert "dataset.root: expected train/ and val/" in err
    assert len(err.splitlines()) == 1
    assert not list(tmp_path.glob("a.*"))
    assert call("run", f"dataset.root={new}", "--output", "a.safetensors")[0] == 0
    assert call("run", "--output", "b.safetensors", "--images", new / "val", new / "train/cat/1.png")[0] == 0
    assert load(tmp_path / "a.safetensors").classes == ("cat", "dog")
    assert b"my cats" not in (tmp_path / "a.safetensors").read_bytes() + (tmp_path / "a.md").read_bytes()


def test_places_that_cannot_be_written(trained: Path, call: Callable[..., Answer], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    code, _, err = call(trained, "--output", "file/a.safetensors")
    assert code == 1
    assert err == "resnet-export: cannot write to file: File exists; choose another --output\n"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.slow
def test_the_program(trained: Path, shell: Shell) -> None:
    """As a person calls it: nothing of what PyTorch and its exporters say reaches the screen."""
    (shell.folder / "outputs").symlink_to(trained.parents[1])
    code, out, err = shell.call("latest", program="resnet-export")
    assert (code, err) == (0, "")
    assert len(out.splitlines()) == 6
    assert all(len(line) <= 130 for line in out.splitlines()[:-2])
    assert load(trained / "export/onnx/model.onnx").spec.name == "tiny"
    image = shell.folder / "image.png"
    image.write_bytes(b"no image")
    code, out, err = shell.call("latest", "--output", "a.onnx", "--images", "image.png", program="resnet-export")
    assert (code, out, err) == (2, "", "resnet-export: image.png: expected an image, got something else; repair it or "
    "remove it\n")  # fmt: skip
    assert not list(shell.folder.glob("a.*"))


@pytest.mark.slow
def test_ctrl_c(trained: Path, shell: Shell) -> None:
    """Pressed while PyTorch traces the network: nothing is left, not even the folder."""
    process = shell.start(str(trained), "--output", "new/folder", program="resnet-export")
    while not list(shell.folder.glob("new/folder/.resnet-export-*")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (130, "interrupted\n")
    assert out == "tiny: best checkpoint, step 6\n"
    assert list(shell.folder.iterdir()) == []
