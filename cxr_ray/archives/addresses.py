"""Addresses as people write them in manifests -> canonical ones, a column at a time."""

from __future__ import annotations

import posixpath

import pyarrow as pa
import pyarrow.compute as pc

from cxr_ray.archives.storage import Storage

# Parts of a path that have to be worked out: empty ones, "." and "..".
_LOOSE_PART = r"(^|/)\.{0,2}(/|$)"


class Addresses:
    """Turns addresses as written in a manifest into canonical ones, as ``Storage.uri_of`` writes them.

    Args:
        base: the folder that relative addresses start from; its options serve all other addresses.
    """

    def __init__(self, base: Storage) -> None:
        self.base = base
        self._by_protocol = {base.protocol: base}
        # What comes before a relative address: exact wherever nothing in it has to be worked out.
        self._prefix = self.base.uri_of(f"{self.base.path.rstrip('/')}/x")[:-1]

    def storage_of(self, uri: str) -> Storage:
        """The storage that ``uri`` lies on, sharing options and connection."""
        protocol = uri.split("://")[0]
        if protocol not in self._by_protocol:
            self._by_protocol[protocol] = self.base.at(uri)
        return self._by_protocol[protocol]

    def resolve(self, text: str) -> str:
        """The canonical address of ``text``: a URL, an absolute path, or a path below the base."""
        if "://" in text:
            owner = self.storage_of(text)
            return owner.uri_of(owner.path_of(text))
        if text.startswith(("/", "~")):
            return self.base.at(text).url
        joined = f"{self.base.path.rstrip('/')}/{text}"
        if any(part in ("", ".", "..") for part in text.split("/")):
            joined = posixpath.normpath(joined)
        return self.base.uri_of(joined)

    def canonical(self, written: pa.Array) -> pa.Array:
        """Canonical addresses (string) of those written (string); empty ones become null."""
        text = pc.utf8_trim_whitespace(pc.fill_null(written, "").cast(pa.string()))
        has_scheme = pc.match_substring(text, "://")
        loose = pc.match_substring_regex(text, _LOOSE_PART)
        from_root = pc.starts_with(text, "/")
        relative = _none_of(has_scheme, from_root, pc.starts_with(text, "~"), loose)
        # The empty part before the first slash is no loose one.
        absolute = pc.and_(from_root, pc.invert(pc.match_substring_regex(text, r"/\.{0,2}(/|$)")))
        on_s3 = pc.and_(pc.starts_with(text, "s3://"), pc.match_substring_regex(text, r"[^/]$"))
        simple = pc.case_when(
            pc.make_struct(relative, absolute, on_s3),
            pc.binary_join_element_wise(pa.scalar(self._prefix), text, ""),
            pc.binary_join_element_wise(pa.scalar("file://"), text, ""),
            text,
        )
        left = pc.is_null(simple)
        if pc.any(left).as_py():
            others = pa.array(
                [self.resolve(one) if one else None for one in text.filter(left).to_pylist()], pa.string()
            )
            simple = pc.replace_with_mask(simple, left, pa.array(others, pa.string()))
        return simple


def _none_of(*conditions: pa.Array) -> pa.Array:
    joined = conditions[0]
    for condition in conditions[1:]:
        joined = pc.or_(joined, condition)
    return pc.invert(joined)


def manifest_addresses(storage: Storage, root: str | None) -> Addresses:
    """Addresses of the manifest at ``storage``: relative ones start from ``root``, by default from its folder."""
    return Addresses(storage.at(root) if root else storage.at(storage.url.rsplit("/", 1)[0] or storage.url))
