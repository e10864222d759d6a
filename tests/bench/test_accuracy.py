"""The experiment of benchmarks/accuracy: its plan, its noise, and that it goes on where it was stopped."""

from __future__ import annotations

import json
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

import stripefold as sf
from benchmarks.accuracy import page
from benchmarks.accuracy.figure import write_figures
from benchmarks.accuracy.networks import build, configure, image_spec
from benchmarks.accuracy.noise import ParameterNoise
from benchmarks.accuracy.plan import RunSpec, list_runs, load_plan, slug
from benchmarks.accuracy.results import Records, compare, load_records, scores
from benchmarks.accuracy.run import Pools, Run, epoch_of
from benchmarks.accuracy.stripes import QUANTITIES, gate_rows, in_short, load_stripes
from benchmarks.accuracy.train import Worker, describe_session, parse
from benchmarks.cifar_data import Cifar, Labelled
from benchmarks.stripes_record import share_of_few
from stripefold_lab.training.batch_noise import BatchNoise
from stripefold_lab.training.noise_hooks import batch_norms, disturb, hooked

SPEC = image_spec(tuple("abcd"))


def tiny_data(count: int = 32) -> Cifar:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=generator)
    part = Labelled(images, torch.arange(count) % 4)
    return Cifar(train=part, validation=part, test=part, classes=tuple("abcd"))


def test_every_run_of_the_plan_is_a_run_of_the_product() -> None:
    runs = list(list_runs(load_plan(), gpu=True))
    assert len({run.name for run in runs}) == len(runs)
    for run in runs:
        config = configure(run.options, run.seed)
        assert config.epochs == run.epochs
        # 81 and 122 of 164, in proportion.
        assert [round(16 * epoch / run.epochs) for epoch in config.milestones] == [8, 12]


def test_every_comparison_is_between_runs_that_exist() -> None:
    studies = load_plan()
    for study in studies.values():
        lender = studies[study.borrows].configurations if study.borrows else {}
        for pair in [*study.primary, *study.secondary]:
            assert set(pair) <= {*study.configurations, *lender}


def test_the_four_main_configurations_have_eight_seeds() -> None:
    main = load_plan()["main"]
    assert len(main.seeds) >= 8
    assert main.options["epochs"] >= 15
    assert len(main.configurations) == 4


def test_labels_become_file_names() -> None:
    labels = list({label for study in load_plan().values() for label in study.configurations})
    assert len({slug(label) for label in labels}) == len(labels)


def test_the_control_starts_at_the_very_scales_of_the_gates() -> None:
    options = {**load_plan()["main"].options, "model": "resnet8"}
    gates = build({**options, "attention": "se"}, 3, SPEC)
    control = build({**options, "attention": "scale", "start_at": "se"}, 3, SPEC)
    theirs, ours = sf.scales(gates), sf.scales(control)
    assert list(theirs) == list(ours)
    for site, v in theirs.items():
        assert torch.equal(v, ours[site])
        assert float(v.std()) > 0
    plain = build({**options, "form": "none"}, 3, SPEC)
    assert torch.equal(plain.conv1.weight, control.conv1.weight)
    assert torch.equal(plain.conv1.weight, gates.conv1.weight)


@pytest.mark.parametrize("form", ["none", "static", "dynamic"])
@pytest.mark.parametrize("kind", ["random", "constant"])
def test_noise_in_the_parameters_is_noise_in_the_output(kind: Any, form: str) -> None:
    noise = BatchNoise(kind=kind, scale=-0.2 if kind == "constant" else 0.3, shift=0.5)
    options = {"model": "resnet8", "form": form, "attention": "se"}
    model = build(options, 0, SPEC).double()
    images, labels = torch.randn(8, 3, 32, 32, dtype=torch.float64), torch.arange(8) % 4
    own = ParameterNoise(model, noise, 0)
    own.draw(7)
    before = {name: value.clone() for name, value in model.named_parameters()}
    with own.on():
        ours = model(images)
        F.cross_entropy(ours, labels).backward()
    assert all(torch.equal(before[name], value) for name, value in model.named_parameters())
    gradients = {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}
    model.zero_grad()
    names = list(batch_norms(model))
    drawn = dict(zip(names, zip(own._scales, own._shifts, strict=True), strict=True))

    def hook(name: str, module: nn.Module, output: torch.Tensor) -> torch.Tensor:
        return disturb(output, module, *(each.double() for each in drawn[name]))

    with hooked(batch_norms(model), hook):
        theirs = model(images)
        F.cross_entropy(theirs, labels).backward()
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    for name, value in model.named_parameters():
        torch.testing.assert_close(gradients[name], value.grad, rtol=1e-7, atol=1e-9)
    assert not torch.allclose(ours, model(images), atol=1e-3)


def test_networks_of_a_seed_meet_the_same_noise_and_other_steps_another() -> None:
    noise = BatchNoise(kind="random", scale=0.3, shift=0.3)
    plain, gated = (build({"model": "resnet8", "form": form}, 0, SPEC) for form in ("none", "static"))
    first, second = ParameterNoise(plain, noise, 5), ParameterNoise(gated, noise, 5)
    assert torch.equal(first._values, second._values)
    first.draw(1)
    assert not torch.equal(first._values, second._values)


def session(commit: str) -> dict[str, Any]:
    return describe_session(torch.device("cpu")) | {"commit": commit}


def trained(folder: Path, configuration: str, *, stops: bool) -> dict[str, Any]:
    study = load_plan()["noise-random"]
    spec = next(run for run in list_runs({"": study}, gpu=False) if run.configuration == configuration)
    spec = replace(spec, options={**spec.options, "model": "resnet8", "batch_size": 8, "epochs": 2, "milestones": [1]})
    data = tiny_data()
    run = Run(spec, data, folder / "state.pt", graph=False)
    run.begin(session("first"))
    while run.epoch < spec.epochs:
        list(epoch_of([run], Pools(data)))
        if stops:
            run = Run(spec, data, folder / "state.pt", graph=False)
            for _ in zip(range(2), epoch_of([run], Pools(data)), strict=False):
                pass  # killed in the middle of an epoch
            run = Run(spec, data, folder / "state.pt", graph=False)
            run.begin(session("second"))
    return run.finish(folder)


@pytest.mark.parametrize("configuration", ["ASR(SE)", "+SE"])
def test_a_run_that_is_stopped_ends_as_one_that_is_not(tmp_path: Path, configuration: str) -> None:
    whole = trained(tmp_path / "whole", configuration, stops=False)
    parts = trained(tmp_path / "parts", configuration, stops=True)
    for key in ("train_loss", "test_accuracy", "trained"):
        assert whole[key] == parts[key]
    assert parts["sessions"][0]["commit"] == "first"
    stripes = [
        tmp_path / kind / f"noise-random/{slug(configuration)}-seed0.stripes.json" for kind in ("whole", "parts")
    ]
    assert all(path.exists() == (configuration == "+SE") for path in stripes)
    if configuration == "+SE":
        rows = [json.loads(path.read_text()) for path in stripes]
        assert rows[0] == rows[1]
        assert list(rows[0]) == ["0", "1", "2"]
        assert rows[0]["2"][0]["first_difference"] > 0
    name = f"noise-random/{slug(configuration)}-seed0.json"
    assert json.loads((tmp_path / "whole" / name).read_text())["seed"] == 0
    assert not (tmp_path / "whole" / "state.pt").exists()


def test_folded_judges_as_trained(tmp_path: Path) -> None:
    record = trained(tmp_path, "ASR(SE)", stops=False)
    assert record["folded_differs"] == 0
    assert record["folded_parameters"] < record["parameters"]


def test_a_state_of_other_options_is_refused(tmp_path: Path) -> None:
    spec = next(iter(list_runs(load_plan(), gpu=False)))
    spec = replace(spec, options={**spec.options, "model": "resnet8", "batch_size": 8})
    run = Run(spec, tiny_data(), tmp_path / "state.pt", graph=False)
    run.save()
    other = replace(spec, options={**spec.options, "learning_rate": 0.2})
    with pytest.raises(SystemExit, match="other options"):
        Run(other, tiny_data(), tmp_path / "state.pt", graph=False)


def record_of(run: RunSpec, trained: float, **changes: Any) -> dict[str, Any]:
    return {
        "study": run.study, "configuration": run.configuration, "seed": run.seed, "options": dict(run.options),
        "parameters": 10, "trained": trained, "seconds": [2.0], "cpu_seconds": [1.0], "total_seconds": 2.0,
        "total_cpu_seconds": 1.0, "sessions": [{"commit": "0123456789", "device": "CPU"}], **changes,
    }  # fmt: skip


def written(folder: Path, scores: dict[str, list[float]], study: str = "main", **changes: Any) -> Records:
    """The records of some runs, by way of their files."""
    for run in list_runs({study: load_plan()[study]}, gpu=True):
        values = scores.get(run.configuration, [])
        if run.seed < len(values):
            path = folder / f"{run.name}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(record_of(run, values[run.seed], **changes)))
    return load_records(load_plan(), folder)


def test_differences_are_paired_by_seed_and_judged_as_planned(tmp_path: Path) -> None:
    base = [50.0, 51.0, 49.0, 52.0, 50.5, 48.0, 50.0, 51.5]
    better = [value + 1 + 0.1 * k for k, value in enumerate(base)]
    mixed = [value + (0.5 if k % 2 else -0.5) for k, value in enumerate(better)]
    records = written(tmp_path, {"backbone": base, "ASR(SE)": better, "scale": mixed, "+SE": mixed[:3]})
    against_backbone, against_scale, against_se, *_ = compare(load_plan()["main"], records)
    assert against_backbone.difference is not None
    assert against_backbone.difference.mean == pytest.approx(1.35)
    assert (against_backbone.ahead, against_backbone.behind) == (8, 0)
    assert against_backbone.sign == pytest.approx(2 / 256)
    assert against_backbone.verdict == "result: ahead"
    assert against_scale.verdict == "null"
    assert against_scale.sign == 1.0
    assert against_se.verdict == "3 of 8 pairs"
    joint = against_backbone.joint
    assert joint is not None
    assert joint.low is not None
    assert against_backbone.difference.low is not None
    assert joint.low < against_backbone.difference.low


@pytest.mark.parametrize(
    ("points", "verdict", "said", "kept_quiet"),
    [
        (2.0, "result: ahead", "is ahead of: backbone", "claims no gain"),
        (-2.0, "result: behind", "claims no gain", "is ahead of"),
        (0.0, "null", "claims no gain", "is ahead of"),
    ],
)
def test_the_readme_claims_a_gain_only_where_a_complete_comparison_is_ahead(
    tmp_path: Path, points: float, verdict: str, said: str, kept_quiet: str
) -> None:
    base = [50.0, 51.0, 49.0, 52.0, 50.5, 48.0, 50.0, 51.5]
    moved = [value + points + (0.1 if k % 2 else -0.1) for k, value in enumerate(base)]
    records = written(tmp_path, {"backbone": base, "ASR(SE)": moved, "scale": moved, "+SE": moved})
    text = " ".join(page.readme_block(records, load_plan()).split())
    assert f"| 8 of 8 | {verdict} |" in text
    assert said in text
    assert kept_quiet not in text
    assert ("is behind: backbone" in text) == (points < 0)


def test_a_gain_is_not_claimed_before_all_pairs_are_there(tmp_path: Path) -> None:
    records = written(tmp_path, {"backbone": [50.0, 51.0, 49.0], "ASR(SE)": [60.0, 61.1, 59.0]})
    text = page.readme_block(records, load_plan())
    assert "claims no gain" in text
    assert "ahead of" not in text


def test_a_share_of_no_variance_is_left_out_of_the_mean() -> None:
    def seed(share: float) -> dict[int, list[dict[str, Any]]]:
        row = {"site": "bn", "stripe_index": 1.0, "within_over_mean": 0.0, "share_of_class": share}
        return {0: [row], 1: [row]}

    nan = float("nan")
    assert gate_rows("share_of_class", [seed(nan), seed(0.5)], [0]) == [["`bn`", "0.500"]]
    assert gate_rows("share_of_class", [seed(nan)], [0]) == [["`bn`", "-"]]
    assert "class 0.50 before training" in in_short([seed(nan), seed(0.5)], 1)


def test_runs_of_two_devices_are_no_pair(tmp_path: Path) -> None:
    written(tmp_path, {"ASR(SE)": [50.0, 51.0]})
    gpu = [{"commit": "0123456789", "device": "GPU"}]
    records = written(tmp_path, {"backbone": [50.0, 51.0]}, sessions=gpu)
    assert next(compare(load_plan()["main"], records)).pairs == 0


def test_a_raw_file_of_other_options_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="other options than the plan's"):
        written(tmp_path, {"backbone": [50.0]}, options={"epochs": 1})


def test_noise_that_stays_on_is_judged_with_it(tmp_path: Path) -> None:
    records = written(tmp_path, {"backbone": [20.0]}, study="noise-constant", noise_on=40.0)
    study = load_plan()["noise-constant"]
    assert scores(study, "backbone", records) == {0: 40.0}
    assert scores(study, "backbone", records, "trained") == {0: 20.0}


def test_a_study_borrows_the_runs_it_is_compared_with(tmp_path: Path) -> None:
    written(tmp_path, {"backbone": [50.0, 50.0, 50.0]})
    records = written(tmp_path, {"ASR(ECA)": [51.0, 52.0, 53.0]}, study="others", folded=51.0)
    found = {(each.first, each.second): each for each in compare(load_plan()["others"], records)}
    assert found["ASR(ECA)", "backbone"].pairs == 3
    assert found["ASR(ECA)", "backbone"].difference.values == (1.0, 1.0, 1.0)  # type: ignore[union-attr]


def test_the_page_shows_what_is_there_and_lists_what_is_not(tmp_path: Path) -> None:
    base = [50.0 + k for k in range(8)]
    written(tmp_path, {"backbone": base, "ASR(SE)": [value + 1 for value in base[:2]]})
    text = page.render(tmp_path)
    assert "| ASR(SE) | 51.50 ± 0.71 | 2 of 8 | 10 |" in text
    assert "| **ASR(SE) - backbone** | +1.00 | - | 2 : 0 (p = 0.5) | 2 of 8 pairs |" in text
    assert "22 of 32" in text
    assert "`0123456`" in text


def test_the_stripes_of_a_run_are_told_and_drawn(tmp_path: Path) -> None:
    study = load_plan()["main"]
    specs = [run for run in list_runs({"main": study}, gpu=False) if run.configuration in ("+SE", "backbone")][:4]
    for spec in specs:
        small = replace(spec, options={**spec.options, "model": "resnet8", "batch_size": 8, "epochs": 2})
        run = Run(small, tiny_data(), tmp_path / "state.pt", graph=False)
        run.begin(session("one"))
        while run.epoch < 2:
            list(epoch_of([run], Pools(run.data)))
        record = run.finish(tmp_path)
        (tmp_path / f"{spec.name}.json").write_text(json.dumps({**record, "options": dict(spec.options)}))
    stripes = load_stripes(load_plan(), tmp_path)
    assert list(stripes) == [("main", "+SE")]
    (rows, _) = stripes["main", "+SE"]
    text = page.render(tmp_path)
    assert "#### +SE, 2 epochs (mean over 2 seeds, 512 test images)" in text
    assert text.count("| `layer3.0.bn2` |") == len(QUANTITIES)
    assert 0 < rows[2][0]["share_of_few"] <= 1
    assert "stripes.png" not in text
    files = write_figures(load_records(load_plan(), tmp_path), stripes, tmp_path)
    assert {file.name for file in files} == {
        f"{name}.{form}" for name in ("curves", "stripes") for form in ("png", "pdf", "svg")
    }
    assert "stripes.png" in page.render(tmp_path)


@pytest.mark.parametrize(
    ("within", "share"), [([1.0] * 32, 2 / 32), ([0.0] * 31 + [3.0], 1.0), ([0.0] * 8, 0.0), ([2.0], 1.0)]
)
def test_the_few_channels_are_one_in_sixteen(within: list[float], share: float) -> None:
    assert share_of_few(torch.tensor(within)) == pytest.approx(share)


def test_the_page_and_the_readme_are_what_the_raw_files_say() -> None:
    assert page.main(["--check"]) == 0, "run: python -m benchmarks.accuracy.page"


def test_a_page_without_its_marks_is_refused() -> None:
    with pytest.raises(ValueError, match="no part between"):
        page.with_block("text", "block")


def test_runs_abreast_end_as_each_alone(tmp_path: Path) -> None:
    """What a GPU does with many: one step of each in turn, on a pool of images that runs of a seed share."""
    plan = {"": load_plan()["noise-random"]}
    chosen = [
        run for run in list_runs(plan, gpu=False) if run.seed < 2 and run.configuration in ("backbone", "ASR(SE)")
    ]
    small = {"model": "resnet8", "batch_size": 8, "epochs": 2, "milestones": [1]}
    specs = [replace(run, options={**run.options, **small}) for run in chosen]
    data = tiny_data()

    def ended(together: list[RunSpec], folder: Path) -> dict[str, Any]:
        runs = [Run(spec, data, folder / f"{spec.name}.pt", graph=False) for spec in together]
        pools = Pools(data)
        for run in runs:
            run.begin(session("one"))
        for _ in range(2):
            list(epoch_of(runs, pools))
        return {run.spec.name: run.finish(folder)["train_loss"] for run in runs}

    alone: dict[str, Any] = {}
    for spec in specs:
        alone |= ended([spec], tmp_path / "alone")
    assert ended(specs, tmp_path / "abreast") == alone
    assert len({tuple(losses) for losses in alone.values()}) == len(specs)


def worker_of(folder: Path, *words: str) -> Worker:
    for part, count in (("train", 8), ("test", 4)):
        for kind in ("a", "b"):
            place = folder / "data" / part / kind
            place.mkdir(parents=True, exist_ok=True)
            for number in range(count):
                Image.new("RGB", (32, 32), (number, 0, 0)).save(place / f"{number}.png")
    where = ["--data", str(folder / "data"), "--work", str(folder / "work"), "--results", str(folder / "results")]
    return Worker(parse([*where, "--device", "cpu", *words]))


def test_a_worker_takes_what_is_neither_finished_nor_held(tmp_path: Path) -> None:
    first, second = worker_of(tmp_path, "--abreast", "2"), worker_of(tmp_path)
    with ExitStack() as locks:
        taken = [run.name for run in first._take(locks)]
        assert taken == ["main/backbone-seed0", "main/+se-seed0"]
        with ExitStack() as others:
            assert [run.name for run in second._take(others)] == ["main/asr-se-seed0"]
    (tmp_path / "results" / "main").mkdir(parents=True)
    (tmp_path / "results" / "main" / "backbone-seed0.json").touch()
    with ExitStack() as locks:
        assert [run.name for run in second._take(locks)] == ["main/+se-seed0"]


def test_a_worker_begins_nothing_that_would_end_too_late(tmp_path: Path) -> None:
    worker = worker_of(tmp_path, "--abreast", "8", "--seconds", "1000")
    worker.rate = 20.0  # 320 s a run of 16 epochs, 80 s one of 4
    with ExitStack() as locks:
        assert len(worker._take(locks)) == 3
    worker.rate = 100.0
    with ExitStack() as locks:
        assert {run.study for run in worker._take(locks)} == {"noise-random"}
    worker = worker_of(tmp_path, "--seconds", "0")
    with ExitStack() as locks:
        assert worker._take(locks) == []


def test_runs_at_different_epochs_do_not_go_abreast(tmp_path: Path) -> None:
    worker = worker_of(tmp_path, "--abreast", "3")
    spec = next(iter(list_runs(load_plan(), gpu=False)))
    begun = Run(spec, worker.data, tmp_path / "work" / f"{spec.name}.pt", graph=False)
    begun.begin(session("one"))
    begun.end_epoch(1.0, 1.0)
    with ExitStack() as locks:
        assert [run.name for run in worker._take(locks)] == [spec.name]


def test_a_run_that_fails_is_left_alone_and_the_rest_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = worker_of(tmp_path, "--seeds", "0", "--studies", "main")
    trained: list[str] = []

    def train(group: list[RunSpec]) -> None:
        trained.extend(run.name for run in group)
        if group[0].configuration == "+SE":
            raise RuntimeError("out of memory")
        file = tmp_path / "results" / f"{group[0].name}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()

    monkeypatch.setattr(worker, "_train", train)
    assert worker.work() == {"main/+se-seed0": "RuntimeError: out of memory"}
    assert trained == [f"main/{name}-seed0" for name in ("backbone", "+se", "asr-se", "scale")]
