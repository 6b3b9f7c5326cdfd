"""Decoding in a process of its own: what each kind of death means, and that a frame is the same as decoded here."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from decode_samples import SECRETS, dicom_bytes, dicom_object, grey_pixels, jpeg_dicom_bytes, opencv_bytes

from cxr_ray.decode import Facts
from cxr_ray.errors import CxrRayError, TruncatedImage, WorkerKilled
from cxr_ray.phantoms import write_sample_archive
from cxr_ray.pipeline.decoding import child_process
from cxr_ray.pipeline.decoding.child_process import ChildProcess, Death, Ending, ProcessLimits
from cxr_ray.pipeline.decoding.decoded import Decoded, Recipe, decode_content
from cxr_ray.pipeline.decoding.isolated import IsolatedDecoder, isolated_decoder
from cxr_ray.pipeline.decoding.messages import ExchangeArea, answer_of, decoded_of

RECIPE = Recipe(policy="corrected", max_bytes=2**29, max_pixels=150_000_000)
MEMORY = 2**28
ROOT = Path(__file__).parents[1]
FILM = opencv_bytes(grey_pixels(), ".png")

Decoders = Iterator[IsolatedDecoder]


def hook(words: str, image: bytes = b"") -> bytes:
    return f"CXRRAY-TEST-HOOK {words}\n".encode() + image


def outcome(decoded: Decoded) -> tuple[object, ...]:
    """Everything that a row takes from it; errors by what they say."""
    error = decoded.error and (type(decoded.error), str(decoded.error))
    return decoded.facts, vars(decoded.identifiers), decoded.flags, decoded.pixels, error


def code_of(decoded: Decoded) -> str | None:
    return decoded.error and decoded.error.code


@pytest.fixture
def hooks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXR_RAY_TEST_HOOKS", "1")


@pytest.fixture
def decoder(hooks: None) -> Decoders:
    """Short limits, and no pauses after kills from outside: three tries in all."""
    limits = ProcessLimits(cpu_seconds=20, wall_seconds=60, memory_bytes=MEMORY)
    decoder = IsolatedDecoder(limits, pauses=(0, 0))
    yield decoder
    decoder.close()


# -- the same as here ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plain_decoder() -> Decoders:
    decoder = IsolatedDecoder(ProcessLimits())
    yield decoder
    decoder.close()


def assert_same_as_here(decoder: IsolatedDecoder, contents: list[bytes], *policies: str) -> None:
    starts = decoder.starts
    for policy in policies:
        recipe = Recipe(policy=policy, max_bytes=2**29, max_pixels=20_000_000)
        for content in contents:
            assert outcome(decoder.decode("id", content, recipe)) == outcome(decode_content(content, recipe))
    assert decoder.starts <= max(1, starts), "an innocent file ended the process"


def test_made_files_decode_as_they_do_here(plain_decoder: IsolatedDecoder, tmp_path: Path) -> None:
    write_sample_archive(tmp_path)
    films = [path.read_bytes() for path in sorted(tmp_path.iterdir()) if path.is_file()]
    constant = dicom_bytes(dicom_object(np.full((60, 48), 7, np.uint16), **SECRETS))
    made = [FILM, FILM[:200], b"", b"no film", jpeg_dicom_bytes(grey_pixels(), **SECRETS), constant]
    huge = opencv_bytes(np.zeros((5000, 5000), np.uint8), ".png")
    assert_same_as_here(plain_decoder, films + made + [huge], "corrected", "published", "windowed")


@pytest.mark.shared
def test_real_files_decode_as_they_do_here(plain_decoder: IsolatedDecoder, shared_dir: Path) -> None:
    raw = [path.read_bytes() for path in sorted((shared_dir / "data" / "raw").iterdir()) if path.is_file()]
    assert len(raw) > 50
    assert_same_as_here(plain_decoder, raw, "corrected")


def test_without_the_variable_hooks_are_plain_bytes(plain_decoder: IsolatedDecoder) -> None:
    assert code_of(plain_decoder.decode("id", hook("exit"), RECIPE)) == "unknown_format"


def test_an_answer_keeps_every_value() -> None:
    area = ExchangeArea.create()
    facts = Facts(view="PA", pixel_spacing_mm=0.1 + 0.2, manufacturer="M\u00fcller \udce9")
    decoded = Decoded(facts=facts, flags=("colour",), pixels=b"\0\xff")
    area.write(b"\0\xff and more")
    assert outcome(decoded_of(answer_of(decoded, 1.0), area)) == outcome(decoded)
    failed = Decoded(facts=facts, error=TruncatedImage("it ends"))
    assert outcome(decoded_of(answer_of(failed, 1.0), area)) == outcome(failed)
    area.close()


def test_the_area_grows_for_an_image_and_shrinks_again() -> None:
    area = ExchangeArea.create()
    there = ExchangeArea(os.dup(area.descriptor))
    for data in (b"small", os.urandom(3 * ExchangeArea.KEPT), b"small again", os.urandom(100_000)):
        area.write(data)
        assert there.read(len(data)) == data
    assert os.fstat(area.descriptor).st_size == ExchangeArea.SMALLEST
    area.close()
    there.close()


# -- verdicts --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "ending", "how"),
    [
        ("exit 0", Ending.CRASHED, "exit code 0"),
        ("abort", Ending.CRASHED, "SIGABRT"),
        ("bus", Ending.CRASHED, "SIGBUS"),
        ("ill", Ending.CRASHED, "SIGILL"),
        ("kill", Ending.KILLED, "SIGKILL"),
        ("term", Ending.KILLED, "SIGTERM"),
    ],
)
def test_how_a_process_ended(words: str, ending: Ending, how: str, hooks: None) -> None:
    child = ChildProcess(ProcessLimits())
    assert child.wait_until_ready() is None
    assert child.decode(hook(words), RECIPE) == Death(ending, how)


@pytest.mark.parametrize(("words", "how"), [("exit 3", "exit code 3"), ("segv", "SIGSEGV")])
def test_a_suspect_is_tried_three_times_alone(words: str, how: str, decoder: IsolatedDecoder) -> None:
    decoder.decode("first", FILM, RECIPE)
    deaths: list[str] = []
    crashed = decoder.decode("suspect", hook(words), RECIPE, on_death=lambda: deaths.append(words))
    assert code_of(crashed) == "decoder_crashed"
    assert how in str(crashed.error)
    assert decoder.starts == 1 + 3
    assert len(deaths) == 1 + 3  # what keeps a run from looking stuck
    assert outcome(decoder.decode("next", FILM, RECIPE)) == outcome(decode_content(FILM, RECIPE))


def test_a_suspect_that_decodes_alone_is_innocent(decoder: IsolatedDecoder, tmp_path: Path) -> None:
    content = hook(f"segv once={tmp_path / 'done'}", FILM)
    assert outcome(decoder.decode("id", content, RECIPE)) == outcome(decode_content(FILM, RECIPE))
    assert decoder.starts == 2


def test_a_kill_from_outside_blames_no_image(decoder: IsolatedDecoder, tmp_path: Path) -> None:
    content = hook(f"kill once={tmp_path / 'done'}", FILM)
    assert outcome(decoder.decode("id", content, RECIPE)) == outcome(decode_content(FILM, RECIPE))
    with pytest.raises(WorkerKilled, match=r"3 times \(SIGKILL\), last on image abc;") as caught:
        decoder.decode("abc", hook("kill"), RECIPE)
    assert decoder.starts == 2 + 2
    assert isinstance(caught.value, CxrRayError)
    assert code_of(decoder.decode("next", FILM, RECIPE)) is None


def test_processor_time_decides_at_once(hooks: None) -> None:
    decoder = IsolatedDecoder(ProcessLimits(cpu_seconds=0.5, wall_seconds=60, memory_bytes=MEMORY))
    for _ in range(3):
        decoder.decode("before", FILM, RECIPE)
    start = time.monotonic()
    slow = decoder.decode("slow", hook("spin"), RECIPE)
    assert code_of(slow) == "time_limit"
    assert "more than 0.5 CPU seconds" in str(slow.error)
    assert decoder.starts == 1
    assert time.monotonic() - start < 20  # of the 60 that it would spin
    # Less than allowed, several times over: each image has its own count.
    for _ in range(3):
        assert code_of(decoder.decode("slow", hook("spin 0.3", FILM), RECIPE)) is None
    decoder.close()


def test_time_on_the_clock_decides_after_three_repeats(hooks: None, tmp_path: Path) -> None:
    decoder = IsolatedDecoder(ProcessLimits(cpu_seconds=60, wall_seconds=0.4, memory_bytes=MEMORY))
    once = hook(f"sleep once={tmp_path / 'done'}", hook("exit 0"))
    assert code_of(decoder.decode("busy machine", once, RECIPE)) == "unknown_format"
    assert decoder.starts == 2
    stuck = decoder.decode("stuck", hook("sleep"), RECIPE)
    assert code_of(stuck) == "time_limit"
    assert decoder.starts == 2 + 3
    decoder.close()


@pytest.mark.parametrize("words", ["hog", "reserve 4000"])
def test_memory_beyond_the_limit(words: str, decoder: IsolatedDecoder) -> None:
    decoder.decode("before", FILM, RECIPE)
    hungry = decoder.decode("hungry", hook(words), RECIPE)
    assert code_of(hungry) == "memory_limit"
    assert str(MEMORY) in str(hungry.error)
    assert decoder.starts == 2, "a process that decoded before is not believed, a fresh one is"
    assert code_of(decoder.decode("next", FILM, RECIPE)) is None


def test_slow_growth_is_seen_by_the_parent(hooks: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Resident memory is watched too: here the wall inside the child stands far behind the limit."""
    decoder = IsolatedDecoder(ProcessLimits(memory_bytes=2**40))
    decoder.decode("before", FILM, RECIPE)
    child = decoder._child
    assert child is not None
    monkeypatch.setattr(child, "limits", ProcessLimits(memory_bytes=2**28))
    death = child.decode(hook("hog 400"), RECIPE)
    assert isinstance(death, Death)
    assert death.ending is Ending.MEMORY_LIMIT
    decoder.close()


def test_an_image_too_large_for_memory_keeps_its_facts(hooks: None) -> None:
    """OpenCV says 'insufficient memory' in an error of its own."""
    content = opencv_bytes(np.eye(12_000, dtype=np.uint8) * 255, ".png")
    decoder = IsolatedDecoder(ProcessLimits(memory_bytes=190 * 2**20))
    refused = decoder.decode("large", content, RECIPE)
    assert (code_of(refused), refused.facts.image_rows, refused.pixels) == ("memory_limit", 12_000, None)
    assert decoder.starts == 1
    decoder.close()


def test_a_process_that_cannot_start_blames_no_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child_process, "MODULE", "cxr_ray.no_such_module")
    decoder = IsolatedDecoder(ProcessLimits())
    with pytest.raises(WorkerKilled, match="cannot start"):
        decoder.decode("id", FILM, RECIPE)
    assert decoder.starts == 3


def test_a_start_imports_little() -> None:
    """A crash costs four starts (three tries alone and the next image's process)."""
    heavy = "torch", "ray", "pandas", "pyarrow", "pydicom", "fsspec"
    program = f"import sys, {child_process.MODULE}; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_a_machine_without_a_process_to_spare(
    decoder: IsolatedDecoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", str(ROOT / "no-such-interpreter"))
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(WorkerKilled, match="No such file"):
        decoder.decode("id", FILM, RECIPE)
    assert len(os.listdir("/proc/self/fd")) == before
    monkeypatch.undo()
    assert code_of(decoder.decode("id", FILM, RECIPE)) is None


# -- the process -----------------------------------------------------------------------------------------


def test_an_interrupted_image_gives_its_answer_to_nobody(decoder: IsolatedDecoder) -> None:
    class Interrupt(Exception):
        pass

    def interrupt(number: int, frame: object) -> None:
        raise Interrupt

    decoder.decode("first", FILM, RECIPE)
    previous = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.3)
    try:
        with pytest.raises(Interrupt):
            decoder.decode("interrupted", hook("sleep 1", FILM), RECIPE)
    finally:
        signal.signal(signal.SIGALRM, previous)
    assert decoder.suspect is None
    assert code_of(decoder.decode("next", b"no film", RECIPE)) == "unknown_format"


def test_one_decoder_serves_a_process_and_leaves_no_descriptors(hooks: None) -> None:
    limits = ProcessLimits(memory_bytes=MEMORY)
    decoder = isolated_decoder(limits)
    assert isolated_decoder(ProcessLimits(memory_bytes=MEMORY)) is decoder
    decoder.decode("id", FILM, RECIPE)
    before = len(os.listdir("/proc/self/fd"))
    decoder.decode("id", hook("exit"), RECIPE)
    decoder.decode("id", FILM, RECIPE)
    assert len(os.listdir("/proc/self/fd")) == before
    other = isolated_decoder(ProcessLimits(memory_bytes=2 * MEMORY))
    assert other is not decoder
    assert decoder._child is None
