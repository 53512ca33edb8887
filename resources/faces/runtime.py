"""Session options of ONNX models: the same device and threads as every other model."""

from __future__ import annotations

from typing import Any

import onnxruntime

from resources.models import compute

_SEVERITY_ERROR = 3


def session_options() -> onnxruntime.SessionOptions:
    """Return options with torch's number of threads, so that a model's `threads` applies, and errors logged only."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = compute.cpu_threads()
    options.inter_op_num_threads = 1
    options.log_severity_level = _SEVERITY_ERROR
    return options


def onnx_providers() -> list[str]:
    """Return CUDA, where there is a GPU and this build of onnxruntime supports it, and the CPU."""
    cuda = compute.compute_device() == "cuda" and "CUDAExecutionProvider" in onnxruntime.get_available_providers()
    return ["CUDAExecutionProvider", "CPUExecutionProvider"] if cuda else ["CPUExecutionProvider"]


def session_arguments() -> dict[str, Any]:
    """Return the keyword arguments of an inference session."""
    return {"providers": onnx_providers(), "sess_options": session_options()}
