"""python -m gdn_lab: the same as the console script gdn-lab."""

import sys

from .cli.main import main

if __name__ == "__main__":
    sys.exit(main())
