"""What a person sees while a run trains."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import pytest

from resnet_train.runs.console import count, duration, header, progress_bar, runnable, shell_quote
from tests.conftest import TINY, Shell


def test_numbers_as_people_read_them() -> None:
    assert [duration(seconds) for seconds in (0.4, 59.6, 3725.2, 90_061)] == [
        *("0:00:00", "0:01:00", "1:02:05"),
        "1 day, 1:01:01",
    ]
    assert (count(7), count(269_722)) == ("7", "269,722")


def test_a_header_is_one_aligned_line_per_property(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        header([("model", "resnet20"), ("directory", "outputs/run")])
    assert caplog.messages == ["model      resnet20", "directory  outputs/run"]


def test_there_is_no_bar_where_nobody_looks(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar(done=3, total=9) as progress:
        progress.advance()
        progress.show(1.5, 0.25, lr=0.1, images_per_second=1000.0)
        assert not progress.visible
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("columns", "shown"),
    [
        (120, "loss 1.234, 56.7 %, lr 0.0925, 12,345 images/s"),
        (80, "loss 1.234, 56.7 %, lr 0.0925, 12,345 images/s"),
        (70, "loss 1.234, lr 0.0925, 12,345 images/s"),
        (60, "loss 1.234, 12,345 images/s"),
        (40, "12,345 images/s"),
    ],
)
def test_a_narrow_terminal_shows_what_matters_most(columns: int, shown: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    with progress_bar(done=3, total=300) as progress:
        progress.show(1.234, 0.567, lr=0.0925, images_per_second=12345.0)
        assert progress._bar.postfix == shown


# ------------------------------------------------------------------------------------------------------------- commands


@pytest.mark.parametrize(
    ("word", "quoted"),
    [
        ("resume=/a/b-c.d_e+f", None),
        (r"resume=C:\Users\me\run", None),
        (r"resume=C:\Users\图片\run", None),
        (r"resume=C:\My Files\run", r'"resume=C:\My Files\run"'),
        ("C:\\My Files\\", '"C:\\My Files\\\\"'),
        ("seed=0,1", '"seed=0,1"'),  # PowerShell would make two arguments of it
        ("a&b", '"a&b"'),
        ("it's", '"it\'s"'),
        ("(1)", '"(1)"'),
        ('say "a\\"', '"say \\"a\\\\\\""'),
        ("", '""'),
    ],
)
def test_words_for_cmd_and_powershell(word: str, quoted: str | None) -> None:
    assert shell_quote(word, windows=True) == (quoted or word)
    assert shell_quote("a", word, windows=True) == f"a {quoted or word}"


@pytest.mark.parametrize("word", ["", "a b", "it's", "$HOME", "`x`", "a,b", r"C:\x", "(1)", "ü", 'a"b', "*", "~"])
def test_a_posix_shell_reads_what_was_quoted(word: str, tmp_path: Path) -> None:
    command = shell_quote(sys.executable, "-c", "import sys; print(sys.argv[1], end='')", word, windows=False)
    assert subprocess.run(["sh", "-c", command], cwd=tmp_path, capture_output=True, check=True).stdout == word.encode()


def test_a_program_that_is_not_on_the_path_is_run_by_its_interpreter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert runnable("tensorboard", "--logdir", "a b") == f"{sys.executable} -m tensorboard.main --logdir 'a b'"
    assert runnable("resnet-train") == f"{sys.executable} -m resnet_train"
    (tmp_path / "tensorboard").touch(mode=0o755)
    assert runnable("tensorboard", "--logdir", "x") == "tensorboard --logdir x"


# ------------------------------------------------------------------------------------------------------------ notebooks

# Says that it is the kernel of a notebook, as ipykernel's shell does.
IPYTHON = """
class Shell:
    config = {"IPKernelApp": {}}
def get_ipython():
    return Shell()
"""
CELL = """
import logging, sys
import IPython
from resnet_train import load_config, run
run(load_config(sys.argv[1:]), directory=__import__("pathlib").Path("run"))
assert not logging.getLogger("resnet_train").handlers
print(len(logging.getLogger().handlers), "handlers")
"""


@pytest.mark.parametrize(
    ("setup", "lines"),
    [
        ("", 1),
        ("import logging; logging.basicConfig(stream=__import__('sys').stdout, level='INFO', format='%(message)s')", 1),
        ("import logging, sys; logging.basicConfig(stream=sys.stdout, format='%(message)s')", 1),
        ("del sys.modules['IPython']", 0),
    ],
    ids=["notebook", "with logging set up", "with a handler", "no notebook"],
)
@pytest.mark.slow
def test_a_notebook_shows_the_progress_of_a_run(setup: str, lines: int, shell: Shell) -> None:
    (shell.folder / "IPython.py").write_text(IPYTHON)
    cell = CELL.replace("import IPython\n", f"import IPython\n{setup}\n")
    code, out, err = shell.call("-c", cell, *TINY, "epochs=null", "steps=200", program="python")
    assert code == 0, err
    assert out.count("model      resnet8: ") == out.count("epoch 1/") == out.count("step 200, ") == lines
    assert ("/200, " in out) == (setup != "del sys.modules['IPython']")
    assert f"{int('logging' in setup)} handlers" in out
