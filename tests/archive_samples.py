"""Made containers for the archive tests: members of random bytes in every container kind."""

from __future__ import annotations

import io
import random
import tarfile
import zipfile
from collections.abc import Mapping


def members(count: int = 5, size: int = 3000, seed: int = 0) -> dict[str, bytes]:
    """``count`` members of incompressible bytes, of sizes around ``size``; names sort in order."""
    source = random.Random(seed)
    return {f"films/{i:05d}.png": source.randbytes(size + 37 * (i % 11)) for i in range(count)}


def tar_bytes(files: Mapping[str, bytes], mode: str = "w", **options: int) -> bytes:
    """A tar (mode "w") or tar.gz (mode "w:gz") with a folder entry first."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode, **options) as archive:  # type: ignore[call-overload]
        folder = tarfile.TarInfo("films")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


def zip_bytes(files: Mapping[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    """A zip with a folder entry first."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        archive.writestr("films/", b"")
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def container_bytes(kind: str, files: Mapping[str, bytes]) -> bytes:
    """The files as one container of kind "tar", "tar.gz" or "zip"."""
    if kind == "zip":
        return zip_bytes(files)
    return tar_bytes(files, "w:gz" if kind == "tar.gz" else "w")
