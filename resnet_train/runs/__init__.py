"""What lies in a run directory, and what happens when a run is resumed from it."""
