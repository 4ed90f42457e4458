"""Runs a package as Kubeflow Pipelines' backend does: inputs, importers, conditions, states, cache, retries.

Its rules were read in kubeflow/pipelines 2.17.0 (commit 4a3592cb2dd0a91a4652ab93893ec8beda1f3158) and, where
older releases differ, at 2.14.0 (38c49cc), 2.15.0 (8fe8d7b) and 2.16.1 (67a73cf); Argo's in
argoproj/argo-workflows v4.0.5. The text of its errors is the backend's.

What differs from the real thing:

* Tasks run side by side in simulated time; how long pods take to start comes from a seed.
* Programs are functions here. There are no pods, images, limits of size, volumes or secrets, and nothing is
  copied from or to buckets.
* A driver or an importer that fails is not tried again, as a stock 2.17 would.
* An exit task that fails makes the run fail.
* Caching knows one namespace. Artifact types have no properties.
* Of CEL there is what KFP's compiler writes: comparisons, `!`, `&&`, `||`, and conversions.
* Plugins, task configs, workspaces, literal parameters, expression selectors other than `parseJson`, and
  Kubernetes' platform operations are left out; a package that has them is refused by an assertion.
"""

from strict_backend.backend import Backend, Result
from strict_backend.launcher import FAILURE, LOST, Call, PodLostError, TaskFailedError

__all__ = ["FAILURE", "LOST", "Backend", "Call", "PodLostError", "Result", "TaskFailedError"]
