"""The arrays of an ONNX file and the nodes that use them, read by hand: ONNX is protobuf, and this takes seven fields of
it. The onnx package would be a dependency of everybody for one file that is read once."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

NODE, INITIALIZER = 1, 5  # of a GraphProto, itself field 7 of the ModelProto
INPUT, NODE_NAME = 1, 3  # of a NodeProto
DIMS, DATA_TYPE, NAME, RAW_DATA = 1, 2, 8, 9  # of a TensorProto
FLOAT = 1  # a TensorProto.data_type


class Onnx(NamedTuple):
    """What a file holds.

    Args:
        arrays: float32 by name.
        users: the name of the node that takes each of them.
    """

    arrays: dict[str, np.ndarray]
    users: dict[str, str]


def read_onnx(data: bytes) -> Onnx:
    """The float32 initializers of a model, and who uses them; other types are left out.

    Raises:
        ValueError: cut short, or no ONNX.
    """
    graphs = [part for number, part in _fields(memoryview(data)) if number == 7 and isinstance(part, memoryview)]
    if len(graphs) != 1:
        raise ValueError("not an ONNX model: it has no graph")
    arrays: dict[str, np.ndarray] = {}
    nodes: list[memoryview] = []
    for number, part in _fields(graphs[0]):
        if number == INITIALIZER and isinstance(part, memoryview):
            arrays.update(_tensor(part))
        elif number == NODE and isinstance(part, memoryview):
            nodes.append(part)
    users: dict[str, str] = {}
    for node in nodes:
        texts = [(number, str(part, "utf-8")) for number, part in _fields(node) if number in (INPUT, NODE_NAME)]  # type: ignore[arg-type]
        name = next((text for number, text in texts if number == NODE_NAME), "")
        users.update({text: name for number, text in texts if number == INPUT and text in arrays})
    return Onnx(arrays, users)


def _tensor(message: memoryview) -> dict[str, np.ndarray]:
    """One float32 array by its name; nothing where it is of another type, or not kept as raw bytes."""
    shape: list[int] = []
    kind, name, raw = 0, "", None
    for number, value in _fields(message):
        if number == DIMS:
            shape += [value] if isinstance(value, int) else list(_varints(value))
        elif number == DATA_TYPE and isinstance(value, int):
            kind = value
        elif number == NAME and isinstance(value, memoryview):
            name = str(value, "utf-8")
        elif number == RAW_DATA:
            raw = value
    return {name: np.frombuffer(raw, "<f4").reshape(shape)} if kind == FLOAT and isinstance(raw, memoryview) else {}


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """(field number, value) in the order of the bytes: a number, or the bytes of a text or of an inner message."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, at = _varint(message, at)
            yield number, value
            continue
        if wire == 2:
            size, at = _varint(message, at)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise ValueError(f"not protobuf: wire type {wire}")
        if at + size > len(message):
            raise ValueError("cut short")
        yield number, message[at : at + size]
        at += size


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """The number at `at`, seven bits a byte and the lowest first, and where the next begins."""
    number = 0
    for shift in range(0, 64, 7):
        if at >= len(message):
            raise ValueError("cut short")
        number |= (message[at] & 127) << shift
        at += 1
        if message[at - 1] < 128:
            return number, at
    raise ValueError("not protobuf: a number of more than 64 bits")


def _varints(packed: memoryview) -> Iterator[int]:
    at = 0
    while at < len(packed):
        number, at = _varint(packed, at)
        yield number
