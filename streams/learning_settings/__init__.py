"""One file is one way to order tasks into items, found by its name: ``items(tasks, seed, ...)``."""
