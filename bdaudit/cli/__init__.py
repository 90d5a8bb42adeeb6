"""The command line: click, one file a command, no maths."""
