"""The number format a device computes fastest in."""

import torch


def best_dtype(device: str | torch.device) -> torch.dtype:
    """The fastest number format that inference on this device has in hardware and loses next to nothing by."""
    kind = torch.device(device).type
    if kind == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if kind == "cpu":
        # without the instructions torch still computes in bfloat16, more slowly than in float32
        probes = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
        if any(probe is not None and probe() for probe in probes):
            return torch.bfloat16
    return torch.float32
