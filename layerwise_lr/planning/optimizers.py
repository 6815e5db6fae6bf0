"""What an optimizer is, as data; and which parameters go to the AdamW that Muon needs beside it."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from .assigning import Assignment
from .errors import UserError
from .params import ParamInfo, ParamTable

OPTIMIZERS = ("sgd", "momentum", "adam", "adamw", "nadam", "rmsprop", "lion", "muon", "layer_adaptive")


@dataclass
class OptimizerSpec:
    """One optimizer as data; formulas are torch's, layer_adaptive's is in the reference plugin's optimizers.py.

    Args:
        name: sgd | momentum | adam | adamw | nadam | rmsprop | lion | muon | layer_adaptive.
        lr: the base lr, per step; groups scale it.
        weight_decay: decoupled for adamw, lion and muon, L2 for all others.
        momentum: of momentum, rmsprop, muon.
        nesterov: of momentum, muon.
        betas: of adam, adamw, nadam, lion, layer_adaptive; of the AdamW that goes with muon.
        eps: of adam, adamw, nadam, rmsprop, layer_adaptive; likewise.
        alpha: of rmsprop: what the mean of squares keeps at each step.
        momentum_decay: of nadam: how fast its momentum grows to betas[0].
    """

    name: str = "adamw"
    lr: float = 1e-3
    weight_decay: float = 0.05
    momentum: float = 0.9
    nesterov: bool = False
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    eps: float = 1e-8
    alpha: float = 0.99
    momentum_decay: float = 4e-3

    def __hash__(self) -> int:
        """By its values: not frozen only because OmegaConf makes frozen ones read-only; nobody changes it."""
        return hash(tuple(tuple(v) if isinstance(v, list) else v for v in vars(self).values()))


def beside_muon(
    given: Mapping[str, Assignment], table: ParamTable, optimizers: Mapping[str, OptimizerSpec]
) -> tuple[dict[str, Assignment], dict[str, OptimizerSpec]]:
    """Of what goes to a muon, all but the hidden matrices goes to an AdamW of the same lr, betas, eps and decay: Muon is
    made for those alone (Jordan 2024; Liu et al. 2025 let both have one lr).

    Raises:
        UserError: a muon is left without a matrix.
    """
    result, beside = dict(given), dict(optimizers)
    rows = {row.name: row for row in table.trainable}
    for key in [key for key, spec in optimizers.items() if spec.name == "muon"]:
        own = [name for name, a in given.items() if a.optimizer == key]
        rest = [name for name in own if not _hidden_matrix(rows[name], table)]
        if own and len(rest) == len(own):
            raise UserError(
                f"optimizer muon ({key}): none of its {len(own)} parameters is a hidden matrix, all would go to AdamW: "
                "optimizer=adamw"
            )
        if rest:
            beside[f"{key}_adamw"] = replace(optimizers[key], name="adamw")
        for name in rest:
            result[name] = replace(given[name], optimizer=f"{key}_adamw", label=f"{given[name].label}_adamw")
    return result, beside


def _hidden_matrix(row: ParamInfo, table: ParamTable) -> bool:
    return len(row.shape) == 2 and row.layer_type in ("linear", "attention") and not table.is_head(row.name)
