"""Readers of file formats: bounded, memory-mapped where the format allows, never unpickling."""
