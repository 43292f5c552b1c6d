"""`python -m citadel_llm.cli`."""

import sys

from citadel_llm.cli import main

sys.exit(main())
