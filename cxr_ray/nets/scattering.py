"""Wavelet scattering, J = 2, L = 6, order 2: ``[B, H, W]`` -> ``[B, 49, H // 4, W // 4]`` (REFERENCE_SPEC section 5).

Filters are kymatio's; the transform is our own. It uses three facts: the input and every modulus are real, wavelets
act in the Fourier domain, and the low-pass filter is an outer product of two 1-D filters. So "low-pass, sub-sample,
crop" is one small matrix from the left and one from the right, cheaper than two FFTs per channel.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812

# The filter bank module is imported by itself: kymatio's torch frontend at the top level (``kymatio.torch``) pulls in
# the 3-D transform, which needs a SciPy function that recent SciPy no longer has. The 2-D filter bank needs only NumPy
# and scipy.fft.
from kymatio.scattering2d.filter_bank import filter_bank
from numpy.typing import NDArray
from torch import Tensor, nn

SCALES = 2
ANGLES = 6
CHANNELS = 1 + SCALES * ANGLES + ANGLES * ANGLES
STEP = 2**SCALES
"""Output is sub-sampled by this factor."""


class Scattering(nn.Module):
    """Fixed transform of frames of one size; no trainable numbers and nothing in the saved state.

    Channel order: 0 low-pass; 1-6 first order at scale 0; 7-12 first order at scale 1; 13-48 second order, first
    angle outer, second angle inner. ``rows`` and ``columns`` must be multiples of 4.
    """

    wavelets_0: Tensor
    wavelets_1: Tensor

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        if rows % STEP or columns % STEP:
            raise ValueError(f"scattering needs a frame in multiples of {STEP}, got {rows} x {columns}")
        self.rows, self.columns = rows, columns
        for name, values in _filters(rows, columns).items():
            self.register_buffer(name, torch.from_numpy(values), persistent=False)

    def forward(self, x_BHW: Tensor) -> Tensor:
        """``x_BHW``: float32, standardised pixels, contiguous. Returns float32 ``[B, 49, H // 4, W // 4]``."""
        padded = F.pad(x_BHW.unsqueeze(1), (STEP, STEP, STEP, STEP), mode="reflect").squeeze(1)
        spectrum = torch.view_as_real(torch.fft.fft2(padded)).flatten(-2)[:, None]
        order_1_fine = _modulus(spectrum * self.wavelets_0)
        order_1_coarse = _modulus(_filter_and_fold(spectrum, self.wavelets_1))
        fine_spectrum = torch.view_as_real(torch.fft.fft2(order_1_fine)).flatten(-2)[:, :, None]
        order_2 = _modulus(_filter_and_fold(fine_spectrum, self.wavelets_1)).flatten(1, 2)
        return torch.cat(
            (
                self._smooth(padded[:, None], "full"),
                self._smooth(order_1_fine, "full"),
                self._smooth(order_1_coarse, "half"),
                self._smooth(order_2, "half"),
            ),
            dim=1,
        )

    def _smooth(self, x_BCHW: Tensor, resolution: str) -> Tensor:
        """Low-pass, sub-sample to a quarter of the frame, crop the padding."""
        left = self.get_buffer(f"smooth_rows_{resolution}")
        right = self.get_buffer(f"smooth_columns_{resolution}")
        return torch.matmul(torch.matmul(left, x_BCHW), right)


def _modulus(spectrum: Tensor) -> Tensor:
    """Inverse FFT of an interleaved spectrum ``[..., H, 2 W]``, then absolute value ``[..., H, W]``."""
    return torch.fft.ifft2(torch.view_as_complex(spectrum.unflatten(-1, (-1, 2)))).abs()


def _filter_and_fold(spectrum: Tensor, wavelets: Tensor) -> Tensor:
    """Product with the wavelets, sub-sampled by 2 in both axes; interleaved, ``[..., H, 2 W]`` -> ``[..., H / 2, W]``.

    Sub-sampling on the spectrum is the mean of its four quadrants (the 1 / 4 is in the wavelets), so the products are
    summed quadrant by quadrant and the full-size product is never stored.
    """
    half_rows, half_columns = spectrum.shape[-2] // 2, spectrum.shape[-1] // 2
    total: Tensor | None = None
    for rows in (slice(None, half_rows), slice(half_rows, None)):
        for columns in (slice(None, half_columns), slice(half_columns, None)):
            quadrant, filters = spectrum[..., rows, columns], wavelets[..., rows, columns]
            total = quadrant * filters if total is None else torch.addcmul(total, quadrant, filters)
    assert total is not None
    return total


@lru_cache(maxsize=4)
def _filters(rows: int, columns: int) -> dict[str, NDArray[np.float32]]:
    """Buffers of ``Scattering`` for one frame size; seconds to build, so kept for the life of the process."""
    padded_rows, padded_columns = rows + 2 * STEP, columns + 2 * STEP
    bank = filter_bank(padded_rows, padded_columns, SCALES, ANGLES)
    wavelets = [psi["levels"][0] for psi in bank["psi"]]
    buffers: dict[str, NDArray[np.float32]] = {
        "wavelets_0": _interleave(wavelets[:ANGLES]),
        # Always followed by sub-sampling by 2 in both axes, a mean of four: a power of two, so exact.
        "wavelets_1": _interleave(wavelets[ANGLES:]) / np.float32(4),
    }
    for resolution, low_pass, step in (
        ("full", bank["phi"]["levels"][0], STEP),
        ("half", bank["phi"]["levels"][1], STEP // 2),
    ):
        over_rows, over_columns = _separate(low_pass.astype(np.float64))
        buffers[f"smooth_rows_{resolution}"] = _smoothing_matrix(over_rows, step, rows // STEP)
        buffers[f"smooth_columns_{resolution}"] = np.ascontiguousarray(
            _smoothing_matrix(over_columns, step, columns // STEP).T
        )
    return buffers


def _interleave(wavelets: list[NDArray[np.float32]]) -> NDArray[np.float32]:
    """Each value twice, ``[L, H, 2 W]``: wavelets are real in Fourier, so both parts of a spectrum take the same."""
    return np.repeat(np.stack(wavelets).astype(np.float32), 2, axis=-1)


def _separate(low_pass: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The two 1-D spectra whose outer product is the (Gaussian) low-pass: its first singular pair."""
    u, s, vh = np.linalg.svd(low_pass, full_matrices=False)
    root = np.sqrt(s[0])
    sign = np.sign(u[0, 0])
    return sign * root * u[:, 0], sign * root * vh[0]


def _smoothing_matrix(spectrum: NDArray[np.float64], step: int, size: int) -> NDArray[np.float32]:
    """``[size, n]``: circular filtering of n samples, every ``step``-th kept, first one dropped (the padding)."""
    response = np.fft.ifft(spectrum).real
    kept = step * np.arange(1, size + 1)
    samples = np.arange(len(spectrum))
    return response[(kept[:, None] - samples[None, :]) % len(spectrum)].astype(np.float32)
