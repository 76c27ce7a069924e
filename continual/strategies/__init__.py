"""One file is one strategy or plug-in, found by its name."""
