"""Time in these tests is the cluster's."""

from tests.unit.operator.kubernetes.conftest import clock as clock
