"""A real local S3 server for tests: moto behind werkzeug, in a process of its own.

    with S3Server() as server:
        server.make_bucket("films")
        fsspec.filesystem("s3", **server.storage_options).pipe("films/a.png", data)

The subprocess listens on a free port of 127.0.0.1, speaks HTTP/1.1 with keep-alive and answers requests in
threads, so it shares no interpreter lock with the test. It ends with ``stop()``, and when its parent dies,
since it watches its standard input. Objects live in its memory: keep them to a few hundred MB.

Two control addresses are its own. ``/_log`` returns every S3 request so far, so a test can count the GETs of
a key; ``/_faults`` makes it fail on purpose (503, 403, truncated bodies, delays), to see what a client does.
"""

from __future__ import annotations

import io
import itertools
import json
import os
import random
import subprocess
import sys
import threading
import urllib.parse
import urllib.request
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from types import TracebackType
from typing import Any

ACCESS_KEY = "test-access-key"
SECRET_KEY = "test-secret-key"


class S3Server:
    """Starts and ends the server process; usable as a context manager."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._bucket_numbers = itertools.count()
        self._filesystem: Any = None
        self.port = 0

    def start(self) -> S3Server:
        """Start the process and wait until it listens. Raises RuntimeError if it ends before that."""
        # The command line AWS variables of a developer must not reach the server.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
        environment.update(AWS_ACCESS_KEY_ID=ACCESS_KEY, AWS_SECRET_ACCESS_KEY=SECRET_KEY)
        environment.update(S3_UPLOAD_PART_MIN_SIZE="1000")  # multipart uploads of small objects
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
        )
        assert self._process.stdout is not None
        first_line = self._process.stdout.readline().strip()
        if not first_line.isdigit():
            self.stop()
            raise RuntimeError("the local S3 server did not start; is moto[server] installed?")
        self.port = int(first_line)
        return self

    def stop(self) -> None:
        """End the process; harmless when it is not running."""
        process, self._process = self._process, None
        self._filesystem = None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()

    def __enter__(self) -> S3Server:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """Process id of the running server."""
        assert self._process is not None, "the server is not running"
        return self._process.pid

    @property
    def endpoint_url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def storage_options(self) -> dict[str, Any]:
        """What goes to fsspec (s3fs), to ``archive_options`` and to ``output_options``."""
        return {"key": ACCESS_KEY, "secret": SECRET_KEY, "endpoint_url": self.endpoint_url}

    def filesystem(self) -> Any:
        """One s3fs filesystem on this server, without listing cache, to arrange and inspect objects."""
        if self._filesystem is None:
            import s3fs

            options = {**self.storage_options, "use_listings_cache": False, "skip_instance_cache": True}
            self._filesystem = s3fs.S3FileSystem(**options)
        return self._filesystem

    def make_bucket(self, name: str | None = None) -> str:
        """Create a bucket (of a name not used before, unless given) and return its name."""
        bucket = name or f"bucket-{next(self._bucket_numbers)}"
        self.filesystem().mkdir(bucket)
        return bucket

    # -- control addresses -------------------------------------------------------------------------

    def requests(self, method: str | None = None, key: str = "") -> list[dict[str, Any]]:
        """S3 requests so far, oldest first: dicts of method, path, query, range, status, bytes.

        ``key`` keeps those whose path ends with it (``"films/a.png"``); ``method`` keeps one HTTP method.
        ``bytes`` is the length of the answer's body.
        """
        entries = json.loads(self._control("_log"))
        return [
            entry for entry in entries if method in (None, entry["method"]) and entry["path"].endswith(key)
        ]

    def clear_log(self) -> None:
        self._control("_log", clear="1")

    def set_faults(
        self,
        probability: float,
        *,
        kinds: Iterable[str] = ("503",),
        match: str = "",
        seed: int = 0,
        slow_seconds: float = 2.0,
    ) -> None:
        """From now on fail this share of the requests whose path contains ``match``, each kind as often.

        Kinds: "503" (SlowDown), "500" (InternalError), "403" (AccessDenied), "truncate" (half of the body of
        a GET, then the connection closes), "slow" (``slow_seconds`` late, or until the faults are cleared).
        Reproducible for one seed and one order of requests.
        """
        names = list(kinds)
        self.set_fault_mix(
            dict.fromkeys(names, probability / len(names)),
            match=match,
            seed=seed,
            slow_seconds=slow_seconds,
        )

    def set_fault_mix(
        self, shares: Mapping[str, float], *, match: str = "", seed: int = 0, slow_seconds: float = 2.0
    ) -> None:
        """From now on give each kind of fault its own share of the requests; the shares add up to 1 at most."""
        self._control(
            "_faults",
            mix=",".join(f"{kind}:{share}" for kind, share in shares.items()),
            match=match,
            seed=str(seed),
            slow=str(slow_seconds),
        )

    def faults(self) -> dict[str, int]:
        """How many requests were failed so far by the mix that is set, by kind."""
        return dict(json.loads(self._control("_faults")))

    def ignore_preconditions(self, ignore: bool = True) -> None:
        """From now on accept every write, as a store does that knows no ``If-None-Match``."""
        self._control("_preconditions", ignore="1" if ignore else "")

    def clear_faults(self) -> int:
        """Stop failing; returns how many requests were failed since the faults were set."""
        return sum(json.loads(self._control("_faults", mix="none:0")).values())

    def _control(self, address: str, **query: str) -> str:
        url = f"{self.endpoint_url}/{address}?{urllib.parse.urlencode(query)}"
        with urllib.request.urlopen(url, timeout=30) as answer:
            return str(answer.read().decode())


# -- the server process --------------------------------------------------------------------------------


ERRORS = {
    "503": ("503 Slow Down", "SlowDown"),
    "500": ("500 Internal Server Error", "InternalError"),
    "403": ("403 Forbidden", "AccessDenied"),
}


class _LogAndFaults:
    """WSGI layer around moto: writes the request log, answers the control addresses, injects faults."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self.lock = threading.Lock()
        self.writing = threading.Lock()
        self.log: list[dict[str, Any]] = []
        self.shares: dict[str, float] = {}
        self.match, self.slow_seconds = "", 2.0
        self.cleared = threading.Event()
        self.random, self.injected = random.Random(0), Counter[str]()
        self.ignore_preconditions = False

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        query = {k: v[0] for k, v in urllib.parse.parse_qs(environ["QUERY_STRING"]).items()}
        controls = {"/_log": self._log, "/_faults": self._faults, "/_preconditions": self._preconditions}
        if environ["PATH_INFO"] in controls:
            text = controls[environ["PATH_INFO"]](query)
            start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(text)))])
            return [text.encode()]
        if self.ignore_preconditions:
            environ.pop("HTTP_IF_NONE_MATCH", None)
        entry = {
            "method": environ["REQUEST_METHOD"],
            "path": environ["PATH_INFO"],
            "query": environ["QUERY_STRING"],
            "range": environ.get("HTTP_RANGE"),
            "status": None,
            "bytes": 0,
        }
        with self.lock:
            self.log.append(entry)

        def start(status: str, headers: list[tuple[str, str]], error: Any = None) -> Any:
            entry["status"] = int(status.split()[0])
            return start_response(status, headers, error)

        fault = self._draw(environ["REQUEST_METHOD"], environ["PATH_INFO"])
        if fault in ERRORS:
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            status, code = ERRORS[fault]
            body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>made</Message></Error>".encode()
            body = b"" if environ["REQUEST_METHOD"] == "HEAD" else body
            start(status, [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))])
            return [body]
        if fault == "slow":
            self.cleared.wait(self.slow_seconds)
        body = self._answer(environ, start)
        if fault == "truncate":
            body = body[: len(body) // 2]
        entry["bytes"] = len(body)
        return [body]

    def _answer(self, environ: dict[str, Any], start: Any) -> bytes:
        """What moto answers. It looks for the key and writes it in two steps, between which another thread may write
        (seen: two winners in a quarter of the races of 16); S3 does it in one, and so do we."""
        if "HTTP_IF_NONE_MATCH" not in environ:
            return b"".join(self.app(environ, start))
        if environ.get("CONTENT_LENGTH"):  # before the lock: a client may be stopped while it sends
            environ["wsgi.input"] = io.BytesIO(environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"])))
        with self.writing:
            return b"".join(self.app(environ, start))

    def _draw(self, method: str, path: str) -> str | None:
        """The fault of this request, if any; only a GET has a body to cut."""
        with self.lock:
            if self.match not in path:
                return None
            drawn = self.random.random()
            for kind, share in self.shares.items():
                drawn -= share
                if drawn < 0:
                    if kind == "truncate" and method != "GET":
                        return None
                    self.injected[kind] += 1
                    return kind
            return None

    def _log(self, query: dict[str, str]) -> str:
        with self.lock:
            if query.get("clear"):
                self.log.clear()
            return json.dumps(self.log)

    def _preconditions(self, query: dict[str, str]) -> str:
        self.ignore_preconditions = bool(query.get("ignore"))
        return ""

    def _faults(self, query: dict[str, str]) -> str:
        """The counts so far; with ``mix``, those before the new mix begins."""
        with self.lock:
            counts = json.dumps(self.injected)
            if "mix" in query:
                self.injected = Counter()
                self.cleared.set()
                self.cleared = threading.Event()
                mix = (pair.split(":") for pair in query.get("mix", "").split(",") if pair)
                self.shares = {kind: float(share) for kind, share in mix}
                self.match = query.get("match", "")
                self.slow_seconds = float(query.get("slow", "2"))
                self.random = random.Random(int(query.get("seed", "0")))
            return counts


def _exit_with_parent() -> None:
    sys.stdin.buffer.read()  # returns when the parent closes the pipe or dies
    os._exit(0)


def _serve() -> None:
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Handler(WSGIRequestHandler):
        protocol_version = "HTTP/1.1"  # keep-alive

        def log_request(self, *args: Any, **kwargs: Any) -> None:
            """Silent: the request log is kept by ``_LogAndFaults``."""

    app = _LogAndFaults(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=Handler)
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    sys.stdout.write(f"{server.server_port}\n")
    sys.stdout.flush()
    server.serve_forever()


def running_server() -> Iterator[S3Server]:
    """Generator form for fixtures: starts, yields, stops."""
    with S3Server() as server:
        yield server


if __name__ == "__main__":
    _serve()
