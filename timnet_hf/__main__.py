# SPDX-License-Identifier: Apache-2.0
"""``python -m timnet_hf`` is ``timnet``; so ``torchrun -m timnet_hf train …`` works."""

from __future__ import annotations

from .cli import main

if __name__ == "__main__":
    main()
