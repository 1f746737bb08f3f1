"""How much a request uploads: bytes of sound, and pictures by what they can count as."""

import os
from collections.abc import Iterable, Mapping
from typing import Any

from tokenfence_integrations.pricing.images import EDITED_IMAGE_TOKENS

__all__ = ["LARGEST_UPLOAD", "uploaded_bytes"]

LARGEST_UPLOAD = 25 * 1024 * 1024
"""OpenAI's limit for an audio file; assumed for one whose size cannot be seen."""

PICTURES = ("image", "mask")
"""How the names of fields begin that hold pictures."""


def uploaded_bytes(files: Any) -> int:
    """Bytes of the files of a multipart request; of pictures, the most tokens that they count as.

    Args:
        files: As the SDK hands them on: a mapping or a list of ``(field, file)``, where a file is
            bytes, a path, an open file, or a tuple ``(name, content, ...)``.

    Returns:
        Their sum; `LARGEST_UPLOAD` for each whose size cannot be seen.
    """
    pairs: Iterable[Any] = files.items() if isinstance(files, Mapping) else files
    return sum(
        # A picture's bytes say nothing: a photograph has more than tokens, and a drawing fewer.
        EDITED_IMAGE_TOKENS if str(field).startswith(PICTURES) else _size(file)
        for field, file in pairs
    )


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
