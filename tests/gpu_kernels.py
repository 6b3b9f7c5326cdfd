"""Compile every kernel of ``cxr_ray.nets.gpu`` for a GPU that need not be there; says what each takes of it.

    python tests/gpu_kernels.py [--capability 90] [--storage fp32 fp16 bf16] [--pixels 64 32] [--warps 8]

A table of registers, bytes of stack and instructions, by CUDA's own assembler, which triton brings along.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

sys.path.insert(0, str(Path(__file__).parents[1]))

from cxr_ray.nets.gpu.half_blocks import SIZES, first_half, second_half

BRANCHES = {"segmenter": ((3, 1), (5, 3), (7, 5)), "ensemble": ((3, 1), (3, 2), (3, 3))}
FLOAT32 = {"weights", "bias", "after"}


def variants(
    storage: str, branches: int, segmenter_pixels: int, ensemble_pixels: int
) -> list[tuple[Any, dict[str, int | bool], dict[str, str]]]:
    """Kernel, constants and types of the other arguments, for all that ``GpuSegmenter`` launches, and with float32 all
    that ``GpuEnsemble`` launches."""
    found = []
    for kernel, dilation in BRANCHES["segmenter"][:branches]:
        for stem in (True, False):
            shape: dict[str, int | bool] = {
                "K": kernel,
                "D": dilation,
                "PIXELS": segmenter_pixels,
                "FILTERS": 16,
            }
            shape |= {"GROUPS": 1, "CHANNELS": 1} if stem else {"GROUPS": 3, "CHANNELS": 16}
            found.append((first_half, shape, types(first_half, storage, stem=stem, last=False)))
            for last in (False, True):
                every = shape | {"LAST": last, "WIDTH": 16, "STRIDE": 16}
                found.append((second_half, every, types(second_half, storage, stem=stem, last=last)))
    for kernel, dilation in BRANCHES["ensemble"][:branches] if storage == "fp32" else ():
        for width, filters in ((17, 32), (2, 16)):
            last = width == 2
            shape = {"K": kernel, "D": dilation, "FILTERS": filters, "CHANNELS": 64}
            shape["PIXELS"] = ensemble_pixels
            found.append(
                (first_half, shape | {"GROUPS": 1}, types(first_half, storage, stem=False, last=False))
            )
            every = shape | {"LAST": last, "WIDTH": width, "STRIDE": 64}
            for groups in (1, 0) if last else (1,):
                kinds = types(second_half, storage, stem=False, last=last)
                found.append((second_half, every | {"GROUPS": groups}, kinds))
    return found


def types(kernel: Any, storage: str, *, stem: bool, last: bool) -> dict[str, str]:
    def of(name: str) -> str:
        if name in SIZES:
            return "i32"
        if name in FLOAT32 or (stem and name in ("inputs", "raw")) or (last and name == "out"):
            return "*fp32"
        return "constexpr" if name.isupper() else f"*{storage}"

    return {name: of(name) for name in kernel.arg_names}


def compiled(
    kernel: Any, constants: dict[str, Any], signature: dict[str, str], capability: int, warps: int
) -> bytes:
    aligned = {(i,): [["tt.divisibility", 16]] for i, kind in enumerate(signature.values()) if kind[0] == "*"}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=aligned)
    options = {"num_warps": warps, "enable_fp_fusion": True}
    binary: bytes = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options).asm[
        "cubin"
    ]
    return binary


def disassembled(binary: bytes) -> tuple[str, str, int]:
    """Registers of a thread, bytes of its stack, instructions."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        usage = subprocess.run(
            [tool, "-res-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
        code = subprocess.run([tool, "-sass", file.name], capture_output=True, text=True, check=True).stdout
    registers = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    assert registers is not None
    return registers[1], registers[2], len(re.findall(r"^\s+/\*[0-9a-f]{4,}\*/", code, re.MULTILINE))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--capability", type=int, default=90)
    parser.add_argument("--storage", nargs="+", default=["fp32", "fp16", "bf16"])
    parser.add_argument("--branches", type=int, default=3, help="of each module, take only the first")
    parser.add_argument("--pixels", type=int, nargs=2, default=(64, 32), help="of Module 1 and of Module 2")
    parser.add_argument("--warps", type=int, default=8)
    arguments = parser.parse_args()
    print(
        "| storage | kernel | size | input -> output | registers | stack | instructions |\n"
        + "| --- " * 7
        + "|"
    )
    for storage in arguments.storage:
        for kernel, constants, signature in variants(storage, arguments.branches, *arguments.pixels):
            binary = compiled(kernel, constants, signature, arguments.capability, arguments.warps)
            kind = f"{constants['GROUPS']} x {constants['CHANNELS']} -> {constants['FILTERS']}"
            kind += ", last" if constants.get("LAST") else ""
            numbers = " | ".join(map(str, disassembled(binary)))
            print(f"| {storage} | {kernel.__name__} | {constants['K']} | {kind} | {numbers} |", flush=True)


if __name__ == "__main__":
    main()
