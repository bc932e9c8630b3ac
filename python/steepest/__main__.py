"""`python -m steepest`: the command line."""

import sys

from steepest.cli import main

if __name__ == "__main__":
    sys.exit(main())
