"""Decode steps that can be replayed: one for each size, captured as a CUDA graph where there is CUDA."""
