"""Silence is shared by threads and leaves no trace."""

from __future__ import annotations

import logging
import os
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from decode_samples import dicom_bytes, dicom_object, grey_pixels

from cxr_ray.decode import decode
from cxr_ray.decode.dicom_quiet import quiet_dicom, quiet_stderr


def test_warnings_and_logs_are_silent_inside_and_back_outside(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("pydicom.pixels")
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        with quiet_dicom(), quiet_dicom():
            warnings.warn("inside", stacklevel=1)
            logger.error("inside")
        warnings.warn("outside", stacklevel=1)
        logger.error("outside")
    assert [str(item.message) for item in seen] == ["outside"]
    assert [record.message for record in caplog.records] == ["outside"]


def test_an_exception_inside_ends_the_silence() -> None:
    level, filters = logging.getLogger("pydicom").level, list(warnings.filters)
    with pytest.raises(KeyError), quiet_dicom():
        raise KeyError
    assert logging.getLogger("pydicom").level == level
    assert warnings.filters == filters


def test_threads_decode_alike_and_leave_the_filters_as_they_were() -> None:
    data = dicom_bytes(dicom_object(grey_pixels()))
    level, filters = logging.getLogger("pydicom").level, list(warnings.filters)
    barrier = threading.Barrier(4)

    def many(_: int) -> list[np.ndarray]:
        barrier.wait()
        return [decode(data).pixels for _ in range(40)]

    with ThreadPoolExecutor(4) as pool:
        for pixels_list in pool.map(many, range(4)):
            for pixels in pixels_list:
                np.testing.assert_array_equal(pixels, grey_pixels())
    assert logging.getLogger("pydicom").level == level
    assert warnings.filters == filters


def test_standard_error_of_c_code_is_silent_inside_and_back_outside(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with quiet_stderr():
        os.write(2, b"inside")
    os.write(2, b"outside")
    assert capfd.readouterr().err == "outside"
