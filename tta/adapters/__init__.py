"""One file a method, nothing else: the registry finds it by its name."""
