"""The jobs as a reader would tell them: implant a backdoor, gather evidence, purify, audit."""
