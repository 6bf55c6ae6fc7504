"""`python -m hycir_hf.cli`, for launchers such as `accelerate launch`."""

import sys

from .main import main

sys.exit(main())
