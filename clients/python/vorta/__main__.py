"""`python -m vorta`: the command line."""

import sys

from vorta.cli import main

sys.exit(main())
