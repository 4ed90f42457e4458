"""Prepare data: questions and preference pairs in, checked and split folds out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from calib_core.data.folds import (
    FOLDS,
    Folds,
    alike_record,
    anchors_of,
    check_disjoint,
    folds_from_files,
    keep_apart,
    split_questions,
)
from calib_core.data.preferences import (
    Preference,
    pairs_showing,
    preferences_fingerprint,
    read_preferences,
    split_preferences,
    write_preferences,
)
from calib_core.data.questions import Question, fingerprint, read_questions, write_questions
from calib_core.data.record import FILE, FORMAT, DataRecord, write_data_record
from calib_core.data.rows import ReadReport
from calib_core.decisions.budget import accuracy_note
from calib_core.decisions.verdict import Margins
from calib_core.errors import NotEnoughDataError
from calib_core.runtime.progress import say
from calib_core.runtime.secrets import shown
from calib_core.settings.checks import ConfigCheck
from calib_core.settings.groups import Splitting
from calib_core.settings.parameters import parameter
from calib_core.steps.reading import Reading
from calib_core.steps.sizes import Sizes, decidable, decidable_text
from calib_core.storage.files import check_output_folder, whole_folder
from calib_core.version import __version__


@dataclass(frozen=True, kw_only=True)
class PrepareConfig(Splitting, Reading):
    """Parameters of data preparation."""

    GROUP = "sources"

    questions: str = parameter(
        "", "File, bucket URI or hub id of questions that are to be split into the three folds."
    )
    fit: str = parameter(
        "",
        "File, bucket URI or hub id of questions to train on; in place of `questions`, with `calibration` "
        "and `test`.",
    )
    calibration: str = parameter(
        "", "File, bucket URI or hub id of questions that steer training and are never trained on."
    )
    test: str = parameter("", "File, bucket URI or hub id of questions for the gate and the report.")
    out_of_domain: str = parameter(
        "", "File, bucket URI or hub id of questions from another field, for the report only."
    )
    preferences: str = parameter("", "File, bucket URI or hub id of preference pairs.")
    data_snapshot: str = parameter(
        "",
        "Label for the state of the files, such as a date or a version; with a new one KFP reads them again "
        "instead of reusing a cached result.",
    )
    preference_test_fraction: float = parameter(
        0.2, "Share of the preference prompts that is held out for the win rate.", above=0, below=1
    )

    def rules(self, check: ConfigCheck) -> None:
        """Questions come from one source that is split, or from three."""
        super().rules(check)
        own = {name: getattr(self, name) for name in FOLDS}
        check.that(
            lambda c: not any(own.values()) if c.questions else all(own.values()),
            f"`questions` is {self.questions!r}, "
            + ", ".join(f"`{name}` is {value!r}" for name, value in own.items())
            + "; give `questions` alone (to be split), or all of `fit`, `calibration` and `test`",
        )


def prepare(config: PrepareConfig, out: Path, *, anchors: Mapping[str, bytes] | None = None) -> DataRecord:
    """Read, check and split what the config names, and write the data folder.

    Args:
        config: The sources and how to split them.
        out: Data folder to write, atomically: a Parquet file per fold (`fit`, `calibration`, `test`,
            and where there are such `out_of_domain`, `preferences_fit`, `preferences_test`) and `data.json`.
        anchors: Id of each of `questions` -> the text hash that decides its fold, where it is known already;
            see `calib_core.data.folds.anchors_of`.

    Returns:
        What `data.json` says: sources, counts, fingerprints and everything that was left out.

    Raises:
        DataFormatError: a source can't be read or has bad rows.
        NotEnoughDataError: a fold would be empty.
        ConfigError: a package for reading a hub data set is missing, or `out` holds other files.
    """
    named = (*FOLDS, "questions", "out_of_domain", "preferences")
    check_output_folder(out, FILE, inputs=[getattr(config, name) for name in named])
    sources: dict[str, ReadReport] = {}
    folds = _read_folds(config, sources, anchors)
    out_of_domain: tuple[Question, ...] = ()
    if config.out_of_domain:
        out_of_domain = tuple(_read(config, "out_of_domain", sources))
        folds = _keep_away(folds, out_of_domain)
    check_disjoint(folds)
    parts: dict[str, Sequence[Question]] = {name: getattr(folds, name) for name in FOLDS}
    _check_filled(config, parts)
    if out_of_domain:
        parts["out_of_domain"] = out_of_domain
    pairs, showing = _read_pairs(config, folds, sources)
    sizes = {name: len(parts[name]) for name in FOLDS}
    decision = decidable(sizes, None if anchors else _other_sizes(config, folds))
    record: DataRecord = {
        "format": FORMAT,
        "library_version": __version__,
        "parameters": shown(asdict(config)),
        "sources": {name: report.to_dict() for name, report in sources.items()},
        "folds": {
            name: {"n": len(part), "fingerprint": fingerprint(part), "options": _option_counts(part)}
            for name, part in parts.items()
        },
        "regime_test": decision,
        "overlaps": [overlap.to_dict() for overlap in folds.overlaps],
        "alike": alike_record(folds.alike),
        "preferences": {
            name: {"n": len(part), "fingerprint": preferences_fingerprint(part)}
            for name, part in pairs.items()
        },
        "fit_pairs_showing_held_out_questions": showing,
    }
    with whole_folder(out) as folder:
        for name, part in parts.items():
            write_questions(part, folder / f"{name}.parquet")
        for name, pair_part in pairs.items():
            write_preferences(pair_part, folder / f"{name}.parquet")
        write_data_record(folder, record)
    _say_what_was_left_out(record)
    say(decidable_text(sizes, decision))
    say(accuracy_note(sizes["test"], margin=Margins().accuracy))
    return record


def _read(config: PrepareConfig, name: str, sources: dict[str, ReadReport]) -> list[Question]:
    """Questions of the source that one of the config's fields names; its report goes to `sources`."""
    questions, sources[name] = read_questions(
        getattr(config, name), preset=config.preset, on_bad_row=config.on_bad_row
    )
    return questions


def _read_folds(
    config: PrepareConfig, sources: dict[str, ReadReport], anchors: Mapping[str, bytes] | None
) -> Folds:
    limits = (config.max_fit, config.max_calibration, config.max_test)
    if config.questions:
        shares = (config.fit_fraction, config.calibration_fraction)
        return split_questions(
            _read(config, "questions", sources),
            fractions=(*shares, 1 - sum(shares)),
            limits=limits,
            anchors=anchors,
        )
    fit, calibration, test = (_read(config, name, sources) for name in FOLDS)
    return folds_from_files(fit, calibration, test, limits=limits)


def _other_sizes(config: PrepareConfig, folds: Folds) -> Callable[[float, float], Sizes] | None:
    """The sizes that other shares would give these questions; None where the folds are files, or were cut."""
    if not config.questions or config.max_fit or config.max_calibration or config.max_test:
        return None

    def sizes(fit: float, calibration: float) -> Sizes:
        questions = [question for name in FOLDS for question in getattr(folds, name)]
        fractions = (fit, calibration, 1 - fit - calibration)
        other = split_questions(questions, fractions=fractions, anchors=anchors_of(questions))
        return {name: len(getattr(other, name)) for name in FOLDS}

    return sizes


def _keep_away(folds: Folds, out_of_domain: Sequence[Question]) -> Folds:
    """Folds whose fit and calibration hold no out-of-domain question: those are to be news to the model."""
    parts, found = keep_apart(
        {"fit": folds.fit, "calibration": folds.calibration, "out_of_domain": out_of_domain}
    )
    return replace(folds, fit=parts["fit"], calibration=parts["calibration"], overlaps=folds.overlaps + found)


def _read_pairs(
    config: PrepareConfig, folds: Folds, sources: dict[str, ReadReport]
) -> tuple[dict[str, Sequence[Preference]], list[str]]:
    """Fit and test part of the preference pairs, and ids of fit pairs that show a held-out question."""
    if not config.preferences:
        return {}, []
    pairs, sources["preferences"] = read_preferences(config.preferences, on_bad_row=config.on_bad_row)
    fit, test = split_preferences(pairs, test_fraction=config.preference_test_fraction)
    if not fit or not test:
        raise NotEnoughDataError(
            f"{config.preferences}: {len(pairs)} pairs give {len(fit)} to train on and {len(test)} to "
            f"test on (preference_test_fraction {config.preference_test_fraction}); provide more prompts"
        )
    held_out = [question.question for question in (*folds.calibration, *folds.test)]
    return {"preferences_fit": fit, "preferences_test": test}, pairs_showing(fit, held_out)


def _check_filled(config: PrepareConfig, parts: dict[str, Sequence[Question]]) -> None:
    if empty := [name for name, part in parts.items() if not part]:
        sizes = ", ".join(f"{name} {len(part)}" for name, part in parts.items())
        advice = (
            "provide more questions, or give these folds a larger share"
            if config.questions
            else "provide questions for them that the other folds don't hold"
        )
        raise NotEnoughDataError(f"no questions for {', '.join(empty)} (questions: {sizes}); {advice}")


def _option_counts(questions: Sequence[Question]) -> dict[str, int]:
    """How many questions have 2, 3, ... options."""
    counts = Counter(len(question.choices) for question in questions)
    return {str(n): counts[n] for n in sorted(counts)}


def _say_what_was_left_out(record: DataRecord) -> None:
    for name, source in record["sources"].items():
        if source["n_dropped"] or source["n_duplicates"]:
            say(
                f"{name}: {source['n_rows']} rows read as {source['layout']}, {source['n_kept']} kept, "
                f"{source['n_dropped']} bad and {source['n_duplicates']} duplicate rows left out"
            )
    for overlap in record["overlaps"]:
        say(
            f"{overlap['dropped_from']}: {overlap['n']} questions left out that {overlap['held_by']} holds"
            + (f" ({overlap['n_near']} of them in other words)" if overlap["n_near"] else "")
        )
    if alike := record["alike"]["n_groups"]:
        say(
            f"{record['alike']['n_questions']} questions are nearly the same as others, in {alike} groups; "
            "each group is in one fold"
        )
    if showing := record["fit_pairs_showing_held_out_questions"]:
        say(f"preferences: {len(showing)} pairs for training show a question of calibration or test")
