"""One rule of the grammar: source text with choices."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A step of a network's forward, as templates.

    In every text ``@`` is a number of its own, ``$c`` the channels that come in, ``$o`` those that go out (a width is
    drawn where it occurs), ``$g`` a divisor of ``$c``, and ``<<a|b>>`` a choice. The map comes in and goes out as ``x``
    of shape (N, C, H, W).

    Attributes:
        name: For reports, and to ask for this piece.
        kind: The kind of situation, for the table.
        forward: Lines of the forward.
        init: Lines of the constructor.
        helpers: Classes and functions in front of the network.
        after: Lines behind the construction: ``net`` is the network in float64 and in eval mode.
        argument: A keyword argument of the forward with its default.
        calls: Further calls that take other paths.
        weight: How often it is drawn.
        out: Channels that go out, as an expression of ``c``.
        tags: What the checks have to know: "bypass" (a path around a layer, which one example cannot show),
            "square" (6x6 maps only), "batch" (batches of four only), "lazy", "coarse" (half precision inside).
    """

    name: str
    kind: str
    forward: str
    init: str = ""
    helpers: str = ""
    after: str = ""
    argument: str = ""
    calls: tuple[str, ...] = ()
    weight: float = 1.0
    out: str = "c"
    tags: frozenset[str] = frozenset()


def pieces(kind: str, *rows: dict[str, object]) -> tuple[Piece, ...]:
    """Pieces of one kind."""
    return tuple(Piece(kind=kind, **row) for row in rows)  # type: ignore[arg-type]
