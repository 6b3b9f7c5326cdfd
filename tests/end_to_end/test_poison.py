"""Files that crash, stall or exhaust their decoder: each gets its own code, every other image its score."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from poisoned_archive import CODES, DECODE_MEMORY, write_archive

from end_to_end.commands import job_environment, read_table, score_cheaply

IMAGES = 300
OF_EACH_KIND = 3  # 1 %


def test_poison_costs_its_own_rows_only(tmp_path: Path) -> None:
    expected = write_archive(tmp_path / "films", IMAGES, poisoned=OF_EACH_KIND * len(CODES))
    done = score_cheaply(
        tmp_path / "films",
        tmp_path / "out",
        *("unit_size=50", "decode_seconds=2", f"decode_memory={DECODE_MEMORY}"),
        env=job_environment(CXR_RAY_TEST_HOOKS="1"),
        timeout=500,
    )
    table = read_table(tmp_path / "out" / "scores")
    found = {Path(row["uri"]).name: row for row in table.to_pylist()}
    assert found.keys() == expected.keys()
    wrong = {
        name: (row["reason"], expected[name])
        for name, row in found.items()
        if row["reason"] != expected[name]
    }
    assert not wrong
    assert Counter(filter(None, expected.values())) == dict.fromkeys(CODES.values(), OF_EACH_KIND)
    assert done.summary["quarantined"] == OF_EACH_KIND * len(CODES)
    assert done.summary["scored"] == IMAGES - OF_EACH_KIND * len(CODES)
    for row in found.values():
        assert (row["p_covid"] is None) == (row["reason"] is not None)
        assert row["content_sha256"] or row["reason"] == "empty_file"
    details = {row["reason"]: row["detail"] for row in found.values() if row["reason"]}
    # Ray's workers must see how their child ended, not only that it did.
    assert "exit code 1" in details["decoder_crashed"]
    assert str(DECODE_MEMORY) in details["memory_limit"]
