"""An API server in memory, with the methods of `client.Client`. It counts writes, and can die at any of them.

What clients get are copies. Controllers (`controllers.py`) and tests work on the stored objects themselves, through
`all`, `find`, `add`, `change` and `remove`; those are not counted.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Collection
from datetime import UTC, datetime, timedelta
from typing import Any

from kubernetes.client import ApiException

Object = dict[str, Any]
FOREGROUND = "foregroundDeletion"
START = datetime(2026, 1, 1, tzinfo=UTC)
#: Kinds whose generation counts the changes of their spec.
_WITH_GENERATION = ("OptimizationRun", "Deployment", "Job", "NetworkPolicy")


class Clock:
    """Stands in for `datetime` in the modules that look at the time."""

    current = START

    @classmethod
    def now(cls, zone: Any = None) -> datetime:
        return cls.current


class Crash(Exception):
    """The operator dies here."""


def copied(thing: Any) -> Any:
    return pickle.loads(pickle.dumps(thing, -1))


def stamp(moment: datetime | None = None) -> str:
    """A time as Kubernetes writes it."""
    return f"{moment or Clock.current:%Y-%m-%dT%H:%M:%SZ}"


def refusal(status: int, reason: str, message: str = "") -> ApiException:
    error = ApiException(status=status, reason=reason)
    error.body = f'{{"kind":"Status","reason":"{reason}","message":"{message}"}}'
    return error


class Cluster:
    """The store, and the calls of a client to it."""

    def __init__(self) -> None:
        Clock.current = START
        self.server_version = (1, 33)
        self.has_jobsets = True
        self.may_see_jobsets = True
        self.admission: Callable[[str, Object], None] = lambda verb, thing: None
        """Called with each object before it is stored; may change it, or raise ApiException."""
        self.before_call: Callable[[], None] = lambda: None
        """Called at the beginning of every call of a client."""
        self.crash: tuple[int, str] | None = None
        """(n, "before" or "after"): die at the n-th write, counted from 0."""
        self.past: dict[tuple[str, str, str], Object] | None = None
        """What reads that may be late are made of; None: they are not late."""
        self.writes: list[str] = []
        """Every write of a client: "create Job reviews-0b-check-1"."""
        self._objects: dict[tuple[str, str, str], Object] = {}
        self._applied: dict[tuple[str, str, str], Object] = {}
        self._serial = 0

    # What the client does.

    def get(self, kind: str, namespace: str, name: str, *, may_be_late: bool = False) -> Object | None:
        self.before_call()
        seen = self.past if may_be_late and self.past is not None else self._objects
        return copied(seen.get((kind, namespace, name)))

    def list(
        self,
        kind: str,
        namespace: str,
        *,
        labels: dict[str, str] | None = None,
        fields: str | None = None,
        none_if: Collection[int] = (),
        may_be_late: bool = False,
    ) -> list[Object]:
        self.before_call()
        if kind == "JobSet" and not (self.has_jobsets and self.may_see_jobsets):
            error = refusal(403, "Forbidden") if self.has_jobsets else refusal(404, "Not Found")
            if error.status in none_if:
                return []
            raise error
        wanted = (labels or {}).items()
        found = [
            thing
            for thing in self.all(kind, self.past if may_be_late else None)
            if thing["metadata"]["namespace"] == namespace and wanted <= labels_of(thing).items()
        ]
        if fields is not None:
            path, _, value = fields.partition("=")
            found = [thing for thing in found if _at(thing, path) == value]
        # As the real one: the items of a list do not say of what kind they are.
        return [{key: item[key] for key in item if key not in ("kind", "apiVersion")} for item in copied(found)]

    def create(self, body: Object) -> bool:
        def write() -> bool:
            if body["kind"] == "JobSet" and not self.has_jobsets:
                raise refusal(404, "Not Found")
            if self.find(body["kind"], body["metadata"]["name"], body["metadata"]["namespace"]) is not None:
                return False
            self.add(copied(body), verb="create")
            return True

        return self._write("create", body["kind"], body["metadata"]["name"], write)

    def apply(self, body: Object) -> Object:
        def write() -> Object:
            new, key = copied(body), _key(body)
            known = self._objects.get(key)
            if known is None:
                thing = self.add(new, verb="apply")
            else:
                thing = _merged(_without(known, self._applied.get(key, {}), new), new)
                self.admission("apply", thing)
                self.change(known, thing)
            self._applied[key] = copied(body)
            return copied(self._objects[key])

        return self._write("apply", body["kind"], body["metadata"]["name"], write)

    def patch(self, kind: str, namespace: str, name: str, patch: Object) -> bool:
        def write() -> bool:
            known = self.find(kind, name, namespace)
            if known is None:
                return False
            version = patch.get("metadata", {}).get("resourceVersion")
            if version not in (None, known["metadata"]["resourceVersion"]):
                raise refusal(409, "Conflict")
            thing = _merge_patched(copied(known), copied(patch))
            self.admission("patch", thing)
            self.change(known, thing)
            return True

        return self._write("patch", kind, name, write)

    def replace_status(self, body: Object) -> Object:
        def write() -> Object:
            known = self.find(body["kind"], body["metadata"]["name"], body["metadata"]["namespace"])
            if known is None:
                raise refusal(404, "NotFound")
            if body["metadata"]["resourceVersion"] != known["metadata"]["resourceVersion"]:
                raise refusal(409, "Conflict")
            self.change(known, {**known, "status": copied(body["status"])})
            return copied(known)

        return self._write("status", body["kind"], body["metadata"]["name"], write)

    def delete(
        self, kind: str, namespace: str, name: str, *, uid: str | None = None, propagation: str = "Background"
    ) -> bool:
        def write() -> bool:
            known = self.find(kind, name, namespace)
            if known is None or uid not in (None, known["metadata"]["uid"]):
                return False
            self.remove(known, propagation=propagation)
            return True

        return self._write("delete", kind, name, write)

    def serves(self, kind: str) -> bool:
        self.before_call()
        return kind != "JobSet" or self.has_jobsets

    def version(self) -> tuple[int, int]:
        return self.server_version

    # What controllers and tests do.

    def all(self, kind: str, objects: dict[tuple[str, str, str], Object] | None = None) -> list[Object]:
        """The stored objects of a kind, or those of `objects`, in the order of their names."""
        objects = self._objects if objects is None else objects
        return [objects[key] for key in sorted(objects) if key[0] == kind]

    def seen(self) -> dict[tuple[str, str, str], Object]:
        """All that is stored now, for `past`."""
        return copied(self._objects)

    def find(self, kind: str, name: str, namespace: str = "team") -> Object | None:
        return self._objects.get((kind, namespace, name))

    def names(self, kind: str) -> list[str]:
        return [thing["metadata"]["name"] for thing in self.all(kind)]

    def owned(self, kind: str, owner: Object) -> list[Object]:
        uid = owner["metadata"]["uid"]
        return [thing for thing in self.all(kind) if uid in owners_of(thing)]

    def add(self, thing: Object, verb: str = "create") -> Object:
        """Store a new object."""
        self._serial += 1
        metadata = thing["metadata"]
        metadata.setdefault("namespace", "team")
        metadata.update(uid=metadata.get("uid") or f"uid-{self._serial}", creationTimestamp=stamp())
        if thing["kind"] in _WITH_GENERATION:
            metadata["generation"] = 1
        self.admission(verb, thing)
        self._objects[_key(thing)] = thing
        self.touch(thing)
        return thing

    def change(self, known: Object, thing: Object) -> None:
        """Make `known` look like `thing`; nothing happens if it does."""
        if known.get("immutable") and known.get("data") != thing.get("data"):
            raise refusal(422, "Invalid", "field is immutable when `immutable` is set")
        before = copied(known)
        changed_spec = before.get("spec") != thing.get("spec")
        if known["kind"] == "Deployment" and before["spec"]["selector"] != thing["spec"]["selector"]:
            raise refusal(422, "Invalid", "spec.selector: field is immutable")
        if known["kind"] == "Job" and before["spec"]["template"] != thing["spec"]["template"]:
            raise refusal(422, "Invalid", "spec.template: field is immutable")
        thing = copied(thing)
        if changed_spec and known["kind"] in _WITH_GENERATION:
            thing["metadata"]["generation"] = before["metadata"].get("generation", 0) + 1
        if thing != before:
            known.clear()
            known.update(thing)
            self.touch(known)
        if is_going(known) and not known["metadata"].get("finalizers"):
            del self._objects[_key(known)]

    def touch(self, thing: Object) -> None:
        self._serial += 1
        thing["metadata"]["resourceVersion"] = str(self._serial)

    def remove(self, thing: Object, *, propagation: str = "Background") -> None:
        """Delete an object: at once, or, with finalizers or running containers, some time later."""
        metadata = thing["metadata"]
        held = [name for name in metadata.get("finalizers") or [] if name != FOREGROUND]
        if propagation == "Foreground":
            held.append(FOREGROUND)
        is_alive = thing["kind"] == "Pod" and (thing.get("status") or {}).get("phase") not in ("Succeeded", "Failed")
        if not held and not is_alive:
            del self._objects[_key(thing)]
            return
        metadata.setdefault("deletionTimestamp", stamp())
        metadata["finalizers"] = held
        self.touch(thing)

    def gone(self, thing: Object) -> None:
        """The object's last holder has let go of it."""
        self._objects.pop(_key(thing), None)

    def collect(self) -> None:
        """The garbage collector: orphans go, and so do those whose owners wait for them in the foreground."""
        uids = {thing["metadata"]["uid"] for thing in self._objects.values()}
        for thing in list(self._objects.values()):
            if owners_of(thing) and not owners_of(thing) & uids and not is_going(thing):
                self.remove(thing)
        for owner in [t for t in self._objects.values() if FOREGROUND in (t["metadata"].get("finalizers") or [])]:
            waiting = [t for t in self._objects.values() if owner["metadata"]["uid"] in owners_of(t)]
            for thing in waiting:
                if not is_going(thing):
                    self.remove(thing)
            if not any(_key(thing) in self._objects for thing in waiting):
                owner["metadata"]["finalizers"].remove(FOREGROUND)
                if not owner["metadata"]["finalizers"]:
                    self.gone(owner)

    def tell(self, about: Object, kind: str, reason: str, message: str) -> None:
        """An event of a controller's."""
        self._serial += 1
        involved = {"kind": kind, "name": about["metadata"]["name"], "uid": about["metadata"]["uid"]}
        self.add(
            {
                "apiVersion": "v1",
                "kind": "Event",
                "metadata": {"name": f"{about['metadata']['name']}.{self._serial}"},
                "involvedObject": involved,
                "type": "Warning",
                "reason": reason,
                "message": message,
                "lastTimestamp": stamp(),
            }
        )

    def told(self, run: Object) -> list[tuple[str, str, int]]:
        """(type, reason, count) of the events about a run."""
        uid = run["metadata"]["uid"]
        found = [e for e in self.all("Event") if e["involvedObject"].get("uid") == uid]
        return [(e["type"], e["reason"], e.get("count", 1)) for e in found]

    @staticmethod
    def pass_time(seconds: float) -> None:
        Clock.current += timedelta(seconds=seconds)

    def _write(self, verb: str, kind: str, name: str, write: Callable[[], Any]) -> Any:
        self.before_call()
        number = len(self.writes)
        if self.crash == (number, "before"):
            # Not done, but counted, so that it happens once.
            self.writes.append(f"lost {verb} {kind} {name}")
            raise Crash
        self.writes.append(f"{verb} {kind} {name}")
        answer = write()
        if self.crash == (number, "after"):
            raise Crash
        return answer


def labels_of(thing: Object) -> dict[str, str]:
    return thing["metadata"].get("labels") or {}


def owners_of(thing: Object) -> set[str]:
    return {owner["uid"] for owner in thing["metadata"].get("ownerReferences") or []}


def is_going(thing: Object) -> bool:
    return bool(thing["metadata"].get("deletionTimestamp"))


def _key(thing: Object) -> tuple[str, str, str]:
    return thing["kind"], thing["metadata"]["namespace"], thing["metadata"]["name"]


def _at(thing: Object, path: str) -> Any:
    for part in path.split("."):
        thing = (thing or {}).get(part)
    return thing


def _merged(old: Any, new: Any) -> Any:
    """`new` laid over `old`; lists as a whole."""
    if not isinstance(old, dict) or not isinstance(new, dict):
        return new
    return {**old, **{key: _merged(old.get(key), value) for key, value in new.items()}}


def _without(thing: Any, before: Any, now: Any) -> Any:
    """`thing` less what was applied before and is not any more."""
    if not isinstance(thing, dict) or not isinstance(before, dict) or not isinstance(now, dict):
        return thing
    left = {key: value for key, value in thing.items() if key in now or key not in before}
    return {key: _without(value, before.get(key), now.get(key)) for key, value in left.items()}


def _merge_patched(thing: Any, patch: Any) -> Any:
    """RFC 7386."""
    if not isinstance(patch, dict):
        return patch
    thing = dict(thing) if isinstance(thing, dict) else {}
    for key, value in patch.items():
        if value is None:
            thing.pop(key, None)
        else:
            thing[key] = _merge_patched(thing.get(key), value)
    return thing
