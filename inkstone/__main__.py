"""`python -m inkstone` is `inkstone`."""

import sys

from inkstone.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
