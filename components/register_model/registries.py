"""Model registries: Kubeflow's, by the `kubeflow` SDK, and Vertex AI's, by google-cloud-aiplatform."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from calib_core.champion.history import HEADLINE_FIGURES
from calib_core.errors import CalibError, ConfigError
from calib_core.runtime.progress import say
from calib_core.settings.checks import Config, ConfigCheck
from calib_core.settings.parameters import config_from, parameter
from calib_core.steps.summary_record import SummaryRecord, read_summary
from calib_core.version import __version__

KUBEFLOW = re.compile(r"https?://[^/]+/?")
VERTEX = re.compile(r"vertex://([a-z][a-z0-9-]+)/([a-z]+-[a-z]+[0-9]+)/?")
FORMS = (
    "`https://HOST[:PORT]` (Kubeflow's) or `vertex://PROJECT/REGION`, as in vertex://my-project/europe-west4"
)
AUTHOR = "calib-core"


@dataclass(frozen=True, kw_only=True)
class RegisterConfig(Config):
    """Parameters of an entry in a model registry."""

    GROUP = "registry"

    model_registry: str = parameter(
        description="`https://HOST[:PORT]` of Kubeflow's Model Registry, or `vertex://PROJECT/REGION`.",
    )
    model_name: str = parameter("calibrated", "Name of the model in the registry.")
    serving_image: str = parameter("", "Image that serves the model; Vertex AI's registry requires one.")

    def rules(self, check: ConfigCheck) -> None:
        """What the registries take."""
        super().rules(check)
        check.value(
            "model_registry", lambda uri: bool(KUBEFLOW.fullmatch(uri) or VERTEX.fullmatch(uri)), FORMS
        )
        check.value("model_name", lambda name: 0 < len(name) <= 128, "a name of 1 to 128 characters")
        check.that(
            lambda c: c.serving_image or not VERTEX.fullmatch(c.model_registry),
            f"`serving_image` is {self.serving_image!r}, and Vertex AI's registry takes no model without the "
            "image that serves it; name one, as in us-docker.pkg.dev/vertex-ai/prediction/...",
        )


def register(config: RegisterConfig, *, summary: Path, model: str, number: int) -> str:
    """Enter a model with its figures, as version `number`; an entry of the same model is left as it is.

    Args:
        config: Which registry, under which name.
        summary: Folder with `summary.json`.
        model: URI of the model, which the registry's readers can reach.
        number: Number of the change that made the model champion.

    Returns:
        Name of the entry.

    Raises:
        ConfigError: a client library is missing, the registry can't be reached or refuses, or holds another
            model under this number.
    """
    figures = _figures(read_summary(summary))
    enter = _enter_vertex if VERTEX.fullmatch(config.model_registry) else _enter_kubeflow
    entry = enter(config, model, str(number), figures)
    say(f"registered {model} as {entry}")
    return entry


def register_promoted(parameters: Mapping[str, Any], *, summary: Path, model: str, number: int) -> str:
    """Enter the model of a run as `register` does, where the run promoted it and a registry is named.

    Args:
        parameters: Those of `RegisterConfig`; no registry where `model_registry` is empty.
        summary: Folder with `summary.json`.
        model: URI of the model.
        number: Number of the change that made the model champion.

    Returns:
        Name of the entry; empty if there is none.

    Raises:
        ConfigError: as `register` says.
    """
    if not parameters["model_registry"]:
        say("no model registry is configured, so no model is registered")
        return ""
    config = config_from(RegisterConfig, parameters)
    if not read_summary(summary)["promoted"]:
        say("the run promoted no model, so none is registered")
        return ""
    return register(config, summary=summary, model=model, number=number)


def _figures(summary: SummaryRecord) -> dict[str, float | str]:
    """Headline figures of the promoted model with the limits of their intervals, regime and branch."""
    found: dict[str, float | str] = {"regime_before": summary["regime"], "branch": summary["branch"]}
    after: Mapping[str, Any] = summary["after"]
    for name in HEADLINE_FIGURES:
        interval = after[name]
        found |= {name: interval["value"], f"{name}_low": interval["low"], f"{name}_high": interval["high"]}
    return found


def _described(figures: Mapping[str, Any]) -> str:
    return "; ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in figures.items()
    )


def _enter_kubeflow(config: RegisterConfig, model: str, version: str, figures: Mapping[str, Any]) -> str:
    try:
        from kubeflow.hub import ModelRegistryClient  # noqa: PLC0415 (only this registry needs it)
        from model_registry.exceptions import StoreError  # noqa: PLC0415
        from mr_openapi.exceptions import OpenApiException  # noqa: PLC0415
    except ImportError:
        raise ConfigError(
            "Kubeflow's Model Registry needs its client; install it with: pip install 'kubeflow[hub]'"
        ) from None
    entry = f"{config.model_name} version {version}"
    try:
        client = ModelRegistryClient(config.model_registry.rstrip("/"), author=AUTHOR)
        if known := _known_uri(client, config.model_name, version):
            return _same(entry, known, model, config)
        client.register_model(
            config.model_name,
            model,
            version=version,
            model_format_name="safetensors",
            model_format_version="1",
            version_description=f"Promoted by calib-core {__version__}: {_described(figures)}",
            metadata=dict(figures),
        )
    except (StoreError, OpenApiException, OSError) as error:
        raise _refused(config, error) from None
    return entry


def _known_uri(client: Any, name: str, version: str) -> str | None:
    """URI of the model that a registry holds under this version; None if it holds none."""
    if all(registered.name != name for registered in client.list_models()):
        return None
    if all(found.name != version for found in client.list_model_versions(name)):
        return None
    uri: str | None = client.get_model_artifact(name, version).uri
    return uri


def _enter_vertex(config: RegisterConfig, model: str, version: str, figures: Mapping[str, Any]) -> str:
    try:
        from google.api_core.exceptions import GoogleAPICallError  # noqa: PLC0415 (only this registry needs it)
        from google.auth.exceptions import GoogleAuthError  # noqa: PLC0415
        from google.cloud import aiplatform  # noqa: PLC0415
    except ImportError:
        raise ConfigError(
            "Vertex AI's Model Registry needs its client; install it with: pip install 'calib-core[vertex]'"
        ) from None
    if not model.startswith("gs://"):
        raise ConfigError(
            f"{model}: Vertex AI's registry takes models in gs:// only; put the champion's folder there"
        )
    match = VERTEX.fullmatch(config.model_registry)
    project, region = match.groups() if match else ("", "")
    place: dict[str, Any] = {"project": project, "location": region}
    alias = f"calib-{version}"
    try:
        parents = aiplatform.Model.list(filter=f'display_name="{config.model_name}"', **place)
        parent = parents[0].resource_name.partition("@")[0] if parents else None
        if parent:
            versions = aiplatform.models.ModelRegistry(parent, **place).list_versions()
            for found in versions:
                if alias in (found.version_aliases or ()):
                    known = aiplatform.Model(parent, version=found.version_id, **place)
                    return _same(f"{parent}@{found.version_id}", known.uri, model, config)
        made = aiplatform.Model.upload(
            serving_container_image_uri=config.serving_image,
            artifact_uri=model,
            display_name=config.model_name,
            parent_model=parent,
            version_aliases=[alias],
            version_description=_described(figures),
            labels={"branch": str(figures["branch"]), "made-by": AUTHOR},
            **place,
        )
    except (GoogleAPICallError, GoogleAuthError, OSError) as error:
        raise _refused(config, error) from None
    return f"{made.resource_name}@{made.version_id}"


def _same(entry: str, known: str | None, model: str, config: RegisterConfig) -> str:
    """The entry that is there already, where it is of the same model."""
    if known != model:
        raise ConfigError(
            f"{config.model_registry}: {entry} is another model ({known}); give this stream a model_name "
            "of its own"
        )
    return entry


def _refused(config: RegisterConfig, error: Exception) -> CalibError:
    reason = str(error).strip().partition("\n")[0] or type(error).__name__
    return ConfigError(
        f"{config.model_registry}: the registry did not take {config.model_name} ({reason}); check address, "
        "name and permissions. The model is champion nevertheless; register it later with `calib register`"
    )
