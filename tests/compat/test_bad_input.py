"""Every misuse gets its own words, and leaves the model as it was: ids, keys, bytes, flags, hooks."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm

import stripefold as sf
from stripefold.errors import AdapterError, AttachError, CheckpointError, FoldError, TraceError, VerifyError
from tests.lifecycle import SITES, TinyNet, assert_refused, attached, images, snapshot, tiny

BN = SITES[0]

BAD_OPTIONS = {
    "unknown attention": ({"attention": "sse"}, r"no attention 'sse'; known are .*did you mean 'se'"),
    "unknown attention option": (
        {"attention_options": {"reductoin": 4}},
        rf"cannot attach to '{BN}': attention 'se' has no option 'reductoin'; its options .*did you mean 'reduction'",
    ),
    "option that the place decides": (
        {"attention_options": {"axis": 1}},
        "attention 'se' has no option 'axis'; its options",
    ),
    "another of them": ({"attention_options": {"channels": 4}}, "attention 'se' has no option 'channels'; its options"),
    "options of another kind": ({"attention_options": 4}, "attention_options=4: give a mapping"),
    "options without names": ({"attention_options": {3: 4}}, "attention_options={3: 4}: give a mapping"),
    "complex psi": ({"psi": torch.ones(8, dtype=torch.complex64)}, "psi is torch.complex64: give real numbers"),
    "where: mapping of numbers": ({"where": {3: {}}}, r"where\[3\] = {}: expected a mapping of options"),
    "zero-wide attention": (
        {"attention_options": {"reduction": 0}},
        "reduction must be a positive finite number, got 0",
    ),
    "form": ({"form": "static-ish"}, "form='static-ish': expected one of 'static', 'dynamic'"),
    "init": ({"init": "zero"}, "init='zero': expected one of 'paper', 'identity'"),
    "freeze of another kind": ({"freeze": 3}, "freeze=3: give 'psi', 'theta' or a sequence of both"),
    "only refused layers": (
        {"where": "blocks.?"},
        r"where='blocks.\?' selects only layers that cannot be sites:\n  blocks.0: Block is a container",
    ),
    "freeze": ({"freeze": ("phi",)}, "freeze='phi': expected one of 'psi', 'theta'"),
    "repeats": ({"repeats": 0}, "repeats=0: give a whole number of gates, 1 or more"),
    "repeats of another kind": ({"repeats": True}, "repeats=True: give a whole number"),
    "psi of another kind": ({"psi": [0.1]}, r"psi=\[0.1\]: give a number, a tensor, 'random' or None"),
    "psi in words": ({"psi": "zero"}, "psi='zero': give a number, a tensor, 'random' or None"),
    "psi of another shape": ({"psi": torch.zeros(3)}, rf"'{BN}': psi has shape \(3,\), but .* shape \(8,\)"),
    "psi with NaN": ({"psi": float("nan")}, rf"'{BN}': psi holds 8 entries that are not finite"),
    "psi with infinity": ({"psi": torch.tensor([float("inf")] * 2 + [0.0] * 6)}, "psi holds 2 entries"),
    "saddle": ({"attention": "ie", "psi": 0.0}, "'ie' cannot start at psi = 0: .*a saddle that training never leaves"),
    "static option, dynamic form": ({"form": "dynamic", "repeats": 2}, "repeats has a meaning only with form='static'"),
    "psi, dynamic form": ({"form": "dynamic", "psi": 0.5}, "psi has a meaning only with form='static'"),
    "no dynamic form": ({"attention": "scale", "form": "dynamic"}, "'scale' has no dynamic form"),
    "identity too near zero": (
        {"attention": "scale", "psi": 1e-5, "init": "identity"},
        r"init='identity' divides by the starting scale, whose smallest entry is 1e-05 \(limit 0.001\)",
    ),
    "where: typo": ({"where": "residul"}, "where='residul' matches no module. Did you mean 'residual'"),
    "where: glob without a match": (
        {"where": "blocks.*.bn7"},
        "where='blocks.[*].bn7' matches no module. Did you mean",
    ),
    "where: empty list": ({"where": []}, r"where=\[\]: give 'residual'"),
    "where: empty mapping": ({"where": {}}, r"where=\{\} selects no layer of this model"),
    "where: nothing": ({"where": None}, "where=None: give 'residual'"),
    "where: predicate that is never true": (
        {"where": lambda name, module: False},
        "the predicate given as where selects no layer",
    ),
    "where: one of a list without a match": ({"where": [BN, "layer9"]}, "where='layer9' matches no module"),
    "where: mapping to an attention": ({"where": {BN: "se"}}, r"expected a mapping of options such as \{'attention'"),
    "where: mapping with an unknown option": (
        {"where": {BN: {"repeat": 2}}},
        r"where\['blocks.0.bn2'\] has no option 'repeat'; its options are attention, .*attention_options; .*'repeats'",
    ),
    "where: mapping with a bad value": (
        {"where": {BN: {"attention": "sse"}}},
        r"where\['blocks.0.bn2'\]: no attention 'sse'",
    ),
    "a container": (
        {"where": "blocks.0"},
        "cannot attach to 'blocks.0': Block is a container: gate one of the layers",
    ),
    "no site": ({"where": "*nothing*"}, "matches no module"),
}


@pytest.mark.parametrize("case", BAD_OPTIONS)
def test_bad_options(case: str) -> None:
    options, message = BAD_OPTIONS[case]
    model = tiny()
    assert_refused(model, lambda: sf.attach_(model, **options), AttachError, message)
    assert_refused(model, lambda: sf.attach(model, **options), AttachError, message)


def with_layer(layer: nn.Module) -> TinyNet:
    model = tiny()
    model.blocks[0].bn2 = layer.double()
    return model


def tied() -> TinyNet:
    model = tiny()
    model.blocks[1].bn2.weight = model.blocks[0].bn2.weight
    return model


def quantized_linear() -> nn.Module:
    return torch.ao.nn.quantized.Linear(8, 8)


class Scaled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


class OwnNorm(nn.BatchNorm2d):
    """Unknown by its exact type."""


def old_weight_norm() -> nn.Module:
    with pytest.warns(FutureWarning, match="weight_norm"):
        return nn.utils.weight_norm(nn.Conv2d(8, 8, 1))


LAYERS = {
    "no affine part": (lambda: nn.BatchNorm2d(8, affine=False), "it has no affine part .*affine=True"),
    "tied": (None, rf"its 'weight' is tied to 'blocks.1.bn2.weight': .*Give '{BN}' a parameter of its own"),
    "parametrized": (
        lambda: parametrizations.spectral_norm(nn.Conv2d(8, 8, 1)),
        r"it is parametrized \('weight'\): make the parametrization permanent first with .*remove_parametrizations",
    ),
    "parametrized by the user": (
        lambda: parametrize.register_parametrization(nn.Conv2d(8, 8, 1), "weight", Scaled()),
        r"it is parametrized \('weight'\)",
    ),
    "old weight_norm": (old_weight_norm, r"weight_norm recomputes its 'weight' .*remove_weight_norm"),
    "old spectral_norm": (
        lambda: spectral_norm(nn.Conv2d(8, 8, 1)), r"spectral_norm recomputes its 'weight' .*remove_spectral_norm"
    ),
    "prune": (
        lambda: prune.l1_unstructured(nn.Conv2d(8, 8, 1), "weight", 0.5), r"prune recomputes .*\(layer, 'weight'\)"
    ),
    "quantized": (quantized_linear, r"it is quantized \(Linear\): attach, train and fold in floating point"),
    "lazy": (lambda: nn.LazyBatchNorm2d(), "is lazy and has no weights yet: run the model once"),
    "unknown type": (lambda: OwnNorm(8), r"no rule for .*\(exact type\): .*rule\(OwnNorm, like=nn.BatchNorm2d"),
    "no parameters": (lambda: nn.ReLU(), "ReLU has no affine part"),
    "activation inside": (lambda: Scaled(), "Scaled has no affine part"),
}  # fmt: skip


@pytest.mark.parametrize("case", LAYERS)
@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor, .* are deprecated:UserWarning")
def test_layers_that_cannot_be_sites(case: str) -> None:
    build, message = LAYERS[case]
    model = tied() if build is None else tiny()
    if build is not None:
        model.blocks[0].bn2 = build()
    assert_refused(model, lambda: sf.attach_(model, where=BN), AttachError, f"(?s){BN}.*{message}")
    table = sf.sites(model, BN)
    assert not table.chosen
    assert [row.name for row in table.refused] == [BN]
    assert "1 layers refused" in str(table)


def test_a_layer_with_a_rule_that_is_wrong_for_it_is_refused_by_the_probe() -> None:
    class Shifted(nn.BatchNorm2d):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + 1

    sf.register_rule(Shifted, like=nn.BatchNorm2d)
    model = with_layer(Shifted(8))
    assert_refused(
        model,
        lambda: sf.attach_(model, where=BN),
        AttachError,
        f"cannot attach to '{BN}': the rule for .*Shifted is wrong",
    )


def test_attaching_twice() -> None:
    model = attached()
    again = rf"'{BN}' already has a static gate \(se\): use repeats= for several in a row, or start over with"
    assert_refused(model, lambda: sf.attach_(model), AttachError, again)
    assert_refused(model, lambda: sf.attach(model, "ie"), AttachError, again)
    sf.attach_(model, form="dynamic")
    assert_refused(
        model,
        lambda: sf.attach_(model, form="dynamic"),
        AttachError,
        "already has a dynamic gate .* a site takes one dynamic",
    )


def test_a_partly_attached_model_changes_nothing_when_the_rest_is_refused() -> None:
    model = sf.attach(tiny(), where=SITES[1])
    assert_refused(model, lambda: sf.attach_(model), AttachError, f"'{SITES[1]}' already has a static gate")
    assert list(sf.scales(model)) == [SITES[1]]


def test_wrapped_roots() -> None:
    compiled = torch.compile(tiny(), backend="eager")
    with pytest.raises(AttachError, match="wrapped in OptimizedModule: attach to the bare model first, then wrap it"):
        sf.attach(compiled)
    parallel = nn.DataParallel(tiny())
    with pytest.raises(AttachError, match="wrapped in DataParallel: attach to the bare model first"):
        sf.attach_(parallel)
    assert type(sf.fold(nn.DataParallel(attached()))) is TinyNet  # folding takes wrappers off
    scripted = torch.jit.script(nn.Linear(2, 2))
    with pytest.raises(AttachError, match="wrapped in .*ScriptModule: attach to the bare model first"):
        sf.attach(scripted, where="affine")


@pytest.mark.parametrize("thing", [None, "resnet50", TinyNet, {}])
def test_no_module(thing: object) -> None:
    with pytest.raises(AttachError, match="attach needs an nn.Module, got "):
        sf.attach(thing)
    with pytest.raises(AttachError, match="attach needs an nn.Module, got "):
        sf.attach_(thing)
    with pytest.raises(FoldError, match="fold needs an nn.Module, got "):
        sf.fold(thing)
    with pytest.raises(VerifyError, match="verify compares two modules, got "):
        sf.verify(tiny(), thing, images())
    for call in (sf.sites, sf.scales, sf.detach_, sf.param_groups):
        with pytest.raises(AttachError, match="expected an nn.Module, got "):
            call(thing)


def test_a_model_that_cannot_be_copied() -> None:
    model = attached()
    model.held = model.blocks[0].bn2.base.weight * 2  # not a leaf
    with pytest.raises(
        FoldError, match=r"TinyNet cannot be copied .*use fold_\(model, check=False\), which works in place"
    ):
        sf.fold(model)
    plain = tiny()
    plain.held = plain.stem.weight * 2
    assert_refused(
        plain, lambda: sf.attach(plain), AttachError, "TinyNet cannot be copied .*use attach_, which works in place"
    )


class Undeclared(TinyNet):
    def __init__(self) -> None:
        super().__init__()
        del self.input_size


def test_no_example() -> None:
    model = Undeclared().double()
    assert_refused(
        model,
        lambda: sf.attach_(model),
        AttachError,
        "Undeclared does not say what its input looks like: give example=",
    )
    gated = sf.attach(model, example=images())
    for option in ("check", "fuse"):
        assert_refused(
            gated,
            lambda option=option: sf.fold_(gated, **{option: True}),
            FoldError,
            f"{option}=True needs an example input and Undeclared",
        )
    with pytest.warns(UserWarning, match="folding without a check: the model does not declare its input"):
        sf.fold(gated)
    assert_refused(gated, lambda: sf.fold(gated, check="yes"), FoldError, "check='yes': expected 'auto', True or False")


@pytest.mark.parametrize("example", [torch.randn(2, 5, 6, 6), (images(), images()), {"y": images()}, torch.randn(7)])
def test_an_example_of_the_wrong_size(example: object) -> None:
    model, gated = tiny(), attached()
    words = "on the example .*Give an example the model accepts"
    assert_refused(model, lambda: sf.attach_(model, example=example), TraceError, f"cannot trace TinyNet: .*{words}")
    assert_refused(gated, lambda: sf.fold_(gated, example=example), VerifyError, f"TinyNet does not run {words}")
    assert_refused(gated, lambda: sf.fold_(gated, fuse=True, example=example), (VerifyError, TraceError), words)


def poisoned(value: float, dtype: torch.dtype = torch.float32) -> nn.Module:
    model = attached("scale", dtype=dtype)
    with torch.no_grad():
        model.blocks[1].bn2.gates[0].psi[2] = value
    return model


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_scale_that_is_not_finite(value: float) -> None:
    model = poisoned(value)
    message = rf"the gate on '{SITES[1]}': its scale is not finite in 1 of 8 channels \(first: 2\). Training diverged"
    for call in (sf.fold, sf.fold_):
        assert_refused(model, lambda call=call: call(model), FoldError, message)
        assert_refused(model, lambda call=call: call(model, check=False), FoldError, message)


def test_overflow_in_half_precision() -> None:
    model = poisoned(6e4, torch.float16)
    with torch.no_grad():
        model.blocks[1].bn2.base.weight[2] = 4.0
    message = (
        rf"'{SITES[1]}': weight overflows torch.float16 \(largest scale 6e\+04\). Fold in a wider dtype: model.float"
    )
    assert_refused(model, lambda: sf.fold_(model, check=False), FoldError, message)
    assert type(sf.fold(model.float(), check=False)) is TinyNet


@pytest.mark.parametrize("where", [SITES[1], "head"])
def test_underflow_in_half_precision(where: str) -> None:
    """A factor of which rounding leaves nothing is refused; a channel that is switched off is none."""
    model = sf.attach(tiny(), "scale", where=where).half()
    layer = model.get_submodule(where)
    with torch.no_grad():
        layer.base.weight.fill_(0.01)
        layer.gates[0].psi.fill_(1e-6)
    message = rf"'{where}': weight underflows torch.float16 \(largest scale .*\). Fold in a wider dtype: model.float"
    assert_refused(model, lambda: sf.fold_(model, check=False), FoldError, message)
    assert type(sf.fold(copy.deepcopy(model).float(), check=False)) is TinyNet
    with torch.no_grad():
        layer.gates[0].psi[1:].fill_(1.0)
    sf.fold_(model, check=False)


# Files.


@pytest.fixture
def files(tmp_path: Path) -> Path:
    model = attached()
    sf.save_adapter(model, tmp_path / "adapter")
    sf.save_model(model, tmp_path / "training")
    sf.save_model(sf.fold(model), tmp_path / "folded", kind="folded")
    sf.save_model(sf.fold(model, fuse=True), tmp_path / "fused", kind="fused")
    sf.save_model(sf.detach(model), tmp_path / "plain")
    return tmp_path


def test_the_right_files_load(files: Path) -> None:
    for name, model in {"training": attached(), "plain": attached(), "folded": tiny(seed=5)}.items():
        assert sf.load_model_(model, files / name).versions["stripefold"] == sf.__version__
    assert sf.load_model_(sf.fold(tiny(seed=5), fuse=True), files / "fused").kind == "fused"


@pytest.mark.parametrize(
    ("name", "gates", "message"),
    [
        ("training", False, r"a training file: .*but the model has none: attach with the same options first"),
        ("folded", True, r"a deployed file: .*still has gates or branch blocks: loading it here would scale twice"),
        ("fused", True, r"a deployed file: .*BatchNorms merged.*still has gates"),
        (
            "fused",
            False,
            r"does not fit the model: missing .*A fused file is loaded into fold\(create\(\), fuse=True\)",
        ),
        ("adapter", True, r"only what attaching added, without the backbone: use load_adapter\(backbone, path\)"),
        ("missing", True, "missing does not exist"),
    ],
)
def test_a_file_of_another_kind(files: Path, name: str, gates: bool, message: str) -> None:
    model = attached() if gates else tiny(seed=5)
    assert_refused(model, lambda: sf.load_model_(model, files / name), CheckpointError, message)


def test_a_file_of_another_model(files: Path) -> None:
    other = TinyNet(channels=16).double()
    assert_refused(
        other,
        lambda: sf.load_model_(other, files / "plain"),
        CheckpointError,
        r"\(the weights of a plain model\) does not fit .*shape",
    )
    gated = sf.attach(other)
    assert_refused(gated, lambda: sf.load_model_(gated, files / "plain"), CheckpointError, "does not fit the model")
    assert_refused(gated, lambda: sf.load_model_(gated, files / "training"), CheckpointError, "does not fit the model")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("training", "is not an adapter but of kind 'attached': use load_model_"),
        ("folded", "is not an adapter but of kind 'folded'"),
        ("plain", "is not an adapter but of kind 'plain'"),
    ],
)
def test_no_adapter(files: Path, name: str, message: str) -> None:
    model = tiny()
    assert_refused(model, lambda: sf.load_adapter(model, files / name), AdapterError, message)


def test_an_adapter_for_another_model(files: Path) -> None:
    for model, message in (
        (TinyNet(channels=16).double(), "is an adapter for another model: the backbone's keys or shapes differ"),
        (tiny(seed=5), "was trained on other weights of this architecture: .*same_weights=False"),
        (attached(), r"the backbone already has gates: give the plain model, for example detach\(model\)"),
    ):
        assert_refused(model, lambda model=model: sf.load_adapter(model, files / "adapter"), AdapterError, message)
    assert list(sf.scales(sf.load_adapter(tiny(seed=5), files / "adapter", same_weights=False))) == SITES


def test_no_gates_to_save(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match=r"the model has no gates to save: attach\(model, ...\) first"):
        sf.save_adapter(tiny(), tmp_path / "adapter")
    with pytest.raises(
        CheckpointError, match="cannot write .*No such file or directory.*What was there before is untouched"
    ):
        sf.save_adapter(attached(), tmp_path / "nowhere" / "adapter")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("length", [0, 5, 100, -10])
def test_truncated_files(files: Path, length: int) -> None:
    for name in ("training", "adapter"):
        (files / "cut").write_bytes((files / name).read_bytes()[:length])
        model = attached() if name == "training" else tiny()
        load = sf.load_model_ if name == "training" else sf.load_adapter
        assert_refused(
            model,
            lambda load=load, model=model: load(model, files / "cut"),
            CheckpointError,
            "truncated, or of another kind",
        )


class Malicious:
    def __reduce__(self) -> tuple:
        return (Path.touch, (Path(self.path),))

    def __init__(self, path: Path) -> None:
        self.path = path


def test_a_pickle_is_never_executed(tmp_path: Path) -> None:
    path, proof = tmp_path / "weights.safetensors", tmp_path / "executed"
    for write in (lambda: path.write_bytes(pickle.dumps(Malicious(proof))), lambda: torch.save(Malicious(proof), path)):
        write()
        model = tiny()
        for load in (sf.load_model_, sf.load_adapter):
            assert_refused(
                model,
                lambda load=load, model=model: load(model, path),
                CheckpointError,
                "not a readable safetensors file",
            )
    assert not proof.exists()
    pickle.loads(pickle.dumps(Malicious(proof)))  # the control: it would have
    assert proof.exists()


def _adapter(path: Path, **extra: object) -> None:
    about = {"kind": "adapter", "versions": {}, "extra": extra}
    save_file({"a": torch.ones(1)}, path, metadata={"stripefold": json.dumps(about)})


def test_damaged_metadata(tmp_path: Path, files: Path) -> None:
    path, model = tmp_path / "file", tiny()
    for text in (
        "not json",
        "{}",
        '{"kind": "folded", "versions": 3, "extra": {}}',
        '{"kind": "nonsense", "versions": {}, "extra": {}}',
    ):
        save_file({"a": torch.ones(1)}, path, metadata={"stripefold": text})
        assert_refused(
            model, lambda: sf.load_model_(model, path), CheckpointError, "its stripefold metadata is damaged"
        )
    from stripefold.asr.adapter import backbone_fingerprint

    for extra in (
        {},
        {"fingerprint": backbone_fingerprint(model)},
        {"fingerprint": backbone_fingerprint(model), "plan": {BN: [{"form": "static"}]}},
        {"fingerprint": backbone_fingerprint(model), "plan": {BN: 3}},
        {"fingerprint": {"structure": 1}, "plan": {}},
    ):
        _adapter(path, **extra)
        assert_refused(
            model, lambda: sf.load_adapter(model, path), AdapterError, "is damaged|is an adapter for another model"
        )
    _adapter(path, fingerprint=backbone_fingerprint(model), plan={"nowhere": [_plan()]})
    assert_refused(
        model,
        lambda: sf.load_adapter(model, path),
        AdapterError,
        "cannot be attached: where='nowhere' matches no module",
    )
    _adapter(path, fingerprint=backbone_fingerprint(model), plan={BN: [_plan(attention="sse")]})
    assert_refused(model, lambda: sf.load_adapter(model, path), AdapterError, "no attention 'sse'")
    _adapter(path, fingerprint=backbone_fingerprint(model), plan={BN: [_plan()]})
    assert_refused(
        model, lambda: sf.load_adapter(model, path), AdapterError, "(?s)the adapter's gates do not fit: .*Missing key"
    )


def _plan(attention: str = "se") -> dict[str, object]:
    return {"form": "static", "attention": attention, "options": {}, "identity": False, "frozen": []}


def test_snapshot_sees_every_kind_of_change() -> None:
    """The control of everything above."""
    for change in (
        lambda m: m.stem.weight.data[0, 0, 0].add_(1),
        lambda m: m.stem.register_forward_hook(print),
        lambda m: m.stem.eval(),
        lambda m: m.stem.requires_grad_(False),
        lambda m: setattr(m.blocks[0], "bn2", nn.Identity()),
        lambda m: setattr(m, "extra", 1),
        lambda m: m.register_buffer("extra", torch.ones(1)),
    ):
        model = tiny()
        before = snapshot(model)
        assert snapshot(model) == before
        change(model)
        assert snapshot(model) != before
