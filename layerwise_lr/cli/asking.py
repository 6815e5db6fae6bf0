"""A finished run's model is asked: RUN opened (of a sweep its best run), and `predict`."""

import csv
import glob
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..data import DataSpec, picture_files, read_picture
from ..framework import metrics
from ..planning import UserError, plain, printable
from ..run import CONFIG, Finished, asking, open_run
from ..sweep import jobs
from . import console
from .words import Parser

Say = Callable[[str], None]
NAME = 40
"""Letters of a name in a table."""


class Answer(NamedTuple):
    """What a picture was taken for: (class, probability), the likeliest first; or why it could not be read."""

    picture: str
    classes: list[tuple[str, float]]
    broken: str = ""


def predict(words: Sequence[str]) -> int:
    """Exit codes: 0; 1 a picture could not be read, the others are answered."""
    parser = Parser(
        "layerwise-lr predict",
        description=(
            "What does a finished run see in pictures? RUN is a run's folder, or a sweep's: then\n"
            "its best setting on validation. PICTURES are files, folders (with all below) or\n"
            "patterns such as 'new/*.jpg'. A picture that cannot be read is named, the others\n"
            "are answered; the exit code is then 1.\n\n"
            "  layerwise-lr predict outputs/mine new/ --top 3\n"
            "  layerwise-lr predict outputs/mine new/*.jpg framework=reference --csv > seen.csv"
        ),
    )
    parser.add_argument("run", type=Path, metavar="RUN")
    parser.add_argument("pictures", nargs="+", metavar="PICTURES")
    parser.add_argument("--top", type=int, default=1, metavar="K", help="the K likeliest classes; default 1")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--csv", action="store_true", help="picture,rank,class,probability")
    form.add_argument("--json", action="store_true", help="one object")
    parser.add_argument(
        "framework", nargs="*", default=[], metavar="framework=NAME", help="compute there; default: as the run did"
    )
    given = parser.parse_intermixed_args(words)
    places, framework = without_framework(given.pictures)
    if given.top < 1:
        raise UserError(f"--top {given.top}: must be at least 1")
    say: Say = to_stderr if given.csv or given.json else console.text
    files = list(_files(places, say))
    run = opened(given.run, say)
    model = model_of(run, framework, say)
    found = list(_answers(model, files, min(given.top, len(run.classes))))
    show = _csv if given.csv else _json if given.json else _table
    show(run, found)
    broken = [answer for answer in found if answer.broken]
    for answer in broken:
        to_stderr(answer.broken)
    if broken:
        to_stderr(f"{len(broken)} of {len(found)} pictures could not be read, the others are answered")
    return 1 if broken else 0


def opened(path: Path, say: Say) -> Finished:
    """The run in `path`; of a sweep its best, which is said."""
    if path.is_dir() and not (path / CONFIG).exists():
        from ..report import choose

        chosen = choose(path)
        say(chosen.why)
        path = chosen.path
    return open_run(path)


def model_of(run: Finished, framework: str | None, say: Say) -> asking.Model:
    """The run's model in a framework; None: its own."""
    name = framework or run.config.framework.name
    say(f"{run.config.model.name}, {run.kept} of {console.relative(run.path)}; loading {name} ...")
    os.environ |= jobs.thread_environment(run.config.framework.threads)
    return asking.Model(run, framework)


def to_stderr(line: str) -> None:
    """What is no answer, where standard output is for a program."""
    print(f"layerwise-lr: {printable(line)}", file=sys.stderr)


def without_framework(words: Sequence[str]) -> tuple[list[str], str | None]:
    """The words but for framework=NAME, and that name."""
    named = [word.partition("=")[2] for word in words if word.startswith("framework=")]
    return [word for word in words if not word.startswith("framework=")], named[-1] if named else None


def _files(places: Sequence[str], say: Say) -> Iterator[Path]:
    """Every picture that is meant, in order."""
    found: dict[Path, None] = {}
    others = 0
    for place in places:
        matched = [place] if os.path.lexists(place) else sorted(glob.glob(place, recursive=True))  # noqa: PTH207
        if not matched:
            raise UserError(f"{place}: no such file or folder")
        for path in map(Path, matched):
            if path.is_dir():
                own, more = picture_files(path)
                others += more
                found |= dict.fromkeys(own)
            else:
                found[path] = None
    if others:
        say(f"{others} file{'s' if others > 1 else ''} in these folders not named as a picture is: left out")
    if not found:
        raise UserError(f"{', '.join(places)}: no pictures there (.png, .jpg, .webp, ...)")
    yield from found


def _answers(model: asking.Model, files: Sequence[Path], top: int) -> Iterator[Answer]:
    """In the order of `files`, a batch at a time."""
    spec = model.config.data
    with console.progress(len(files), "pictures") as advance:
        for at in range(0, len(files), asking.AT_ONCE):
            part = [_read(path, spec) for path in files[at : at + asking.AT_ONCE]]
            read = [picture for picture in part if not isinstance(picture, str)]
            rows = iter(metrics.softmax(model.logits(np.stack(read))) if read else ())
            for path, picture in zip(files[at : at + asking.AT_ONCE], part, strict=True):
                advance()
                if isinstance(picture, str):
                    yield Answer(str(path), [], picture)
                    continue
                row = next(rows)
                likely = np.argsort(-row, kind="stable")[:top]
                yield Answer(str(path), [(model.run.classes[n], float(row[n])) for n in likely])


def _read(path: Path, spec: DataSpec) -> np.ndarray | str:
    """uint8 [C, S, S], or why there is none."""
    try:
        return read_picture(path, spec)
    except UserError as error:
        return str(error)


def _table(run: Finished, found: Sequence[Answer]) -> None:
    rows = []
    for answer in found:
        for rank, (name, probability) in enumerate(answer.classes):
            picture = answer.picture if rank == 0 else ""
            rows.append([plain(picture, 400), plain(name, NAME), f"{probability:.4f}"])
        if answer.broken:
            rows.append([plain(answer.picture, 400), "not readable", "-"])
    console.table(["picture", "class", "probability"], rows, right=[2])


def _csv(run: Finished, found: Sequence[Answer]) -> None:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(["picture", "rank", "class", "probability"])
    for answer in found:
        for rank, (name, probability) in enumerate(answer.classes, 1):
            writer.writerow([printable(answer.picture), rank, plain(name, 1000), repr(probability)])


def _json(run: Finished, found: Sequence[Answer]) -> None:
    told = [
        {"picture": a.picture, "classes": [{"class": name, "probability": p} for name, p in a.classes]}
        for a in found
        if not a.broken
    ]
    broken = [{"picture": a.picture, "why": a.broken} for a in found if a.broken]
    print_json(run, {"pictures": told, "broken": broken})


def print_json(run: Finished, facts: dict[str, Any]) -> None:
    """`facts`, with the run that they are of."""
    print(json.dumps({"run": str(run.path), "step": run.step, "classes": list(run.classes), **facts}, indent=1))
