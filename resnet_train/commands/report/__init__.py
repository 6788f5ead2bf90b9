"""``resnet-report``: runs and sweeps side by side, in a terminal, in files, and as one page."""
