"""How fast the network is: pixels to score and map, against plain PyTorch and against what the machine could do.

    python bench/model.py [--weights default] [--forms eager torch fused] [--processes 2] [--seconds 20] [--rounds 3]
    python bench/model.py --device cuda [--batch 64] [--dtype float32]

Every form runs the same nets: ``eager`` as they are defined, ``torch`` folded and in strips, ``fused`` compiled (on
a GPU: Triton kernels, recorded). On a CPU ``--processes`` processes of one thread each score side by side, as the
pipeline runs them; forms take turns, round by round, so that a machine whose speed drifts is fair to all. Prints
images/s, ratios, CPU and memory; then milliseconds per stage in one process; then the floor: arithmetic and traffic of
the nets, and this machine's measured best at both.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from cxr_ray.pipeline.scorer_process import WORKER_ENVIRONMENT
from cxr_ray.preprocess import COLUMNS, ROWS

FORMS = ("eager", "torch", "fused")
ENGINES = {"cpu": "fused", "cuda": "triton"}
"""What ``fused`` must turn out to be."""
DIFFERENT_IMAGES = 16


def make_scorer(form: str, arguments: argparse.Namespace) -> Any:
    """A scorer as the pipeline makes it, whose network has one of ``FORMS``."""
    from cxr_ray.scorer import Scorer, network_of
    from cxr_ray.weights import load_bundle

    bundle = load_bundle(arguments.weights)
    scorer = Scorer(
        bundle,
        device=arguments.device,
        dtype=arguments.dtype if form == "fused" else "float32",
        compute_batch=arguments.batch,
        fused=form == "fused",
        full_maps=False,
    )
    if form == "fused" and scorer.engine != ENGINES[scorer.device.type]:
        raise SystemExit(
            f"no {ENGINES[scorer.device.type]} kernels here (cxr-ray info names those there are); name other --forms"
        )
    if form == "eager":
        scorer._network = network_of(bundle, mask_style=scorer.mask_style).to(arguments.device)
    return scorer


def images(count: int) -> np.ndarray:
    """Phantoms, preprocessed."""
    from cxr_ray.phantoms import phantom
    from cxr_ray.preprocess import preprocess

    different = min(count, DIFFERENT_IMAGES)
    made = [preprocess(phantom(np.random.default_rng(seed))) for seed in range(different)]
    return np.stack([made[i % different] for i in range(count)])


def work(form: str, arguments: argparse.Namespace, ready: Any, go: Any, answers: Any) -> None:
    """One process: make a scorer, then on every signal score for a time and tell of it."""
    scorer = make_scorer(form, arguments)
    pixels = images(4 * scorer.micro_batch)  # as the pipeline calls it
    scorer.score(pixels)
    ready.release()
    while go.get():
        begin, cpu, done = time.monotonic(), time.process_time(), 0
        while time.monotonic() - begin < arguments.seconds:
            scorer.score(pixels)
            done += len(pixels)
        wall = time.monotonic() - begin
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        answers.put((done / wall, 1000 * (time.process_time() - cpu) / done, peak))


def throughput(arguments: argparse.Namespace) -> None:
    """Forms in turns; a table of medians and of ratios round by round."""
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    teams: dict[str, tuple[list[Any], list[Any]]] = {}
    for form in arguments.forms:
        ready, signals = context.Semaphore(0), [context.Queue() for _ in range(arguments.processes)]
        team = [
            context.Process(target=work, args=(form, arguments, ready, signal, answers), daemon=True)
            for signal in signals
        ]
        for process in team:
            process.start()
        for _ in team:
            if not ready.acquire(timeout=300):
                raise SystemExit(f"{form}: a process did not get ready")
        teams[form] = (team, signals)
    rates: dict[str, list[float]] = {form: [] for form in arguments.forms}
    others: dict[str, list[tuple[float, float]]] = {form: [] for form in arguments.forms}
    for _ in range(arguments.rounds):
        for form, (_, signals) in teams.items():
            for signal in signals:
                signal.put(True)
            found = [answers.get() for _ in signals]
            rates[form].append(sum(rate for rate, _, _ in found))
            others[form] += [(cpu, peak) for _, cpu, peak in found]
    for team, signals in teams.values():
        for signal in signals:
            signal.put(False)
        for process in team:
            process.join()
    base = arguments.forms[0]
    print(
        f"| form | images/s | CPU ms an image | peak MiB a process | times {base}, by round |\n"
        + "| --- " * 5
        + "|"
    )
    for form in arguments.forms:
        ratios = ", ".join(f"{a / b:.2f}" for a, b in zip(rates[form], rates[base], strict=True))
        cpu = statistics.median(cpu for cpu, _ in others[form])
        peak = max(peak for _, peak in others[form])
        print(f"| {form} | {statistics.median(rates[form]):.2f} | {cpu:.1f} | {peak:.0f} | {ratios} |")


def stages(arguments: argparse.Namespace) -> None:
    """Milliseconds an image by stage, in one process on a quiet core."""
    import torch

    print("\n| form | " + " | ".join(STAGES) + " | whole |\n" + "| --- " * (len(STAGES) + 2) + "|")
    for form in arguments.forms:
        scorer = make_scorer(form, arguments)
        pixels = images(scorer.micro_batch)
        scorer.score(pixels)
        network, batch = scorer._network, torch.from_numpy(pixels).to(scorer.device)
        with torch.inference_mode():
            done = network(batch)
            frame = batch.float() / 255
            calls = {
                "Module 1": lambda: network.segmenter(frame),  # noqa: B023  # called in this very turn
                "scattering": lambda: network.ensemble.scattering(frame),  # noqa: B023
                "paths": lambda: network.ensemble(done.path_inputs),  # noqa: B023
            }
            times = [_milliseconds(calls[name], arguments.device) / len(pixels) for name in STAGES]
        whole = _milliseconds(lambda: scorer.score(pixels), arguments.device) / len(pixels)  # noqa: B023
        print(f"| {form} | " + " | ".join(f"{value:.2f}" for value in times) + f" | {whole:.2f} |")


STAGES = ("Module 1", "scattering", "paths")


def _milliseconds(call: Any, device: str, repeats: int = 7) -> float:
    import torch

    found = []
    for _ in range(repeats):
        begin = time.perf_counter()
        call()
        if device != "cpu":
            torch.cuda.synchronize()
        found.append(1000 * (time.perf_counter() - begin))
    return min(found)


def floor(arguments: argparse.Namespace) -> None:
    """Arithmetic and least traffic of one image, and what they cost at the machine's measured best."""
    import torch

    from cxr_ray.weights import load_bundle

    products = module_1_products() + load_bundle(arguments.weights).meta.paths * path_products()
    # Least traffic: every block of Module 1 reads its 48 channels once and writes them once.
    traffic = 4 * ROWS * COLUMNS * 48 * (2 * 6)
    torch.set_num_threads(1)
    size = 1024 if arguments.device == "cpu" else 8192  # smaller ones are over before a GPU is busy
    a = torch.rand(size, size, device=arguments.device)
    matmul = min(_milliseconds(lambda: a @ a, arguments.device) for _ in range(3))
    rate = size**3 / matmul / 1e6  # GMAC/s
    large = torch.rand(64 * 2**20, device=arguments.device)
    copy = min(_milliseconds(large.clone, arguments.device) for _ in range(2))
    bandwidth = 2 * 4 * large.numel() / copy / 1e6  # GB/s
    many = arguments.processes if arguments.device == "cpu" else 1
    print(
        f"\nfloor: {products / 1e9:.2f} GMAC an image (without scattering) at {rate:.1f} GMAC/s"
        f"{' a core' if many > 1 else ''}, as a matrix product reaches it: {products / rate / 1e6 / many:.1f} ms; "
        f"{traffic / 1e6:.0f} MB of least traffic at {bandwidth:.1f} GB/s, as a copy reaches it: "
        f"{traffic / bandwidth / 1e6:.1f} ms"
    )


def module_1_products() -> int:
    """Multiply-adds of Module 1 for one image (REFERENCE_SPEC section 4)."""
    taps = 9 + 25 + 49
    stem = taps + 3 * 16 + taps * 16 + 3 * 16 * 16 + 48
    block = taps * 48 + 3 * 48 * 16 + taps * 16 + 3 * 16 * 16 + 48 * 48
    return ROWS * COLUMNS * (stem + 5 * block + 2 * 48)


def path_products() -> int:
    """Multiply-adds of one path (REFERENCE_SPEC section 6)."""
    block = 27 * 51 + 3 * 51 * 17 + 27 * 17 + 3 * 17 * 17 + 51 * 51
    last = 27 * 51 + 3 * 51 * 2 + 27 * 2 + 3 * 2 * 2 + 51 * 2
    return ROWS // 4 * (COLUMNS // 4) * (2 * block + last)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", default="default")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", help="of the fused form on a GPU")
    parser.add_argument("--batch", type=int, help="images per call on a GPU")
    parser.add_argument("--forms", nargs="+", choices=FORMS)
    parser.add_argument("--processes", type=int, help="default: 2 on a CPU, 1 on a GPU")
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    if any(os.environ.get(name) != value for name, value in WORKER_ENVIRONMENT.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | WORKER_ENVIRONMENT)
    arguments.forms = arguments.forms or FORMS
    arguments.processes = arguments.processes or (2 if arguments.device == "cpu" else 1)
    throughput(arguments)
    stages(arguments)
    floor(arguments)


if __name__ == "__main__":
    main()
