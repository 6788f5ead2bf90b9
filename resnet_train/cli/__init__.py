"""The command line: arguments, composition with Hydra, single runs, sweeps, and errors in one line; without torch."""
