"""What a file says of itself, in text; and the command that trained it, without the places of whoever gave it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from resnet_train.errors import ConfigError
from resnet_train.inference.spec import Spec, from_metadata, public_command
from resnet_train.inference.trained import Trained


@pytest.mark.parametrize("raw", [False, True])
def test_metadata_and_back(raw: bool, small: Trained) -> None:
    spec = replace(small.spec(), raw=raw, classes=("猫", 'a "b"', *small.classes[2:]))
    metadata = spec.to_metadata()
    assert all(isinstance(key, str) and isinstance(value, str) for key, value in metadata.items())
    assert from_metadata(metadata, path="file") == spec


def test_a_file_without_metadata() -> None:
    with pytest.raises(ConfigError, match=r"^file: expected a file that resnet-export wrote, got one without its"):
        from_metadata({"classes": "[]"}, path="file")


def test_input_and_output_in_words(small: Trained) -> None:
    spec: Spec = small.spec()
    assert (spec.takes, spec.gives) == ("uint8 (N, 16, 16, 3), RGB", "float32 (N, 10), probabilities")
    raw = replace(spec, raw=True)
    assert raw.takes == "float32 (N, 3, 16, 16), RGB in [0, 1], less mean, divided by std"
    assert raw.gives == "float32 (N, 10), logits"


@pytest.mark.parametrize(
    ("overrides", "shown"),
    [
        ([], "resnet-train"),
        (["experiment=quick", "optim.lr=0.1"], "resnet-train experiment=quick optim.lr=0.1"),
        (["dataset.root='/home/me/my cats'"], "resnet-train dataset.root=FOLDER"),
        (["dataset.root=cats"], "resnet-train dataset.root=FOLDER"),
        (["dataset=imagefolder", "+dataset.cache=x"], "resnet-train dataset=imagefolder +dataset.cache=FOLDER"),
        (["dataset.cache=null"], "resnet-train dataset.cache=null"),
        (["init_from=outputs/2026/secret"], "resnet-train init_from=WEIGHTS"),
        (["dataset.mirrors=[http://me:pw@host/]"], "resnet-train dataset.mirrors=ADDRESSES"),
        (["hydra.run.dir=/home/me", "hydra/launcher=joblib", "seed=1"], "resnet-train seed=1"),
        (["experiment=/home/me/mine"], "resnet-train experiment=..."),
        (["name=${oc.env:USER}"], "resnet-train name=..."),
        ([r"experiment=C:\Users\me\mine"], "resnet-train experiment=..."),
    ],
)
def test_commands_for_strangers(overrides: list[str], shown: str) -> None:
    assert public_command([], overrides) == shown


def test_flags_for_strangers() -> None:
    flags = ["--config-dir", "/home/me/conf", "--config-name", "mine"]
    assert public_command(flags, ["seed=1"]) == "resnet-train --config-dir FOLDER --config-name mine seed=1"
