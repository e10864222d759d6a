"""The candidates of the two questions: what does ASR cost while training, and what is left when it runs?"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

import stripefold as sf
from stripefold_lab.bench.reference import product_on_map
from stripefold_lab.bench.steps import inference, training_step
from stripefold_lab.bench.timing import Candidate, Settings

PLAIN, COPY, DYNAMIC, ASR, PRODUCT = "plain", "identical copy", "+ {}", "ASR({})", "ASR({}), product on the map"
FOLDED, FUSED = "ASR({}), folded", "ASR({}), folded and fused"


def training_candidates(
    model: nn.Module,
    batch: tuple[Tensor, Tensor],
    settings: Settings,
    *,
    attention: str = "se",
    options: Mapping[str, Any] | None = None,
) -> list[Candidate]:
    """Return the training steps of plain, copy, ASR, the product on the activation map and dynamic attention.

    Args:
        model: The backbone; left as it is.
        batch: Images (N, C, H, W) and labels (N,).
        settings: Device, dtype and layout.
        attention: A name of the zoo.
        options: More of `attach`'s options, such as `where`.
    """
    options = {"example": batch[0][:1].cpu(), **(options or {})}
    label = attention.upper()
    models = {
        PLAIN: copy.deepcopy(model),
        COPY: copy.deepcopy(model),
        ASR.format(label): sf.attach(model, attention, **options),
        PRODUCT.format(label): product_on_map(model, attention, **options),
        DYNAMIC.format(label): sf.attach(model, attention, form="dynamic", **options),
    }
    return [training_step(name, candidate, batch, settings) for name, candidate in models.items()]


def inference_candidates(
    model: nn.Module,
    images: Tensor,
    settings: Settings,
    *,
    attention: str = "se",
    options: Mapping[str, Any] | None = None,
    attached: nn.Module | None = None,
) -> list[Candidate]:
    """Return the inferences of plain, copy, dynamic attention, ASR attached, folded, folded and fused.

    Args:
        model: The backbone; left as it is.
        images: Shape (N, C, H, W).
        settings: Device, dtype and layout.
        attention: A name of the zoo.
        options: More of `attach`'s options, such as `where`.
        attached: The attached model, where there is a trained one; otherwise fresh gates are attached.
    """
    example = images[:1].cpu()
    options = {"example": example, **(options or {})}
    label = attention.upper()
    attached = sf.attach(model, attention, **options) if attached is None else attached
    models = {
        PLAIN: copy.deepcopy(model),
        COPY: copy.deepcopy(model),
        DYNAMIC.format(label): sf.attach(model, attention, form="dynamic", **options),
        ASR.format(label): attached,
        FOLDED.format(label): sf.fold(attached, example=example),
        FUSED.format(label): sf.fold(attached, fuse=True, example=example),
    }
    return [inference(name, candidate, images, settings) for name, candidate in models.items()]
