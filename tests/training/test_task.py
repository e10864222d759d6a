"""A task is named in one table, and nothing else knows which there are; so a new one is a file and a line."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import stripefold as sf
from stripefold.errors import ConfigError, VerifyError
from stripefold_lab.cli.entry import main
from stripefold_lab.robustness import measure_robustness
from stripefold_lab.training import TrainConfig, evaluate, recipe_names, train
from stripefold_lab.training.data import load_data
from stripefold_lab.training.labels import LabelMeter
from stripefold_lab.training.loading import load_run
from stripefold_lab.training.tasks import TASKS, get_task

LAB = Path(__file__).parents[2] / "src" / "stripefold_lab"
ABOUT_ONE = (
    "models/segmenters.py",
    "models/detectors.py",
    "datasets/coco_objects.py",
    "datasets/write.py",
)
"""Networks of one task, whose messages say so, and COCO's files, which have a key of that name."""


def words_of(text: str) -> Iterator[str]:
    """The words of every text in the source but its docstrings; a recipe's name is one word."""
    tree = ast.parse(text)
    docs = set()
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        for each in body if isinstance(body, list) else ():
            if isinstance(each, ast.Expr) and isinstance(each.value, ast.Constant):
                docs.add(id(each.value))
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs:
            yield from re.findall(r"[\w-]+", node.value)


@pytest.mark.parametrize("path", sorted(LAB.rglob("*.py")), ids=lambda path: str(path.relative_to(LAB)))
def test_only_the_table_and_its_own_file_name_a_task(path: Path) -> None:
    place = str(path.relative_to(LAB))
    if place in ABOUT_ONE:
        return
    found = set(words_of(path.read_text(encoding="utf-8"))) & set(TASKS)
    assert found <= (set(TASKS) if place == "training/tasks.py" else {path.stem}), found


def test_the_search_finds_names_and_knows_docstrings() -> None:
    text = '"""Of detection."""\nx = task == "detection"\ny = f"for segmentation {x}"\nz = "shapes-detection"\n'
    assert set(words_of(text)) & set(TASKS) == {"detection", "segmentation"}
    for place in ABOUT_ONE:  # an exception that nothing needs would hide what comes later
        assert set(words_of((LAB / place).read_text(encoding="utf-8"))) & set(TASKS), place


def test_tasks_and_their_checks_load_no_torch() -> None:
    code = (
        "import sys\nfrom stripefold_lab.training.config import TrainConfig\n"
        "from stripefold_lab.training.tasks import TASKS, get_task\n"
        "for name in TASKS:\n    config = TrainConfig(task=name)\n    task = get_task(name)\n"
        "    task.check_data('shapes' if name != 'classification' else 'digits')\n    assert task.score.share\n"
        "print([m for m in ('torch', 'torchvision', 'pytorch_lightning', 'torchmetrics') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=LAB.parent)
    assert (done.stdout.strip(), done.returncode) == ("[]", 0), done.stderr


@pytest.mark.parametrize("name", list(TASKS))
def test_every_task_says_what_is_asked_of_it(name: str) -> None:
    task = get_task(name)
    assert task.name == name
    assert task is get_task(name)
    assert task.score is task.measures[-1]
    assert len({measure.name for measure in task.measures}) == len(task.measures)
    assert all(measure.share != (measure.name == "loss") for measure in task.measures)
    assert any(recipe.startswith("shapes") for recipe in recipe_names())


def test_no_such_task() -> None:
    match = r"task is 'matting'; choose one of classification, segmentation, detection$"
    with pytest.raises(ConfigError, match=match):
        get_task("matting")
    with pytest.raises(ConfigError, match=match):
        TrainConfig(task="matting")


def test_labels_are_counted_by_hand() -> None:
    meter = LabelMeter()
    meter.update(torch.tensor([[2.0, 0.0], [0.0, 2.0]]), torch.tensor([0, 0]))
    meter.update(torch.tensor([[0.0, 2.0]]), torch.tensor([1]))
    right, wrong = (-torch.log_softmax(torch.tensor([2.0, 0.0]), 0)).tolist()
    assert meter.compute() == pytest.approx({"loss": (2 * right + wrong) / 3, "accuracy": 2 / 3})


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TASKS, "counting", "tests.training.counting:Counting")


@pytest.mark.usefixtures("counting")
def test_a_new_task_is_a_file_and_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = TrainConfig(
        task="counting", data="shapes", model="resnet8", image_size=32, augmentation="flip", epochs=2, batch_size=8,
        limit_train=16, limit_test=6, learning_rate=0.01, accelerator="cpu", progress="lines", tensorboard=False,
        threads=1, run_dir=str(tmp_path / "run"),
    )  # fmt: skip
    result = train(config)
    assert result.verification.passed
    head, *rows = result.metrics_file.read_text().splitlines()
    assert head == "epoch,step,learning_rate,train_loss,val_error,val_within_one,seconds"
    assert [row.split(",")[1] for row in rows] == ["2", "4"]
    said = capsys.readouterr().out
    assert re.search(r"train loss \d+\.\d{4}  mean absolute error \d+\.\d{4}  within one \d+\.\d\d%", said)
    assert "| model | test within one | test mean absolute error | parameters |" in result.summary_file.read_text()
    pairs = [load_data(config).test[index] for index in range(6)]
    off = [abs(result.model(image[None]).item() - count) for image, count in pairs]
    assert result.attached.measures["error"] == pytest.approx(sum(off) / 6, rel=1e-5)
    assert evaluate(result.folded_file).score == pytest.approx(result.attached.score)
    _fold_and_verify(tmp_path, capsys)
    report = measure_robustness([result.run_dir], kinds=["contrast", "batch-random"], severities=[5])
    assert (report.measure, report.of("ASR(SE), attached", "clean")[0].mean) == ("within_one", result.attached.score)
    assert "within one in percent" in str(report)
    assert max(each.error for each in report.equivalences) <= 1e-10 < min(each.control for each in report.equivalences)
    assert main(["train", "--resume", "--run-dir", str(result.run_dir), "--epochs", "3"]) == 0
    assert len(result.metrics_file.read_text().splitlines()) == 1 + 3


def _fold_and_verify(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By the commands; and the network without its gates, which must not pass."""
    source, plain, bare = (str(folder / name) for name in ("run", "x.safetensors", "bare.safetensors"))
    assert main(["fold", source, "-o", plain]) == 0
    assert main(["verify", source, plain, "--images", "2"]) == 0
    assert main(["eval", plain]) == 0
    assert re.search(r"within one \d+\.\d\d%, mean absolute error \d+\.\d{4}, 6 images", capsys.readouterr().out)
    loaded = load_run(source)
    sf.save_model(sf.detach(loaded.model), bare, kind="folded", extra=loaded.about)
    assert main(["verify", source, bare]) == 1
    with pytest.raises(VerifyError, match="NOT equivalent"):
        get_task("counting").verify(loaded.model, load_run(bare).model, loaded.spec.example())


@pytest.mark.usefixtures("counting")
@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["--data", "digits"], "for counting choose one of shapes, coco:PATH"),
        (["--data", "shapes", "--set", "mixup=0.2"], "set 0 for counting"),
        (["--data", "coco:/no/such"], "no folder /no/such; data=coco:PATH"),
    ],
)
def test_a_new_tasks_slips_are_told(words: list[str], match: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--set", "task=counting", "--set", "augmentation=none", *words]) == 2
    assert match in capsys.readouterr().err
