"""How ONNX models compute: the device and the threads that every other model has."""

from __future__ import annotations

from typing import Any

import onnxruntime

from resources.models import compute

_ONLY_ERRORS = 3


def session_options() -> onnxruntime.SessionOptions:
    """As many threads as torch has, so that a model's `threads` holds here too; no notes on standard error."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = compute.cpu_threads()
    options.inter_op_num_threads = 1
    options.log_severity_level = _ONLY_ERRORS
    return options


def onnx_providers() -> list[str]:
    """CUDA where there is a GPU and this build of onnxruntime knows it, and always the CPU."""
    cuda = compute.compute_device() == "cuda" and "CUDAExecutionProvider" in onnxruntime.get_available_providers()
    return ["CUDAExecutionProvider", "CPUExecutionProvider"] if cuda else ["CPUExecutionProvider"]


def session_arguments() -> dict[str, Any]:
    """What a session is made with."""
    return {"providers": onnx_providers(), "sess_options": session_options()}
