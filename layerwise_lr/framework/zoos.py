"""Models of other people's packages: what is equal in every framework that has some."""

from collections.abc import Callable, Collection, Mapping
from functools import reduce
from typing import Any, TypeVar

from ..planning import UserError, bare_name, near, plain
from .describing import ZooModel

T = TypeVar("T")


def from_zoo(
    asked: ZooModel,
    make: Callable[..., Any] | None,
    builders: Mapping[str, Callable[[ZooModel], T]],
    kind: type[T],
    called: str,
) -> T:
    """The native model, as its zoo makes it, or `make`.

    Args:
        asked, make: as in `Framework.build`.
        builders: by source.
        kind: of a native model.
        called: what people call that.

    Raises:
        UserError: the zoo is not installed, does not know the name, refuses an option or cannot fetch the weights.
    """
    try:
        return builders[asked.source](asked) if make is None else _own(asked, make, kind, called)
    except ModuleNotFoundError as error:
        if error.name != asked.source:
            raise
        raise UserError(
            f"model={asked.source} needs {asked.source}, which is not installed: pip install {asked.source}"
        ) from None
    except UserError:
        raise
    except Exception as error:  # whatever a zoo raises: its own words, in one line
        told = " ".join(str(error).split())[:200] or type(error).__name__
        fetched = (
            "; the weights are the zoo's to fetch: is there a network? weights=none begins without"
            if asked.pretrained
            else ""
        )
        raise UserError(f"{asked.source} cannot make model.name={asked.name}: {told}{fetched}") from None


def _own(asked: ZooModel, make: Callable[..., Any], kind: type[T], called: str) -> T:
    given = {name: getattr(asked, name) for name in ("num_classes", "in_channels", "image_size", "pretrained")}
    net = make(**given, **asked.options)
    if not isinstance(net, kind):
        raise UserError(f"model.name={asked.name} makes a {type(net).__name__}, no {called}")
    return net


def check_name(asked: ZooModel, names: Collection[str]) -> None:
    """The zoo has these.

    Raises:
        UserError: and not that one; with the nearest.
    """
    if asked.name not in names:
        raise UserError(
            f"{asked.source} has no model {asked.name!r}; it has {', '.join(near(asked.name, list(names)))}, ..."
        )


def check_picture(asked: ZooModel, forward: Callable[[tuple[int, ...]], object]) -> None:
    """The model takes the data's pictures: many take one size alone.

    Args:
        asked: with their sizes.
        forward: logits of one of that shape; a UserError where there are none.

    Raises:
        UserError: it does not.
    """
    shape = (asked.in_channels, asked.image_size, asked.image_size)
    try:
        forward((1, *shape))
    except UserError:
        raise
    except Exception as error:  # whatever a foreign forward raises
        told = plain(error, 120)
        raise UserError(
            f"model.name={asked.name} takes no picture of {'x'.join(map(str, shape))} ({told}): data.channels=3 "
            "data.image_size=224 is what most are made for"
        ) from None


def first_that_fits(make: Callable[..., T], sized: Mapping[str, Any]) -> T:
    """With the size of the pictures, or without where the model takes none."""
    try:
        return make(**sized)
    except TypeError as error:
        if not any(name in str(error) for name in sized):
            raise
        return make()


def renew_head(net: T, classes: int, nn: Any) -> T:
    """The last Linear (or 1x1 convolution) for another number of classes.

    Args:
        net: an nn.Module; changed.
        classes: wanted.
        nn: torch's, or one that is like it.
    """
    named = net.named_modules()  # type: ignore[attr-defined]
    path, last = [(name, module) for name, module in named if isinstance(module, nn.Linear | nn.Conv2d)][-1]
    linear = isinstance(last, nn.Linear)
    if classes != (last.out_features if linear else last.out_channels):
        *parents, key = path.split(".")
        new = nn.Linear(last.in_features, classes) if linear else nn.Conv2d(last.in_channels, classes, 1)
        setattr(reduce(getattr, parents, net), key, new)
    return net


def arrays_once(state: Mapping[str, T]) -> dict[str, T]:
    """A state dict by bare name: tied tensors once, batches not counted."""
    seen, found = set[int](), {}
    for name, tensor in state.items():
        if not name.endswith("num_batches_tracked") and id(tensor) not in seen:
            seen.add(id(tensor))
            found[bare_name(name)] = tensor
    return found


def logits(out: Any, tensor: type[T], model: object) -> T:
    """[B, classes], whatever the model wraps them in; of several heads the classifier is first.

    Raises:
        UserError: there are none.
    """
    out = getattr(out, "logits", out)
    if isinstance(out, tuple | list):
        out = out[0]
    if not isinstance(out, tensor) or len(out.shape) != 2:  # type: ignore[attr-defined]
        raise UserError(f"{type(model).__name__} gives {type(out).__name__}, no logits [B, classes]")
    return out
