"""How long a run takes, and how fast it trains."""

from __future__ import annotations

import time
from dataclasses import dataclass, field


@dataclass
class Clock:
    """Seconds of a run over all its sessions; training time leaves evaluation, checkpoints and start-up out."""

    train_seconds: float = 0.0
    images: int = 0  # trained on in train_seconds
    earlier_seconds: float = 0.0  # whole sessions before this one
    sessions: int = 1
    _begun: float = field(default_factory=time.perf_counter)
    _running_since: float | None = None
    _session: tuple[float, int] = (0.0, 0)  # train_seconds and images when this session began
    _marks: dict[str, tuple[float, int]] = field(default_factory=dict)

    @property
    def total_seconds(self) -> float:
        """Since the run's beginning, without the time between sessions."""
        return self.earlier_seconds + time.perf_counter() - self._begun

    def start(self) -> None:
        """Begin to count training time."""
        self._running_since = time.perf_counter()

    def stop(self, images: int) -> None:
        """Add the time since `start`, in which ``images`` were trained on."""
        assert self._running_since is not None
        self.train_seconds += time.perf_counter() - self._running_since
        self.images += images
        self._running_since = None

    def discard(self) -> float:
        """Leave out the training time of this session until now, and begin to count anew; returns those seconds."""
        assert self._running_since is not None
        seconds = time.perf_counter() - self._running_since + self.train_seconds - self._session[0]
        self.train_seconds, self.images = self._session
        self._marks.clear()
        self._running_since = time.perf_counter()
        return seconds

    def mark(self, name: str) -> None:
        """Remember this moment under ``name``, for `speed`."""
        self._marks[name] = self.train_seconds, self.images

    def speed(self, *, since: str | None = None) -> float:
        """Images per second of training time: of the whole run, or since a mark (until it is set, of this session)."""
        seconds, images = (0.0, 0) if since is None else self._marks.get(since, self._session)
        return (self.images - images) / max(self.train_seconds - seconds, 1e-9)

    def state_dict(self) -> dict[str, float | int]:
        """What the next session has to know."""
        return {
            "train_seconds": self.train_seconds,
            "images": self.images,
            "earlier_seconds": self.total_seconds,
            "sessions": self.sessions + 1,
        }

    def load_state_dict(self, saved: dict[str, float | int]) -> None:
        """Load what `state_dict` of the session before returned; this session's own time is kept."""
        self.train_seconds = float(saved["train_seconds"])
        self.images = int(saved["images"])
        self.earlier_seconds = float(saved["earlier_seconds"])
        self.sessions = int(saved["sessions"])
        self._session = self.train_seconds, self.images
