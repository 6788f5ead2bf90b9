"""Training: what a run is made of (`setup`), its loop (`loop`), one step (`step`), and continuing (`restore`)."""
