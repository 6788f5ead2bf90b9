"""Fixtures that several test modules share."""

from __future__ import annotations

import gc
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from resnet_train.cli.compose import load_config
from resnet_train.cli.overrides import merge_overrides
from resnet_train.config.run import Config
from resnet_train.kernels import native
from tests.warm import WARM, Fork

# One thread, here and in the processes that tests start: the networks are small, and threads that wait for each other
# on a busy machine are many times slower. Read when torch is imported, after this file.
os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).resolve().parents[1]
# A run of seconds: a network of 0.005M parameters on synthetic images, exact on every machine.
TINY = (
    "dataset=synthetic",
    "dataset.num_train=200",
    "dataset.num_test=50",
    "dataset.image_size=16",
    "dataset.augment.flip=true",
    "model.depth=8",
    "model.width=0.25",
    "batch_size=32",
    "precision=fp32",
    "device=cpu",
    "log_every=5",
)


# Modules with tests of half a minute and more.
LONGEST = ("test_loop.py", "test_windows.py", "test_cuda_graph.py", "test_export.py", "test_cuda.py", "test_verify.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Modules with long tests first: at the end, when cores run out of tests, only short ones are left to wait for."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    order = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: (order.get(item.path.name, len(order)), item.path not in slow))


def pytest_collection_finish() -> None:
    """Libraries and tests stay to the end: no collection looks through them again, nor those that runs ask for."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def root() -> Path:
    """The folder of the checkout."""
    return ROOT


@pytest.fixture(scope="session")
def cifar10_root() -> Path:
    """The folder that holds cifar-10-batches-py/; tests on real images are skipped without it, but never in CI."""
    root = Path(os.environ.get("RESNET_TRAIN_DATA", "data"))
    if not (root / "cifar-10-batches-py").is_dir():
        message = f"no cifar-10-batches-py/ in {root}; name its folder in RESNET_TRAIN_DATA"
        if os.environ.get("CI") or os.environ.get("RESNET_TRAIN_REQUIRE_DATA"):
            pytest.fail(message)
        pytest.skip(message)
    return root


@pytest.fixture(scope="session")
def fashion_mnist_root() -> Path:
    """The folder of Fashion-MNIST's four files; tests on them are skipped without it."""
    root = Path(os.environ.get("RESNET_TRAIN_FASHION_MNIST", "/usr/share/datasets/fashion-mnist"))
    if not (root / "train-images-idx3-ubyte.gz").is_file():
        pytest.skip(f"no Fashion-MNIST in {root}; name its folder in RESNET_TRAIN_FASHION_MNIST")
    return root


@pytest.fixture(scope="session")
def compiler() -> str:
    """Path of the C++ compiler; tests of compiled code are skipped without one, but never in CI."""
    try:
        return native.compiler()[0]
    except native.Unavailable as error:
        if os.environ.get("CI"):
            pytest.fail(str(error))
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def tiny_overrides() -> tuple[str, ...]:
    """Overrides of a run that takes seconds."""
    return TINY


@pytest.fixture(scope="session")
def compose() -> Callable[..., Config]:
    """Compose a configuration from overrides, as the command line does."""
    return lambda *overrides: load_config(overrides)


@pytest.fixture(scope="session")
def tiny() -> Callable[..., Config]:
    """A configuration that trains in seconds; later overrides win."""
    return lambda *overrides: load_config(merge_overrides(TINY, overrides))


@pytest.fixture(scope="session")
def tiny_run(tiny: Callable[..., Config], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a finished run with images of 16 pixels in seven classes; to be read only."""
    from resnet_train.train import run

    directory = tmp_path_factory.mktemp("tiny") / "run"
    run(tiny("epochs=1", "dataset.num_classes=7", "optim.lr=0.2"), directory=directory)
    return directory


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Chromium without a window and without a network but this machine's own: a `selenium` driver.

    Its log "performance" has every request, its log "browser" what the page says on its console. Tests that look at
    pages are skipped without chromium and chromedriver.
    """
    binary, driver = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")
    if binary is None or driver is None:
        pytest.skip("no chromium and chromedriver on the PATH; on Debian install chromium-driver")
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-proxy-server"):
        options.add_argument(flag)
    options.add_argument("--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE localhost, EXCLUDE 127.0.0.1")
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('chromium')}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    found = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=driver))
    found.set_window_size(1280, 900)
    yield found
    found.quit()


# ----------------------------------------------------------------------------------------------------------- processes


@pytest.fixture(scope="session", autouse=True)
def warm_processes() -> Iterator[None]:
    """The process that forks for programs is there as long as the tests."""
    WARM.open()
    yield
    WARM.close()


@dataclass(frozen=True)
class Shell:
    """Runs the project's programs in a folder, as processes."""

    folder: Path

    def call(
        self, *arguments: str, program: tuple[str, ...] | str = "resnet-train", cwd: Path | None = None, **env: str
    ) -> tuple[int, str, str]:
        """Exit code, standard output and standard error of a program that ends."""
        started = self.start(
            *arguments, program=program, cwd=cwd, env=self.environment(**env), stdin=subprocess.DEVNULL
        )
        try:
            out, err = started.communicate(timeout=300)
        except BaseException:
            started.kill()
            started.communicate()
            raise
        return started.returncode, out, err

    def start(
        self,
        *arguments: str,
        program: tuple[str, ...] | str = "resnet-train",
        cwd: Path | None = None,
        **options: Any,
    ) -> subprocess.Popen[str]:
        """Start a program; its output is piped unless ``options`` say otherwise."""
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        command = (*self.program(program), *arguments)
        options = {"env": self.environment()} | pipes | options
        simple = isinstance(program, str) and options.keys() <= {
            "env",
            "stdin",
            "stdout",
            "stderr",
            "start_new_session",
        }
        start = Fork if simple and WARM.serves(options["env"]) else subprocess.Popen
        return start(command, cwd=cwd or self.folder, text=True, **options)

    def environment(self, **changed: str) -> dict[str, str]:
        """Variables of a shell in which the environment that runs the tests is active."""
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        return {**os.environ, "PATH": path, **changed}

    def program(self, program: tuple[str, ...] | str) -> tuple[str, ...]:
        """A program beside the Python that runs the tests, or a command as it is."""
        return (str(Path(sys.executable).with_name(program)),) if isinstance(program, str) else program

    @staticmethod
    def table(out: str) -> list[str]:
        """The rows of the last table of a sweep."""
        *_, last = re.split(r"^.*status +(?:steps +)?result +train s +job\n", out, flags=re.MULTILINE)
        return last.partition("\n\n")[0].splitlines()

    def wait_for(self, path: str, process: subprocess.Popen[str]) -> None:
        """Wait until ``path`` is there; fails where ``process`` ends before."""
        deadline = time.monotonic() + 120
        while not (self.folder / path).exists():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline, f"{path} is not there after two minutes"
            time.sleep(0.01)


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    """The project's programs, called in ``tmp_path``."""
    return Shell(tmp_path)
