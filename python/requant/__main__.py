"""The command line program."""

import sys

from . import _native


def main() -> int:
    """Runs the program on the process's arguments; its exit code."""
    return _native.main(["requant", *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(main())
