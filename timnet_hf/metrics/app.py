# SPDX-License-Identifier: Apache-2.0
"""A page to try a metric on: this file is `app.py` in the Space of every metric.

`evaluate.utils.launch_gradio_widget` calls what Gradio dropped years ago, hence a page of our own.
"""

from __future__ import annotations

import re
from pathlib import Path

import gradio as gr
import pandas as pd

__all__ = ["build_app"]

EXAMPLE = pd.DataFrame({"predictions": [0, 0, 1, 1], "references": [0, 0, 0, 1]})


def build_app(metric_file: Path) -> gr.Blocks:
    """Build the page of one metric; the README beside the metric is shown below the form.

    Args:
        metric_file: The metric's script, such as `uar.py`.
    """
    import evaluate

    name = metric_file.stem
    metric = evaluate.load(str(metric_file))
    readme = (metric_file.parent / "README.md").read_text(encoding="utf-8")
    article = re.sub(r"\A---\n.*?\n---\n", "", readme, flags=re.DOTALL)

    def compute(table: pd.DataFrame) -> float:
        rows = table.iloc[:, :2].replace("", None).dropna()  # by place: headers can be edited
        if rows.empty:
            raise gr.Error(
                "Enter at least one row with a prediction and a reference.", print_exception=False
            )
        result = metric.compute(
            predictions=[_class_index(value) for value in rows.iloc[:, 0]],
            references=[_class_index(value) for value in rows.iloc[:, 1]],
        )
        return float(result[name])

    with gr.Blocks(title=f"Metric: {name.upper()}") as app:
        gr.Markdown(f"# Metric: {name.upper()}\nOne row an item: predicted and true class index.")
        table = gr.Dataframe(
            value=EXAMPLE,
            datatype="number",
            column_count=2,
            label="Items",
        )
        button = gr.Button("Compute", variant="primary")
        score = gr.Number(compute(EXAMPLE), label=name.upper(), precision=4, interactive=False)
        button.click(compute, inputs=table, outputs=score, api_name="compute")
        gr.Markdown(article)
    return app


def _class_index(value: object) -> int:
    try:
        number = float(str(value))
    except ValueError:
        number = float("nan")
    if not number.is_integer():
        raise gr.Error(
            f"Class indices must be whole numbers, not {value!r}.", print_exception=False
        )
    return int(number)


if __name__ == "__main__":
    here = Path(__file__).parent
    (script,) = (path for path in here.glob("*.py") if path.name != Path(__file__).name)
    build_app(script).launch()
