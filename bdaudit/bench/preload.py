"""What every stage imports, imported once: stages are forked from a process that has imported this and done nothing else."""

from bdaudit import plugins
from bdaudit.bench import work

plugins.registry()

__all__ = ["work"]
