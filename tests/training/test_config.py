"""Configurations: every refusal, the recipes, YAML's habits."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from stripefold.errors import ConfigError
from stripefold_lab.training import TrainConfig, load_config, recipe_names
from stripefold_lab.training.recipe import read_yaml
from stripefold_lab.training.schedule import rate_factor


@pytest.mark.parametrize(
    ("field", "value", "match"),
    [
        ("form", "statik", "form is 'statik'; choose one of static, dynamic, both, none"),
        ("init", "zero", "init is 'zero'"),
        ("augmentation", "mix", "augmentation is 'mix'"),
        ("optimizer", "lion", "optimizer is 'lion'"),
        ("schedule", "linear", "schedule is 'linear'"),
        ("precision", "64", "precision is '64'"),
        ("progress", "quiet", "progress is 'quiet'"),
        ("epochs", 0, "epochs is 0; it must be at least 1"),
        ("epochs", 2.5, "epochs is 2.5; give a whole number"),
        ("epochs", True, "epochs is True; give a whole number"),
        ("batch_size", -1, "batch_size is -1"),
        ("learning_rate", 0, "learning_rate is 0.0; it must be above 0"),
        ("learning_rate", "fast", "learning_rate is 'fast'; give a finite number"),
        ("learning_rate", float("nan"), "learning_rate is nan"),
        ("learning_rate", True, "learning_rate is True"),
        ("momentum", 1, "momentum is 1.0; it must be below 1"),
        ("label_smoothing", 1.5, "label_smoothing is 1.5"),
        ("weight_decay", -0.1, "weight_decay is -0.1"),
        ("threads", 0, "threads is 0; it must be at least 1"),
        ("seed", -1, "seed is -1"),
        ("channels", 2, "channels is 2; set 1"),
        ("image_size", 2, "image_size is 2"),
        ("milestones", [5, 3], r"milestones is \[5, 3\]; give rising epochs"),
        ("milestones", ["a"], "milestones is .*; give a list of int"),
        ("milestones", 3, "milestones is 3; give a list"),
        ("warmup_epochs", -1, "warmup_epochs is -1; it must be at least 0"),
        ("resume", True, "resume needs run_dir"),
        ("compile", "yes", "compile is 'yes'; give true or false"),
        ("data", 3, "data is 3; give a text"),
        ("where", [1], "where is .*; give a list of str"),
        ("attention_options", 3, "attention_options is 3; give a mapping"),
        ("attention_options", {1: 2}, "attention_options is .1: 2.; give a mapping whose names are texts"),
        ("model_options", {None: 2}, "give a mapping whose names are texts"),
        ("threads", 10**6, "threads is 1000000; it may be at most 1024"),
        ("workers", 10**5, "workers is 100000; it may be at most 1024"),
        ("timeout", 10**12, "timeout is 1000000000000; it may be at most 100000000"),
        ("image_size", 10**9, "image_size is 1000000000; it may be at most 16384"),
        ("repeats", 10**7, "repeats is 10000000; it may be at most 1024"),
        ("seed", 2**63, "seed is 9223372036854775808; give a whole number of at most 64 bits"),
        ("batch_size", -(2**70), "batch_size is -1180591620717411303424; give a whole number"),
        ("learning_rate", 10**400, "learning_rate is 1000.*; give a finite number"),
        ("data", "folder:a\0b", "data is .*; give a text without zero bytes"),
        ("milestones", [True], "milestones is .True.; give a list of int"),
        ("model", None, "model is None; give a text"),
        ("form", ["x" * 10**6], "form is .'xxx.*; give a text"),
    ],
)
def test_refuses_naming_field_and_value(field: str, value: object, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        TrainConfig(**{field: value})


def test_nesterov_needs_sgd_with_momentum() -> None:
    with pytest.raises(ConfigError, match="nesterov is True; it needs sgd with momentum"):
        TrainConfig(nesterov=True, optimizer="adamw")


def test_values_are_brought_to_their_type() -> None:
    config = TrainConfig(learning_rate=1, weight_decay="1e-4", milestones=[1, 2], where=["a", "b"], precision=32)
    assert (config.learning_rate, config.weight_decay, config.milestones) == (1.0, 1e-4, (1, 2))
    assert (config.where, config.precision) == (("a", "b"), "32")
    assert TrainConfig(**config.to_dict()) == config


def test_an_unknown_option_gets_its_nearest_name() -> None:
    with pytest.raises(ConfigError, match="unknown option 'epoch' in the overrides; did you mean 'epochs'?"):
        load_config("digits", epoch=3)
    with pytest.raises(ConfigError, match="unknown option 'zzz' in the overrides; options: task, data, "):
        TrainConfig().with_overrides(zzz=3)


def test_every_recipe_is_valid() -> None:
    backbones = ("convnext", "mobilenetv3", "repvgg", "vit-small", "vit-tiny")
    assert recipe_names() == (
        "cifar", "digits", "imagenet", *(f"imagenet-{name}" for name in backbones),
        "shapes-detection", "shapes-lraspp", "shapes-segmentation", "shapes-ssdlite",
        "small", "small-convnext", "small-vit",
    )  # fmt: skip
    for name in recipe_names():
        assert load_config(name, seed=4).seed == 4


def test_the_cifar_recipe_is_the_reference_codes() -> None:
    recipe = load_config("cifar")
    assert (recipe.epochs, recipe.batch_size, recipe.momentum, recipe.weight_decay) == (164, 128, 0.9, 1e-4)
    assert (recipe.gate_weight_decay, recipe.augmentation, recipe.model) == (None, "crop-flip", "resnet164")
    rates = [0.1 * rate_factor(recipe, 391, epoch * 391) for epoch in (0, 80, 81, 121, 122, 163)]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001])


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("epochs: [", "is no valid YAML"),
        ("- 1", "holds list; a configuration is a mapping"),
        ("", "holds NoneType"),
        ("epocs: 3", "unknown option 'epocs' in .*did you mean 'epochs'"),
        ("!!python/object/apply:os.getcwd []", "is no valid YAML"),
        ("epochs: 3\nseed: 1\nepochs: 4", "the key 'epochs' stands in it twice"),
        ("attention_options: {reduction: 2, reduction: 4}", "the key 'reduction' stands in it twice"),
        ("model_options: " + "{a: " * 60 + "1" + "}" * 60, "nested deeper than 32 levels"),
        ("a: &a [1]\nb: &b [" + "*a, " * 999 + "]\nc: [" + "*b, " * 999 + "]", "more than 100000 values"),
    ],
)
def test_refuses_bad_files(tmp_path: Path, text: str, match: str) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=match):
        load_config(file)


def test_a_missing_file_gets_the_nearest_recipe() -> None:
    with pytest.raises(ConfigError, match="no recipe and no readable file 'digit' .*; did you mean 'digits'?"):
        read_yaml("digit")
    with pytest.raises(ConfigError, match="recipes: cifar, digits, imagenet, "):
        read_yaml("no/such/file.yaml")


@pytest.mark.parametrize(
    ("options", "steps", "expected"),
    [
        ({"schedule": "constant"}, (0, 7), (1, 1)),
        ({"schedule": "cosine"}, (0, 4, 8), (1, 0.5, 0)),
        ({"schedule": "cosine", "warmup_epochs": 1}, (0, 1, 2, 8), (1 / 3, 2 / 3, 1, 0)),
        ({"schedule": "cosine", "warmup_epochs": 9}, (3, 4, 8), (0.8, 1, 0)),
        ({"schedule": "step", "milestones": [2], "decay": 0.5}, (3, 4), (1, 0.5)),
    ],
)
def test_the_rate_follows_from_the_step(options: dict, steps: tuple, expected: tuple) -> None:
    config = TrainConfig(epochs=4, **options)
    assert [rate_factor(config, 2, step) for step in steps] == pytest.approx(list(expected))


def test_configuring_loads_no_torch() -> None:
    code = "import sys, stripefold_lab.training as t; t.load_config('digits'); print('torch' in sys.modules)"
    source = Path(__file__).parents[2] / "src"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=source)
    assert done.stdout.strip() == "False"
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        __import__("stripefold_lab.training").training.nothing  # noqa: B018


def test_freeze_takes_a_word_or_several() -> None:
    assert TrainConfig(freeze="psi").freeze == ("psi",)
    assert TrainConfig(freeze=["psi", "theta"]).to_dict()["freeze"] == ["psi", "theta"]
    with pytest.raises(ConfigError, match="freeze names 'phi'; give any of psi, theta"):
        TrainConfig(freeze=["phi"])
    with pytest.raises(ConfigError, match="freeze is 3; give a list of str"):
        TrainConfig(freeze=3)


def test_psi_may_be_drawn() -> None:
    assert TrainConfig(psi="random").psi == "random"
    assert TrainConfig(psi=1).psi == 1.0
    with pytest.raises(ConfigError, match="psi is 'randomly'; give a finite number"):
        TrainConfig(psi="randomly")
