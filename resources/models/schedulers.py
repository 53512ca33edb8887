"""Schedulers by name, in place of the one that an engine of the Stable Diffusion family comes with."""

from collections.abc import Mapping
from pkgutil import resolve_name
from typing import Any, Final

_SCHEDULERS: Final[dict[str, tuple[str, dict[str, Any]]]] = {
    # Clipping, its default, ruins latents.
    "ddim": ("DDIMScheduler", {"clip_sample": False, "set_alpha_to_one": False}),
    "dpmpp_2m": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++", "use_karras_sigmas": False}),
    "dpmpp_2m_karras": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++", "use_karras_sigmas": True}),
    "euler": ("EulerDiscreteScheduler", {"use_karras_sigmas": False}),
    "euler_a": ("EulerAncestralDiscreteScheduler", {}),
    "unipc": ("UniPCMultistepScheduler", {"use_karras_sigmas": False}),
}
SCHEDULERS: Final = tuple(_SCHEDULERS)


def build_scheduler(name: str, config: Mapping[str, Any]) -> Any:
    """Return diffusers' scheduler of this name with the noise schedule of another's `config`."""
    kind, options = _SCHEDULERS[name]
    return resolve_name(f"diffusers:{kind}").from_config(config, **options)
