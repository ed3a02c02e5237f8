#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Make the weights that the default recipe starts from, see timnet_hf/starting_weights.py.

    python scripts/train_starts.py --data ../shared/data --work DIR

Each is the recipe ``from-scratch``, trained on all recordings of its corpora with one fixed seed.
What lies finished in DIR is not trained again. The checksums it prints belong into that module, and
results that began with other starts are results no more.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path

from train_checkpoints import SEED, recordings

from timnet_hf.experiment import train_to_folder
from timnet_hf.model_folder import RECORD_FILE
from timnet_hf.prediction import load_model
from timnet_hf.recipes import get_recipe
from timnet_hf.recordings import content_of
from timnet_hf.starting_weights import DIGITS, LEARNED, RECORDINGS, STARTS, save_start

#: What of the training's record stays in the folder it was trained in.
LEFT = ("log", "started", "wall_time_seconds", "command")


def main() -> None:
    """Train the starts that were asked for, by default all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=list(LEARNED), help=", ".join(LEARNED))
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--output", type=Path, default=STARTS)
    arguments = parser.parse_args()
    for name in arguments.names:
        folder = arguments.work / name
        if not (folder / RECORD_FILE).is_file():
            data = recordings(tuple(sorted(LEARNED[name])), arguments.data)
            train_to_folder(data, get_recipe("from-scratch"), folder, seed=SEED)
        record = json.loads((folder / RECORD_FILE).read_text(encoding="utf-8"))
        model, _ = load_model(folder)
        kept = {key: value for key, value in record.items() if key not in LEFT}
        path = save_start(model, name, kept, arguments.output)
        print(path, hashlib.sha256(path.read_bytes()).hexdigest())
    heard = {
        corpus: sorted(
            content_of(one).digest[:DIGITS]
            for one in recordings((corpus,), arguments.data).dataset["path"]
        )
        for corpus in sorted(set().union(*LEARNED.values()))
    }
    (arguments.output / RECORDINGS.name).write_text(json.dumps(heard, indent=0) + "\n")


if __name__ == "__main__":
    main()
