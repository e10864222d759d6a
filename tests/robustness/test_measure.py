"""The whole measurement: clean at strength 0, paired noise, attached as folded, and which runs may be compared."""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path

import pytest
import torch

import stripefold as sf
from stripefold.errors import ConfigError, DataError, VerifyError
from stripefold_lab.robustness import RobustnessReport, agreement, measure_robustness, networks
from stripefold_lab.robustness.kinds import KINDS
from stripefold_lab.robustness.networks import load_networks
from stripefold_lab.training import evaluate
from stripefold_lab.training.loading import load_run
from tests.robustness.runs import write_run

BOTH = ("ASR(SE), attached", "ASR(SE), folded")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def sources(folder: Path) -> list[Path]:
    return [write_run(folder, form, seed) for form in ("none", "dynamic", "static") for seed in (1, 0)]


@pytest.fixture(scope="module")
def report(sources: list[Path]) -> RobustnessReport:
    return measure_robustness(sources, severities=[5])


def test_groups_and_scores(report: RobustnessReport, sources: list[Path]) -> None:
    assert report.networks == ("backbone", "+ SE", *BOTH)
    assert report.kinds == tuple(KINDS)
    assert set(report.seeds.values()) == {(0, 1)}
    assert report.sources["backbone"] == (str(sources[1]), str(sources[0]))
    assert (report.task, report.measure, report.data, report.images) == ("classification", "accuracy", "digits", 24)
    assert len(report.scores) == 4 * (1 + len(KINDS))
    disturbed = [score for score in report.scores if score.severity]
    assert {score.strength for score in disturbed if score.kind == "jpeg"} == {40}
    assert any(score.scores != report.of(score.network, "clean")[0].scores for score in disturbed)


def test_clean_is_what_eval_says(report: RobustnessReport, sources: list[Path]) -> None:
    for label, place in (("backbone", 0), ("+ SE", 2), ("ASR(SE), attached", 4), ("ASR(SE), folded", 4)):
        expected = tuple(evaluate(source).accuracy for source in (sources[place + 1], sources[place]))
        assert report.of(label, "clean")[0].scores == expected


def test_strength_0_of_every_kind_is_clean(sources: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Severity 0 through the same path as the others: the measurement itself changes nothing."""
    from stripefold_lab.robustness import measure

    monkeypatch.setattr(measure, "choose_severities", lambda severities: (0,))
    found = measure_robustness([sources[0], sources[4]])
    for network in found.networks:
        clean = found.of(network, "clean")[0].scores
        assert {score.scores for score in found.scores if score.network == network} == {clean}


def test_attached_and_folded_agree_everywhere(report: RobustnessReport) -> None:
    attached, folded = ([score.scores for score in report.scores if score.network == label] for label in BOTH)
    assert attached == folded
    assert [each.kind for each in report.equivalences[::2]] == ["clean", *KINDS]
    for found in report.equivalences:
        assert found.error <= 1e-10
        assert found.control > 1e-2


def test_a_wrong_fold_is_found(sources: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(model: torch.nn.Module, example: torch.Tensor) -> torch.nn.Module:
        folded = networks.fold_quietly(model, example)
        folded.get_submodule("layer1.0.bn2").bias.data += 1e-6
        return folded

    monkeypatch.setattr(agreement, "fold_quietly", wrong)
    with pytest.raises(VerifyError, match="NOT equivalent in float64"):
        measure_robustness([sources[4]], kinds=["batch-random"], severities=[1])


def test_the_same_again_and_other_noise(sources: list[Path], report: RobustnessReport) -> None:
    kinds = ["gaussian-noise", "batch-random"]
    again = measure_robustness(sources[:2], kinds=kinds, severities=[5])
    assert [s for s in report.scores if s.network == "backbone" and s.kind in (*kinds, "clean")] == list(again.scores)
    # A network's score does not depend on which others are compared, nor on what is measured before.
    others = measure_robustness(sources[:2], kinds=kinds, severities=[5], seed=1)
    assert others.noise_seed == 1
    assert others.scores[0] == again.scores[0]
    assert others.scores[1:] != again.scores[1:]


def test_forms_and_files(folder: Path, sources: list[Path]) -> None:
    about = load_run(sources[4]).about
    model = load_run(sources[4]).model
    folded = sf.save_model(sf.fold(model, check=False), folder / "folded.safetensors", kind="folded", extra=about)
    example = torch.randn(2, 1, 8, 8)
    merged = sf.fold(model, fuse=True, example=example, check=False)
    fused = sf.save_model(merged, folder / "fused.safetensors", kind="fused", extra=about)
    both = write_run(folder, "both", 0)
    rest = sf.fold(load_run(both).model, check=False)
    rest_file = sf.save_model(rest, folder / "rest.safetensors", extra=load_run(both).about)
    found, _ = load_networks([folded, fused, both, rest_file])
    labels = ["ASR(SE), folded file", "ASR(SE), fused file", "ASR(SE) + SE, attached", "ASR(SE) + SE, folded"]
    assert [network.label for network in found] == [*labels, "ASR(SE) + SE, folded file"]
    report = measure_robustness([folded, both], kinds=["layer-random"], severities=[2], images=10)
    assert report.images == 10
    assert report.equivalences[0].error <= 1e-10
    with pytest.raises(ConfigError, match=r"fused.safetensors, batch-constant: ResNet has no BatchNorm"):
        measure_robustness([fused], kinds=["batch-constant"])


def test_what_experiments_differ_in_is_in_their_names(folder: Path, sources: list[Path]) -> None:
    noisy = write_run(folder, "none", 0, batch_noise={"kind": "random", "scale": 0.3})
    longer = write_run(folder, "static", 0, epochs=20)
    found, _ = load_networks([sources[1], noisy, sources[5], longer])
    assert [network.label for network in found] == [
        "backbone (batch_noise={})",
        "backbone (batch_noise={kind: random, scale: 0.3})",
        "ASR(SE) (epochs=12), attached",
        "ASR(SE) (epochs=12), folded",
        "ASR(SE) (epochs=20), attached",
        "ASR(SE) (epochs=20), folded",
    ]


@pytest.mark.parametrize("form", ["none", "dynamic"])
def test_freezing_gates_that_are_not_there_is_no_experiment(folder: Path, form: str) -> None:
    runs = [write_run(folder, form, 0, epochs=3), write_run(folder, form, 1, epochs=3, freeze=("psi",))]
    found, _ = load_networks(runs)
    assert len({network.label for network in found}) == 1
    gated = [write_run(folder, "static", 0, epochs=3), write_run(folder, "static", 1, epochs=3, freeze=("psi",))]
    assert len({network.label for network in load_networks(gated)[0]}) == 4


def test_the_start_of_blocks_makes_an_experiment_and_options_without_blocks_do_not(folder: Path) -> None:
    starts = [
        write_run(folder, "none", seed, branch="acnet", init=init) for seed, init in ((0, "paper"), (1, "identity"))
    ]
    found, _ = load_networks(starts)
    assert [network.label for network in found] == [
        "backbone, acnet blocks (init=paper)",
        "backbone, acnet blocks (init=identity)",
    ]
    idle = [write_run(folder, "static", 0, epochs=4), write_run(folder, "static", 1, epochs=4, branch_where="layer1.*")]
    assert [network.label for network in load_networks(idle)[0]] == ["ASR(SE), attached"] * 2 + ["ASR(SE), folded"] * 2


def test_runs_that_cannot_be_compared(folder: Path, sources: list[Path]) -> None:
    with pytest.raises(ConfigError, match="no run was named"):
        measure_robustness([])
    with pytest.raises(ConfigError, match="are the same experiment with the same seed 1; give each run once"):
        measure_robustness([sources[0], sources[0]])
    larger = write_run(folder, "none", 5, image_size=16)
    with pytest.raises(ConfigError, match="cannot be compared: image_size is 8 and 16; compare runs that saw the same"):
        measure_robustness([sources[0], larger])
    fewer = write_run(folder, "none", 6, limit_train=100)
    with pytest.raises(ConfigError, match="limit_train is None and 100"):
        measure_robustness([sources[0], fewer])
    other = _with_classes(sources[1], folder / "letters.safetensors", "abcdefghij")
    with pytest.raises(ConfigError, match=r"classes is 10 \(0, 1, 2 ...\) and 10 \(a, b, c ...\)"):
        measure_robustness([sources[0], other])
    with pytest.raises(DataError, match="was trained on other classes than digits has now"):
        measure_robustness([other])
    deeper = write_run(folder, "none", 7, model="resnet14")
    with pytest.raises(
        ConfigError, match=r"do not have the same layers, so 'batch-random' .* 'layer1.1.bn1' is in one"
    ):
        measure_robustness([sources[0], deeper], kinds=["batch-random"])
    assert measure_robustness([sources[0], deeper], kinds=["jpeg"], severities=[1]).kinds == ("jpeg",)


def _with_classes(source: Path, path: Path, classes: str) -> Path:
    run = load_run(source)
    return sf.save_model(run.model, path, extra={**run.about, "classes": list(classes)})


def test_branch_blocks_are_measured_folded_inside(folder: Path, sources: list[Path]) -> None:
    blocks = write_run(folder, "static", 8, branch="acnet")
    report = measure_robustness([blocks], kinds=["salt-and-pepper"], severities=[5])
    assert report.networks == ("ASR(SE), acnet blocks, attached", "ASR(SE), acnet blocks, folded")
    assert max(each.error for each in report.equivalences) <= 1e-10
    with pytest.raises(ConfigError, match="branch blocks folded, or leave out the family inside"):
        measure_robustness([blocks], kinds=["batch-random"])


def test_the_words_of_the_report(report: RobustnessReport, sources: list[Path]) -> None:
    scores = report.of("+ SE", "jpeg")[0]
    assert scores.mean == statistics.fmean(scores.scores)
    assert scores.spread == statistics.stdev(scores.scores)
    text = str(report)
    assert text.splitlines()[0].split()[0] == "disturbance"
    assert "mean ± standard deviation over the seeds (backbone: 2; + SE: 2;" in text
    assert "attached and folded agree under every disturbance" in text
    single = measure_robustness([sources[0]], kinds=["contrast"], severities=[1, 2])
    assert single.of("backbone", "contrast")[0].spread is None
    assert "one seed, so nothing is known of the spread: backbone" in str(single)
    assert "±" not in str(single)
    assert "mean over severities 1, 2" in str(single)
    average = statistics.fmean(score.mean for score in single.of("backbone", "contrast"))
    assert single.average("backbone", "contrast") == pytest.approx((average,))
    told: list[tuple[str, int, int]] = []
    measure_robustness([sources[0]], kinds=["contrast"], severities=[1], progress=lambda *each: told.append(each))
    assert told == [("clean", 0, 2), ("contrast 1", 1, 2), ("", 2, 2)]


def test_what_is_written(report: RobustnessReport, tmp_path: Path) -> None:
    from stripefold_lab.robustness import write_robustness

    place = write_robustness(report, tmp_path / "out")
    written = json.loads((place / "robustness.json").read_text(encoding="utf-8"))
    assert written["scores"][0]["mean"] == report.scores[0].mean
    assert RobustnessReport.from_dict(written) == report
    assert written["seeds"] == {label: [0, 1] for label in report.networks}
    lines = (place / "robustness.csv").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "network,kind,severity,strength,mean,spread,seeds,scores"
    assert len(lines) == 1 + len(report.scores)
    assert (place / "curves.png").read_bytes()[:4] == b"\x89PNG"
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ConfigError, match="cannot write into .*file"):
        write_robustness(report, tmp_path / "file")


def test_what_draws_is_missed_before_anything_is_written(
    report: RobustnessReport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from stripefold_lab.robustness import write_robustness

    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ModuleNotFoundError, match=r"drawn by matplotlib, which is not installed: pip install 'strip"):
        write_robustness(report, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_the_door() -> None:
    import stripefold_lab.robustness as room

    assert all(getattr(room, name) is not None for name in room.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'measure_everything'"):
        room.measure_everything  # noqa: B018
