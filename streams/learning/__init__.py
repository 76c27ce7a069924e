"""Sets of tasks, one file each: ``open_tasks(data_dir, *, num_tasks, seed, **options)``.

A file here is a set of tasks; its name is the file's, with ``-`` for ``_``. It may declare
``OPTIONS``, a ``(default, what it is)`` by name, the further arguments of ``open_tasks``.
"""
