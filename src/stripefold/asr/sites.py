"""``sites``: the dry run of ``attach`` as a table; ``scales``: what the gates give now."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, nn

from stripefold.asr.gated import Gated
from stripefold.asr.select import SiteCandidate, WhereWithOptions, select
from stripefold.asr.select_positions import EVERYWHERE, select_positions
from stripefold.errors import AttachError
from stripefold.layers.rule import rule_for
from stripefold.modules.example import Example
from stripefold.modules.thread_state import Interruptible


@dataclass(frozen=True, kw_only=True)
class SiteRow:
    """One line of the table: a site, or a layer that was refused (``channels`` is then 0).

    ``channels`` counts what a gate there scales: for ``where="positions"`` these are positions.
    """

    name: str
    layer: str
    channels: int
    gates: str
    why: str
    refused: bool = False


@dataclass(frozen=True)
class SiteTable(Sequence[SiteRow]):
    """The sites a ``where`` selects; prints as a table. Iterating gives the sites, ``refused`` the rest."""

    chosen: tuple[SiteRow, ...]
    refused: tuple[SiteRow, ...]
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, index: int) -> SiteRow:  # type: ignore[override]
        return self.chosen[index]

    def __iter__(self) -> Iterator[SiteRow]:
        return iter(self.chosen)

    @property
    def names(self) -> list[str]:
        """The sites' dotted paths, in call order for "residual", else in registration order."""
        return [row.name for row in self.chosen]

    def __str__(self) -> str:
        rows = [("site", "layer", "channels", "gates", "why")]
        rows += [(row.name or "(root)", row.layer, str(row.channels), row.gates or "-", row.why) for row in self.chosen]
        count = len(self.chosen)
        lines = [f"{count} site{'' if count == 1 else 's'}", *_aligned(rows)]
        if self.refused:
            refused = [(row.name or "(root)", row.layer, row.why) for row in self.refused]
            lines += ["", f"{len(refused)} layers refused", *_aligned([("refused", "layer", "why"), *refused])]
        return "\n".join([*lines, *self.notes])


def sites(model: nn.Module, where: WhereWithOptions = "residual", *, example: Example | None = None) -> SiteTable:
    """What ``attach`` would choose, and on an attached model also which gates are there; nothing is changed.

    Args:
        model: plain or attached.
        where: as for ``attach``; "positions" lists the places for gates over positions.
        example: as for ``attach``.

    Raises:
        AttachError: a bad ``where``.
        TraceError: the model does not run on the example.
    """
    with Interruptible():
        find = select_positions if isinstance(where, str) and where == EVERYWHERE else select
        selection = find(model, where, example)
        chosen = tuple(_row(candidate) for candidate in selection.chosen)
        refused = tuple(
            SiteRow(name=r.name, layer=r.kind, channels=0, gates="", why=r.why, refused=True) for r in selection.refused
        )
        notes = tuple(
            f"no effect: {each.norm!r} right behind {each.name!r} cancels its scale" for each in selection.cancelled
        )
        return SiteTable(chosen, refused, notes)


def _row(candidate: SiteCandidate) -> SiteRow:
    module, place = candidate.module, candidate.place
    rule = rule_for(module)
    layer = module.base if isinstance(module, Gated) else module
    width = rule.channels(layer) if rule is not None else 0
    return SiteRow(
        name=candidate.name,
        layer=type(layer).__name__,
        channels=width if place is None else prod(place.grid),
        gates=_gates(module) if isinstance(module, Gated) else "",
        why=candidate.why,
    )


def _gates(site: Gated) -> str:
    parts = []
    for gate in site.static_gates:
        dead = gate.attention.dead_units(gate.psi.detach())
        parts.append(gate.attention.name + (f" ({dead} dead units)" if dead else ""))
    return " + ".join([*parts, *(f"dynamic {gate.attention.name}" for gate in site.dynamic_gates)])


def _aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]) - 1)]
    return ["  ".join([*(cell.ljust(w) for cell, w in zip(row, widths, strict=False)), row[-1]]) for row in rows]


def attached_sites(model: nn.Module) -> dict[str, Gated]:
    """Dotted path -> module with gates (a site, or one of positions), each once.

    Raises:
        AttachError: not a module.
    """
    if not isinstance(model, nn.Module):
        raise AttachError(f"expected an nn.Module, got {type(model).__name__}")
    return {name: module for name, module in model.named_modules() if isinstance(module, Gated)}


def scales(model: nn.Module, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """The present scale v of every site with static gates that multiply.

    Args:
        model: an attached model.
        dtype: compute in this dtype; None is the parameters' own, float32 at the least.

    Returns:
        Dotted path -> v, shape (C,), detached, a copy. Over positions (P,) or (C, P), row by row of the map.
    """
    with torch.no_grad():
        found = {name: site.scale(dtype) for name, site in attached_sites(model).items()}
    # A copy: the attention "scale" gives psi itself, which training goes on to change.
    return {name: v.detach().clone() for name, v in found.items() if v is not None}


def shifts(model: nn.Module, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """What the static gates of every site add at present; arguments as for ``scales``.

    Returns:
        Dotted path -> a, shape (C,), detached, a copy.
    """
    with torch.no_grad():
        found = {name: site.shift(dtype) for name, site in attached_sites(model).items()}
    return {name: a.detach().clone() for name, a in found.items() if a is not None}
