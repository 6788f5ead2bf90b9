"""Data sets: obtained, verified and read without torch, then held in memory as bytes and streamed as batches."""
