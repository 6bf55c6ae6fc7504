"""`accelerate launch -m hycir_hf.training --config FILE.yaml`: the same as `hycir train --config FILE.yaml`."""

import sys

from ..cli.main import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
