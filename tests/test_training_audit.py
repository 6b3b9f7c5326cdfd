"""The audit: the scorer's own scores, lungs hidden as said, honest counts, keys only, and a log of every test use."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hydra import compose, initialize_config_dir
from made_work import adding
from numpy.typing import NDArray
from omegaconf import OmegaConf
from sklearn.metrics import roc_auc_score
from training_material import make_pairs, make_shards

from cxr_ray.errors import OutputError, TrainingDataError, UsageError
from cxr_ray.scorer import Scorer
from cxr_ray.weights import Bundle, BundleMeta, save_bundle, seeded_bundle
from training.audit import job
from training.audit.chunks import map_chunks
from training.audit.classification import AuditSettings, audit, predictions_table
from training.audit.job import once_each
from training.audit.options import AuditOptions, audit_options
from training.audit.scoring import Predictions, hidden_frames, score_frames
from training.audit.segmentation import audit_segmentation
from training.audit.test_uses import public_command
from training.data import Example, Frames

CONF = Path(__file__).parents[1] / "conf"
QUICK = AuditSettings(draws=50)


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return seeded_bundle(0)


def with_lung_logit(bundle: Bundle, lung: float, **meta: Any) -> Bundle:
    """The segmenter replaced by one that says the same of every pixel."""
    state = bundle.segmenters["seeded"]
    head = {"head.weight": torch.zeros_like(state["head.weight"]), "head.bias": torch.tensor([lung, 0.0])}
    return Bundle.build(
        segmenters={"seeded": {**state, **head}},
        paths=bundle.paths,
        meta=dataclasses.replace(bundle.meta, **meta),
    )


def tissue_frames(count: int, rows: int = 300, columns: int = 340) -> NDArray[np.uint8]:
    """Frames without a pixel that the tissue gate would remove."""
    return np.random.default_rng(0).integers(6, 226, (count, rows, columns), dtype=np.uint8)


def frames_of(examples: list[Example], pixels: NDArray[np.uint8] | None = None) -> Frames:
    count = len(examples)
    return Frames(
        pixels_NHW=np.zeros((count, 1, 1), np.uint8) if pixels is None else pixels,
        image_id=[f"{number:032x}" for number in range(count)],
        content_sha256=[None] * count,
        examples=examples,
        source_rows=np.full(count, 300, np.int32),
        source_columns=np.full(count, 340, np.int32),
        dropped={},
    )


def made(count: int = 120, seed: int = 0, skill: float = 1.0) -> tuple[Frames, Predictions]:
    """Examples of two mixed sources and a pure one, and six paths that know something; the first has no lungs."""
    generator = np.random.default_rng(0)
    source = generator.choice(["a", "b", "pure"], count)
    positive = np.where(source == "pure", True, generator.random(count) < 0.5)
    examples = [
        Example(
            file=f"{i}.png", label="Covid+" if positive[i] else "Covid-", source=str(source[i]), patient="Mrs Secret",
            group="Mrs Secret", group_key=f"g{i // 2}", patient_key=f"k{i // 2}", view=["PA", None][i % 2],
            pediatric=[True, False, None][i % 3],
        )
        for i in range(count)
    ]  # fmt: skip
    noise = np.random.default_rng(seed + 1)
    paths = (skill * positive[:, None] + noise.normal(size=(count, 6)) * 2).astype(np.float32)
    paths[0] = np.nan
    logit = paths.mean(axis=1)
    p = (1 / (1 + np.exp(-logit))).astype(np.float32)
    return frames_of(examples), Predictions(
        p_covid=p,
        logit=logit,
        path_logits=paths,
        class_probs=np.column_stack((p, 1 - p)),
        lung_fraction=np.full(count, 0.3, np.float32),
        has_lungs=np.isfinite(p),
        lungs_removed=np.where(np.isfinite(p), noise.normal(size=count), np.nan).astype(np.float32),
        lungs_only=logit,
    )


def test_scores_are_the_scorers_and_hidden_lungs_are_hidden(bundle: Bundle) -> None:
    small = dataclasses.replace(bundle, paths=bundle.paths[:2])  # two paths show what six would
    everywhere = with_lung_logit(small, 40.0, paths=2)
    pixels = tissue_frames(2)
    # The tissue gate removes it from the mask, yet it stays hidden with the lungs.
    pixels[:, 100:140, 100:140] = 255
    found = score_frames(everywhere, pixels, hide_and_seek=True)
    scores = Scorer(everywhere).score(pixels)
    for name in ("p_covid", "logit", "path_logits", "lung_fraction"):
        assert getattr(found, name).tobytes() == getattr(scores, name).tobytes()
    assert found.lungs_only is not None
    assert found.lungs_removed is not None
    # All is lung: nothing is hidden from "lungs only", and two different films look alike with the lungs removed.
    assert np.allclose(found.lungs_only, scores.logit, atol=1e-4)
    assert abs(scores.logit[0] - scores.logit[1]) > 1e-3
    assert found.lungs_removed[0] == found.lungs_removed[1]


def test_hidden_places_have_the_mean_grey(bundle: Bundle) -> None:
    mean, std = bundle.meta.standardisation_mean, bundle.meta.standardisation_std
    pixels = np.array([[[200, 200, 250]]], np.uint8)
    probability = np.array([[[0.0, 1.0, 1.0]]], np.float32)
    removed, only, mask = (tensor[0, 0].tolist() for tensor in hidden_frames(pixels, probability, mean, std))
    high, bright = (200 - mean) / std, (250 - mean) / std
    assert removed == pytest.approx([high, 0, 0], abs=1e-6)
    assert only == pytest.approx([0, high, bright], abs=1e-6)
    assert mask == [0, 1, 0]  # gated


def test_chunks_keep_the_order_in_any_number_of_processes() -> None:
    pixels = np.arange(10, dtype=np.uint8)[:, None, None]
    progress: list[tuple[int, int]] = []
    alone = map_chunks(adding, (5,), pixels, chunk=3, progress=lambda *done: progress.append(done))
    assert alone["sum"].tolist() == list(range(5, 15))
    assert progress == [(3, 10), (6, 10), (9, 10), (10, 10)]
    together = map_chunks(adding, (5,), pixels, chunk=3, processes=2)
    assert together["sum"].tolist() == alone["sum"].tolist()
    assert map_chunks(adding, (5,), pixels[:0])["sum"].shape == (0,)


def test_the_audit_counts_what_can_be_counted_by_hand(bundle: Bundle) -> None:
    frames, predictions = made()
    summary = audit(bundle, frames, predictions, settings=QUICK, split="oof").summary
    label = np.array([example.label == "Covid+" for example in frames.examples])[1:]
    source = np.array([example.source for example in frames.examples])[1:]
    logit = predictions.logit[1:]
    mixed = source != "pure"
    assert summary["auc"]["pooled"]["value"] == pytest.approx(roc_auc_score(label, logit))
    assert summary["auc"]["mixed"]["value"] == pytest.approx(roc_auc_score(label[mixed], logit[mixed]))
    assert summary["counts"]["unscored"] == 1
    assert summary["counts"]["mixed"]["sources"] == ["a", "b"]
    assert summary["counts"]["mixed"]["pictures"] == mixed.sum()
    assert summary["counts"]["groups"] == 60
    figures = summary["metrics"]["pooled"]["figures"]
    assert figures["accuracy"]["value"] == pytest.approx(((logit >= 0) == label).mean())
    assert figures["accuracy"]["low"] < figures["accuracy"]["value"] < figures["accuracy"]["high"]
    # Lungs only is the untouched score here, lungs removed pure noise.
    assert summary["hide_and_seek"]["lungs_only"] == summary["hide_and_seek"]["untouched"] == summary["auc"]
    assert summary["hide_and_seek"]["lungs_only_minus_untouched"]["mixed"]["high"] == 0
    assert abs(summary["hide_and_seek"]["lungs_removed"]["pooled"]["value"] - 0.5) < 0.2
    # Six noisy paths: the mean of their scores beats the mean of their figures.
    paths = summary["paths"]
    each = [roc_auc_score(label, column) for column in predictions.path_logits[1:].T]
    assert [one["auc_pooled"] for one in paths["each"]] == pytest.approx(each)
    gain = paths["ensemble_minus_mean"]
    assert gain["pooled"]["value"] == pytest.approx(roc_auc_score(label, logit) - np.mean(each))
    assert gain["pooled"]["low"] > 0 > gain["brier"]["high"]
    rows = {row["name"]: row for row in summary["tables"]["source"]}
    assert rows["pure"]["specificity"]["value"] is rows["pure"]["roc_auc"]["value"] is None
    assert rows["a"]["sensitivity"]["value"] == pytest.approx((logit >= 0)[label & (source == "a")].mean())
    assert {row["name"] for row in summary["tables"]["view"]} == {"PA", "unknown"}
    assert {row["name"]: row["pictures"] for row in summary["tables"]["age_group"]} == {
        "child": 39, "adult": 40, "unknown": 40,
    }  # fmt: skip


def test_another_bundle_is_compared_on_the_same_pictures(bundle: Bundle) -> None:
    frames, predictions = made()
    other = made(seed=5, skill=0.0)[1]
    result = audit(bundle, frames, predictions, settings=QUICK, compare=seeded_bundle(1), compared=other)
    compared = result.summary["compared"]
    for area in ("mixed", "within", "pooled"):
        expected = result.summary["auc"][area]["value"] - compared["auc"][area]["value"]
        assert compared["difference"][area]["value"] == pytest.approx(expected)
        assert compared["difference"][area]["low"] > 0
    assert compared["bundle"]["name"].startswith("seeded-1")
    assert compared["pictures"] == len(predictions) - 1
    assert result.table.column("compared_logit").to_pylist()[1] == pytest.approx(other.logit[1])


def test_both_files_carry_keys_and_no_raw_identifier(bundle: Bundle) -> None:
    frames, predictions = made()
    calibration = {
        "method": "platt",
        "slope": 0.5,
        "intercept": 0.1,
        "prevalence": 0.4,
        "n": 9,
        "n_positive": 4,
    }
    thresholds = {"youden": {"p_covid": 0.6, "sensitivity": [0.9, 0.8, 1.0], "specificity": [0.9, 0.8, 1.0]}}
    calibrated = with_lung_logit(bundle, 0.0, calibration=calibration, thresholds=thresholds)
    result = audit(calibrated, frames, predictions, settings=QUICK)
    text = json.dumps(result.summary, allow_nan=False) + str(result.table.to_pylist())
    assert "Secret" not in text
    assert "g17" in text
    point = result.summary["operating_points"]["youden"]
    label = np.array([example.label == "Covid+" for example in frames.examples])[1:]
    assert point["sensitivity"][0] == pytest.approx((predictions.p_covid[1:] >= 0.6)[label].mean())
    assert result.summary["tables_threshold"] == 0.6
    assert result.summary["calibration"]["calibrated"]["brier"]["value"] > 0
    first, second = result.table.slice(0, 2).to_pylist()
    assert first["logit"] is first["path_logits"] is first["p_calibrated"] is first["lungs_only_p"] is None
    logit = float(predictions.logit[1])
    assert second["p_calibrated"] == pytest.approx(1 / (1 + np.exp(-(0.5 * logit + 0.1))))
    assert second["path_logits"] == pytest.approx(predictions.path_logits[1])
    assert (second["label"], second["age_group"], second["patient_key"]) == (
        frames.examples[1].label, "adult", "k0",
    )  # fmt: skip
    assert predictions_table(bundle, frames, predictions).column_names[:3] == [
        "image_id",
        "patient_key",
        "group",
    ]


def test_three_classes_get_their_own_figures(bundle: Bundle) -> None:
    frames, predictions = made(60)
    three = dataclasses.replace(
        bundle, meta=dataclasses.replace(bundle.meta, classes=("Other", "Covid+", "Covid-"))
    )
    probs = np.random.default_rng(0).dirichlet(np.ones(3), 60).astype(np.float32)
    summary = audit(
        three, frames, dataclasses.replace(predictions, class_probs=probs), settings=QUICK
    ).summary
    assert set(summary["classes"]) >= {"accuracy", "roc_auc_macro"}


def test_lungs_are_compared_by_source_and_style(bundle: Bundle) -> None:
    everywhere, nowhere = with_lung_logit(bundle, 5.0), with_lung_logit(bundle, -5.0)
    masks = np.zeros((3, 40, 44), np.uint8)
    masks[:, :20] = 1  # half of the frame
    examples = [
        Example(file=f"{i}", source="ab"[i % 2], mask="m", mask_style=["seeded", "seeded", "jms"][i], group_key=f"g{i}")
        for i in range(3)
    ]  # fmt: skip
    result = audit_segmentation(
        everywhere, frames_of(examples, tissue_frames(3, 40, 44)), masks, settings=QUICK, compare=nowhere
    )
    assert result.summary["counts"] == {"pairs": 2, "groups": 2, "no_segmenter": {"jms": 1}}
    rows = {(row["source"], row["mask_style"]): row for row in result.summary["tables"]}
    assert set(rows) == {("a", "seeded"), ("b", "seeded"), (None, "seeded"), (None, None)}
    row = rows["a", "seeded"]
    values = [row[name]["value"] for name in ("dice", "precision", "recall", "paper_pooled_two_channel")]
    assert values == pytest.approx([2 / 3, 0.5, 1, 0.5])
    assert row["difference"]["dice"]["value"] == pytest.approx(2 / 3)
    assert row["compared"]["recall"]["value"] == 0
    assert result.table.num_rows == 2
    with pytest.raises(TrainingDataError, match="jms"):
        audit_segmentation(
            everywhere, frames_of(examples[2:], tissue_frames(1, 40, 44)), masks[2:], settings=QUICK
        )


# -- the job -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Options for four small films of a split ``test``, and a bundle on disk."""
    folder = tmp_path_factory.mktemp("audit")
    manifest = make_pairs(folder)
    text = manifest.read_text().splitlines()
    kept = [f"{line},{'split' if i == 0 else 'test'}" for i, line in enumerate(text) if ".jms," not in line]
    manifest.write_text("\n".join(kept) + "\n")
    save_bundle(seeded_bundle(0), folder / "bundle")
    return {
        "weights": str(folder / "bundle"),
        "shards": make_shards(manifest, folder / "shards"),
        "manifest": {"path": str(manifest), "label_map": {"covid": "Covid+", "noncovid": "Covid-"}},
        "split": "test",
        "settings": {"draws": 20},
        "processes": 1,
    }


def options_for(asked: dict[str, Any], folder: Path, **more: Any) -> AuditOptions:
    values = {**asked, "output": str(folder / "out"), "test_log": str(folder / "log" / "uses.md"), **more}
    return audit_options(OmegaConf.create(values))


def fake_scores(bundle: Bundle, pixels: NDArray[np.uint8], **options: Any) -> Predictions:
    return dataclasses.replace(made(len(pixels))[1], has_lungs=np.ones(len(pixels), dtype=bool))


def test_the_job_logs_the_test_split_before_it_scores_it(
    asked: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: Any, **__: Any) -> Predictions:
        raise RuntimeError("stopped while scoring")

    log = tmp_path / "log" / "uses.md"
    monkeypatch.setattr(job, "score_frames", broken)
    with pytest.raises(RuntimeError):
        job.run_audit(options_for(asked, tmp_path))
    assert uses(log) == 1
    monkeypatch.setattr(job, "score_frames", fake_scores)
    with pytest.raises(OutputError, match=r"scored on these 4 pictures on .*again=true"):
        job.run_audit(options_for(asked, tmp_path, output=str(tmp_path / "elsewhere")))
    assert not (tmp_path / "elsewhere").exists()
    assert uses(log) == 1
    assert job.run_audit(options_for(asked, tmp_path, again=True)) == 0
    lines = log.read_text().splitlines()
    assert uses(log) == 2
    assert seeded_bundle(0).tensor_sha256["paths.safetensors"][:12] in lines[-1]
    assert lines[0] == "# Uses of the test split"

    facts = json.loads(capsys.readouterr().out.splitlines()[-1])
    folder = tmp_path / "out" / "audit" / "test"
    summary = json.loads((folder / "audit.json").read_text())
    assert facts["auc"]["pooled"] == pytest.approx(summary["auc"]["pooled"]["value"], abs=1e-4)
    assert pq.read_table(folder / "predictions.parquet").num_rows == 4
    with pytest.raises(OutputError, match="already"):
        job.run_audit(options_for(asked, tmp_path, again=True))
    assert log.read_text().splitlines() == lines


def test_only_the_test_split_is_logged_and_by_default_beside_the_output(
    asked: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "score_frames", fake_scores)
    log = tmp_path / "test_uses.md"
    job.run_audit(options_for(asked, tmp_path, test_log=None, test_split="another"))
    assert not log.exists()
    job.run_audit(options_for(asked, tmp_path, test_log=None, output=str(tmp_path / "two"), compare="seeded"))
    assert uses(log) == 2  # both bundles
    # Outputs of one folder share their log; what a use is depends on pictures and tensors, not on names.
    save_bundle(dataclasses.replace(seeded_bundle(0), meta=renamed_meta()), tmp_path / "renamed")
    third = {"test_log": None, "output": str(tmp_path / "three")}
    with pytest.raises(OutputError, match=r"test_uses\.md says that these weights were scored"):
        job.run_audit(options_for(asked, tmp_path, weights=str(tmp_path / "renamed"), **third))
    save_bundle(seeded_bundle(1), tmp_path / "other")
    job.run_audit(options_for(asked, tmp_path, weights=str(tmp_path / "other"), **third))
    assert uses(log) == 3


def renamed_meta() -> BundleMeta:
    return dataclasses.replace(seeded_bundle(0).meta, name="another-name")


def uses(log: Path) -> int:
    """Lines of the log about the four pictures, whose fingerprint they carry."""
    return len(re.findall(r"\| classification \| 4 \([0-9a-f]{12}\) \|", log.read_text()))


def test_a_segmentation_audit_writes_its_own_files(
    asked: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dark_places(bundle: Bundle, pixels: NDArray[np.uint8], *_: Any, **__: Any) -> NDArray[np.bool_]:
        return pixels < 100

    monkeypatch.setattr("training.audit.segmentation.predict_lungs", dark_places)
    state = seeded_bundle(0).segmenters["seeded"]
    meta = dataclasses.replace(seeded_bundle(0).meta, mask_style="v7", mask_styles=("v7",))
    bundle = Bundle.build(segmenters={"v7": state}, paths=seeded_bundle(0).paths, meta=meta)
    save_bundle(bundle, tmp_path / "v7")
    job.run_audit(options_for(asked, tmp_path, weights=str(tmp_path / "v7"), task="segmentation"))
    folder = tmp_path / "out" / "audit" / "test"
    rows = json.loads((folder / "segmentation.json").read_text())["tables"]
    table = pq.read_table(folder / "segmentation.parquet")
    assert rows[-1]["pairs"] == table.num_rows == 4
    assert rows[-1]["dice"]["value"] == pytest.approx(np.mean(table.column("dice").to_pylist()))
    assert 0 < rows[-1]["dice"]["value"] < 1


BAD: list[tuple[dict[str, Any], str]] = [
    ({"split": "nowhere"}, "no row of the manifest has split"),
    ({"manifest": {"label_map": {}}}, "of no class in"),
    ({"settings": {"draws": 0}}, "draws must be at least 1"),
    ({"task": "scoring"}, "classification, segmentation"),
    ({"split": "../x"}, "no slash"),
    ({"weights": ""}, "weights is empty"),
    ({"settings": {"drows": 1}}, "drows"),
    ({"processes": 0}, "processes must be"),
]


@pytest.mark.parametrize(("change", "words"), BAD)
def test_what_cannot_be_audited_is_refused_in_words(
    asked: dict[str, Any], tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    merged = {**asked, **{k: {**asked[k], **v} if isinstance(v, dict) else v for k, v in change.items()}}
    with pytest.raises(UsageError, match=words):
        job.run_audit(options_for(merged, tmp_path))
    assert not (tmp_path / "log").exists()


def test_a_film_with_two_masks_is_one_picture() -> None:
    frames, _ = made(count=4)
    twice = dataclasses.replace(
        frames,
        pixels_NHW=np.concatenate([frames.pixels_NHW, frames.pixels_NHW[:1]]),
        **{
            name: [*getattr(frames, name), getattr(frames, name)[0]]
            for name in ("image_id", "content_sha256", "examples")
        },
        **{
            name: np.append(getattr(frames, name), getattr(frames, name)[0])
            for name in ("source_rows", "source_columns")
        },
    )
    assert once_each(twice).image_id == frames.image_id
    label = "Covid-" if frames.examples[0].label == "Covid+" else "Covid+"
    twice.examples[-1] = dataclasses.replace(frames.examples[0], label=label)
    with pytest.raises(TrainingDataError, match="one picture with two labels"):
        once_each(twice)


def test_yaml_and_class_agree() -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("audit", overrides=["weights=a", "shards=b", "split=c", "output=d"])
    expected = AuditOptions(weights="a", shards="b", split="c", output="d")
    assert audit_options(config) == expected
    assert set(OmegaConf.to_container(config)) == {field.name for field in dataclasses.fields(AuditOptions)}


def test_the_logged_command_has_no_credentials_and_no_folders_of_a_machine() -> None:
    command = public_command(
        [
            "weights=/data/me/runs/bundle/", "++output_options.secret=abc", "shards=s3://user:pw@bucket/shards",
            "manifest.options.key=abc", "manifest.key_file=/k", "split=test", "output=file:///data/me/out",
        ]
    )  # fmt: skip
    assert command == (
        "python jobs/audit.py weights=.../bundle shards=s3://bucket/shards split=test output=.../out"
    )
