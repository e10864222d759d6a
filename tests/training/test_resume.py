"""A run is resumed as the run it was, on the data it was trained on, by one process, or not at all."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from stripefold.errors import CheckpointError, ConfigError, DataError
from stripefold_lab.training import TrainConfig, evaluate, train
from stripefold_lab.training.checkpoint import KEY, SafeCheckpointIO, read_checkpoint
from stripefold_lab.training.paths import RunPaths, claimed_run
from stripefold_lab.training.resume import check_resumable, restore_best
from stripefold_lab.training.training_module import TrainingModule

OTHERS = {
    "the network": {"model": "resnet8"},
    "the seed": {"seed": 4},
    "the rate": {"learning_rate": 0.2},
    "the batch": {"batch_size": 16},
    "fewer images": {"limit_train": 48},
    "more epochs": {"epochs": 5},
    "other gates": {"repeats": 2},
    "another decay": {"weight_decay": 0.0},
    "augmentation": {"augmentation": "shift"},
    "precision": {"precision": "bf16-mixed"},
    "options of the attention": {"attention_options": {"reduction": 4}},
    "mixing": {"mixup": 0.2},
}


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pictures")
    for half, count in (("train", 12), ("test", 4)):
        for shade, name in ((40, "ant"), (120, "bee"), (200, "cow")):
            (root / half / name).mkdir(parents=True)
            for number in range(count):
                image = Image.new("RGB", (8, 8), (shade, shade + number, shade))
                image.save(root / half / name / f"{number:02}.png")
    return root


@pytest.mark.parametrize("kind", OTHERS)
def test_the_checkpoint_of_another_run_is_not_gone_on_with(config: TrainConfig, tmp_path: Path, kind: str) -> None:
    """As it lies there when a checkpoint is copied into another run's folder."""
    paths = RunPaths(tmp_path / "other")
    other = config.with_overrides(epochs=1, limit_train=32, limit_test=16)
    done = train(other.with_overrides(run_dir=str(paths.root), **OTHERS[kind]))
    mine = train(other)
    shutil.copy(done.last_checkpoint, mine.last_checkpoint)
    before = files(mine.run_dir)
    ((name, value),) = OTHERS[kind].items()
    with pytest.raises(ConfigError, match=rf"cannot resume .*: {name} was .*{value if name != 'model' else 'resnet8'}"):
        train(other.with_overrides(resume=True))
    assert files(mine.run_dir) == before


@pytest.mark.parametrize("change", [{"learning_rate": 0.3}, {"epochs": 7}, {"psi": 0.3}])
def test_an_edited_configuration_is_not_the_run(config: TrainConfig, change: dict) -> None:
    """`train --resume` reads the options from config.yaml: only the checkpoint knows that it was edited."""
    result = train(config.with_overrides(epochs=1))
    text = result.run_dir / "config.yaml"
    text.write_text(yaml.safe_dump({**yaml.safe_load(text.read_text()), **change}), encoding="utf-8")
    ((name, value),) = change.items()
    asked = config.with_overrides(**{"epochs": 1, **change, "resume": True})
    was = config.with_overrides(epochs=1).to_dict()[name]
    with pytest.raises(
        ConfigError, match=rf"cannot resume .*: {name} was {was!r} and is now {value!r}; last\.ckpt is of"
    ):
        train(asked)


def test_what_changes_no_number_may_change(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config.with_overrides(augmentation="shift")
    alone = train(config.with_overrides(run_dir=f"{config.run_dir}-alone"))
    stop_at(monkeypatch, 3, lambda: train(config))
    free = {"workers": 1, "progress": "lines", "timeout": 5, "data_dir": "elsewhere"}
    again = train(config.with_overrides(resume=True, **free))
    assert again.epochs_run == 1
    one, two = (read_checkpoint(run.last_checkpoint)["state_dict"] for run in (alone, again))
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())


def stop_at(monkeypatch: pytest.MonkeyPatch, step: int, run: Callable[[], object]) -> None:
    original = TrainingModule.training_step

    def training_step(self: TrainingModule, *args: object) -> torch.Tensor:
        if self.global_step == step:
            raise ValueError("stopped here")
        return original(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingModule, "training_step", training_step)
        with pytest.raises(ValueError, match="stopped here"):
            run()


@pytest.mark.parametrize("workers", [1, 2])
def test_resumed_with_workers_it_has_its_own_order_and_augmentation(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    config = config.with_overrides(augmentation="crop-flip", epochs=3, workers=workers)
    alone = train(config.with_overrides(run_dir=f"{config.run_dir}-alone"))
    stop_at(monkeypatch, 3, lambda: train(config))
    again = train(config.with_overrides(resume=True))
    one, two = (read_checkpoint(run.last_checkpoint)["state_dict"] for run in (alone, again))
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())
    # The comparison can fail: the order of another epoch shows.
    other = train(config.with_overrides(run_dir=f"{config.run_dir}-other", seed=1))
    assert not torch.equal(
        one["model.head.weight"], read_checkpoint(other.last_checkpoint)["state_dict"]["model.head.weight"]
    )


def test_more_epochs_where_they_are_asked_for(config: TrainConfig) -> None:
    first = train(config)
    with pytest.raises(ConfigError, match="epochs was 2 and is now 4; resume with .*asked for with extend: true"):
        train(config.with_overrides(resume=True, epochs=4))
    again = train(config.with_overrides(resume=True, epochs=4, extend=True))
    assert again.epochs_run == 2
    rates = [float(line.split(",")[2]) for line in again.metrics_file.read_text().splitlines()[1:]]
    assert rates[2] > rates[1]  # the rate is the longer run's from the first step on
    assert train(config.with_overrides(resume=True, epochs=4)).epochs_run == 0
    with pytest.raises(ConfigError, match="it has finished 4 epochs, and epochs is 3: set more"):
        train(config.with_overrides(resume=True, epochs=3, extend=True))
    assert first.run_dir == again.run_dir
    with pytest.raises(ConfigError, match="extend is True.*set resume"):
        config.with_overrides(extend=True)


def renamed(root: Path) -> None:
    for half in ("train", "test"):
        (root / half / "bee").rename(root / half / "bug")


def reordered(root: Path) -> None:
    """The same pictures, the classes' numbers turned round by their names."""
    for half in ("train", "test"):
        (root / half / "ant").rename(root / half / "zebra")


def swapped(root: Path) -> None:
    for half in ("train", "test"):
        (root / half / "ant").rename(root / half / "x")
        (root / half / "cow").rename(root / half / "ant")
        (root / half / "x").rename(root / half / "cow")


def fewer(root: Path) -> None:
    (root / "train" / "cow" / "03.png").unlink()


def a_class_more(root: Path) -> None:
    for half in ("train", "test"):
        shutil.copytree(root / half / "cow", root / half / "dog")


def another_name(root: Path) -> None:
    (root / "test" / "bee" / "01.png").rename(root / "test" / "bee" / "9.png")


def another_size(root: Path) -> None:
    Image.effect_noise((8, 8), 80).convert("RGB").save(root / "train" / "bee" / "05.png")


CHANGES = {
    renamed: "class 1 was 'bee' and is now 'bug'",
    reordered: "class 0 was 'ant' and is now 'bee'",
    swapped: "fingerprint of the sizes and contents of the training images' files was .* and is now",
    fewer: "number of training images was 36 and is now 35",
    a_class_more: "was trained on 3 classes, and the data has 4",
    another_name: "fingerprint of the test images and their order was .* and is now",
    another_size: "fingerprint of the sizes and contents of the training images' files was .* and is now",
}


@pytest.fixture(scope="module")
def trained(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("trained")
    shutil.copytree(pictures, root / "data")
    return root


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_data_that_has_changed_is_refused(
    config: TrainConfig, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], None]
) -> None:
    shutil.copytree(pictures, tmp_path / "data")
    options = {"data": "folder:data", "limit_train": None, "limit_test": None, "epochs": 1}
    monkeypatch.chdir(tmp_path)
    result = train(config.with_overrides(**options))
    change(tmp_path / "data")
    before = files(result.run_dir)
    with pytest.raises(ConfigError, match=f"cannot resume .*{CHANGES[change]}"):
        train(config.with_overrides(**options, resume=True))
    for source in (result.run_dir, result.folded_file):
        with pytest.raises((DataError, CheckpointError), match=f"{CHANGES[change]}|was trained on 3 classes"):
            evaluate(source)
    assert files(result.run_dir) == before


def test_data_that_was_only_moved_is_the_same(
    config: TrainConfig, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"data": "folder:data", "limit_train": None, "limit_test": None, "epochs": 1}
    for place in ("here", "there"):
        shutil.copytree(pictures, tmp_path / place / "data")
    monkeypatch.chdir(tmp_path / "here")
    result = train(config.with_overrides(**options))
    monkeypatch.chdir(tmp_path / "there")
    assert train(config.with_overrides(**options, resume=True)).epochs_run == 0
    assert evaluate(result.run_dir, limit_test=5).images == 5
    moved = evaluate(result.run_dir, data=f"folder:{tmp_path / 'there' / 'data'}")
    assert moved.accuracy == result.attached.accuracy
    renamed(tmp_path / "there" / "data")
    with pytest.raises(DataError, match="class 1 was 'bee' and is now 'bug'"):
        evaluate(result.run_dir, data=f"folder:{tmp_path / 'there' / 'data'}")


def test_a_file_that_knows_no_fingerprint_is_compared_by_its_classes(config: TrainConfig) -> None:
    result = train(config.with_overrides(epochs=1))
    content = read_checkpoint(result.last_checkpoint)
    del content[KEY]["data"]
    SafeCheckpointIO().save_checkpoint(content, result.last_checkpoint)
    assert train(config.with_overrides(epochs=1, resume=True)).epochs_run == 0
    content[KEY]["classes"][3] = "drei"
    SafeCheckpointIO().save_checkpoint(content, result.last_checkpoint)
    with pytest.raises(ConfigError, match="class 3 was 'drei' and is now '3'"):
        train(config.with_overrides(epochs=1, resume=True))


@pytest.mark.parametrize("gone", [["last.ckpt"], ["last.ckpt", "best.ckpt"]])
def test_without_its_last_checkpoint_nothing_is_begun_anew(config: TrainConfig, gone: list[str]) -> None:
    result = train(config)
    for name in gone:
        (result.run_dir / "checkpoints" / name).unlink()
    before = files(result.run_dir)
    with pytest.raises(
        ConfigError, match=r"last\.ckpt is missing, and .*metrics\.csv.* would be overwritten; put it back"
    ):
        train(config.with_overrides(resume=True))
    assert files(result.run_dir) == before
    if "best.ckpt" not in gone:
        shutil.copy(result.best_checkpoint, result.last_checkpoint)
        assert train(config.with_overrides(resume=True)).epochs_run == 2 - result.best_epoch


def test_a_checkpoint_that_does_not_say_what_it_is_of(config: TrainConfig) -> None:
    result = train(config.with_overrides(epochs=1))
    content = read_checkpoint(result.last_checkpoint)
    for spoil, match in (
        (lambda: content.__setitem__("callbacks", {}), "does not hold the rows of its epochs"),
        (
            lambda: content[KEY].__setitem__("config", {**content[KEY]["config"], "warp": 9}),
            "option 'warp', which was 9",
        ),
        (lambda: content[KEY].__setitem__("config", "mine"), "does not say which run it is of"),
        (lambda: content.__setitem__(KEY, "mine"), "stripefold is 'mine'; it must be a mapping"),
    ):
        spoil()
        SafeCheckpointIO().save_checkpoint(content, result.last_checkpoint)
        with pytest.raises((CheckpointError, ConfigError), match=match):
            train(config.with_overrides(epochs=1, resume=True))


def test_the_best_checkpoint_is_made_from_the_last_where_its_epoch_is(config: TrainConfig) -> None:
    """As after a kill between the two."""
    result = train(config.with_overrides(epochs=1))
    content = result.best_checkpoint.read_bytes()
    result.best_checkpoint.unlink()
    train(config.with_overrides(epochs=1, resume=True))
    assert read_checkpoint(result.best_checkpoint)["global_step"] == 2
    assert len(result.best_checkpoint.read_bytes()) == len(content)
    later = read_checkpoint(result.last_checkpoint)
    rows = later["callbacks"]["EpochRecord"]["rows"]
    rows.append({**rows[0], "epoch": 2.0})  # as good as the first: the first one stays the best
    SafeCheckpointIO().save_checkpoint(later, result.last_checkpoint)
    result.best_checkpoint.unlink()
    restore_best(RunPaths(result.run_dir), "val_accuracy")
    assert not result.best_checkpoint.exists()


def test_one_process_at_a_time(config: TrainConfig) -> None:
    with claimed_run(config) as paths:
        for asked in (config, config.with_overrides(resume=True)):
            with pytest.raises(
                ConfigError, match="another process works on the run in .*: wait for it, stop it, or choose"
            ):
                train(asked)
        assert check_resumable(config, paths, {"classes": []}) == 0
    assert train(config.with_overrides(resume=True, epochs=2)).epochs_run == 2
    assert not paths.lock.exists()


def test_a_lock_file_that_nobody_holds_is_no_lock(config: TrainConfig) -> None:
    """What a run that was killed leaves."""
    train(config)
    (Path(str(config.run_dir)) / ".lock").touch()
    assert train(config.with_overrides(resume=True)).epochs_run == 0
    assert not (Path(str(config.run_dir)) / ".lock").exists()


def test_new_folders_are_not_shared(config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found: list[Path] = []

    def claim() -> None:
        with claimed_run(config.with_overrides(run_dir=None)) as paths:
            found.append(paths.root)

    threads = [threading.Thread(target=claim) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 8


def test_a_folder_that_cannot_be_written(config: TrainConfig, tmp_path: Path) -> None:
    from stripefold.errors import TrainingError

    (tmp_path / "file").touch()
    with pytest.raises(TrainingError, match="cannot write into run_dir .*file"):
        train(config.with_overrides(run_dir=str(tmp_path / "file")))


@pytest.mark.parametrize(
    "place", [".config.yaml.12ab34cd.part", "checkpoints/.best.ckpt.00ff00ff.part", "stripes/.trajectory.json.1.part"]
)
def test_what_a_killed_process_had_not_finished_goes(config: TrainConfig, place: str) -> None:
    result = train(config.with_overrides(epochs=1))
    (result.run_dir / place).parent.mkdir(exist_ok=True)
    (result.run_dir / place).write_text("half of", encoding="utf-8")
    train(config.with_overrides(epochs=1, resume=True))
    assert not list(result.run_dir.rglob("*.part"))
