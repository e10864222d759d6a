"""ONNX files in `stripefold observe` and `stripefold bake`: their data in words, and what only they can be asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stripefold.errors import ConfigError
from stripefold_lab.cli.bake_report import make_bake_folders, print_made, save_bake_report
from stripefold_lab.cli.progress import ProgressLine
from stripefold_lab.users_files import users_function

if TYPE_CHECKING:
    from stripefold.stripe.report import StripeReport

Preprocess = Annotated[
    list[str] | None,
    typer.Option(
        help="For ONNX files, how images are prepared, as KEY=VALUE words: size=48x192 fit=stretch|crop|pad "
        "scale=1/255 mean=0.5 std=0.5,0.5,0.5 order=rgb|bgr|gray layout=nchw|nhwc labels=folders batch=16."
    ),
]
IMAGE_OPTIONS = "--mean, --std, --crop, --crop-mode or --interpolation"
"""What describes the images of a run and of a named model, in a message."""
_NOISE = "noise"


def is_onnx(word: str) -> bool:
    """Whether a command is given an ONNX file."""
    return Path(word).suffix.lower() == ".onnx"


def refuse(given: Mapping[str, Any]) -> None:
    """Refuse options that an ONNX file cannot have.

    Args:
        given: option -> whatever was said that is not its default, or None.

    Raises:
        ConfigError: one of them is given.
    """
    for option, value in given.items():
        if value:
            raise ConfigError(f"{option} is not for ONNX files: leave it out (images are described with --preprocess)")


def refuse_preprocess(words: Sequence[str] | None) -> None:
    """Refuse a description of images that only an ONNX file needs.

    Raises:
        ConfigError: it is given.
    """
    if words:
        raise ConfigError("--preprocess is for ONNX files: a run and a named model know how their images are prepared")


def observe_onnx(
    path: Path, data: str | None, preprocess: Sequence[str] | None, *, images: int, by_class: bool, progress: Any
) -> StripeReport:
    """Observe a file."""
    from stripefold.onnx import observe

    given = data_of(path, data, preprocess)
    return observe(path, given, max_images=images, by_class=by_class, progress=progress)


def bake_onnx(
    source: str,
    data: str | None,
    preprocess: Sequence[str] | None,
    *,
    output: Path | None,
    overwrite: bool,
    report: Path | None,
    options: Mapping[str, Any],
    as_json: bool = False,
) -> None:
    """Bake a file, print what was done, and write what was asked for."""
    from stripefold.onnx import bake

    path = Path(source)
    if output is not None:
        _check_output(output, path, overwrite=overwrite)
    make_bake_folders(report, output)
    with ProgressLine() as progress:
        made = bake(path, data_of(path, data, preprocess), output=output, progress=progress.tell, **options)[1]
    written = [f"written: {output}"] if made.path else []
    if report is not None:  # before anything is said: nobody may be left to hear it
        written.insert(0, save_bake_report(made, report, source))
    chosen = "The gates were chosen by the same images that the figures are of."
    print_made(made, [], [*([] if made.max_drop is None else [chosen]), *written], as_json)


def data_of(path: Path, word: str | None, preprocess: Sequence[str] | None) -> Any:
    """What the library takes as data.

    Args:
        path: of the network, for `noise`.
        word: a folder (also as ``folder:PATH``), an ``.npz`` file, ``file.py:function``, or ``noise``.
        preprocess: KEY=VALUE words, for a folder.

    Raises:
        ConfigError: nothing of that kind.
    """
    if word is None:
        raise ConfigError("say what the network is to see: --data FOLDER, FILE.npz or FILE.py:FUNCTION")
    name, _, function = word.rpartition(":")
    folder = Path(word.removeprefix("folder:"))
    if folder.is_dir():
        from stripefold.onnx import Images

        return Images(folder, **image_options(preprocess or ()))
    if preprocess and word != _NOISE:
        raise ConfigError(f"--preprocess is for a folder of images, and {word!r} is not a folder")
    if word == _NOISE:
        return _noise(path, image_options(preprocess or ()).get("size"))
    if name.endswith(".py"):
        return users_function(Path(name), function)
    return folder


def image_options(words: Sequence[str]) -> dict[str, Any]:
    """What `Images` takes, from KEY=VALUE words.

    Raises:
        ConfigError: an unknown key, or a value that cannot be read.

    >>> image_options(["size=48x192 mean=0.5", "order=bgr"])
    {'size': (48, 192), 'mean': (0.5,), 'order': 'bgr'}
    """
    readers: dict[str, Callable[[str], Any]] = {
        "size": _size, "fit": str, "scale": _number, "mean": _numbers, "std": _numbers, "order": str, "layout": str,
        "labels": _labels, "batch": int,
    }  # fmt: skip
    found: dict[str, Any] = {}
    for word in " ".join(words).split():
        key, _, value = word.partition("=")
        if key not in readers:
            raise ConfigError(f"--preprocess {word!r}: the keys are {', '.join(readers)}")
        try:
            found[key] = readers[key](value)
        except (ValueError, ZeroDivisionError) as error:
            raise ConfigError(f"--preprocess {word!r} cannot be read: {error}") from error
    return found


def _noise(path: Path, size: tuple[int, int] | None) -> Callable[[], Any]:
    """Random numbers of the input's shape: they show where the gates are, and nothing else."""
    import numpy as np

    from stripefold.onnx.observation import inputs_of
    from stripefold.onnx.read import read_network

    inputs = inputs_of(read_network(path))

    def batches() -> Any:
        rng = np.random.default_rng(0)
        while True:
            feed = {}
            for each in inputs:
                shape = [2 if axis == 0 and s is None else s for axis, s in enumerate(each.shape or ())]
                shape = [*shape[:2], *size] if size is not None and len(shape) == 4 else shape
                if None in shape:
                    raise ConfigError(f"the input {each.name!r} is of any size: say --preprocess size=HEIGHTxWIDTH")
                feed[each.name] = rng.standard_normal([s for s in shape if s is not None]).astype(each.dtype)
            yield feed

    return batches


def _check_output(output: Path, source: Path, *, overwrite: bool) -> None:
    if output.suffix.lower() != ".onnx":
        raise ConfigError(f"cannot write {output}: what is written is an ONNX file, end its name in .onnx")
    if output.is_dir():
        raise ConfigError(f"cannot write {output}: a folder of this name is in the way; choose another --out")
    if output.exists() and (not overwrite or output.samefile(source)):
        reason = "is the network itself" if source.exists() and output.samefile(source) else "exists"
        raise ConfigError(f"{output} {reason}; choose another --out, or say --overwrite where it is another file")


def _size(text: str) -> tuple[int, int]:
    height, _, width = text.partition("x")
    return int(height), int(width or height)


def _number(text: str) -> float:
    first, _, second = text.partition("/")
    return float(first) / float(second or 1)


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(float(each) for each in text.split(","))


def _labels(text: str) -> bool:
    if text != "folders":
        raise ValueError("labels=folders is all there is")
    return True
