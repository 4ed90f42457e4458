"""Fresh: what is new in a stream of questions since the champion was last measured, split into folds."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from calib_core.champion.state import Champion, first_champion, read_champion
from calib_core.data.questions import read_questions, write_questions
from calib_core.data.record import FILE as DATA_FILE
from calib_core.data.stream import Fresh, Snapshot, known_questions, read_fresh
from calib_core.errors import ConfigError
from calib_core.runtime.progress import say
from calib_core.runtime.secrets import shown
from calib_core.settings.groups import Splitting
from calib_core.settings.parameters import parameter
from calib_core.steps.prepare import PrepareConfig, prepare
from calib_core.steps.reading import Reading
from calib_core.storage.files import check_output_folder, whole_folder, write_json
from calib_core.storage.uris import as_uri, fetch, join

STATE_FILE = "state.json"


@dataclass(frozen=True, kw_only=True)
class FreshConfig(Splitting, Reading):
    """Parameters of reading a stream."""

    GROUP = "stream"

    model: str = parameter(
        "",
        "First champion, if the champion's folder has none yet: a hub id (`name` or `name@revision`), a "
        "bucket's URI, or a path on a mounted volume; ignored in later runs.",
    )
    trained_on: str = parameter(
        "",
        "File, bucket URI or hub id of questions that the first champion was trained on; they never count as "
        "new.",
    )


def fresh(config: FreshConfig, *, stream: str, champion: str, data: Path, snapshot: Path) -> dict[str, Any]:
    """Read what is new in a stream, and split it into folds for an evaluation of the champion.

    Nothing is written to the stream or to the champion's folder: a run that fails later leaves its questions
    new for the next one.

    Args:
        config: Parameters of reading.
        stream: Folder or bucket prefix with files of questions.
        champion: Folder or bucket prefix of `champion.json`.
        data: Data folder to write, as `prepare` writes it.
        snapshot: Folder to write: how far the stream is read (`snapshot.json`, `seen.parquet`), the new
            questions (`questions.parquet`), and the state that the run began from (`state.json`).

    Returns:
        `model` (the champion's path or URI), `number` of its last change, `snapshot` (id), `n_fresh` and
        `counts` of what was left out.

    Raises:
        DataFormatError: a file can't be read or has bad rows.
        NotEnoughDataError: nothing is new, or too little for three folds.
        ConfigError: there is no champion and no `model`, the fractions aren't those of earlier runs, or a
            folder to write holds other files.
    """
    inputs = (stream, champion, config.trained_on)
    check_output_folder(data, DATA_FILE, inputs=inputs)
    check_output_folder(snapshot, STATE_FILE, inputs=inputs)
    state, version = _state(config, champion)
    found = read_fresh(
        stream,
        _last_snapshot(config, state, champion),
        preset=config.preset,
        on_bad_row=config.on_bad_row,
    )
    _say_what_was_found(found, stream)
    record = {
        "model": state.model,
        "number": state.number,
        "snapshot": found.snapshot.id,
        "n_fresh": len(found.questions),
        "counts": found.counts,
    }
    written = {
        "expected": version,
        "champion": state.to_dict(),
        "stream": stream,
        "parameters": shown(asdict(config)),
        **record,
    }
    with whole_folder(snapshot) as folder:
        found.snapshot.write(folder)
        write_questions(found.questions, folder / "questions.parquet")
        write_json(folder / STATE_FILE, written)
    shared = {field.name for field in fields(PrepareConfig)} & {field.name for field in fields(FreshConfig)}
    splitting = {name: getattr(config, name) for name in shared - {"preset"}}
    folds = prepare(
        PrepareConfig(questions=str(snapshot / "questions.parquet"), **splitting), data, anchors=found.anchors
    )["folds"]
    # Last: `publish` takes no snapshot without it, and holds the run's summary to it.
    written["data"] = {name: fold["fingerprint"] for name, fold in folds.items()}
    write_json(snapshot / STATE_FILE, written)
    return record


def _state(config: FreshConfig, champion: str) -> tuple[Champion, str | None]:
    """The champion's state with its version; a first one where the folder has none."""
    split = (config.fit_fraction, config.calibration_fraction)
    found = read_champion(champion)
    if found is None:
        if not config.model:
            raise ConfigError(
                f"{champion}: no champion there yet; check the folder, or name the first champion in `model`"
            )
        # A path must mean the same from everywhere: later runs begin in other folders.
        local = Path(config.model).is_dir()
        model = as_uri(Path(config.model).absolute() if local else config.model)
        return first_champion(model, split), None
    state, version = found
    if state.split != split:
        raise ConfigError(
            f"fit_fraction, calibration_fraction are {split}, but this stream is split by {state.split}: "
            "with others, questions that were test questions would be trained on; keep "
            f"{state.split}, or begin with another champion's folder"
        )
    return state, version


def _last_snapshot(config: FreshConfig, state: Champion, champion: str) -> Snapshot:
    """How far earlier runs have read; with what the first champion was trained on, where that is given."""
    before = Snapshot.read(fetch(join(champion, f"runs/{state.run}/snapshot"))) if state.run else Snapshot()
    if not config.trained_on:
        return before
    known, _ = read_questions(config.trained_on, preset=config.preset, on_bad_row=config.on_bad_row)
    return replace(before, trained_on={**before.trained_on, **known_questions(known)})


def _say_what_was_found(found: Fresh, stream: str) -> None:
    left_out = ", ".join(
        f"{n} {name.replace('_', ' ')}" for name, n in found.counts.items() if n and name != "files_new"
    )
    say(
        f"{stream}: {len(found.questions)} new questions in {found.counts['files_new']} new files"
        + (f" ({left_out})" if left_out else "")
    )
