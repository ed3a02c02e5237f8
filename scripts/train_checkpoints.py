# SPDX-License-Identifier: Apache-2.0
"""Train the checkpoints that come with the package, from scratch.

    python scripts/train_checkpoints.py --data ../shared/data

Each is trained on all recordings of its corpora with the default recipe and one fixed seed, and its
temperature is fitted on speakers left out of one more training. The figures on its card are those
of the cross-validation of the same recipe.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from timnet_hf.experiment import load_data, train_to_folder
from timnet_hf.prediction import CHECKPOINTS
from timnet_hf.recipes import get_recipe

#: Checkpoint → the corpora it is trained on, with the union of their labels.
SHIPPED = {"timnet-emodb": "emodb", "timnet-multi": "emodb+ravdess"}
SEED = 0


def main() -> None:
    """Train the checkpoints that were asked for, by default all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=list(SHIPPED), help=", ".join(SHIPPED))
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--output", type=Path, default=CHECKPOINTS)
    parser.add_argument("--resume", action="store_true", help="go on with one that was stopped")
    arguments = parser.parse_args()
    for name in arguments.names:
        folder = train_to_folder(
            load_data(arguments.data, SHIPPED[name]),
            get_recipe("default"),
            arguments.output / name,
            seed=SEED,
            resume=arguments.resume,
            calibration=4,
            command=f"python scripts/train_checkpoints.py {name}",
        )
        print(folder)


if __name__ == "__main__":
    main()
