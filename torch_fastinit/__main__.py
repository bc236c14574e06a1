"""`python -m torch_fastinit`."""

import sys

from torch_fastinit.commands.line import main

if __name__ == "__main__":
    sys.exit(main())
