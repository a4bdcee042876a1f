"""``python -m hashedmm``: the same as the command ``hashedmm``. Imports cli."""

import sys

from hashedmm.cli import main

if __name__ == "__main__":
    sys.exit(main())
