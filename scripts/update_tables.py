# SPDX-License-Identifier: Apache-2.0
"""Bring README.md and the shipped checkpoints up to results/ and to the code.

python scripts/update_tables.py            write them anew
python scripts/update_tables.py --check    change nothing, fail where one is out of date
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

from timnet_hf.measurement_tables import fill_benchmark, fill_channels
from timnet_hf.model_folder import refresh_model_folder
from timnet_hf.tables import fill_markers

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results"
TEXTS = (ROOT / "README.md", ROOT / "MODEL_CARD.md")
CHECKPOINTS = ROOT / "timnet_hf" / "checkpoints"


def update(check: bool) -> list[Path]:
    """Write what is out of date, or with ``check`` only find it.

    Returns:
        The files that were out of date.
    """
    outdated = []
    for path in TEXTS:
        if not path.is_file():
            continue
        text = path.read_text(encoding="utf-8")
        filled = fill_markers(text, RESULTS)
        filled = fill_channels(fill_benchmark(filled, RESULTS), RESULTS)
        if filled != text:
            outdated.append(path)
            if not check:
                path.write_text(filled, encoding="utf-8", newline="\n")
    for record in sorted(CHECKPOINTS.glob("*/training_record.json")):
        folder = record.parent
        with tempfile.TemporaryDirectory(prefix="timnet-card-") as scratch:
            place = Path(shutil.copytree(folder, Path(scratch) / folder.name)) if check else folder
            outdated += [
                folder / one.relative_to(place) for one in refresh_model_folder(place, RESULTS)
            ]
    return outdated


def main() -> int:
    """Parse the command line, update, and name what was out of date."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="change nothing, only report")
    check = parser.parse_args().check
    outdated = update(check)
    for path in outdated:
        print(f"{path.relative_to(ROOT)}: {'out of date' if check else 'updated'}")
    if check and outdated:
        print("Run: python scripts/update_tables.py")
    return 1 if check and outdated else 0


if __name__ == "__main__":
    sys.exit(main())
