"""A model as an ONNX file, by torch's own exporter (torch.export, then onnxscript)."""

import contextlib
import io
import warnings

import numpy as np
import torch
from torch import nn

from layerwise_lr import framework as core


class Scaled(nn.Module):
    """The model behind its normalisation: uint8 pictures in."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, net: nn.Module, mean: np.ndarray, std: np.ndarray) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("mean", torch.from_numpy(mean))
        self.register_buffer("std", torch.from_numpy(std))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """uint8 [B, C, H, W] -> logits."""
        return self.net((x.float() / 255 - self.mean) / self.std)


def onnx(model: nn.Module, shape: tuple[int, ...], scale: tuple[np.ndarray, np.ndarray] | None) -> bytes:
    """As `Framework.to_onnx`."""
    whole = model if scale is None else Scaled(model, *scale)
    example = torch.zeros((2, *shape), dtype=torch.float32 if scale is None else torch.uint8)
    training = model.training
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            made = torch.onnx.export(
                whole.eval(),
                (example,),
                dynamo=True,
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                input_names=["pictures"],
                output_names=["logits"],
                verbose=False,
            )
        assert made is not None
        held: bytes = made.model_proto.SerializeToString()
    except ModuleNotFoundError as error:
        raise core.UserError(f"--to onnx needs {error.name}: pip install onnx onnxscript onnxruntime") from None
    except Exception as error:  # torch.export promises no list of what a foreign forward raises
        raise core.UserError(f"--to onnx: torch cannot export this model ({core.plain(error, 200)})") from None
    finally:
        model.train(training)
    return held
