"""Trigger synthesis and sample statistics at the speed of memory: compiled where they can be, else in plain torch.

No caller asks which one runs; `backend()` says. Images come out the same to the byte.
"""

from bdaudit.ops.extension import Backend, backend
from bdaudit.ops.images import blend, positions, quantize, warp
from bdaudit.ops.samples import SampleLosses, class_means, min_class_distance, sample_losses

__all__ = [
    "Backend",
    "SampleLosses",
    "backend",
    "blend",
    "class_means",
    "min_class_distance",
    "positions",
    "quantize",
    "sample_losses",
    "warp",
]
