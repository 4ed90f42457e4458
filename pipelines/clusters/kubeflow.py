"""Kubeflow Pipelines as a platform: runs and recurring runs."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import kfp_server_api as api

from calib_core.errors import ConfigError
from calib_pipelines.clusters.base import (
    UPLOAD_S,
    Run,
    Schedule,
    TryAgainError,
    UnansweredError,
    create_once,
    only,
    refuse_foreign,
    retried,
    same_run,
)
from calib_pipelines.clusters.cron import Cron
from calib_pipelines.clusters.kubeflow_api import KubeflowApi, KubeflowConnection, NotFoundError
from calib_pipelines.packages.reading import Submission

STATES = {"canceled": "cancelled", "canceling": "cancelling", "runtime_state_unspecified": "pending"}
STATUSES = {"ENABLED": "active", "DISABLED": "paused"}
NOT_TASKS = re.compile(
    r"root|(.*-)?driver|executor(\(\d+\))?|.*\.onExit"
    r"|(condition|condition-branches|exit-handler|for-loop)-\d+|iteration-.*"
)
"""Nodes that KFP and Argo add to a run's tasks: pods, attempts, DAGs, turns of loops."""
BY_CONCERN = ("failed", "cancelled", "cancelling", "running", "paused", "pending", "succeeded", "skipped")
"""States of tasks, those first that stand for several tasks of one name."""

_DESCRIPTION = re.compile(r"calib ([0-9a-f]{32})(?: in place of one that was (active|paused))?")

T = TypeVar("T")


class KubeflowCluster:
    """Runs and recurring runs of one installation; see `Cluster` for the methods."""

    def __init__(self, settings: KubeflowConnection) -> None:
        self._api = KubeflowApi(settings)
        self._client = self._api.client
        self.version = self._api.version
        self._experiment_name = settings.experiment
        self._scope = {"namespace": settings.namespace} if settings.namespace else {}

    def put_run(self, submission: Submission) -> tuple[Run, bool]:
        """Start a run, or find the one that was started by the same submission."""
        found = self._find_run(submission.name)
        if found is not None:
            return same_run(found, submission), False
        what = self._what_to_run(submission)
        body = api.V2beta1Run(
            display_name=submission.name, description=f"calib {submission.fingerprint()}", **what
        )
        run = create_once(
            lambda: self._run(self._api.call(self._client.runs.run_service_create_run, run=body)),
            lambda: self._find_run(submission.name),
            what=f"run {submission.name!r}",
        )
        return same_run(run, submission), True

    def get_run(self, run_id: str) -> Run:
        """The run with that id."""
        return self._run(self._api.call(self._client.runs.run_service_get_run, run_id=run_id))

    def find_schedules(self, name: str = "") -> list[Schedule]:
        """Recurring runs of that name, or all; the youngest last."""
        listing = self._client.recurring_runs.recurring_run_service_list_recurring_runs
        found = self._api.list(listing, "recurring_runs", name, **self._scope)
        return [self._schedule(one) for one in sorted(found, key=lambda one: one.created_at)]

    def put_schedule(self, submission: Submission, cron: Cron) -> tuple[Schedule, str]:
        """Make a recurring run, or one in the place of that name's, because they can't be changed.

        The order is such that two of them never start runs at the same time, and that a replacement that was
        cut short is finished by the same command: the successor is made paused, the old one is paused, the
        successor gets the state that the old one had, the old one is deleted. So where there are two, the
        work is unfinished, and the younger one's description says which state is meant to come of it.
        """
        fingerprint = submission.fingerprint(cron.for_kubeflow, self._experiment_name)
        found = self.find_schedules(submission.name)
        refuse_foreign(found)
        current = next((one for one in found if one.fingerprint == fingerprint), None)
        others = [one for one in found if one is not current]
        if current is not None and not others:
            return current, "unchanged"
        state = "active" if not found or any(one.state == "active" for one in found) else "paused"
        if len(found) > 1:
            state = found[-1].in_place_of or state
        if current is None:
            current = self._create_schedule(submission, cron, fingerprint, state if others else "")
        for one in others:
            self.pause(one)
        if current.state != state:
            {"active": self.resume, "paused": self.pause}[state](current)
        for one in others:
            self.delete(one)
        return dataclasses.replace(current, state=state), "updated" if others else "created"

    def pause(self, schedule: Schedule) -> None:
        """Disable the recurring run."""
        disable = self._client.recurring_runs.recurring_run_service_disable_recurring_run
        retried(lambda: self._api.call(disable, recurring_run_id=schedule.id))

    def resume(self, schedule: Schedule) -> None:
        """Enable the recurring run."""
        enable = self._client.recurring_runs.recurring_run_service_enable_recurring_run
        retried(lambda: self._api.call(enable, recurring_run_id=schedule.id))

    def delete(self, schedule: Schedule) -> None:
        """Delete the recurring run."""
        delete = self._client.recurring_runs.recurring_run_service_delete_recurring_run
        try:
            retried(lambda: self._api.call(delete, recurring_run_id=schedule.id))
        except NotFoundError:  # an attempt that wasn't answered went through, or someone else was faster
            return

    def _find_run(self, name: str) -> Run | None:
        found = self._api.list(self._client.runs.run_service_list_runs, "runs", name, **self._scope)
        return only([self._run(one) for one in found], what=f"runs named {name!r}")

    def _create_schedule(
        self, submission: Submission, cron: Cron, fingerprint: str, in_place_of: str
    ) -> Schedule:
        note = f" in place of one that was {in_place_of}" if in_place_of else ""
        body = api.V2beta1RecurringRun(
            display_name=submission.name,
            description=f"calib {fingerprint}{note}",
            trigger=api.V2beta1Trigger(cron_schedule=api.V2beta1CronSchedule(cron=cron.for_kubeflow)),
            mode="DISABLE" if in_place_of else "ENABLE",
            max_concurrency="1",
            no_catchup=True,
            **self._what_to_run(submission),
        )
        create = self._client.recurring_runs.recurring_run_service_create_recurring_run

        def find() -> Schedule | None:
            found = self.find_schedules(submission.name)
            return next((one for one in found if one.fingerprint == fingerprint), None)

        return create_once(
            lambda: self._schedule(self._api.call(create, recurring_run=body)),
            find,
            what=f"schedule {submission.name!r}",
        )

    def _what_to_run(self, submission: Submission) -> dict[str, Any]:
        """Set up what a run needs, where it isn't there yet; the fields of a run that refer to it."""
        pipeline_id, version_id = self._version(submission)
        return {
            "experiment_id": self._experiment(submission),
            "pipeline_version_reference": api.V2beta1PipelineVersionReference(
                pipeline_id=pipeline_id, pipeline_version_id=version_id
            ),
            "runtime_config": api.V2beta1RuntimeConfig(
                parameters=dict(submission.parameters), pipeline_root=submission.pipeline_root or None
            ),
            "service_account": submission.service_account or None,
        }

    def _experiment(self, submission: Submission) -> str:
        name = self._experiment_name or submission.package.name
        experiments = self._client.experiments
        body = api.V2beta1Experiment(display_name=name, **self._scope)
        found = _find_or_create(
            lambda: self._api.list(
                experiments.experiment_service_list_experiments, "experiments", name, **self._scope
            ),
            lambda: self._api.call(experiments.experiment_service_create_experiment, experiment=body),
            what=f"experiment {name!r}",
        )
        if found.storage_state == "ARCHIVED":
            raise ConfigError(
                f"experiment {name!r} is archived; restore it in the dashboard or choose another --experiment"
            )
        return str(found.experiment_id)

    def _version(self, submission: Submission) -> tuple[str, str]:
        """Ids of the package's pipeline and version; the version is named by the package's content."""
        package = submission.package
        version_name = package.sha256[:16]
        pipelines, uploads = self._client.pipelines, self._client.pipeline_uploads
        body = api.V2beta1Pipeline(display_name=package.name, **self._scope)
        pipeline = _find_or_create(
            lambda: self._api.list(
                pipelines.pipeline_service_list_pipelines, "pipelines", package.name, **self._scope
            ),
            lambda: self._api.call(pipelines.pipeline_service_create_pipeline, pipeline=body),
            what=f"pipeline {package.name!r}",
        )
        version = _find_or_create(
            lambda: self._api.list(
                pipelines.pipeline_service_list_pipeline_versions,
                "pipeline_versions",
                version_name,
                pipeline_id=pipeline.pipeline_id,
            ),
            lambda: self._api.call(
                uploads.upload_pipeline_version,
                answer_s=UPLOAD_S,
                uploadfile=str(package.path),
                name=version_name,
                pipelineid=pipeline.pipeline_id,
            ),
            what=f"version {version_name} of pipeline {package.name!r}",
        )
        return str(pipeline.pipeline_id), str(version.pipeline_version_id)

    def _run(self, run: Any) -> Run:
        tasks = _tasks(run.run_details.task_details or [] if run.run_details is not None else [])
        state = _state(run.state)
        description = _DESCRIPTION.fullmatch(run.description or "")
        return Run(
            id=run.run_id,
            name=run.display_name,
            state=state,
            link=f"{self._api.ui}/#/runs/details/{run.run_id}",
            fingerprint=description.group(1) if description else "",
            tasks=tasks,
            error=(run.error.message or "") if run.error is not None else _why(state, tasks),
        )

    def _schedule(self, recurring: Any) -> Schedule:
        description = _DESCRIPTION.fullmatch(recurring.description or "")
        cron = recurring.trigger.cron_schedule if recurring.trigger is not None else None
        return Schedule(
            id=recurring.recurring_run_id,
            name=recurring.display_name,
            state=STATUSES.get(recurring.status, str(recurring.status).lower()),
            cron=cron.cron if cron is not None else "",
            link=f"{self._api.ui}/#/recurringrun/details/{recurring.recurring_run_id}",
            fingerprint=description.group(1) if description else "",
            in_place_of=(description.group(2) or "") if description else "",
        )


def _find_or_create(listing: Callable[[], list[T]], create: Callable[[], T], *, what: str) -> T:
    """What bears a name that the server keeps unique, so that asking twice can't make two."""

    def find() -> T | None:
        found = listing()
        return found[0] if found else None

    def create_unique() -> T:
        try:
            return create()
        except UnansweredError as error:
            raise TryAgainError(str(error)) from None

    return find() or create_once(create_unique, find, what=what)


def _tasks(nodes: Sequence[Any]) -> dict[str, str]:
    """States of a run's tasks by name; of several with one name, such as a loop's, the worst."""
    found: dict[str, str] = {}
    for node in nodes:
        if not node.state or not node.display_name or _is_added(node):
            continue
        # KFP cannot represent Argo's Omitted, the state of a task that waited for one that was left out.
        state = "skipped" if node.state == "RUNTIME_STATE_UNSPECIFIED" else _state(node.state)
        known = found.get(node.display_name, state)
        found[node.display_name] = min(state, known, key=BY_CONCERN.index)
    return found


def _is_added(node: Any) -> bool:
    """Whether a node is none of the pipeline's tasks: KFP's own, or the workflow that ids are named after."""
    ids = [child.pod_name or "" for child in node.child_tasks or []]
    workflow = re.compile(rf"{re.escape(node.display_name)}-\d+")
    return bool(NOT_TASKS.fullmatch(node.display_name)) or any(map(workflow.fullmatch, ids))


def _why(state: str, tasks: Mapping[str, str]) -> str:
    """What is known of why a run failed: KFP itself gives no reason."""
    failed = ", ".join(name for name, of_task in tasks.items() if of_task == "failed")
    return (
        f"failed: {failed}; KFP gives no further details; see the logs there"
        if failed and state == "failed"
        else ""
    )


def _state(state: str | None) -> str:
    low = (state or "runtime_state_unspecified").lower()
    return STATES.get(low, low)
