"""The built wheel, in an environment of its own, away from the source: the only check that shows packaging faults."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

from resnet_train.runs import summary
from tests.conftest import TINY

ROOT = Path(__file__).resolve().parent.parent


def run(*words: str | Path, cwd: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(words, cwd=cwd, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_wheel_trains_from_another_folder(tmp_path: Path) -> None:
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", tmp_path / "dist", ROOT, cwd=tmp_path)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    (sdist,) = (tmp_path / "dist").glob("*.tar.gz")
    names = zipfile.ZipFile(wheel).namelist()
    assert "resnet_train/conf/train.yaml" in names
    assert "resnet_train/conf/experiment/quick.yaml" in names
    assert "resnet_train/commands/report/assets/page.html" in names
    assert {name.partition("/")[0] for name in names} == {"resnet_train", f"resnet_train-{version(wheel)}.dist-info"}
    with tarfile.open(sdist) as archive:
        tops = {name.split("/")[1] for name in archive.getnames() if "/" in name}
    assert {"resnet_train", "conf", "tests", "README.md"} <= tops
    assert not tops & {"outputs", ".venv", "data"}

    # The dependencies are gigabytes: lend them from this environment, by a path that brings no other package along
    # (a .pth file of an editable installation is not read there, so the source stays out of reach).
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env" / "bin" / "python"
    (site,) = (tmp_path / "env" / "lib").glob("python*/site-packages")
    (site / "lent.pth").write_text(sysconfig.get_path("purelib") + "\n")
    run(python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--force-reinstall", wheel, cwd=tmp_path)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    where = run(python, "-c", "import resnet_train.config.store as s; print(s.config_folder())", cwd=elsewhere)
    assert Path(where.strip()) == site / "resnet_train" / "conf"

    program = tmp_path / "env" / "bin" / "resnet-train"
    run(program, *TINY, "epochs=1", "hydra.run.dir=one", cwd=elsewhere)
    run(python, "-m", "resnet_train.train", *TINY, "epochs=1", "hydra.run.dir=two", cwd=elsewhere)
    run(program, *TINY, "epochs=1", "-m", "seed=0,1", "hydra.sweep.dir=sweep", cwd=elsewhere)
    jobs = sorted(path for path in (elsewhere / "sweep").iterdir() if path.is_dir())
    results = [summary.read_summary(path) for path in (elsewhere / "one", elsewhere / "two", *jobs)]
    results[2:] = sorted(results[2:], key=lambda result: result.seed if result else -1)
    assert [result.status for result in results if result] == ["finished"] * 4
    assert results[0].last == results[1].last == results[2].last  # type: ignore[union-attr]
    assert results[0].git_commit is None  # type: ignore[union-attr]


def version(wheel: Path) -> str:
    return wheel.name.split("-")[1]
