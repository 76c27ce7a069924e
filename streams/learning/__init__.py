"""One file is one set of tasks, found by its name: ``open_tasks(data_dir, **options)``."""
