"""`evaluate`: how right a finished run's model is, on its own pictures or on others."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..data import DataSpec
from ..planning import UserError, plain
from ..run import Finished, asking
from . import console
from .asking import NAME, Say, model_of, opened, print_json, to_stderr, without_framework
from .words import Parser


def evaluate(words: Sequence[str]) -> int:
    """Every metric, and each class's."""
    parser = Parser(
        "layerwise-lr evaluate",
        description=(
            "How right is a finished run? On its own validation and test pictures, or on\n"
            "others, whose classes are matched by name; they are made ready as its own were.\n"
            "RUN may be a sweep's folder: then its best setting on validation.\n\n"
            "  layerwise-lr evaluate outputs/mine\n"
            "  layerwise-lr evaluate outputs/mine data=image_folder data.path=more"
        ),
    )
    parser.add_argument("run", type=Path, metavar="RUN")
    parser.add_argument(
        "words", nargs="*", default=[], metavar="data=...", help="data=..., data.path=..., framework=NAME"
    )
    parser.add_argument("--json", action="store_true", help="one object, with the counts of every confusion")
    given = parser.parse_intermixed_args(words)
    keys, framework = without_framework(given.words)
    say: Say = to_stderr if given.json else console.text
    run = opened(given.run, say)
    data = _data(run, keys)
    parts = asking.own_parts(run) if data is None else [asking.other_part(run, data)]
    model = model_of(run, framework, say)
    scores = [asking.score(model, part) for part in parts]
    if given.json:
        print_json(run, {"parts": {score.part: _as_json(run, score) for score in scores}})
        return 0
    _show(run, scores)
    for note in asking.unlike_the_run(run, scores) if data is None else [_note_own(run, data)]:
        if note:
            console.text(note)
    return 0


def _data(run: Finished, words: Sequence[str]) -> DataSpec | None:
    """Where other pictures are; None: the run's own are meant."""
    strange = [word for word in words if word.lstrip("+").partition("=")[0].partition(".")[0] != "data"]
    if strange:
        raise UserError(f"{strange[0]}: evaluate takes data=..., data.path=... and framework=NAME")
    if not words:
        return None
    from . import hydra_app

    config, _ = hydra_app.composed(words)
    keys = [key.removeprefix("data.") for key in hydra_app.given(words).keys if key != "data"]
    if kept := [key for key in keys if key not in asking.SOURCE]:
        why = "is the run's own" if kept[0] in asking.PREPARATION else "divides or varies pictures for training"
        raise UserError(f"data.{kept[0]}: {why}; evaluate takes {', '.join(f'data.{key}' for key in asking.SOURCE)}")
    there: dict[str, Any] = {key: None if value == "???" else value for key, value in config["data"].items()}
    if any(word.startswith("data=") for word in words):
        return DataSpec(**there)
    return replace(run.config.data, **{key: there[key] for key in keys})


def _note_own(run: Finished, data: DataSpec) -> str:
    """That these are pictures which the run was trained on; "" where they are not."""
    own = run.config.data
    if own.name != data.name or Path(own.path or "").resolve() != Path(data.path or "").resolve():
        return ""
    return "note: the run was trained on pictures of this very set; without data=... only val and test are asked"


def _show(run: Finished, scores: Sequence[asking.Score]) -> None:
    rows = [
        [s.part, str(s.pictures), *(f"{s.metrics[m]:.4f}" for m in ("loss", "accuracy", "balanced_accuracy"))]
        for s in scores
    ]
    console.table(["part", "pictures", "loss", "accuracy", "balanced"], rows, right=range(1, 5))
    console.say("")
    last = scores[-1]
    rows = []
    for one in asking.by_class(run, last):
        often = f"{plain(one.often, NAME)} ({one.times})" if one.times else ""
        rows.append([plain(one.name, NAME), str(one.pictures), _share(one.recall), _share(one.precision), often])
    console.table(["class", last.part, "recall", "precision", "else taken for"], rows, right=(1, 2, 3))


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _as_json(run: Finished, score: asking.Score) -> dict[str, Any]:
    classes = [one._asdict() for one in asking.by_class(run, score)]
    return {"pictures": score.pictures, **score.metrics, "classes": classes, "confusion": score.confusion.tolist()}
