"""stripefold: attention while it trains, nothing when it runs.

One lifecycle for every structural re-parameterization: ``attach`` -> train -> ``fold`` -> ``verify``. Names are
loaded when first used, so importing the package costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_NAMES = {
    "attach": "asr.attach",
    "attach_": "asr.attach",
    "detach": "asr.detach",
    "detach_": "asr.detach",
    "sites": "asr.sites",
    "scales": "asr.sites",
    "shifts": "asr.sites",
    "param_groups": "asr.groups",
    "save_adapter": "asr.adapter",
    "load_adapter": "asr.adapter",
    "branch": "branches.branch",
    "branch_": "branches.branch",
    "branch_names": "branches.registry",
    "register_branch": "branches.registry",
    "fold": "folding.fold",
    "fold_": "folding.fold",
    "plan": "folding.fold",
    "verify": "folding.verify",
    "EquivalenceReport": "folding.verify",
    "FoldPlan": "folding.report",
    "FoldReport": "folding.report",
    "Along": "layers.rule",
    "Rule": "layers.rule",
    "register_rule": "layers.rule",
    "register_block": "folding.third_party",
    "save_model": "folding.weight_files",
    "load_model_": "folding.weight_files",
    "register_attention": "attention.registry",
    "attention_names": "attention.registry",
    "bake": "baking.bake",
    "bake_": "baking.bake",
    "BakeConfig": "baking.options",
    "BakeReport": "baking.report",
    "FineTune": "baking.finetune",
    "Settle": "baking.settle_options",
    "observe": "stripe.observe",
    "StripeReport": "stripe.report",
    "write_report": "html_report.write",
}

if TYPE_CHECKING:
    from stripefold import errors
    from stripefold.asr.adapter import load_adapter, save_adapter
    from stripefold.asr.attach import attach, attach_
    from stripefold.asr.detach import detach, detach_
    from stripefold.asr.groups import param_groups
    from stripefold.asr.sites import scales, shifts, sites
    from stripefold.attention.registry import attention_names, register_attention
    from stripefold.baking.bake import bake, bake_
    from stripefold.baking.finetune import FineTune
    from stripefold.baking.options import BakeConfig
    from stripefold.baking.report import BakeReport
    from stripefold.baking.settle_options import Settle
    from stripefold.branches.branch import branch, branch_
    from stripefold.branches.registry import branch_names, register_branch
    from stripefold.folding.fold import fold, fold_, plan
    from stripefold.folding.report import FoldPlan, FoldReport
    from stripefold.folding.third_party import register_block
    from stripefold.folding.verify import EquivalenceReport, verify
    from stripefold.folding.weight_files import load_model_, save_model
    from stripefold.html_report.write import write_report
    from stripefold.layers.rule import Along, Rule, register_rule
    from stripefold.stripe.observe import observe
    from stripefold.stripe.report import StripeReport

__all__ = [
    "Along",
    "BakeConfig",
    "BakeReport",
    "EquivalenceReport",
    "FineTune",
    "FoldPlan",
    "FoldReport",
    "Rule",
    "Settle",
    "StripeReport",
    "attach",
    "attach_",
    "attention_names",
    "bake",
    "bake_",
    "branch",
    "branch_",
    "branch_names",
    "detach",
    "detach_",
    "errors",
    "fold",
    "fold_",
    "load_adapter",
    "load_model_",
    "observe",
    "param_groups",
    "plan",
    "register_attention",
    "register_block",
    "register_branch",
    "register_rule",
    "save_adapter",
    "save_model",
    "scales",
    "shifts",
    "sites",
    "verify",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name == "errors":
        return importlib.import_module("stripefold.errors")
    if name == "create_model":
        raise AttributeError("create_model belongs to the workbench: from stripefold_lab import create_model")
    if name not in _NAMES:
        raise AttributeError(f"module 'stripefold' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"stripefold.{_NAMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
