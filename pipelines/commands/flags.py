"""Flags that `submit` and `schedule` share: the platform, the package, and the pipeline's parameters."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from calib_components.image import IMAGE
from calib_core.errors import ConfigError
from calib_core.runtime.progress import say
from calib_core.settings.flags import add_flags, option_of
from calib_core.settings.parameters import parameters_of
from calib_pipelines.clusters.base import Cluster
from calib_pipelines.compile import PIPELINES
from calib_pipelines.definitions import restore_calibration
from calib_pipelines.packages.checking import add_backend_version, check_package, tell
from calib_pipelines.packages.reading import (
    Package,
    Submission,
    check_parameters,
    load_package,
    parameter_flags,
    read_parameters,
)
from calib_pipelines.packages.submitting import check_accounts, check_places
from calib_pipelines.targets.compiling import TARGETS, add_settings, compile_package, settings_from

NAME = re.compile(r"[a-z]([-a-z0-9]{0,126}[a-z0-9])?")  # what Vertex takes as a job's id
KUBEFLOW_ONLY = ("host", "token_file", "namespace", "experiment")
VERTEX_ONLY = ("project", "region")


def add_cluster(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say where, and as whom."""
    parser.add_argument("--target", required=True, choices=tuple(TARGETS), help="platform")
    kubeflow = parser.add_argument_group("Kubeflow", "A token is taken from $KFP_TOKEN or --token-file.")
    kubeflow.add_argument(
        "--host",
        default="",
        help="URL of Kubeflow Pipelines (default: $KF_PIPELINES_ENDPOINT; in a pod, its own cluster's)",
    )
    kubeflow.add_argument("--token-file", type=Path, help="file with a token, read again for each request")
    kubeflow.add_argument("--namespace", default="", help="your namespace, if Kubeflow has several users")
    kubeflow.add_argument("--experiment", default="", help="experiment (default: the pipeline's name)")
    vertex = parser.add_argument_group("Vertex", "Credentials are Google's application default credentials.")
    vertex.add_argument("--project", default="", help="id of the Google Cloud project")
    vertex.add_argument("--region", default="", help="region, such as europe-west4")


def add_package(
    parser: argparse.ArgumentParser, arguments: Sequence[str], *, commands: Sequence[str]
) -> None:
    """Add the flags that say what is to run.

    That is a package, or one of our own pipelines, which is compiled with the settings that are given. Its
    parameters become flags too, where `arguments` (those after `calib pipeline`) begin with `commands`. Those
    whose names are taken, and lists and objects, can be given in a file only.
    """
    parser.add_argument("--package", type=Path, help="compiled pipeline (default: --pipeline is compiled)")
    parser.add_argument("--parameters", type=Path, help="JSON file with parameters; flags override it")
    parser.add_argument("--pipeline-root", default="", help="where tasks write, gs://...; Vertex needs it")
    parser.add_argument("--service-account", default="", help="account that tasks run as; Vertex needs it")
    add_backend_version(parser)
    if list(arguments[: len(commands)]) != list(commands):
        return
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    first.add_argument("--package", type=Path)
    first.add_argument("--pipeline", choices=tuple(PIPELINES), default=restore_calibration.NAME)
    try:
        chosen, _ = first.parse_known_args(arguments[len(commands) :])
        loaded = chosen.package and load_package(chosen.package)
    except argparse.ArgumentError as error:
        parser.error(str(error))
    except ConfigError as error:
        if {"-h", "--help"} & set(arguments):
            return
        parser.error(str(error))
    if loaded is None:
        add_settings(parser, without=("service_account",))
    else:
        _refuse_settings(parser, arguments, loaded)
    taken = {action.dest for action in parser._actions} | {"exit_code", "parser", "run", "text"}
    name, inputs = (
        (loaded.name, loaded.inputs)
        if loaded
        else (chosen.pipeline, PIPELINES[chosen.pipeline].component_spec.inputs)
    )
    flags = parameter_flags(name, inputs, taken)
    add_flags(parser, flags, given_only=True)
    parser.set_defaults(loaded=loaded, flags=[flag.name for flag in flags])


def submission_from(given: argparse.Namespace, *, default_name: str = "") -> Submission:
    """What the flags ask for, checked as far as it can be without a platform.

    Raises:
        ConfigError: it can't be run.
    """
    parameters: dict[str, Any] = {} if given.parameters is None else read_parameters(given.parameters)
    parameters |= {name: getattr(given, name) for name in given.flags if hasattr(given, name)}
    _check_target(given)
    package: Package = given.loaded or _compiled(given, parameters)
    check_parameters(package, parameters)
    if given.target == "vertex":
        check_accounts(package.path)
    check_places(given.target, package.path, package.name, parameters)
    return Submission(
        name=given.name or checked_name(default_name.format(package=package.name)),
        package=package,
        parameters=parameters,
        pipeline_root=given.pipeline_root.rstrip("/"),
        service_account=given.service_account,
    )


def connect_for(given: argparse.Namespace, submission: Submission) -> Cluster:
    """The platform that the flags name, which must be able to run what is submitted.

    Raises:
        ConfigError: it isn't, or as for `connect`.
    """
    cluster, version = None, given.backend_version
    if given.target == "kubeflow" and not version:
        cluster = connect(given)
        version = cluster.version
    path, values = submission.package.path, submission.parameters
    tell(check_package(path, given.target, version=version, values=values))
    return cluster or connect(given)


def connect(given: argparse.Namespace) -> Cluster:
    """The platform that the flags name.

    Raises:
        ConfigError: flags are missing or belong to the other platform, or its client isn't installed.
    """
    own, foreign = (
        (KUBEFLOW_ONLY, VERTEX_ONLY) if given.target == "kubeflow" else (VERTEX_ONLY, KUBEFLOW_ONLY)
    )
    wrong = [f"{option_of(name)} is not for {given.target}" for name in foreign if getattr(given, name)]
    if given.target == "vertex":
        wrong += [f"{option_of(name)} is missing" for name in VERTEX_ONLY if not getattr(given, name)]
    if wrong:
        raise ConfigError(f"target {given.target}: {'; '.join(wrong)}")
    values = {name: getattr(given, name) for name in own}
    if given.target == "kubeflow":
        from calib_pipelines.clusters.kubeflow import KubeflowCluster  # noqa: PLC0415 - slow
        from calib_pipelines.clusters.kubeflow_api import KubeflowConnection  # noqa: PLC0415

        return KubeflowCluster(KubeflowConnection(**values))
    try:
        from calib_pipelines.clusters.vertex import VertexCluster, VertexConnection  # noqa: PLC0415 - optional
    except ImportError as error:
        raise ConfigError(
            f"target vertex needs google-cloud-aiplatform ({error}); install it with: "
            "pip install 'calib-core[vertex]'"
        ) from None
    return VertexCluster(VertexConnection(**values))


def checked_name(text: str) -> str:
    """A name that both platforms take for runs and schedules, for argparse."""
    if not NAME.fullmatch(text):
        raise argparse.ArgumentTypeError(
            f"{text!r}: use up to 128 lower-case letters, digits and hyphens, a letter first, no hyphen last"
        )
    return text


def _compiled(given: argparse.Namespace, parameters: Mapping[str, Any]) -> Package:
    """The pipeline that the flags name, compiled with the settings that they give."""
    values = vars(given)
    if given.target != "vertex":  # where it is a setting of the custom jobs too
        values = {**values, "service_account": ""}
    settings = settings_from(given.target, values)
    package = load_package(compile_package(given.target, settings, pipeline=given.pipeline))
    say(f"compiled {given.pipeline} for {given.target} with the image {IMAGE}: {package.path}")
    if advice := settings.advice(parameters):
        say(f"mind: {advice}")
    return package


def _refuse_settings(parser: argparse.ArgumentParser, arguments: Sequence[str], package: Package) -> None:
    """Tell that a package which is compiled already takes no settings, rather than that a flag is unknown."""
    known = {"pipeline", *(p.name for target in TARGETS.values() for p in parameters_of(target.settings))}
    given = {word.partition("=")[0] for word in arguments}
    if strange := sorted(
        flag for name in known - {"service_account", *package.inputs} if (flag := option_of(name)) in given
    ):
        parser.error(
            f"{', '.join(strange)}: for compiling, and {package.path} is compiled; leave --package out, or "
            "compile it again with: calib pipeline compile"
        )


def _check_target(given: argparse.Namespace) -> None:
    """Refuse what the platform can't run, all of it together."""
    if given.target != "vertex":
        return
    wrong = []
    if not given.loaded and "/" not in IMAGE:
        wrong.append(
            f"the image {IMAGE} is in no registry that Vertex could pull it from; name one, as in "
            "CALIB_IMAGE=europe-west4-docker.pkg.dev/my-project/team/calib:0.1.0"
        )
    if not re.fullmatch(r"gs://[a-z0-9][-_.a-z0-9]{1,220}[a-z0-9](/.*)?", given.pipeline_root):
        wrong.append(
            f"--pipeline-root {given.pipeline_root!r}: Vertex needs a bucket or a folder in it, such as "
            "gs://my-bucket/calib"
        )
    if "@" not in given.service_account:
        wrong.append(
            f"--service-account {given.service_account!r}: give the e-mail address of the account that tasks "
            "run as, such as calib@my-project.iam.gserviceaccount.com"
        )
    if wrong:
        raise ConfigError(f"target vertex: {'; '.join(wrong)}")
