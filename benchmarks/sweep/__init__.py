"""Sweeps: a grid of runs from one file, on a pool of processes, on Ray or on Slurm.

``plan`` reads the file and lists its cells, ``driver`` hands them to an engine and writes down what
comes back, ``work`` is what a worker does, ``summary`` says from the store how a sweep stands.
"""
