"""The two ways in which a run ends badly, each with one exit code; the message is the one line that the user reads."""

from __future__ import annotations


class ConfigError(ValueError):
    """What was asked for cannot be done: exit code 2. Says what was expected, what was given, and what fixes it."""

    def __init__(self, message: str, *, details: str = "") -> None:
        super().__init__(message)
        self.details = details  # what a terminal shows above the message


class RunError(RuntimeError):
    """The run started and failed: exit code 1."""
