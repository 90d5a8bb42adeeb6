"""What every stage imports, imported once: stages are forked from a process that has done nothing but import this."""

from bdaudit import plugins
from bdaudit.bench import work

plugins.registry()

__all__ = ["work"]
