"""`python -m unifusion_core` is the command `unifusion`."""

import sys

from .command_line import main

sys.exit(main())
