"""The objects that were made for one run: found, made and deleted, and never anybody else's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from kubernetes.client import ApiException

from tandem_api.canonical import digest
from tandem_api.v1alpha1.run import API_VERSION, KIND
from tandem_operator.platforms.kubernetes import names
from tandem_operator.platforms.kubernetes.client import FORBIDDEN, NOT_FOUND, Client, what_it_says
from tandem_operator.platforms.kubernetes.pod_state import name_of
from tandem_operator.snapshot import Blocked

Object = dict[str, Any]


class RefusedError(Exception):
    """The API server refuses to make something that the run needs."""

    def __init__(self, blocked: Blocked) -> None:
        self.blocked = blocked
        super().__init__(f"{blocked.reason}: {blocked.message}")


class TryAgainError(Exception):
    """Something of an earlier run of the same name is still in the way; a later pass will find it gone."""


@dataclass
class Children:
    """What one run owns, and the run's resource itself."""

    client: Client
    raw: Object
    """The resource as it was read at the beginning of this pass, or written since."""
    _is_fresh: bool = False
    """Whether a write of this pass has shown that `raw` is what is stored."""

    @property
    def namespace(self) -> str:
        return str(self.raw["metadata"]["namespace"])

    @property
    def name(self) -> str:
        """Of the run."""
        return str(self.raw["metadata"]["name"])

    @property
    def uid(self) -> str:
        """Of the run."""
        return str(self.raw["metadata"]["uid"])

    def owner(self) -> Object:
        """What makes the garbage collector remove a child with its run."""
        return {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "name": self.name,
            "uid": self.uid,
            "controller": True,
            "blockOwnerDeletion": True,
        }

    def get(self, kind: str, name: str, *, may_be_late: bool = False) -> Object | None:
        """The child of that name; None where there is none, or another's. With `may_be_late` it may be what was a
        moment ago, but None is always so."""
        if may_be_late:
            seen = self._ours(self.client.get(kind, self.namespace, name, may_be_late=True))
            if seen is not None:
                return seen
        return self._ours(self.client.get(kind, self.namespace, name))

    def of_kind(
        self,
        kind: str,
        component: str = "",
        *,
        task: str = "",
        none_if: tuple[int, ...] = (),
        may_be_late: bool = False,
    ) -> list[Object]:
        """The children of that kind; of them those with that component's, and that task's, label."""
        ours = {names.RUN_UID: self.uid, names.COMPONENT: component, names.TASK: task}
        chosen = {label: value for label, value in ours.items() if value}
        return self.client.list(kind, self.namespace, labels=chosen, none_if=none_if, may_be_late=may_be_late)

    def delete(self, kind: str, name: str) -> None:
        """The child goes, unless it is a later run's of the same name."""
        thing = self.get(kind, name)
        if thing is not None:
            self.remove(kind, thing)

    def remove(self, kind: str, thing: Object, *, propagation: str = "Background") -> None:
        """That very object goes, and no other one of its name."""
        uid = thing["metadata"]["uid"]
        self.client.delete(kind, self.namespace, name_of(thing), uid=uid, propagation=propagation)

    def save_status(self, status: Object) -> None:
        """Store the status. Raises ApiException 409 when somebody has written to the resource since it was read."""
        self.raw = self.client.replace_status({**self.raw, "status": status})
        self._is_fresh = True

    def check_fresh(self) -> None:
        """Raises ApiException 409 when `raw` is not what is stored.

        An API server that lags may answer every read of a pass with what was: the run's state before its last Job, or
        an earlier run of the same name. It cannot carry out a write so; this one changes nothing.
        """
        if not self._is_fresh:
            as_read = {"metadata": {"resourceVersion": self.raw["metadata"]["resourceVersion"]}}
            self.client.patch(KIND, self.namespace, self.name, as_read)
            self._is_fresh = True

    def create(self, body: Object) -> None:
        """Make a child, once. Raises as `apply` does where its name is taken."""
        if not self.client.create(body):
            self._clear(body["kind"], self.client.get(body["kind"], self.namespace, name_of(body)))

    def apply(self, body: Object) -> None:
        """Server-side apply, unless that is how it is: an apply that changes nothing may still wake every watcher.

        Raises TryAgainError when an earlier run's object has the name, which goes, and RefusedError when it is anybody
        else's.
        """
        version = digest(body)
        metadata = body["metadata"]
        marked = {**metadata, "annotations": {**metadata.get("annotations", {}), names.APPLIED: version}}
        body = {**body, "metadata": marked}
        known = self.client.get(body["kind"], self.namespace, metadata["name"])
        if known is not None and _is_applied(known, body):
            return
        self._clear(body["kind"], known)
        if known is not None:
            body["metadata"] |= only(known)["metadata"]
        self.client.apply(body)

    def _ours(self, thing: Object | None) -> Object | None:
        """`thing`, if it is this run's and not that of an earlier one of the same name."""
        if thing is None or (thing["metadata"].get("labels") or {}).get(names.RUN_UID) != self.uid:
            return None
        return thing

    def _clear(self, kind: str, known: Object | None) -> None:
        """Make way where `known` is, if it is not this run's."""
        if known is None or self._ours(known) is not None:
            return
        name = name_of(known)
        if not names.is_managed(known):
            fix = "delete it, or create the run under another name"
            said = f"the run needs a {kind} {name!r}, but there is one that is not Tandem's; {fix}"
            raise RefusedError(Blocked("NameTaken", said))
        self.check_fresh()
        self.remove(kind, known)
        raise TryAgainError(f"the {kind} {name} belongs to an earlier run")


@contextmanager
def refusals(reason: str, what: str) -> Iterator[None]:
    """Turns the API server's refusals into RefusedError; other errors of the call may pass by themselves."""
    try:
        yield
    except ApiException as error:
        said = what_it_says(error) or f"{error.status} {error.reason}"
        # Server-side apply reports a template with unknown fields or wrong types as an error of the server's own.
        is_wrong = error.status in (400, 422) or (error.status == 500 and "typed patch" in said)
        if not is_wrong and error.status not in (FORBIDDEN, NOT_FOUND):  # 404: JobSet was removed meanwhile
            raise
        raise RefusedError(Blocked(reason, f"the cluster refuses {what}: {said}", is_permanent=is_wrong)) from error


def only(thing: Object) -> Object:
    """Part of a patch: it is refused for another object of the same name."""
    return {"metadata": {"uid": thing["metadata"]["uid"]}}


def _is_applied(known: Object, body: Object) -> bool:
    """Whether the object is as it was applied last, and nobody has scaled it since."""
    applied = (known["metadata"].get("annotations") or {}).get(names.APPLIED)
    is_same: bool = applied == body["metadata"]["annotations"][names.APPLIED]
    return is_same and known.get("spec", {}).get("replicas") == body.get("spec", {}).get("replicas")
