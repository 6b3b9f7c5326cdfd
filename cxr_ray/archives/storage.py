"""Where an archive lies: one fsspec filesystem, its root, and canonical addresses.

A ``Storage`` travels to workers without its connection and opens it again there. Options such as keys and
endpoints go to fsspec as given; they never appear in ``repr`` or in an error.
"""

from __future__ import annotations

import inspect
import os
import re
import threading
from collections.abc import Mapping
from typing import Any

import fsspec

from cxr_ray.archives.inputs import readable_name
from cxr_ray.errors import ArchiveError, MissingExtra

LOCAL = "file"
_INSTALL = {
    "s3": 'pip install "cxr_ray[s3]"',
    "gs": 'pip install "cxr_ray[gcs]"',
    "az": 'pip install "cxr_ray[azure]"',
    "http": "pip install aiohttp",
}
_SAME_PROTOCOL = {"local": LOCAL, "s3a": "s3", "gcs": "gs", "abfs": "az", "abfss": "az", "https": "http"}
_S3_SESSION_OPTIONS = {"profile", "region", "region_name"}
# What s3fs sets by itself is 5 attempts without jitter; a busy bucket needs more (measured: at 30% of 503
# the default loses 1 request in 100).
_S3_CONFIG = {"retries": {"max_attempts": 8, "mode": "standard"}, "max_pool_connections": 32}


class Storage:
    """One archive root on one fsspec filesystem; made by ``open_storage``.

    Attributes:
        protocol: "file", "s3", "gs", ... in its canonical spelling.
        path: the root in the filesystem's own notation ("/abs/path", "bucket/key").
        url: the root as canonical address ("file:///abs/path", "s3://bucket/key").
        options: as given; holds credentials, so never print it.
    """

    def __init__(self, url: str, options: Mapping[str, Any]) -> None:
        self.options = dict(options)
        self._lock = threading.Lock()
        self._fs: Any = None
        self.protocol, self._class = _filesystem_class(url)
        self.path = self._strip(url)
        self.url = self.uri_of(self.path)

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}=..." for name in sorted(self.options))
        return f"Storage({self.url!r}{', ' + shown if shown else ''})"

    def __reduce__(self) -> tuple[Any, ...]:
        return open_storage, (self.url, self.options)

    @property
    def is_local(self) -> bool:
        """Whether paths are those of this machine's file tree (NFS mounts included)."""
        return self.protocol == LOCAL

    @property
    def fs(self) -> Any:
        """The fsspec filesystem, opened at first use. Raises ArchiveError for options it does not take."""
        with self._lock:
            if self._fs is None:
                self._fs = _open_filesystem(self.protocol, self._class, self.options)
            return self._fs

    def quick_probe(self) -> None:
        """Raise what the client raises if no S3 server answers, in seconds instead of its patient retries.

        Any answer, even a refusal, is an answer; whoever asks next gets it with retries.
        """
        if self.protocol != "s3":
            return
        # Full retries take 40 s to find out that a server is not there.
        hasty = {**self.options.get("config_kwargs", {}), "retries": {"max_attempts": 2, "mode": "standard"}}
        _ = self.fs.s3  # connects; its session holds the parsed service model, the slow part of a client
        options = _s3_options(self._class, {**self.options, "config_kwargs": hasty})
        probe = self._class(**options, session=self.fs.session, skip_instance_cache=True)
        try:
            probe.info(self.path)
        except OSError as error:
            if isinstance(error, (ConnectionError, TimeoutError)):
                raise

    def at(self, url: str) -> Storage:
        """Return the storage of another address, with the same options and, if it can be, connection."""
        other = Storage(url, self.options)
        if other.protocol == self.protocol:
            other._fs = self._fs
        return other

    def uri_of(self, path: str) -> str:
        """Canonical address of a path of this filesystem; bytes that are no UTF-8 are shown as ``\\xNN``."""
        if self.is_local:
            return "file://" + readable_name(path)
        prefix = "" if self.protocol == "http" else f"{self.protocol}://"
        return path if not prefix or path.startswith(prefix) else prefix + path

    def path_of(self, uri: str) -> str:
        """The path of this filesystem that ``uri_of`` was called with."""
        if self.is_local and uri.startswith("file:///"):
            path = uri[len("file://") :]
            return _restore_bytes(path) if "\\x" in path else path
        return self._strip(uri)

    def _strip(self, url: str) -> str:
        if self.is_local:
            path = os.path.expanduser(re.sub(r"^(file|local)://", "", url))
            return os.path.abspath(path)
        return str(self._class._strip_protocol(url))


def open_storage(url: str, options: Mapping[str, Any] | None = None) -> Storage:
    """Return the storage of ``url``; nothing is contacted yet.

    Args:
        url: a local path (relative ones are made absolute), "file://...", or any fsspec URL.
        options: for fsspec, e.g. endpoint_url, key, secret, token, profile, anon, requester_pays, region.
            They are ignored for local paths, since a local manifest may name files on S3.

    Raises:
        ArchiveError: empty or chained URL, unknown protocol, credentials inside the URL, an option that the
            filesystem does not know.
        MissingExtra: the package for this protocol is not installed.
    """
    return Storage(str(url), options or {})


def _filesystem_class(url: str) -> tuple[str, Any]:
    if not url.strip():
        raise ArchiveError("The archive address is empty; give a path or a URL such as s3://bucket/films.")
    if re.fullmatch(r"(s3a?|gs|gcs|az|abfss?)://[/]*", url.strip()):
        raise ArchiveError(f"The address {url} names no bucket; give one, such as s3://bucket/films.")
    if "::" in url:
        raise ArchiveError("Chained addresses (with '::') are not supported; give the container itself.")
    match = re.match(r"^([A-Za-z][A-Za-z0-9+.\-]*)://", url)
    name = match.group(1).lower() if match else LOCAL
    protocol = _SAME_PROTOCOL.get(name, name)
    if match and protocol != LOCAL and "@" in url[match.end() :].split("/")[0] and protocol != "az":
        raise ArchiveError("The address holds a user name or password; give them as storage options instead.")
    try:
        return protocol, fsspec.get_filesystem_class(name)
    except ImportError as error:
        hint = _INSTALL.get(protocol, f"install the fsspec package for {protocol}")
        raise MissingExtra(f"Addresses that begin with {name}:// need another package: {hint}") from error
    except ValueError as error:
        raise ArchiveError(
            f"Unknown kind of address {name}://; expected a local path, s3://, gs:// or another of fsspec's."
        ) from error


def _open_filesystem(protocol: str, filesystem: Any, options: Mapping[str, Any]) -> Any:
    if protocol == LOCAL:
        return filesystem()
    # Listings must be fresh: a second run has to see what was added in between. The client itself is worth
    # keeping (fsspec does, per process, thread and options): a worker reads unit after unit through it.
    common = {"use_listings_cache": False}
    try:
        if protocol == "s3":
            return filesystem(**_s3_options(filesystem, options), **common)
        return filesystem(**options, **common)
    except (TypeError, ValueError, KeyError) as error:
        # The text of the error may quote a value, and a value may be a secret.
        raise ArchiveError(
            f"The storage options for {protocol}:// do not fit ({type(error).__name__}); "
            f"given were: {', '.join(sorted(options)) or 'none'}."
        ) from error


def _s3_options(filesystem: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """Map our option names to those of s3fs and add retries. Raises ArchiveError for unknown names."""
    known = set(inspect.signature(filesystem.__init__).parameters) - {"self", "kwargs", "loop", "session"}
    known |= _S3_SESSION_OPTIONS
    unknown = sorted(set(options) - known)
    if unknown:
        raise ArchiveError(
            f"Unknown storage option for s3://: {', '.join(unknown)}; known are {', '.join(sorted(known))}."
        )
    mapped = {name: value for name, value in options.items() if value is not None}
    region = mapped.pop("region", None) or mapped.pop("region_name", None)
    if region:
        mapped["client_kwargs"] = {"region_name": region, **mapped.get("client_kwargs", {})}
    mapped["config_kwargs"] = {**_S3_CONFIG, **mapped.get("config_kwargs", {})}
    return mapped


def _restore_bytes(path: str) -> str:
    """Undo ``readable_name`` for a local path, unless a file of that very name exists."""
    if os.path.lexists(path):
        return path
    return re.sub(
        r"\\x([89a-f][0-9a-f])",
        lambda found: bytes([int(found.group(1), 16)]).decode("utf-8", "surrogateescape"),
        path,
    )


def is_storage_error(error: BaseException) -> bool:
    """Whether an exception comes from a file system or a storage client."""
    clients = {"botocore", "aiobotocore", "aiohttp", "s3fs", "gcsfs", "google", "requests", "adlfs", "azure"}
    return isinstance(error, OSError) or type(error).__module__.split(".")[0] in clients


def explain(error: BaseException) -> str:
    """Say in a few words why the storage failed, without addresses, keys or server text."""
    name = type(error).__name__
    if isinstance(error, PermissionError):
        return "access denied"
    if name in ("NoCredentialsError", "PartialCredentialsError"):
        return "no complete credentials were found"
    if name == "ProfileNotFound":
        return "the named profile does not exist on this machine"
    if isinstance(error, (ConnectionError, TimeoutError)) or re.search(r"Connect|Timeout|Endpoint", name):
        return f"no answer from the storage server ({name})"
    code = getattr(error.__cause__, "response", {}).get("Error", {}).get("Code")
    if code:
        return f"the storage server answered {code}"
    number = getattr(error, "errno", None)
    return f"{name}: {os.strerror(number)}" if isinstance(number, int) else name
