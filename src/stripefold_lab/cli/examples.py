"""What stands below the options in each command's --help."""

from __future__ import annotations

_LINES = {
    "demo": ["stripefold demo --epochs 2"],
    "train": [
        "stripefold train --config cifar --set data_dir=data --run-dir runs/cifar",
        "stripefold train --data folder:photos --model resnet18 --epochs 20",
        "stripefold train --resume --run-dir runs/cifar",
    ],
    "sweep": ["stripefold sweep digits --seeds 3 --out sweeps/digits", "stripefold sweep attention --dry-run"],
    "eval": ["stripefold eval runs/cifar", "stripefold eval resnet18 --weights my.pth --data folder:photos"],
    "sites": ["stripefold sites resnet20", "stripefold sites --model net.py:create --size 64 --json"],
    "fold": [
        "stripefold fold runs/cifar -o folded.safetensors",
        "stripefold fold --model net.py:create --weights trained.safetensors -o folded.safetensors",
    ],
    "verify": ["stripefold verify runs/cifar folded.safetensors"],
    "observe": [
        "stripefold observe runs/cifar --out stripes",
        "stripefold observe timm/seresnet50 --pretrained --data folder:photos --out stripes",
        "stripefold observe net.onnx --data folder:photos",
    ],
    "bake": [
        "stripefold bake runs/cifar --max-drop 0.5 -o baked.safetensors --report bake",
        "stripefold bake net.onnx --data folder:photos -o baked.onnx",
    ],
    "robustness": ["stripefold robustness runs/a runs/b --kinds noise --severities 1,3,5"],
    "export": [
        "stripefold export runs/cifar -o net.onnx",
        "stripefold export --model net.py:create --size 96 -o net.pt2",
    ],
    "bench": ["stripefold bench resnet20 --attention se", "stripefold bench resnet20 --deploy --no-compile"],
    "attention": ["stripefold attention --json"],
    "branches": ["stripefold branches --json"],
    "recipes": ["stripefold recipes", "stripefold train --config cifar --print-config > mine.yaml"],
}


def examples(command: str) -> str:
    """The examples of a command, for the end of its help.

    >>> "resnet20" in examples("sites")
    True
    """
    lines = "\n".join(f"  {line}" for line in _LINES[command])
    return f"\b\nExamples:\n{lines}"  # click leaves a paragraph after \b as it is
