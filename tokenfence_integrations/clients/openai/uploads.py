"""How much a request uploads."""

import os
from collections.abc import Iterable, Mapping
from typing import Any

__all__ = ["LARGEST_UPLOAD", "uploaded_bytes"]

LARGEST_UPLOAD = 25 * 1024 * 1024
"""OpenAI's limit for an audio file; assumed for one whose size cannot be seen."""


def uploaded_bytes(files: Any) -> int:
    """Bytes of the files of a multipart request.

    Args:
        files: As the SDK hands them on: a mapping or a list of ``(field, file)``, where a file is
            bytes, a path, an open file, or a tuple ``(name, content, ...)``.

    Returns:
        Their sum; `LARGEST_UPLOAD` for each whose size cannot be seen.
    """
    pairs: Iterable[Any] = files.items() if isinstance(files, Mapping) else files
    return sum(_size(file) for _, file in pairs)


def _size(file: Any) -> int:
    if isinstance(file, tuple):
        return _size(file[1])
    if isinstance(file, bytes | bytearray | str):
        return len(file)
    if isinstance(file, os.PathLike):
        return os.stat(file).st_size
    try:
        here = file.tell()
        end = file.seek(0, os.SEEK_END)
        file.seek(here)
    except (AttributeError, OSError, ValueError):
        return LARGEST_UPLOAD
    return int(end - here)
