"""`python -m pipelines`: the command `tessera` where it is not installed, as in the images."""

from pipelines.cli import main

main()
