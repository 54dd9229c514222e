"""``python -m narrowcast``: the command, where its script is not on the path."""

from narrowcast.cli import main

main()
