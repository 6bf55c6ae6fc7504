"""`accelerate launch -m hycir_hf.training --config YAML`: training on any number of processes."""

import logging
import sys
from collections.abc import Sequence

from .arguments import HybridTrainingArguments, parse_arguments


def run_training(arguments: HybridTrainingArguments) -> int:
    """Train; errors become one line on standard error.

    Returns:
        `int`: 0 done, 1 failed, 130 interrupted.
    """
    logging.basicConfig(format="%(message)s")
    logging.getLogger("hycir_hf").setLevel(logging.INFO)
    try:
        from transformers.utils import logging as transformers_logging

        from .trainer import HybridTrainer

        transformers_logging.disable_progress_bar()
        HybridTrainer(arguments).train()
    except KeyboardInterrupt:
        sys.stderr.write("interrupted. Run the same command again to go on.\n")
        return 130
    except Exception as error:
        sys.stderr.write(f"error: {' '.join(str(error).split()) or type(error).__name__}\n")
        return 1
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and train."""
    try:
        arguments = parse_arguments(argv, prog="python -m hycir_hf.training")
    except (ValueError, ImportError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return run_training(arguments)


if __name__ == "__main__":
    sys.exit(main())
