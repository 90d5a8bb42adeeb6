"""Trigger synthesis at the speed of memory: each operator runs compiled where it can, else in plain torch.

No caller asks which one runs, and both give the same bytes; `backend()` says.
"""

from bdaudit.ops.extension import Backend, backend
from bdaudit.ops.images import blend, quantize

__all__ = ["Backend", "backend", "blend", "quantize"]
