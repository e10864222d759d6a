"""The configuration of a training run: every option, its default, and what is refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from stripefold.documents import shown
from stripefold.errors import ConfigError
from stripefold_lab.training.batch_noise import BatchNoise
from stripefold_lab.training.preprocessing import Preprocessing
from stripefold_lab.training.tasks import DEFAULT_TASK, get_task
from stripefold_lab.training.values import LOWER, check_names, check_processes, check_range, coerce

AttentionForm = Literal["static", "dynamic", "both", "none"]
Augmentation = Literal["none", "flip", "shift", "crop-flip", "resized-crop"]
OptimizerName = Literal["sgd", "adamw"]
ScheduleName = Literal["step", "cosine", "constant"]
Precision = Literal["32", "bf16-mixed", "16-mixed"]
ProgressDisplay = Literal["auto", "bar", "lines", "none"]
LoggerName = Literal["auto", "csv", "tensorboard", "wandb", "mlflow"]
Strategy = Literal["auto", "ddp", "ddp-unused", "fsdp"]

CHOICES: dict[str, tuple[str, ...]] = {
    "form": get_args(AttentionForm),
    "init": ("paper", "identity"),
    "start": ("live", "reference"),
    "augmentation": get_args(Augmentation),
    "optimizer": get_args(OptimizerName),
    "schedule": get_args(ScheduleName),
    "precision": get_args(Precision),
    "progress": get_args(ProgressDisplay),
    "logger": get_args(LoggerName),
    "strategy": get_args(Strategy),
}
# What may differ between a run and its continuation: none of it changes the numbers, the number of processes no more
# than the order of a sum does.
FREE_ON_RESUME = frozenset({"run_dir", "resume", "progress", "logger", "tensorboard", "workers", "data_dir"})
FREE_ON_RESUME |= {"download", "cache", "devices", "nodes", "strategy", "timeout", "extend"}
FREEZABLE = ("psi", "theta")
MAPPINGS = ("attention_options", "branch_options", "model_options", "batch_noise", "preprocessing")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run.

    Attributes:
        task: ``classification``, ``segmentation`` or ``detection``.
        data: For classification ``digits`` (needs no download), ``folder:PATH`` (``train/`` and ``test/`` or ``val/``,
            each a folder per class), ``cifar10``, ``cifar100``, ``stl10``, ``fashion_mnist`` or ``imagenet``; for
            segmentation ``shapes`` (drawn), ``voc:PATH`` or ``ade20k:PATH``; for detection ``shapes``, ``coco:PATH``
            or ``voc:PATH``.
        data_dir: Where torchvision's data sets lie.
        download: Whether torchvision may download them.
        cache: Whether images that lie in files are decoded once and kept in memory, as bytes; they have to be of one
            size. The numbers stay the same.
        image_size: Side the images are brought to; None is the data set's own.
        channels: 1 or 3 colour channels; None is the data set's own.
        preprocessing: What happens to an image before the network sees it: ``mean``, ``std`` (training images too),
            ``crop``, ``mode`` and ``interpolation`` (test images); what it does not say is the data set's own.
        augmentation: What happens to a training image; segmentation and detection know ``none`` and ``flip``.
        limit_train: How many training images are used, a fixed random choice; None is all.
        limit_test: How many test images are used, likewise; None is all.
        model: A name for ``create_model``, ``create_segmenter`` or ``create_detector``, by the task.
        model_options: Keyword arguments of the model's builder, such as ``{"drop_path_rate": 0.1}`` with timm.
        pretrained: Whether timm or torchvision load their weights.
        attention: The channel attention.
        form: ``static`` (ASR, folds away), ``dynamic`` (the ordinary attention), ``both``, or ``none`` (the backbone).
        where: Which layers get a gate: ``residual``, ``norm``, ``affine``, a glob, or several globs.
        repeats: Gates per site (the paper's delta).
        psi: Starting value of the learnable descriptor, or ``random`` (standard normal, from the seed); None is the
            attention's own (0.1; 1 for ``scale``).
        init: ``paper`` or ``identity`` (leaves a pretrained model's function as it was); of gates and branch blocks.
        freeze: Which of ``psi`` and ``theta`` (the attention's own parameters) of the static gates do not train.
        start: ``live`` (every static gate has hidden units that learn) or ``reference`` (as drawn: some have none).
        attention_options: Options of the attention, such as ``{"reduction": 16}``.
        branch: The kind of branch block that stands for convolutions while training; None leaves them as they are.
        branch_where: Which convolutions: ``spatial`` (each that the kind can stand for), a glob, or several globs.
        branch_options: Options of the kind, such as ``{"copies": 2}``.
        epochs: Passes over the training images.
        batch_size: Images per step, over all processes.
        optimizer: ``sgd`` or ``adamw``.
        learning_rate: The peak learning rate.
        momentum: Momentum of ``sgd``.
        nesterov: Whether ``sgd`` looks ahead.
        weight_decay: Weight decay of everything that ``gate_weight_decay`` does not set apart.
        gate_weight_decay: Weight decay of the gates; None is ``weight_decay`` (the reference code's way).
        schedule: How the learning rate falls after the warm-up.
        milestones: Epochs at which ``step`` multiplies the learning rate by ``decay``.
        decay: Factor of ``step``.
        warmup_epochs: Epochs over which the rate rises linearly from near 0; at most half of the run.
        label_smoothing: Share of the target spread over all classes, 0 up to below 1; not for detection.
        mixup: Both parameters of the beta distribution by which two images are mixed; 0 mixes none.
        batch_noise: Noise in BatchNorm while training, such as ``{"kind": "random", "scale": 0.3}``; empty is none.
        gradient_clip: Largest norm of the whole gradient; 0 leaves it alone.
        precision: ``32``, ``bf16-mixed`` or ``16-mixed``.
        channels_last: Whether images and weights lie channel last in memory.
        compile: Whether the model goes through ``torch.compile``.
        accelerator: Lightning's name of the kind of device to train on: ``auto``, ``cpu``, ``gpu``, ``mps``.
        devices: Processes of one machine, each on a device of its own; torchrun or SLURM starts them.
        nodes: Machines.
        strategy: ``ddp`` (each process has the whole network; what ``auto`` does with several), ``ddp-unused`` (also
            where a step may leave parameters out), ``fsdp`` (each process keeps a part of it).
        sync_batchnorm: Whether BatchNorm normalises over all processes' images; None: on several GPUs.
        timeout: Seconds that a process waits for the others before the run ends.
        workers: Processes that read data.
        threads: CPU threads of one operation; None is torch's own choice. On a CPU their number shows in the last bits.
        seed: All randomness derives from it.
        observe_every: Observe the gates after every so many epochs and write ``stripes/``; 0 never.
        observe_images: On how many test images, at even distances; always the same ones.
        run_dir: Folder of the run; None makes a new one under ``runs/``.
        resume: Whether to go on from the last checkpoint in ``run_dir``; a run without one starts at the beginning.
        extend: Whether the run that is resumed may be given another number of epochs than it had.
        progress: ``bar``, one line per epoch (``lines``), ``none``; ``auto``: a bar on a terminal, else lines.
        logger: Where the epochs are logged beside ``metrics.csv``: ``tensorboard``, ``wandb``, ``mlflow``, or nowhere
            (``csv``); ``auto`` is TensorBoard where it is installed.
        tensorboard: Whether ``auto`` may mean TensorBoard.

    Raises:
        ConfigError: If a value is of the wrong type or out of its range; names the field and the value.

    >>> TrainConfig(epochs=3).with_overrides(seed=1).seed
    1
    """

    task: str = DEFAULT_TASK
    data: str = "digits"
    data_dir: str | None = None
    download: bool = False
    cache: bool = False
    image_size: int | None = None
    channels: int | None = None
    preprocessing: Mapping[str, Any] = field(default_factory=dict)
    augmentation: Augmentation = "none"
    limit_train: int | None = None
    limit_test: int | None = None
    model: str = "resnet20"
    model_options: Mapping[str, Any] = field(default_factory=dict)
    pretrained: bool = False
    attention: str = "se"
    form: AttentionForm = "static"
    where: str | tuple[str, ...] = "residual"
    repeats: int = 1
    psi: float | Literal["random"] | None = None
    init: Literal["paper", "identity"] = "paper"
    freeze: tuple[str, ...] = ()
    start: Literal["live", "reference"] = "live"
    attention_options: Mapping[str, Any] = field(default_factory=dict)
    branch: str | None = None
    branch_where: str | tuple[str, ...] = "spatial"
    branch_options: Mapping[str, Any] = field(default_factory=dict)
    epochs: int = 12
    batch_size: int = 64
    optimizer: OptimizerName = "sgd"
    learning_rate: float = 0.1
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 1e-4
    gate_weight_decay: float | None = None
    schedule: ScheduleName = "cosine"
    milestones: tuple[int, ...] = ()
    decay: float = 0.1
    warmup_epochs: int = 0
    label_smoothing: float = 0.0
    mixup: float = 0.0
    batch_noise: Mapping[str, Any] = field(default_factory=dict)
    gradient_clip: float = 0.0
    precision: Precision = "32"
    channels_last: bool = False
    compile: bool = False
    accelerator: str = "auto"
    devices: int = 1
    nodes: int = 1
    strategy: Strategy = "auto"
    sync_batchnorm: bool | None = None
    timeout: int = 600
    workers: int = 0
    threads: int | None = None
    seed: int = 0
    observe_every: int = 0
    observe_images: int = 512
    run_dir: str | None = None
    resume: bool = False
    extend: bool = False
    progress: ProgressDisplay = "auto"
    logger: LoggerName = "auto"
    tensorboard: bool = True

    def __post_init__(self) -> None:
        """Bring values to their field's type where that loses nothing, then check them."""
        for spec in dataclasses.fields(self):
            object.__setattr__(self, spec.name, coerce(spec.name, str(spec.type), getattr(self, spec.name)))
        task = get_task(self.task)
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise ConfigError(f"{name} is {shown(getattr(self, name))}; choose one of {', '.join(choices)}")
        for name, least in LOWER.items():
            check_range(name, getattr(self, name), least)
        self._check_together()
        task.check_options(self)
        check_processes(self)

    def _check_together(self) -> None:
        if self.channels not in (None, 1, 3):
            raise ConfigError(f"channels is {self.channels}; set 1 (grey) or 3 (colour)")
        if list(self.milestones) != sorted(set(self.milestones)) or any(epoch < 1 for epoch in self.milestones):
            raise ConfigError(f"milestones is {list(self.milestones)}; give rising epochs from 1 on")
        if unknown := [part for part in self.freeze if part not in FREEZABLE]:
            raise ConfigError(f"freeze names {unknown[0]!r}; give any of {', '.join(FREEZABLE)}")
        if self.nesterov and (self.momentum == 0 or self.optimizer != "sgd"):
            raise ConfigError(f"nesterov is True; it needs sgd with momentum (optimizer {self.optimizer!r})")
        if self.resume and self.run_dir is None:
            raise ConfigError("resume needs run_dir (--run-dir): the folder of the run to go on with")
        if self.extend and not self.resume:
            raise ConfigError("extend is True, which changes the epochs of a resumed run; set resume (--resume)")
        if BatchNoise.read(self.batch_noise) is not None and self.compile:
            raise ConfigError("batch_noise is put in by hooks, which compile would leave out; set compile to false")
        Preprocessing.read(self.preprocessing)

    @property
    def folds(self) -> bool:
        """Whether the network trains with something that folding takes away."""
        return self.form in ("static", "both") or self.branch is not None

    @property
    def keeps_attention(self) -> bool:
        """Whether the network keeps its attention when everything is folded."""
        return self.form in ("dynamic", "both")

    def with_overrides(self, **values: Any) -> TrainConfig:
        """A copy with some fields replaced.

        Raises:
            ConfigError: If a field does not exist (its nearest name is given) or a value does not fit.
        """
        check_known(values, where="the overrides")
        return dataclasses.replace(self, **values)

    def to_dict(self) -> dict[str, Any]:
        """Plain values only, as YAML and a checkpoint hold them."""
        values = {spec.name: getattr(self, spec.name) for spec in dataclasses.fields(self)}
        plain = {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
        return {**plain, **{name: dict(getattr(self, name)) for name in MAPPINGS}}


def field_names() -> tuple[str, ...]:
    """The options of ``TrainConfig``, in their order."""
    return tuple(spec.name for spec in dataclasses.fields(TrainConfig))


def check_known(keys: Iterable[str], *, where: str) -> None:
    """Refuse keys that are no option: ``check_names``."""
    check_names(keys, field_names(), where=where)
