"""Bundles on any fsspec URL, and as one byte string for workers that see no file of the driver's."""

from __future__ import annotations

import io
import os
import zipfile
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import fsspec

from cxr_ray.errors import BundleError
from cxr_ray.weights.bundle import Bundle
from cxr_ray.weights.files import FILES, META_FILE, pack, unpack
from cxr_ray.weights.seeded import seeded_bundle

DEFAULT = "default"
SEEDED = "seeded"


def load_bundle(source: str | os.PathLike[str], **storage_options: Any) -> Bundle:
    """Load and verify a bundle.

    ``source``: "default" (the trained weights that come with the package), "seeded" (untrained, made from seed
    0; its scores mean nothing), or a directory path or fsspec URL. ``storage_options`` go to fsspec as given.

    Raises BundleError: not there, no access, damaged, or made for another network.
    """
    if source == SEEDED:
        return seeded_bundle(0)
    if source == DEFAULT:
        directory = default_directory()
        if directory is None:
            raise BundleError(
                "this installation lacks the trained weights (cxr_ray/weights/default); install cxr_ray again, give "
                "weights=URL of a bundle, or weights=seeded to try the machinery with scores that mean nothing"
            )
        source, storage_options = directory, {}
    url = os.fspath(source)
    try:
        filesystem, root = fsspec.core.url_to_fs(url, **storage_options)
        if not filesystem.exists(f"{root}/{META_FILE}"):
            raise BundleError(
                f"no weights bundle at {public_url(url)}: expected a directory with {META_FILE}"
            )
        files = {
            name: filesystem.cat_file(f"{root}/{name}")
            for name in FILES
            if filesystem.exists(f"{root}/{name}")
        }
    except BundleError:
        raise
    # Storage back-ends raise what they like (OSError, client errors, ImportError for a missing back-end).
    except Exception as error:
        raise BundleError(
            f"cannot read the weights bundle at {public_url(url)} ({type(error).__name__}); "
            "check the URL, the network and the weights_options"
        ) from error
    try:
        return unpack(files)
    except BundleError as error:
        raise BundleError(f"weights bundle at {public_url(url)}: {error}") from error


def save_bundle(bundle: Bundle, target: str | os.PathLike[str], **storage_options: Any) -> None:
    """Write the four files into a directory (path or fsspec URL) that holds no bundle yet; ``bundle.json`` comes last.

    Raises BundleError: a bundle is there already, or the place cannot be written.
    """
    url = os.fspath(target)
    files = pack(bundle)
    try:
        filesystem, root = fsspec.core.url_to_fs(url, **storage_options)
        if filesystem.exists(f"{root}/{META_FILE}"):
            raise BundleError(f"{public_url(url)} holds a bundle already; choose an empty directory")
        filesystem.makedirs(root, exist_ok=True)
        for name in FILES:
            filesystem.pipe_file(f"{root}/{name}", files[name])
    except BundleError:
        raise
    except Exception as error:  # see load_bundle
        raise BundleError(
            f"cannot write a weights bundle to {public_url(url)} ({type(error).__name__})"
        ) from error


def bundle_to_bytes(bundle: Bundle) -> bytes:
    """The bundle as one uncompressed zip of its files; the same bundle always gives the same bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, data in pack(bundle).items():
            archive.writestr(zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0)), data)
    return buffer.getvalue()


def bundle_from_bytes(data: bytes) -> Bundle:
    """The reverse of ``bundle_to_bytes``, with every check of ``load_bundle``. Raises BundleError."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            files = {name: archive.read(name) for name in archive.namelist() if name in FILES}
    except (zipfile.BadZipFile, EOFError) as error:
        raise BundleError("these bytes are no weights bundle; make them with bundle_to_bytes") from error
    return unpack(files)


def default_directory() -> Path | None:
    """Where the package's own trained weights lie; None in an installation without them."""
    directory = Path(str(resources.files("cxr_ray.weights"))) / DEFAULT
    return directory if (directory / META_FILE).is_file() else None


def public_url(url: str) -> str:
    """The URL without user name, password and query, which may hold credentials."""
    parts = urlsplit(url)
    if not parts.netloc:
        return url
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
