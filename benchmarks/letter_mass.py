"""How much of a model's probability lies on letters, by set of questions, worked examples and prompt form?

The figures behind `LEAST_LETTER_MASS` of `calib_core/report/cautions.py`: the embedded model on its demo's
questions, and on any files that are named.

    python benchmarks/letter_mass.py [FILE ...] [--model MODEL] [--questions 120] [--shots 0 4]

About a minute for each set, form and number of worked examples on two cores.
"""

from __future__ import annotations

import argparse
import random
import sys
from pathlib import PurePath

from calib_core.data.questions import Question, read_questions
from calib_core.demo.geography import make_questions
from calib_core.errors import CalibError
from calib_core.metrics.figures import conf_ece
from calib_core.models.loading import LoadedModel, embedded_model, load_model
from calib_core.predictions.table import Predictions
from calib_core.scoring.forms import FORMS
from calib_core.scoring.prompts import PromptEncoder, PromptForm
from calib_core.scoring.questions import score

LONGEST = 1200
"""Characters of a question beyond which it is left out, for the time it takes."""


def sets(files: list[str], n: int) -> dict[str, list[Question]]:
    """`n` questions of the demo and of each file, drawn at random."""
    found = {"demo": make_questions()}
    for file in files:
        found[PurePath(file).name] = list(read_questions(file, on_bad_row="drop")[0])
    return {
        name: random.Random(0).sample(short, min(n, len(short)))  # noqa: S311 (no secret)
        for name, questions in found.items()
        if (short := [question for question in questions if len(question.question) < LONGEST])
    }


def line(table: Predictions) -> str:
    """Mean, least and greatest letter mass, and what the letters say."""
    mass, conf, correct = table.letter_mass, table.confidence(), table.correct()
    return (
        f"mass {mass.mean():.3f} ({mass.min():.3f} to {mass.max():.3f})  accuracy {correct.mean():.3f}  "
        f"confidence {conf.mean():.3f}  conf-ECE {conf_ece(conf, correct):.3f}"
    )


def scored(loaded: LoadedModel, questions: list[Question], form: str, shots: int) -> Predictions:
    """The questions after the first `shots`, which are worked examples."""
    prompt = PromptForm(form="chat" if form == "chat" else "plain", shots=tuple(questions[:shots]))
    return score(loaded, questions[shots:], PromptEncoder(loaded.tokenizer, prompt))


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("files", nargs="*", metavar="FILE", help="files of questions")
    parser.add_argument("--model", default="", help="model folder or hub id (default: the embedded model)")
    parser.add_argument("--questions", type=int, default=120, metavar="N")
    parser.add_argument("--shots", type=int, nargs="+", default=[0, 4], metavar="N")
    given = parser.parse_args()
    try:
        loaded = load_model(given.model or embedded_model())
        for name, questions in sets(given.files, given.questions).items():
            for shots in given.shots:
                for form in FORMS:
                    table = scored(loaded, questions, form, shots)
                    sys.stdout.write(f"{name:32} {shots} shots  {form:6} {line(table)}\n")
                    sys.stdout.flush()
    except CalibError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
