# SPDX-License-Identifier: Apache-2.0
"""Train the checkpoints that come with the package, from scratch.

    python scripts/train_checkpoints.py --data ../shared/data

Each is trained on all recordings of its corpus with the default recipe and one fixed seed. Nothing
is chosen by a result: the figures on its card are those of the cross-validation of the same recipe.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from timnet_hf.experiment import load_data, train_to_folder
from timnet_hf.prediction import CHECKPOINTS
from timnet_hf.recipes import get_recipe

#: Checkpoint → the corpus it is trained on.
SHIPPED = {"timnet-emodb": "emodb"}
SEED = 0


def main() -> None:
    """Train the checkpoints that were asked for, by default all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=list(SHIPPED), help=", ".join(SHIPPED))
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--output", type=Path, default=CHECKPOINTS)
    arguments = parser.parse_args()
    for name in arguments.names:
        corpus = SHIPPED[name]
        folder = train_to_folder(
            load_data(arguments.data / corpus, corpus),
            get_recipe("default"),
            arguments.output / name,
            seed=SEED,
            command=f"python scripts/train_checkpoints.py {name}",
        )
        print(folder)


if __name__ == "__main__":
    main()
