"""The resource `tandem.dev/v1alpha1`, kind `OptimizationRun`."""

from tandem_api.v1alpha1.run import API_VERSION, KIND, Metadata, OptimizationRun
from tandem_api.v1alpha1.spec import Spec, Step
from tandem_api.v1alpha1.status import Status

__all__ = ["API_VERSION", "KIND", "Metadata", "OptimizationRun", "Spec", "Status", "Step"]
