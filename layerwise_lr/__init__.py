"""Layer-wise learning rates: planned once, applied identically by every framework, and proved.

    import layerwise_lr as llr

    plan = llr.plan(model, lr=1e-3, layer_decay=0.75, weight_decay=0.05, schedule="cosine", warmup=0.05, steps=1000)
    optimizer = llr.AdamW(plan.param_groups(model))  # or torch.optim's, or any other
    scheduler = plan.scheduler(optimizer)      # step() after each optimizer step
    print(plan)                                # every group with its depth, lr_scale and lr
    llr.verify(model, optimizer, scheduler)    # measures that each parameter moves so; raises with a table

The model's type decides which framework is meant: torch, oneflow, mindspore or megengine. llr.AdamW and llr.SGD are
torch.optim's, made fast for many groups. What is imported when is up to use: this line imports nothing, `llr.plan` needs
NumPy and the model's framework. The command line is `layerwise-lr`.
"""

from importlib import import_module

__version__ = "0.1.0"
__all__ = ["LrMismatch", "ModelLrMismatch", "ModelPlan", "Plan", "Report", "UserError", "__version__", "plan", "verify"]

TYPE_CHECKING = False  # typing's, without its import
if TYPE_CHECKING:
    from .framework.native import ModelLrMismatch, ModelPlan, Report, plan, verify
    from .framework.proof import LrMismatch
    from .planning import Plan, UserError
    from .plugins.torch_plugin.fast import SGD as SGD
    from .plugins.torch_plugin.fast import AdamW as AdamW

_HOMES = {
    "AdamW": "layerwise_lr.plugins.torch_plugin.fast",
    "LrMismatch": "layerwise_lr.framework.proof",
    "ModelLrMismatch": "layerwise_lr.framework.native",
    "ModelPlan": "layerwise_lr.framework.native",
    "Plan": "layerwise_lr.planning",
    "Report": "layerwise_lr.framework.native",
    "SGD": "layerwise_lr.plugins.torch_plugin.fast",
    "UserError": "layerwise_lr.planning",
    "plan": "layerwise_lr.framework.native",
    "verify": "layerwise_lr.framework.native",
}


def __getattr__(name: str) -> object:
    """The library's names, imported when they are first asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        home = import_module(_HOMES[name])
    except ModuleNotFoundError as error:
        raise AttributeError(f"layerwise_lr.{name} needs {error.name}: pip install {error.name}") from error
    return getattr(home, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
