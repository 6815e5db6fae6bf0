"""What a finished run's model answers: logits of pictures, and how right they are on a set of them."""

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from ..data import DataSpec, batches, normalise
from ..framework import Framework, TrainState, begin, metrics, registry
from ..planning import GroupingSpec, OptimizerSpec, UserError, plain
from . import page, reading
from .finished import Finished
from .folder import CONFIG
from .schema import Config, FrameworkSpec

PREPARATION = ("image_size", "resize", "channels", "mean", "std")
"""What of a data set's keys is the model's: how a picture is made ready for it."""
SOURCE = ("name", "path", "checksum", "label", "skip_broken")
"""Where the pictures are; all other keys divide or vary them."""
AT_ONCE = 64
"""Pictures in one forward at most."""
AS_PRETRAINED = {
    ("torchvision", "inception_v3"): {"transform_input": True},
    ("torchvision", "googlenet"): {"transform_input": True, "aux_logits": False},
}
"""What torchvision builds otherwise where it also brings weights."""


class Model:
    """A finished run's model, in evaluation.

    Args:
        run: whose.
        framework: to compute in; None: the run's own. Eager, and in the run's precision where it has that.
        device: as in FrameworkSpec.
        precision: None: the run's.

    Raises:
        UserError: the framework is not here or lacks such models, or the weights do not fit.
    """

    def __init__(
        self, run: Finished, framework: str | None = None, device: str = "auto", precision: str | None = None
    ) -> None:
        name, own = framework or run.config.framework.name, run.config.framework
        has = registry.load(name)
        wanted = precision or own.precision
        at = FrameworkSpec(
            name,
            has.modes[0],
            device,
            wanted if wanted in has.precisions else has.precisions[0],
            own.threads,
            own.deterministic and name == own.name,
        )
        config = bare(run.config, at)
        model_of, table, plan = page.plan_of(config)
        weights = run.weights(table)  # before anything of their size is made
        self.run, self.config, self.framework = run, config, page.make_framework(config)
        native, _, _ = model_of.start(self.framework, config, 0)
        self.framework.set_weights(native, weights)
        self.state = begin(self.framework, native, plan)

    def logits(self, x: Any) -> np.ndarray:
        """float32 [N, classes] of x uint8 [N, C, S, S], N at least 1.

        Raises:
            UserError: they are no numbers.
        """
        logits = answers(self.framework, self.state, x, self.config.data)
        if not np.isfinite(logits).all():
            raise UserError(
                f"{self.run.weights_file}: the model's answers are no numbers; train it again at a lower lr"
            )
        return logits


def answers(framework: Framework, state: TrainState, x: Any, data: DataSpec) -> np.ndarray:
    """float32 logits [N, classes] of x uint8 [N, C, S, S], N at least 1, made ready as `data` says."""
    with np.errstate(all="ignore"):
        return np.concatenate(
            [framework.predict(state, normalise(x[at : at + AT_ONCE], data)) for at in range(0, len(x), AT_ONCE)]
        )


def bare(config: Config, framework: FrameworkSpec) -> Config:
    """The run's model in `framework`: the kept weights take the place of start weights, and no lr matters."""
    made = (config.model.source, config.model.name)
    more = AS_PRETRAINED.get(made, {}) if config.weights.name == "pretrained" else {}
    return Config(
        framework=framework,
        model=replace(config.model, options={**more, **config.model.options}),
        data=config.data,
        grouping=GroupingSpec(strategy="flat"),
        optimizer=OptimizerSpec(name="sgd"),
        batch_size=AT_ONCE,
        steps=1,
    )


class Part(NamedTuple):
    """Pictures to be asked about: x uint8 [N, C, S, S], y int64 [N] by the run's own numbers."""

    name: str
    x: Any
    y: np.ndarray


def own_parts(run: Finished) -> list[Part]:
    """The run's validation and test pictures.

    Raises:
        UserError: they are not here, or their classes are not those of the run any more.
    """
    data = reading.read(run.path / CONFIG).data  # where they are, an environment variable may say
    dataset = batches.load(data, page.seed_streams(run.config.seed)["subset"])
    dataset.close()
    number = _numbers(run, dataset.names)
    parts = (("val", dataset.val), ("test", dataset.test))
    return [Part(name, split.x, number[split.y]) for name, split in parts if len(split.y)]


def other_part(run: Finished, data: DataSpec) -> Part:
    """Another set's pictures, made ready as the run's own: its own test part where it has one, else all of them.

    Args:
        run: whose model will be asked.
        data: where they are; how a picture is made ready is the run's.
    """
    prepared = {key: getattr(run.config.data, key) for key in PREPARATION}
    source = {key: getattr(data, key) for key in SOURCE}
    part, split, names = batches.asked(replace(DataSpec(), **source, **prepared))
    return Part(part, split.x, _numbers(run, names)[split.y])


def _numbers(run: Finished, names: tuple[str, ...]) -> np.ndarray:
    """The run's number of each of these classes: matched by name.

    Raises:
        UserError: the run knows no such class; says which, and what it knows.
    """
    strange = [name for name in names if name not in run.classes]
    if strange:
        raise UserError(
            f"the data have {len(strange)} classes that {run.path} was not trained on ({_some(strange)}); it knows "
            f"{_some(run.classes)}: name the class folders so"
        )
    return np.array([run.classes.index(name) for name in names], np.int64)


def _some(names: Any) -> str:
    shown = ", ".join(plain(name, 40) for name in list(names)[:6])
    return f"{shown}, ..." if len(names) > 6 else shown


class Score(NamedTuple):
    """How right a model is on a part.

    Args:
        part: its name.
        metrics: every metric by name.
        confusion: int64 [classes, classes]: how many of the row's class were taken for the column's.
    """

    part: str
    metrics: dict[str, float]
    confusion: np.ndarray

    @property
    def pictures(self) -> int:
        """How many there were."""
        return int(self.confusion.sum())


def score(model: Model, part: Part) -> Score:
    """The model on a part."""
    logits = model.logits(part.x)
    return Score(part.name, metrics.measure(logits, part.y), metrics.confusion(logits, part.y))


class OfClass(NamedTuple):
    """One class of a score; a share of nothing is None.

    Args:
        name: of the class.
        pictures: of it.
        recall: share of them that were taken for it.
        precision: share of its own among those taken for it.
        often: what they were else taken for most often, `times` times.
    """

    name: str
    pictures: int
    recall: float | None
    precision: float | None
    often: str
    times: int


def by_class(run: Finished, score: Score) -> list[OfClass]:
    """In the order of the run's classes."""
    found = []
    for number, name in enumerate(run.classes):
        row, taken = score.confusion[number].copy(), int(score.confusion[:, number].sum())
        pictures, right = int(row.sum()), int(row[number])
        row[number] = 0
        recall, precision = right / pictures if pictures else None, right / taken if taken else None
        found.append(OfClass(name, pictures, recall, precision, run.classes[int(row.argmax())], int(row.max())))
    return found


def unlike_the_run(run: Finished, scores: list[Score]) -> list[str]:
    """What must be told where the run itself measured something else on the same part."""
    found: list[str] = []
    for one in scores:
        told = (run.summary.get(one.part) or {}).get("accuracy")
        if isinstance(told, int | float) and abs(told - one.metrics["accuracy"]) * one.pictures > 1.5:
            found.append(
                f"note: the run itself measured an accuracy of {told:.4f} on {one.part}: "
                "the pictures are others now, or the framework computes otherwise"
            )
    return found
