"""The forms for GPUs: the same functions, on a GPU where there is one, else in Triton's interpreter."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_nets_fused import path_inputs, trained

from cxr_ray import scorer
from cxr_ray.errors import UsageError
from cxr_ray.nets.ensemble import Ensemble
from cxr_ray.nets.folding import free_scratch
from cxr_ray.nets.gpu import network as gpu_network
from cxr_ray.nets.network import Network
from cxr_ray.nets.path import Variant
from cxr_ray.nets.segmenter import Segmenter

TESTS = Path(__file__).parent
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
INTERPRET = "TRITON_INTERPRET"
ROWS, COLUMNS = 12, 16
"""Of the network in these tests."""

pytestmark = pytest.mark.skipif(
    not gpu_network.has_triton(), reason="triton is not installed (the gpu extra)"
)

if gpu_network.has_triton():
    # Triton looks at the variable when it and the kernels are imported, and once more when they run. It is not left
    # there for the processes of other tests.
    if DEVICE == "cpu":
        assert "triton" not in sys.modules, (
            "an earlier module imported triton, which cannot be interpreted any more"
        )
        os.environ[INTERPRET] = "1"
    from cxr_ray.nets.gpu.ensemble import GpuEnsemble
    from cxr_ray.nets.gpu.segmenter import GpuSegmenter

    os.environ.pop(INTERPRET, None)


def places(interpreted: int, compiled: int) -> int:
    """Places a program: the interpreter is quick with many, a GPU has registers for few."""
    return interpreted if DEVICE == "cpu" else compiled


@pytest.fixture(autouse=True)
def interpreted(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    if DEVICE == "cpu":
        monkeypatch.setenv(INTERPRET, "1")
    scorer._check_device(DEVICE)  # without TF32: torch's forms are what the kernels are compared with
    with torch.inference_mode():
        yield


def segmenter(blocks: int) -> Segmenter:
    return trained(Segmenter(blocks=blocks).initialise(3)).to(DEVICE)


def frames(count: int, rows: int, columns: int) -> torch.Tensor:
    levels = np.random.default_rng(5).integers(0, 256, (count, rows, columns))
    return torch.from_numpy(levels.astype(np.float32) / 255).to(DEVICE)


def apart(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference, as a share of the largest value."""
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize(
    ("count", "rows", "columns", "blocks", "pixels"),
    [
        (2, 37, 52, 3, 2048),  # more than one program; the last of them runs over the end
        (1, 7, 9, 2, 128),  # less than a program, and than the reach of a kernel
        (1, 41, 1, 1, 64),  # the stem is the last block as well
    ],
)
def test_it_is_the_segmenter(count: int, rows: int, columns: int, blocks: int, pixels: int) -> None:
    plain, x = segmenter(blocks), frames(count, rows, columns)
    form = GpuSegmenter(plain, pixels=places(pixels, 64))
    assert apart(form(x), plain(x)) < 1e-5  # 1e-6 was seen


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float16, 4e-3), (torch.bfloat16, 4e-2)])
def test_with_sixteen_bits_it_is_nearly_the_segmenter(dtype: torch.dtype, limit: float) -> None:
    """The limits are three times what was seen in the interpreter, which cuts bfloat16 off where a GPU rounds it."""
    plain, x = segmenter(3), frames(1, 17, 23)
    found = apart(GpuSegmenter(plain, dtype=dtype, pixels=places(512, 64))(x), plain(x))
    assert limit / 100 < found < limit


def test_neither_neighbours_nor_calls_before_change_a_bit() -> None:
    x = frames(3, 8, 11)
    x[1] = torch.nan  # would show if a tap reached beyond its own frame
    form = GpuSegmenter(segmenter(2), pixels=64, images=2)
    together = form(x)
    form.images = 16
    form(frames(1, 5, 6))
    assert together[1].isnan().any()
    assert all(torch.equal(together[i], form(x[i : i + 1])[0]) for i in (2, 0))


def test_what_it_cannot_do_is_refused() -> None:
    with pytest.raises(ValueError, match="eval mode"):
        GpuSegmenter(Segmenter(blocks=1))
    with pytest.raises(ValueError, match="float64"):
        GpuSegmenter(segmenter(1), dtype=torch.float64)


def ensemble(*, paths: int, classes: int = 2, lung_gate: bool = False) -> Ensemble:
    made = Ensemble(rows=ROWS, columns=COLUMNS, paths=paths, classes=classes, lung_gate=lung_gate)
    for seed, path in enumerate(made.paths):
        path.initialise(seed)
    return trained(made).to(DEVICE)


@pytest.mark.parametrize(
    ("paths", "lung_gate", "variant"), [(2, False, None), (1, True, "multiply"), (1, False, "threshold")]
)
def test_it_is_the_ensemble(paths: int, lung_gate: bool, variant: Variant | None) -> None:
    plain, inputs = ensemble(paths=paths, lung_gate=lung_gate), path_inputs(2)[..., :23, :19].to(DEVICE)
    form = GpuEnsemble(plain, pixels=places(1024, 32))
    expected = plain(inputs, variant)
    for _ in range(2):  # buffers of an earlier call leave no trace
        assert apart(form(inputs, variant), expected) < 1e-5  # 1e-6 was seen


def test_a_path_map_does_not_depend_on_neighbours() -> None:
    form, inputs = (
        GpuEnsemble(ensemble(paths=1), pixels=places(256, 32)),
        path_inputs(2)[..., :9, :11].to(DEVICE),
    )
    spoilt = inputs.clone()
    spoilt[0] = torch.nan
    assert torch.equal(form(spoilt)[1], form(inputs[1:])[0])


def test_more_classes_are_left_to_torch() -> None:
    with pytest.raises(ValueError, match="2 classes, this ensemble has 3"):
        GpuEnsemble(ensemble(paths=1, classes=3))
    net = network(classes=3)
    plain = net.ensemble
    assert scorer._gpu_engine(net, (ROWS, COLUMNS)) == "triton"
    assert net.ensemble is plain


def network(classes: int = 2) -> Network:
    """As short and small as can be."""
    return Network(segmenter(1), ensemble(paths=1, classes=classes), mean=128, std=60).to(DEVICE).eval()


def test_a_scorer_on_a_gpu_takes_them_after_a_check() -> None:
    net, x = network(), frames(1, ROWS, COLUMNS)
    expected = net.segmenter(x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert scorer._gpu_engine(net, (ROWS, COLUMNS)) == "triton"
    assert isinstance(net.segmenter, GpuSegmenter)
    assert isinstance(net.ensemble, GpuEnsemble)
    assert apart(net.segmenter(x), expected) < 1e-5
    assert net.segmenter.scratch._buffers
    free_scratch(net)
    assert not net.segmenter.scratch._buffers


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_sixteen_bits_are_for_module_1(dtype: str) -> None:
    net = network()
    assert scorer._gpu_engine(net, (ROWS, COLUMNS), dtype) == "triton"
    assert isinstance(net.segmenter, GpuSegmenter)
    assert net.segmenter.dtype == scorer.STORAGE[dtype]


def test_sixteen_bits_without_the_kernels_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(GpuSegmenter, "forward", fails)
        with pytest.raises(UsageError, match=r"float16 needs the Triton kernels: .*no kernel image.*float32"):
            scorer._gpu_engine(network(), (ROWS, COLUMNS), "float16")
    monkeypatch.setattr(scorer, "has_triton", lambda: False)
    with pytest.raises(UsageError, match="triton is not installed"):
        scorer._gpu_engine(network(), (ROWS, COLUMNS), "float16")


def fails(*_: Any) -> torch.Tensor:
    raise RuntimeError("no kernel image for this chip\n(and a page more)")


@pytest.mark.parametrize(
    ("forward", "message"),
    [
        (lambda self, x: self.right(x) + 2e-4, "differ by 2.0e-04 in logits, more than 1.0e-04"),
        (lambda self, x: self.right(x) * torch.nan, "differ by nan"),
        (fails, r"failed \(RuntimeError: no kernel image for this chip\)"),
    ],
)
def test_torch_does_the_work_where_it_does_not_compute_the_same(
    monkeypatch: pytest.MonkeyPatch, forward: Any, message: str
) -> None:
    net = network()
    plain = net.segmenter
    monkeypatch.setattr(GpuSegmenter, "right", lambda _, x: plain(x), raising=False)
    monkeypatch.setattr(GpuSegmenter, "forward", forward)
    with pytest.warns(RuntimeWarning, match=f"the network stays with torch's own kernels: .*{message}"):
        assert scorer._gpu_engine(net, (ROWS, COLUMNS)) == "torch"
    assert net.segmenter is plain


def test_torch_does_all_the_work_where_only_the_paths_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    net = network()
    before = (net.segmenter, net.ensemble)
    right = GpuEnsemble.trunks
    monkeypatch.setattr(GpuEnsemble, "trunks", lambda self, x, attention: right(self, x, attention) * 1.1)
    with pytest.warns(RuntimeWarning, match=r"differ by .* in path maps"):
        assert scorer._gpu_engine(net, (ROWS, COLUMNS)) == "torch"
    assert (net.segmenter, net.ensemble) == before


def test_without_triton_torch_does_the_work_and_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scorer, "has_triton", lambda: False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert scorer._gpu_engine(network(), (ROWS, COLUMNS)) == "torch"


def in_a_new_process(*command: str | Path, **environment: str) -> str:
    kept = {name: value for name, value in os.environ.items() if name != INTERPRET}
    done = subprocess.run(
        [sys.executable, *command], env=kept | environment, cwd=TESTS.parent, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_scoring_on_a_cpu_imports_no_triton() -> None:
    code = (
        "import sys; from cxr_ray import Scorer, load_bundle; Scorer(load_bundle('seeded'));"
        "print('triton' in sys.modules)"
    )
    assert in_a_new_process("-c", code) == "False\n"


def test_every_kernel_compiles_for_a_gpu(tmp_path: Path) -> None:
    """The interpreter takes much that the compiler does not, and the compiler needs no GPU."""
    script, cache = TESTS / "gpu_kernels.py", {"TRITON_CACHE_DIR": str(tmp_path)}
    table = in_a_new_process(script, "--storage", "fp32", "--branches", "1", **cache).splitlines()[2:]
    assert len(table) == 11
    stacks = [int(row.split("|")[6]) for row in table]
    assert max(stacks) < 64, "registers are spilled"
