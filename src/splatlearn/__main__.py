"""`python -m splatlearn` is the command `splatlearn`."""

import sys

from splatlearn.cli import main

sys.exit(main())
