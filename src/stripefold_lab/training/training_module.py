"""The LightningModule of a run, whatever its task."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytorch_lightning as lightning
import torch
import torch.distributed as dist
from torch import Tensor, nn

from stripefold.asr.groups import param_groups
from stripefold.errors import TrainingError
from stripefold_lab.training.schedule import rate_factor
from stripefold_lab.training.seeding import derive_seed
from stripefold_lab.training.sharding import average_buffers_, shard_
from stripefold_lab.training.tasks import get_task

if TYPE_CHECKING:
    from stripefold_lab.training.batch_sharding import BatchSharding
    from stripefold_lab.training.config import TrainConfig

CHECK_EVERY = 50
"""Steps between looks at the loss on an accelerator, where a look waits for the device; on a CPU it is every step."""


class TrainingModule(lightning.LightningModule):
    """Training of ``model``; keys of its state are ``model.*`` whether compiled or not. Its task has loss and measures.

    Args:
        model: The network.
        config: The run's configuration.
        classes: How many classes there are, a background among them.
        steps_per_epoch: Steps of one epoch.
        group: The processes that share every batch; None is this one alone.
    """

    _first_bad_step: Tensor

    def __init__(
        self, model: nn.Module, config: TrainConfig, *, classes: int, steps_per_epoch: int, group: Any = None
    ) -> None:
        super().__init__()
        self.model = model
        self.config = config
        self.task = get_task(config.task)
        self.classes = classes
        self.meter = self.task.meter(classes, group=group)
        self.steps_per_epoch = steps_per_epoch
        self.group = group
        # In a tuple, so that the compiled model is no second submodule with keys of its own.
        self._network = (torch.compile(model) if config.compile else model,)
        self.register_buffer("_first_bad_step", torch.tensor(-1), persistent=False)

    def configure_model(self) -> None:
        """Called by Lightning under every strategy; under fsdp each process keeps a part of the network."""
        if self.device_mesh is not None:
            shard_(self.model, self.device_mesh["data_parallel"])

    def forward(self, images: Tensor, *targets: Any) -> Any:
        """What the network gives for images (N, C, H, W)."""
        if self.config.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        return self._network[0](images, *targets)

    def on_train_start(self) -> None:
        """Take the rate of the first step from this run's schedule: one that is given more epochs has another."""
        for optimizer in self.trainer.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * rate_factor(
                    self.config, self.steps_per_epoch, self.trainer.global_step
                )

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Make the step's random numbers (dropout, stochastic depth) a function of seed, step and process."""
        rank = () if self.global_rank == 0 else (self.global_rank,)
        torch.manual_seed(derive_seed(self.config.seed, "step", self.global_step, *rank))

    def training_step(self, batch: tuple[Tensor, Any], batch_idx: int) -> Tensor:
        """What this process's part of a batch adds to its loss, a scalar; the mean over the processes is the loss."""
        loss = self.task.loss(self, batch, self.config)
        if self.group is not None:
            loss = loss * self._weight(batch, batch_idx)
        self._watch(loss.detach())
        self.log(
            "train_loss", loss.detach(), on_step=False, on_epoch=True, prog_bar=True, sync_dist=True,
            batch_size=self.shares.total(batch_idx),
        )  # fmt: skip
        return loss

    @property
    def shares(self) -> BatchSharding:
        """How the batches are divided that the loop is going through."""
        trainer: Any = self.trainer
        loader = trainer.train_dataloader if trainer.training else trainer.val_dataloaders
        shares: BatchSharding = loader.batch_sampler.shares
        return shares

    def _weight(self, batch: Any, batch_idx: int) -> Tensor | float:
        """The share of a batch that is this process's, times the number of processes: 1 where it divides evenly.

        The mean over the processes of their loss times this is the loss of the whole batch.
        """
        shares, world = self.shares, self.trainer.world_size
        counted = self.task.counted(batch)
        if counted is None:
            return shares.counted(batch_idx) * world / shares.total(batch_idx)
        mine = counted * (shares.counted(batch_idx) > 0)
        everywhere = mine.clone()
        dist.all_reduce(everywhere, group=self.group)
        return mine * world / everywhere.clamp(min=1)

    def validation_step(self, batch: tuple[Tensor, Any], batch_idx: int) -> None:
        """Measure one batch."""
        images, targets = batch
        outputs = self(images)
        if self.shares.counted(batch_idx):
            self.meter.update(outputs, targets)

    def on_validation_epoch_end(self) -> None:
        """Log the measures of the epoch."""
        found = self.meter.compute()
        self.log_dict({f"val_{name}": value for name, value in found.items()}, prog_bar=True)
        self.meter = self.task.meter(self.classes, group=self.group)

    def _watch(self, loss: Tensor) -> None:
        """Remember the first step whose loss is not finite, without waiting for the device."""
        bad = self._first_bad_step
        self._first_bad_step = torch.where(torch.isfinite(loss) | (bad >= 0), bad, self.global_step)
        if loss.device.type == "cpu" or self.global_step % CHECK_EVERY == 0:
            self._check_loss()

    def _check_loss(self) -> None:
        step = int(self._first_bad_step)
        if step >= 0:
            epoch = step // self.steps_per_epoch + 1
            raise TrainingError(
                f"the loss is not finite at epoch {epoch}, step {step + 1}: the last good checkpoint is kept; lower "
                f"learning_rate ({self.config.learning_rate:g}), or set warmup_epochs or gradient_clip"
            )

    def on_validation_start(self) -> None:
        """No epoch is evaluated or saved behind a loss that was not finite, or with buffers of one process only."""
        self._check_loss()
        if self.group is not None:
            average_buffers_(self.model, self.group)

    def configure_optimizers(self) -> Any:
        """The optimiser, the gates' weight decay set apart where asked for, and the rate as a function of the step."""
        config = self.config
        gate_decay = config.weight_decay if config.gate_weight_decay is None else config.gate_weight_decay
        groups = param_groups(self.model, weight_decay=config.weight_decay, gate_weight_decay=gate_decay)
        optimizer: torch.optim.Optimizer
        if config.optimizer == "sgd":
            optimizer = torch.optim.SGD(
                groups, lr=config.learning_rate, momentum=config.momentum, nesterov=config.nesterov
            )
        else:
            optimizer = torch.optim.AdamW(groups, lr=config.learning_rate)
        scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: rate_factor(config, self.steps_per_epoch, step)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
