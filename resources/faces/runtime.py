"""Session options of ONNX models: the same device and threads as every other model."""

from typing import Any

import onnxruntime
import torch

from resources.models import compute

_SEVERITY_ERROR = 3


def session_arguments() -> dict[str, Any]:
    """Return the arguments of an inference session: torch's number of threads, only errors logged, CUDA if usable."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    options.log_severity_level = _SEVERITY_ERROR
    cuda = compute.compute_device() == "cuda" and "CUDAExecutionProvider" in onnxruntime.get_available_providers()
    return {"providers": ["CUDAExecutionProvider"] * cuda + ["CPUExecutionProvider"], "sess_options": options}
