"""Every error stripefold raises on purpose; each message says where, what was found and what to do."""

from __future__ import annotations


class StripefoldError(Exception):
    """Base class: ``except StripefoldError`` catches everything stripefold raises on purpose."""


class AttachError(StripefoldError):
    """A gate could not be put on the model; the model is unchanged."""


class BranchError(StripefoldError):
    """A convolution could not be replaced by a branch block; the model is unchanged."""


class FoldError(StripefoldError):
    """A gate or block could not be folded; the model is unchanged."""


class TraceError(StripefoldError):
    """The model could not be run on the example input.

    Attributes:
        path: Dotted path of the module that the run had reached, "" at the model's entry.
    """

    def __init__(self, message: str, *, path: str = "") -> None:
        super().__init__(message)
        self.path = path


class ObserveError(StripefoldError):
    """The Stripe Observation could not be made."""


class BakeError(StripefoldError):
    """The attention of a trained network could not be baked; the model is unchanged."""


class VerifyError(StripefoldError):
    """Two models that should agree do not."""


class ResolutionError(StripefoldError):
    """A gate over positions met a map of another resolution than the one it was attached at."""


class ChainError(StripefoldError):
    """A site of a chained attention ran without the state of the site before it."""


class ExportError(StripefoldError):
    """A deployed file could not be written or checked; no file is left behind."""


class OnnxError(StripefoldError):
    """An ONNX file is missing, damaged, unsafe, or of a kind that cannot be baked."""


class AdapterError(StripefoldError):
    """An adapter file does not belong to this model, or is not an adapter."""


class ConfigError(StripefoldError):
    """A configuration names something that does not exist or does not fit."""


class DataError(StripefoldError):
    """A data set is missing, empty or of the wrong form."""


class TrainingError(StripefoldError):
    """A training run had to stop; the last good checkpoint is kept."""


class CheckpointError(StripefoldError):
    """A checkpoint or weights file is damaged, unsafe or of another kind than asked for."""
