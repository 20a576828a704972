"""`python -m flexpredict.launch`: the command, for launchers that start a module in each process."""

import sys

from flexpredict.cli import main

if __name__ == "__main__":
    sys.exit(main())
