"""What every stage imports, imported once: stages are forked from a process that has done nothing but import this."""

import torch._dynamo  # which torch would import in every stage, with its first optimiser

from bdaudit import plugins
from bdaudit.bench import work

plugins.registry()

__all__ = ["torch", "work"]
