"""`python -m unifusion_core` is the command `unifusion`."""

import sys

from .cli.main import main

sys.exit(main())
