"""`python -m tunnel`."""

import sys

from tunnel.cli import main

sys.exit(main())
