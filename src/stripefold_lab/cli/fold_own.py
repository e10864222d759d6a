"""`stripefold fold --model FILE.py:FUNCTION`: an attached network of one's own."""

from __future__ import annotations

from pathlib import Path

from stripefold.errors import ConfigError, FoldError
from stripefold_lab.cli.output import make_folder, print_line, print_report
from stripefold_lab.cli.users_code import users_model


def fold_own(
    word: str, output: Path | None, *, weights: Path | None, size: int | None, fuse: bool, as_json: bool
) -> None:
    """Fold what a function of the user's returns, compare, and write it.

    Args:
        word: ``FILE.py:FUNCTION``; it returns the attached network.
        output: The safetensors file; None only prints the plan.
        weights: Trained weights of the attached network, where the function does not load them.
        size: Side of the images that both are compared on, where the network does not declare it.
        fuse: Also merge BatchNorms.
        as_json: Whether a program reads what is printed.

    Raises:
        ConfigError: Nobody says what the network takes.
        FoldError: It has nothing to fold.
    """
    import stripefold as sf
    from stripefold.modules.example import infer_example
    from stripefold.modules.foldable import Foldable

    model = users_model(word)
    if weights is not None:
        sf.load_model_(model, weights)
    if not fuse and not any(isinstance(module, Foldable) for module in model.modules()):
        raise FoldError(f"{word} returned a network without gates or branch blocks: attach in the function")
    example = infer_example(model) if size is None else _noise(size)
    if example is None:
        raise ConfigError(f"{word} does not say which images it takes, give --size")
    if output is None:
        print_report(sf.plan(model, fuse=fuse, example=example), as_json)
        return
    plain, report = sf.fold(model, fuse=fuse, example=example, check=True, report=True)
    make_folder(output.parent)
    kind = "fused" if fuse else "folded"
    sf.save_model(plain, output, kind=kind)  # type: ignore[arg-type]
    print_report(report, as_json)
    print_line(f"written: {output} ({kind})", aside=as_json)


def _noise(size: int) -> object:
    import torch

    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
