"""The model card of a folded network: what the Hub sorts by, how to load it, what was folded, and the check."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from stripefold.errors import ConfigError, printable

if TYPE_CHECKING:
    from stripefold.folding.report import FoldReport
    from stripefold.folding.verify import EquivalenceReport
    from stripefold.integrations.hub_origins import Origin

CARD = "README.md"
_LISTED = 200
_PLACEHOLDER = "USER/NAME"


@dataclass(frozen=True, kw_only=True)
class HubCard:
    """What only you know about the network.

    Attributes:
        name: The title; the folder's name if None.
        license: As the Hub names it, such as "mit"; none is written if None, and the Hub asks for one.
        base_model: The repository that was fine-tuned, such as "timm/convnext_atto.d2_in1k".
        datasets: Repositories of the training data.
        tags: Further tags.
        task: The Hub's name of the task (``pipeline_tag``); what the network's library says if None.
        repo: The repository that it goes to, for the code of the card.
        about: Facts for a table: ``{"commit": "1a2b3c", "test accuracy": "93.1 %"}``.
    """

    name: str | None = None
    license: str | None = None
    base_model: str | None = None
    datasets: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    task: str | None = None
    repo: str | None = None
    about: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class CardFacts:
    """What is known without asking.

    Attributes:
        origin: The library that loads it.
        folding: What was folded where.
        verification: The network loaded back, compared with the training model.
        control: The backbone without gates, compared likewise, or None.
    """

    origin: Origin
    folding: FoldReport
    verification: EquivalenceReport
    control: EquivalenceReport | None


def card_text(card: HubCard, facts: CardFacts, *, name: str) -> str:
    """The card as Markdown, behind the YAML that the Hub reads.

    Args:
        card: What the user says.
        facts: The rest.
        name: The title.

    Raises:
        ConfigError: huggingface_hub refuses what was said, or is not installed.
    """
    sections = [
        f"---\n{_metadata(card, facts)}\n---",
        f"# {printable(name)}",
        "Trained with attention that is folded away: every gate of the training model is merged into the layer beside "
        f"it. What is here is the plain network, and loads without stripefold.\n\n```python\n{_load(card, facts)}\n```",
        _verification(facts),
        _folded(facts.folding),
        _table("Where it comes from", ("", ""), [*card.about.items(), *_versions(facts.origin.packages)]),
    ]
    return "\n\n".join(sections) + "\n"


def _metadata(card: HubCard, facts: CardFacts) -> str:
    try:
        from huggingface_hub import ModelCardData
    except ModuleNotFoundError as error:
        raise ConfigError(
            "a model card is written with huggingface_hub, which is not installed: pip install huggingface_hub"
        ) from error
    data = ModelCardData(
        library_name=facts.origin.library,
        pipeline_tag=card.task or facts.origin.task,
        license=card.license,
        base_model=card.base_model,
        datasets=list(card.datasets) or None,
        tags=["stripefold", "structural-reparameterization", *card.tags],
    )
    return str(data.to_yaml()).strip()


def _load(card: HubCard, facts: CardFacts) -> str:
    return facts.origin.load.replace("{repo}", card.repo or _PLACEHOLDER)


def _verification(facts: CardFacts) -> str:
    found, control = facts.verification, facts.control
    rows = [
        ("this network", f"{found.error:.2e}"),
        ("allowed", f"{found.tolerance:.2e}"),
        ("the training model's own rounding", f"{found.reference_error:.2e}"),
    ]
    if control is not None:
        rows.append(("control: the backbone without its gates", f"{control.error:.2e}"))
    lines = [
        _table("Verification", ("compared with the training model", "relative error"), rows),
        f"The network was loaded from these files and run beside the training model ({found.dtype}, inputs: "
        f"{found.inputs}); the truth is a float64 copy of that model.",
    ]
    if found.agreement is not None:
        lines.append(f"Predictions agree: {found.agreement:.2%}.")
    if control is not None and control.passed:
        lines.append("The control passes, too: on these inputs the gates change nothing, so the check says little.")
    if found.blind:
        lines.append("All samples gave the same outputs, so the check says little.")
    return "\n\n".join(lines)


def _folded(folding: FoldReport) -> str:
    rows = [(f"`{note.name or '(root)'}`", f"{note.kind}: {note.why}") for note in folding.folded]
    text = _table(f"What was folded ({len(rows)})", ("place", "how"), rows[:_LISTED])
    return text + (f"\n\nand {len(rows) - _LISTED} more" if len(rows) > _LISTED else "")


def _versions(packages: tuple[str, ...]) -> list[tuple[str, str]]:
    from stripefold import __version__

    known = [("stripefold", __version__), ("python", platform.python_version())]
    return known + [(name, importlib.metadata.version(name)) for name in ("torch", *packages)]


def _table(title: str, columns: tuple[str, str], rows: list[tuple[str, Any]]) -> str:
    cells = [[printable(cell).replace("\n", " ").replace("|", "\\|") for cell in row] for row in rows]
    lines = [f"| {' | '.join(columns)} |", "|---|---|", *(f"| {' | '.join(row)} |" for row in cells)]
    return f"## {title}\n\n" + "\n".join(lines)
