"""Arguments, taken apart; overrides, merged and quoted."""

from __future__ import annotations

from pathlib import Path, PureWindowsPath

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from resnet_train.cli.compose import load_config
from resnet_train.cli.overrides import key_of, merge_overrides, parse, quoted, unquoted, value_of, values_of, without
from resnet_train.errors import ConfigError


def test_flags_stand_anywhere(tmp_path: Path) -> None:
    request = parse(["seed=1", "--config-dir", str(tmp_path), "-m", "epochs=2", "--config-name=mine"])
    assert request.overrides == ("seed=1", "epochs=2")
    assert request.multirun
    assert request.config_dir == tmp_path
    assert request.flags == ["--config-dir", str(tmp_path), "--config-name", "mine"]


def test_folders_are_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    assert parse(["--config-dir", "mine"]).config_dir == tmp_path / "mine"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--cfg", "job", "-m"], "--cfg shows the configuration of one run; expected no -m and no lists of values"),
        (["--cfg", "job", "--info"], "expected one of --run, --multirun, --cfg, --info, --shell-completion, got --cfg"),
        (["--resolve"], "--resolve shows a configuration as it will be used; expected --cfg job beside it"),
        (["--experimental-rerun", "a.pickle"], "--experimental-rerun: it unpickles a file, which can run code"),
    ],
)
def test_flags_that_contradict_each_other(arguments: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(arguments)
    assert str(caught.value).startswith(message)


def test_parts_of_an_override() -> None:
    assert [key_of(text) for text in ("a.b=1", "+a=1", "++a=1", "~a")] == ["a.b", "a", "a", "a"]
    assert value_of("a=b=c") == "b=c"
    assert values_of(["a=1", "b=2", "+a=3"], "a") == ["1", "3"]
    assert without(["a=1", "b=2", "+a=3"], "a") == ["b=2"]


def test_of_two_overrides_for_one_key_the_later_one_stays() -> None:
    assert merge_overrides(["a=1", "b=2"], ["+a=3"]) == ["b=2", "+a=3"]
    assert merge_overrides([], ["a=1", "a=2"]) == ["a=2"]


def test_the_home_folder_can_be_written_as_a_tilde(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody's")
    assert parse(["dataset.root=~/images"]).overrides == (r"dataset.root='/home/somebody\'s/images'",)
    assert parse(["dataset.root=~", "name=a~/b"]).overrides == (r"dataset.root='/home/somebody\'s'", "name=a~/b")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("typed", "path"),
    [
        (r"C:\Users\me\images", r"C:\Users\me\images"),
        ("C:\\Users\\me\\", "C:\\Users\\me\\"),
        (r"C:\new\table", r"C:\new\table"),  # no line break, no tabulator
        (r"C:\My Files\images", r"C:\My Files\images"),  # PowerShell takes the quotes away
        (r"'C:\My Files\images'", r"C:\My Files\images"),
        (r'"C:\My Files\images"', r"C:\My Files\images"),
        (r"C:/Users/me/images", r"C:/Users/me/images"),
        (r"..\images", r"..\images"),
        (r"\\server\share\my images", r"\\server\share\my images"),
        (r"\\server\share\图片", r"\\server\share\图片"),
        (r"C:\Users\O'Brien\a & b", r"C:\Users\O'Brien\a & b"),
    ],
)
def test_paths_of_windows(typed: str, path: str) -> None:
    assert load_config(["dataset=synthetic", f"init_from={typed}"]).init_from == path
    (override,) = parse([f"resume={typed}"]).overrides
    assert unquoted(value_of(override)) == path
    assert load_config(["dataset=synthetic", f"init_from={quoted(PureWindowsPath(path))}"]).init_from == str(
        PureWindowsPath(path)
    )


def test_a_path_of_windows_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RESNET_TRAIN_DATA", r"\\server\share\Zoë's data")
    assert load_config([]).dataset.root == r"\\server\share\Zoë's data"  # type: ignore[attr-defined]


@pytest.mark.slow
@settings(deadline=None, database=None, max_examples=20)
@given(st.text(st.sampled_from("\\'\"${}, :=[]()ab\u00e9"), min_size=1, max_size=12))
@example("C:\\Users\\me\\")
def test_a_quoted_path_is_read_as_it_was(path: str) -> None:
    assert load_config(["dataset=synthetic", f"init_from={quoted(path)}"]).init_from == path
    assert unquoted(quoted(path)) == path
