# SPDX-License-Identifier: Apache-2.0
"""Importing the package is all that the Auto classes need, in whatever order things are imported.

Each case runs in a process of its own: an import happens once.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

CHECK = """
import timnet_hf
from transformers import (
    AutoConfig, AutoFeatureExtractor, AutoModel, AutoModelForAudioClassification
)
config = AutoConfig.from_pretrained(FOLDER)
assert type(config) is timnet_hf.TimNetConfig, type(config)
assert type(AutoModel.from_pretrained(FOLDER)) is timnet_hf.TimNetModel
model = AutoModelForAudioClassification.from_pretrained(FOLDER)
assert type(model) is timnet_hf.TimNetForAudioClassification
assert type(AutoModelForAudioClassification.from_config(config)) is type(model)
extractor = AutoFeatureExtractor.from_pretrained(FOLDER)
assert type(extractor) is timnet_hf.TimNetFeatureExtractor
assert AutoConfig.for_model("timnet", hidden_size=8).hidden_size == 8
"""

# A process that loads torch and transformers takes long on a busy machine.
pytestmark = pytest.mark.timeout(600)

AUTO = "from transformers import AutoFeatureExtractor, AutoModelForAudioClassification\n"
QUICK = {
    "package first": "import timnet_hf",
    "Auto classes first": f"{AUTO}import timnet_hf",
    "model file first": "import timnet_hf.modeling_timnet",
    "package, then another model": "import timnet_hf\nfrom transformers import BertModel",
}
SLOW = {
    "extractor file first": "import timnet_hf.feature_extraction_timnet",
    "model file after the Auto classes": f"{AUTO}import timnet_hf.modeling_timnet",
    "Trainer and pipeline first": "from transformers import Trainer, pipeline\nimport timnet_hf",
    "package, then pipeline": "import timnet_hf\nfrom transformers import pipeline",
    "package twice": "import importlib, timnet_hf\nimportlib.reload(timnet_hf)",
    "two copies of the package": "import sys, timnet_hf\n"
    "for name in [n for n in sys.modules if n.startswith('timnet_hf')]: del sys.modules[name]",
}
ORDERS = {**QUICK, **SLOW}


def run(code: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter that can import the package and nothing else of the tree."""
    root = str(Path(__file__).resolve().parent.parent)
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-W", "error:::timnet_hf", "-c", code],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder as a user would have downloaded it, without any code in it."""
    from timnet_hf import TimNetConfig, TimNetFeatureExtractor, TimNetForAudioClassification

    path = tmp_path_factory.mktemp("registration") / "model"
    TimNetForAudioClassification(TimNetConfig(num_labels=3, hidden_size=6)).save_pretrained(path)
    TimNetFeatureExtractor().save_pretrained(path)
    return path


@pytest.mark.parametrize(
    "order", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]
)
def test_the_auto_classes_know_the_model(order: str, folder: Path):
    run(f"{ORDERS[order]}\nFOLDER = {str(folder)!r}\n{CHECK}", folder.parent)


def test_importing_the_package_loads_nothing_heavy(tmp_path: Path):
    heavy = ("torch", "torchaudio", "transformers", "datasets", "evaluate", "sklearn", "matplotlib")
    run(
        f"import sys, timnet_hf\nloaded = [m for m in {heavy} if m in sys.modules]\n"
        "assert not loaded, loaded",
        tmp_path,
    )


def test_importing_the_configuration_loads_no_network(tmp_path: Path):
    run(
        "import sys\nfrom timnet_hf import TimNetConfig\nTimNetConfig()\n"
        "assert 'timnet_hf.modeling_timnet' not in sys.modules",
        tmp_path,
    )


def test_every_public_name_can_be_had_and_no_other(tmp_path: Path):
    run(
        "import timnet_hf\n"
        "assert all(getattr(timnet_hf, name) is not None for name in timnet_hf.__all__)\n"
        "assert set(timnet_hf.__all__) <= set(dir(timnet_hf))\n"
        "assert set(timnet_hf._EXPORTS) | {'__version__'} == set(timnet_hf.__all__)\n"
        "try:\n    timnet_hf.nonsense\nexcept AttributeError as error:\n"
        "    assert 'nonsense' in str(error)\nelse:\n    raise AssertionError\n",
        tmp_path,
    )


def test_watching_the_imports_hides_no_source_and_no_error(tmp_path: Path):
    """Tracebacks and `inspect` still see the source; a module that fails to load fails plainly."""
    run(
        "import inspect, timnet_hf, timnet_hf.modeling_timnet as module\n"
        "from transformers.models.auto import modeling_auto\n"
        "assert 'class TimNetModel' in inspect.getsource(module)\n"
        "assert 'AutoModel' in inspect.getsource(modeling_auto)\n"
        "assert inspect.getsource(timnet_hf.TimNetModel.forward)\n"
        "assert module.__spec__.origin.endswith('modeling_timnet.py')\n",
        tmp_path,
    )
    run(
        "import sys, timnet_hf\nsys.modules['timnet_hf.mfcc_timnet'] = None\n"
        "try:\n    import timnet_hf.feature_extraction_timnet\n"
        "except ImportError as error:\n    assert 'mfcc_timnet' in str(error)\n"
        "else:\n    raise AssertionError('imported')\n"
        "assert 'timnet_hf.feature_extraction_timnet' not in sys.modules\n"
        "del sys.modules['timnet_hf.mfcc_timnet']\n"
        "import timnet_hf.feature_extraction_timnet\n",
        tmp_path,
    )
