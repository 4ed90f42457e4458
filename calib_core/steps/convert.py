"""Convert: what another program wrote of a model's predictions, as a predictions table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from calib_core.data.questions import Question, read_questions
from calib_core.data.rows import NoRowsError
from calib_core.errors import DataFormatError
from calib_core.predictions.files import read_predictions, write_predictions
from calib_core.predictions.folders import result_files
from calib_core.predictions.table import concatenate
from calib_core.runtime.progress import say
from calib_core.settings.parameters import parameter
from calib_core.steps.reading import Preset
from calib_core.storage.files import check_output_file


@dataclass(frozen=True, kw_only=True)
class ConvertConfig(Preset):
    """Parameters of a conversion."""

    GROUP = "sources"

    questions: str = parameter(
        "",
        "File, bucket URI or hub id of the questions, if the predictions leave out answers or options.",
    )


def convert_predictions(config: ConvertConfig, source: Path, out: Path) -> dict[str, Any]:
    """Read what lm-eval or Vertex AI's batch prediction wrote, and write it as a predictions table.

    Args:
        config: where to find what the predictions leave out.
        source: a file, or a folder with the files of one run (lm-eval: one per task, whose names then begin
            the ids; Vertex: one per worker).
        out: predictions table to write (Parquet), atomically.

    Returns:
        Numbers of rows, of labelled rows, and of rows by number of options.

    Raises:
        ConfigError: `out` can't be written, or is an input.
        DataFormatError: the files are of no known format, log-probabilities are missing, or rows are wrong.
    """
    check_output_file(out, inputs=(source, config.questions))
    questions: Mapping[str, Question] = {}
    if config.questions:
        questions = {
            question.id: question for question in read_questions(config.questions, preset=config.preset)[0]
        }
    if source.is_dir():
        tables = []
        for part, path in result_files(source).items():
            try:
                table = read_predictions(path, questions=questions)
            except NoRowsError:  # a worker that got no instances leaves an empty file
                continue
            ids = table.ids if part == path.name else tuple(f"{part}/{name}" for name in table.ids)
            tables.append(replace(table, ids=ids))
        if not tables:
            raise DataFormatError(f"{source}: all files of results are empty; was anything predicted?")
        predictions = concatenate(tables)
    else:
        predictions = read_predictions(source, questions=questions)
    write_predictions(predictions, out)
    sizes, counts = np.unique(predictions.n_options, return_counts=True)
    result = {
        "n": len(predictions),
        "n_labelled": int((predictions.labels >= 0).sum()),
        "options": {str(size): int(count) for size, count in zip(sizes, counts, strict=True)},
    }
    say(f"{result['n']} predictions, {result['n_labelled']} of them with the right answer")
    if left := len(questions) - len(predictions):
        say(f"{left} of {len(questions)} questions have no prediction, so the table leaves them out")
    return result
