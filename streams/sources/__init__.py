"""Named data sources, one file each: ``open_source(data_dir) -> ImageSource``.

A file here is a stream of ``streams.create``; its name is the file's, with ``-`` for ``_``.
"""
