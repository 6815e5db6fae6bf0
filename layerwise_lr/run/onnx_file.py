"""An ONNX file: the run's facts put into it, and its answers by onnxruntime."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..data import DataSpec, normalise
from ..planning import UserError, plain

NEEDS = "--to onnx needs {}, which is not installed: pip install onnx onnxscript onnxruntime"


def finish(
    made: bytes, facts: Mapping[str, Any], x: np.ndarray, data: DataSpec | None
) -> tuple[bytes, np.ndarray, str]:
    """(the file with `facts` as its metadata, its logits of `x`, who computed them).

    Args:
        made: an ONNX file from "pictures" to "logits".
        facts: by name.
        x: uint8 [N, C, S, S].
        data: how a picture is normalised for the file; None: it does that itself.

    Raises:
        UserError: onnx or onnxruntime is not installed, or refuses the file.
    """
    try:
        import onnx
        import onnxruntime
    except ModuleNotFoundError as error:
        raise UserError(NEEDS.format(error.name)) from None
    ready = x if data is None else normalise(x, data)
    try:
        proto = onnx.load_model_from_string(made)
        onnx.helper.set_model_props(proto, {"layerwise_lr": json.dumps(facts), "classes": json.dumps(facts["classes"])})
        onnx.checker.check_model(proto)
        held: bytes = proto.SerializeToString()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        session = onnxruntime.InferenceSession(held, options, providers=["CPUExecutionProvider"])
        first, rest = (session.run(["logits"], {"pictures": part})[0] for part in (ready[:1], ready[1:]))
    except Exception as error:  # neither promises a list
        raise UserError(f"--to onnx: onnxruntime refuses what was made ({plain(error, 200)})") from None
    return held, np.concatenate([first, rest]), f"onnxruntime {onnxruntime.__version__}"
