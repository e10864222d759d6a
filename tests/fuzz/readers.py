"""Every public reader: a valid file for it, what may happen to that file, and what is done with what it gives."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch
import yaml

import stripefold as sf
from stripefold.attention.registry import attention_names, attention_options
from stripefold.baking.rebuild import structure
from stripefold.branches.registry import branch_names, kind_named
from stripefold.folding.weight_files import file_info, load_model_, save_model
from stripefold.stripe.trajectory import Trajectory
from stripefold_lab.bench.report import Report, Row, Spread
from stripefold_lab.cli.train import parse_changes
from stripefold_lab.datasets import Shapes
from stripefold_lab.datasets.ade20k import open_ade20k
from stripefold_lab.datasets.coco import open_coco
from stripefold_lab.datasets.voc import open_voc_boxes, open_voc_maps
from stripefold_lab.datasets.write import write_ade20k, write_coco, write_voc
from stripefold_lab.models import create_model
from stripefold_lab.sweep.draw import draw
from stripefold_lab.sweep.folder import TrialOutcome, open_sweep, read_outcome, write_outcome
from stripefold_lab.sweep.load import load_sweep
from stripefold_lab.sweep.trials import list_settings, list_trials
from stripefold_lab.training.build import build_model
from stripefold_lab.training.checkpoint import KEY
from stripefold_lab.training.config import TrainConfig
from stripefold_lab.training.data import ImageSpec, load_data
from stripefold_lab.training.loading import load_run
from stripefold_lab.training.paths import RunPaths, open_run
from stripefold_lab.training.recipe import load_config
from tests.fuzz.mutations import (
    rewrite_bytes,
    rewrite_checkpoint,
    rewrite_json,
    rewrite_metadata,
    rewrite_yaml,
)
from tests.html_report.reports import make_report, make_trajectory

Rewrite = Callable[[Random, Path], None]
CONFIG = TrainConfig(
    model="resnet8", attention_options={"reduction": 4}, limit_train=8, limit_test=8, accelerator="cpu", progress="none"
)
SPEC = ImageSpec(classes=tuple("0123456789"), channels=1, size=8)
SWEEP = {
    "title": "a sweep", "base": "digits", "set": {"model": "resnet8"},
    "settings": {"a": {"repeats": 1}, "b": {"psi": 0.2}},
    "grid": {"init": ["paper", "identity"]}, "random": {"learning_rate": {"loguniform": [0.01, 1]}}, "samples": 2,
    "draw_seed": 0, "seeds": [0, 1], "control": {"form": "none"},
}  # fmt: skip

ODD = [None, 0, 1, -1, 2, 16, 3.5, -0.1, True, "x", "", [], [1], [2, 2], {}, 10**9, 2**40, 1e308, float("nan"), "relu"]


@dataclass(frozen=True)
class Reader:
    """One reader.

    Attributes:
        make: Writes valid files into a folder and returns the one that is changed.
        read: Reads the folder of the file and does with the result what users do.
        rewrites: What may have happened to the file.
    """

    make: Callable[[Path], Path]
    read: Callable[[Path], Any]
    rewrites: tuple[Rewrite, ...]


def _about(config: TrainConfig) -> dict[str, Any]:
    return {"classes": list(SPEC.classes), "channels": 1, "image_size": 8, "config": config.to_dict()}


@functools.cache
def _model(form: str) -> torch.nn.Module:
    return build_model(CONFIG.with_overrides(form=form), SPEC).eval()


@functools.cache
def _baked() -> tuple[torch.nn.Module, dict[str, Any]]:
    images = torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    model, report = sf.bake(_model("dynamic"), [images])
    return model, structure(report)


def _write_config(folder: Path) -> Path:
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(CONFIG.to_dict(), sort_keys=False))
    return path


def _read_config(path: Path) -> Any:
    config = load_config(path)
    return load_config(path, seed=3), config.to_dict()


def _build(path: Path) -> Any:
    config = load_config(path)
    # What is merely large is no fault, and takes long.
    if config.task == "classification" and config.repeats < 8 and (config.image_size or 8) < 64:
        data = load_data(config)
        return data.test[0], build_model(config, data.spec)
    return None


def _write_sweep(folder: Path) -> Path:
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump(SWEEP, sort_keys=False))
    return path


def _read_sweep(path: Path) -> Any:
    sweep = load_sweep(path)
    if sweep.samples > 50 or len(sweep.seeds) > 50:
        return None
    drawn = draw(sweep.random, sweep.samples, sweep.draw_seed)
    return list_trials(sweep, list_settings(sweep, drawn))


@functools.cache
def _valid_sweep() -> Any:
    # Named by a path: the sweep's own name is that of its file.
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        return load_sweep(_write_sweep(Path(folder)))


def _write_sweep_folder(folder: Path) -> Path:
    return open_sweep(_valid_sweep(), folder / "s")[0].spec


def _read_sweep_folder(path: Path) -> Any:
    _, drawn = open_sweep(_valid_sweep(), path.parent)
    return list_settings(_valid_sweep(), drawn)


def _first_trial(folder: Path) -> Any:
    paths, drawn = open_sweep(_valid_sweep(), folder)
    return paths, list_trials(_valid_sweep(), list_settings(_valid_sweep(), drawn))[0]


def _write_outcome(folder: Path) -> Path:
    paths, trial = _first_trial(folder / "s")
    run = RunPaths(paths.run(trial.name))
    open_run(trial.config.with_overrides(run_dir=str(run.root), resume=True))
    run.summary.write_text("done")
    write_outcome(paths, trial.name, TrialOutcome(score=0.5, measure="accuracy", images=4, parameters=10, seconds=1.0))
    return paths.outcome(trial.name)


def _read_outcome(path: Path) -> Any:
    paths, trial = _first_trial(path.parents[1])
    return read_outcome(paths, trial)


def _read_stripes(path: Path) -> Any:
    report = sf.StripeReport.load(path)
    report.save(path.with_name("again.json"))
    report.to_csv(path.with_name("again.csv"))
    return str(report), report.merge(report)


def _read_trajectory(path: Path) -> Any:
    found = Trajectory.load(path)
    found.save(path.with_name("again.json"))
    return [found.channel_means(gate).sum() for gate in found.gates if found.epochs]


def _write_state(folder: Path) -> Path:
    torch.save(make_trajectory((4,)).state_dict(), folder / "state.ckpt")
    return folder / "state.ckpt"


def _read_state(path: Path) -> Any:
    try:
        state = torch.load(path, weights_only=True)
    except Exception:  # what torch makes of damaged bytes is checked with the checkpoints
        return None
    return Trajectory.from_state_dict(state).to_dict()


def _write_bench(folder: Path) -> Path:
    row = Row(name="a", seconds=Spread.of([1.0, 2.0]), ratio=Spread.of([1.0]), peak_bytes=3, limits={"ratio": 2.0})
    report = Report(title="t", date="d", environment={"torch": "2", "threads": 1}, settings={"rounds": 2}, rows=(row,))
    report.save(folder / "bench.json")
    return folder / "bench.json"


def _read_bench(path: Path) -> Any:
    report = Report.load(path)
    return str(report), report.markdown()


def _write_weights(folder: Path) -> Path:
    return save_model(create_model("resnet8"), folder / "w.safetensors", extra={"note": {"a": [1, None]}})


def _read_weights(path: Path) -> Any:
    return file_info(path), load_model_(create_model("resnet8"), path)


def _write_adapter(folder: Path) -> Path:
    model = sf.attach(_backbone(), "se", where="norm", attention_options={"reduction": 4})
    sf.save_adapter(model, folder / "a.safetensors")
    return folder / "a.safetensors"


@functools.cache
def _backbone() -> torch.nn.Module:
    torch.manual_seed(0)
    return create_model("resnet8")


def _write_run(kind: str, folder: Path) -> Path:
    path = folder / f"{kind}.safetensors"
    if kind == "baked":
        model, gates = _baked()
        return save_model(
            model, path, kind="baked", extra={**_about(CONFIG.with_overrides(form="dynamic")), "bake": gates}
        )
    if kind == "folded":
        return save_model(sf.fold(_model("static"), check=False), path, kind="folded", extra=_about(CONFIG))
    content = {
        KEY: _about(CONFIG),
        "state_dict": {f"model.{key}": value for key, value in _model("static").state_dict().items()},
        "callbacks": {"EpochRecord": {"rows": [{"epoch": 1.0, "val_accuracy": 0.5}]}}, "epoch": 1,
    }  # fmt: skip
    torch.save(content, folder / "last.ckpt")
    return folder / "last.ckpt"


def _scenes(write: Callable[..., None], name: str, file: str, folder: Path) -> Path:
    write(folder / name, Shapes(count=2, size=32, seed=0), Shapes(count=1, size=32, seed=1))
    return folder / name / file


def _read_scenes(reader: Callable[[Path], Any], depth: int, path: Path) -> Any:
    import warnings

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*objects without area|.*boxes are cut")
        halves = reader(path.parents[depth])
        return [half[index] for half in halves for index in range(len(half))]


def _write_folder(folder: Path) -> Path:
    from PIL import Image

    for half in ("train", "test"):
        for name in ("a", "b"):
            (folder / "d" / half / name).mkdir(parents=True)
            Image.new("RGB", (8, 8), (40, 90, 200)).save(folder / "d" / half / name / "0.png")
    return folder / "d" / "test" / "a" / "0.png"


def _read_folder(path: Path) -> Any:
    data = load_data(CONFIG.with_overrides(data=f"folder:{path.parents[2]}", limit_train=None, limit_test=None))
    return [data.test[index] for index in range(len(data.test))]


def _write_words(folder: Path) -> Path:
    (folder / "words").write_text("milestones=[1, 2]", encoding="utf-8")
    return folder / "words"


def _read_words(path: Path) -> Any:
    text = path.read_bytes().decode("utf-8", "surrogateescape")
    return load_config("digits", **parse_changes([text]))


def _rewrite_options(random: Random, path: Path) -> None:
    """A configuration with options that could be meant: other attentions, blocks, networks, and odd options of them."""
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    attention, branch = random.choice(attention_names()), random.choice(branch_names())
    values |= {"attention": attention, "attention_options": {}, "branch": random.choice([None, branch])}
    values["form"] = random.choice(["static", "dynamic", "both", "none"])
    options = {
        "attention_options": [*attention_options(attention), "axis", "channels", "x"],
        "branch_options": [*kind_named(branch).options, "grid", "x"],
        "model_options": ["num_classes", "x"],
        "batch_noise": ["kind", "scale", "shift"],
    }
    chosen = {
        "where": ["norm", "affine", "[", "*", "layer9.*", "", ["a", "*.bn1"], [], "layer1.0.bn1", "**/x"],
        "branch_where": ["spatial", "[", "*", "nothing", []],
        "model": ["resnet20", "resnet9999", "timm/", "torchvision/", "timm/x", "/", "tiny"],
        "data": ["folder:", "folder:/", "cifar10", "imagenet", "voc:/", "shapes", ":", "folder:\ud800"],
        "image_size": [8, 9, 4, 33], "repeats": [1, 2, 5], "psi": [0, 1e308, -1, "random"], "freeze": ["psi", "theta"],
        "task": ["segmentation", "detection"], "threads": [1, 10**6], "seed": [2**62],
    }  # fmt: skip
    for _ in range(random.choice([1, 2, 3])):
        key = random.choice([*options, *options, *chosen])
        if key in options:
            values[key] = {random.choice(options[key]): random.choice(ODD)}
        else:
            values[key] = random.choice(chosen[key])
    path.write_text(yaml.safe_dump(values), encoding="utf-8")


def _rewrite_xml(random: Random, path: Path) -> None:
    """An annotation whose numbers and names are others."""
    from xml.etree import ElementTree

    tree = ElementTree.parse(path)
    leaves = [each for each in tree.iter() if len(each) == 0]
    words = ["", "nan", "inf", "-5", "1e400", "999999", "x", "3.7", "dog", "2", "\u0663", "1 2"]
    for _ in range(random.choice([1, 2, 3])):
        random.choice(leaves).text = random.choice(words)
    if random.random() < 0.3:
        parent = random.choice([each for each in tree.iter() if len(each)])
        parent.remove(random.choice(list(parent)))
    tree.write(path)


_CONFIGS = (rewrite_yaml, rewrite_yaml, rewrite_bytes)
_HEADERS = (rewrite_metadata, rewrite_metadata, rewrite_bytes)
_JSON = (rewrite_json, rewrite_json, rewrite_bytes)
_CHECKPOINTS = (rewrite_checkpoint, rewrite_checkpoint, rewrite_bytes)
READERS: dict[str, Reader] = {
    "configuration": Reader(_write_config, _read_config, _CONFIGS),
    "configuration, built": Reader(_write_config, _build, (_rewrite_options, _rewrite_options, rewrite_yaml)),
    "--set": Reader(_write_words, _read_words, (rewrite_bytes,)),
    "sweep": Reader(_write_sweep, _read_sweep, _CONFIGS),
    "folder of a sweep": Reader(_write_sweep_folder, _read_sweep_folder, _CONFIGS),
    "outcome of a run": Reader(_write_outcome, _read_outcome, _JSON),
    "stripes.json": Reader(lambda folder: make_report((4, 6)).save(folder / "s.json"), _read_stripes, _JSON),
    "stripes.safetensors": Reader(
        lambda folder: make_report((4, 6)).save(folder / "s.safetensors"), _read_stripes, _HEADERS
    ),
    "trajectory.json": Reader(lambda folder: make_trajectory((4, 6)).save(folder / "t.json"), _read_trajectory, _JSON),
    "trajectory of a checkpoint": Reader(_write_state, _read_state, _CHECKPOINTS),
    "measurement": Reader(_write_bench, _read_bench, _JSON),
    "weights": Reader(_write_weights, _read_weights, _HEADERS),
    "adapter": Reader(_write_adapter, lambda path: sf.load_adapter(_backbone(), path), _HEADERS),
    "folded run": Reader(functools.partial(_write_run, "folded"), load_run, _HEADERS),
    "baked run": Reader(functools.partial(_write_run, "baked"), load_run, _HEADERS),
    "checkpoint": Reader(functools.partial(_write_run, "checkpoint"), load_run, _CHECKPOINTS),
    "COCO": Reader(
        functools.partial(_scenes, write_coco, "coco", "annotations/instances_val.json"),
        functools.partial(_read_scenes, open_coco, 1),
        _JSON,
    ),
    "VOC, an annotation": Reader(
        functools.partial(_scenes, write_voc, "voc", "Annotations/val_000000.xml"),
        functools.partial(_read_scenes, open_voc_boxes, 1),
        (_rewrite_xml, _rewrite_xml, rewrite_bytes),
    ),
    "VOC, a list": Reader(
        functools.partial(_scenes, write_voc, "voc", "ImageSets/Main/val.txt"),
        functools.partial(_read_scenes, open_voc_boxes, 2),
        (rewrite_bytes,),
    ),
    "VOC, names": Reader(
        functools.partial(_scenes, write_voc, "voc", "labels.txt"),
        functools.partial(_read_scenes, open_voc_boxes, 0),
        (rewrite_bytes,),
    ),
    "VOC, a class map": Reader(
        functools.partial(_scenes, write_voc, "voc", "SegmentationClass/val_000000.png"),
        functools.partial(_read_scenes, open_voc_maps, 1),
        (rewrite_bytes,),
    ),
    "ADE20K, names": Reader(
        functools.partial(_scenes, write_ade20k, "ade", "objectInfo150.txt"),
        functools.partial(_read_scenes, open_ade20k, 0),
        (rewrite_bytes,),
    ),
    "ADE20K, an image": Reader(
        functools.partial(_scenes, write_ade20k, "ade", "images/validation/000000.jpg"),
        functools.partial(_read_scenes, open_ade20k, 2),
        (rewrite_bytes,),
    ),
    "folder of classes": Reader(_write_folder, _read_folder, (rewrite_bytes,)),
}
