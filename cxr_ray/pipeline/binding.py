"""OUTPUT and its plan belong together: a random id in both, published once (``plan_id.json``).

Unit names depend on positions in the plan only, so a plan of another OUTPUT, or a new plan in another
``plan_dir``, would take published parts for its own. The id makes such a mix-up a refusal.
"""

from __future__ import annotations

import json
import secrets

from cxr_ray.errors import OutputError
from cxr_ray.pipeline.plan import open_plan
from cxr_ray.pipeline.publish import Publisher

BINDING_FILE = "plan_id.json"

#: Where the plan of an OUTPUT lies.
INSIDE = "output"
OUTSIDE = "plan_dir"


def check_binding(output: Publisher, plan_store: Publisher) -> None:
    """Refuse a plan that is not of this OUTPUT. Both may be new.

    Raises:
        OutputError: OUTPUT was begun with another plan folder, or the folder belongs to another OUTPUT.
    """
    ours = _read(output)
    if plan_store.storage.url == output.storage.url:
        if ours is not None and ours["plan"] != INSIDE:
            raise OutputError(
                f"OUTPUT {output.storage.url} was begun with a plan_dir; give the same plan_dir= again"
            )
        return
    theirs = _read(plan_store)
    if ours is not None and (theirs is None or theirs["plan_id"] != ours["plan_id"]):
        raise OutputError(
            f"OUTPUT {output.storage.url} was begun with another plan_dir; give the plan_dir= it was begun with"
        )
    if ours is None and theirs is not None and open_plan(plan_store).generations:
        raise OutputError(
            f"plan_dir {plan_store.storage.url} belongs to another OUTPUT; give an empty or new plan_dir="
        )


def bind(output: Publisher, plan_store: Publisher) -> None:
    """Publish the id in the plan's folder, then in OUTPUT; racing drivers agree on the first one.

    Raises:
        OutputError: as ``check_binding``.
    """
    place = INSIDE if plan_store.storage.url == output.storage.url else OUTSIDE
    for publisher in dict.fromkeys((plan_store, output)):
        known = _read(plan_store)
        plan_id = known["plan_id"] if known else secrets.token_hex(16)
        publisher.publish(BINDING_FILE, json.dumps({"plan_id": plan_id, "plan": place}).encode() + b"\n")
    check_binding(output, plan_store)


def _read(publisher: Publisher) -> dict[str, str] | None:
    raw = publisher.read(BINDING_FILE)
    if raw is None:
        return None
    try:
        record = json.loads(raw)
        return {"plan_id": str(record["plan_id"]), "plan": str(record["plan"])}
    except (ValueError, KeyError, TypeError) as error:
        raise OutputError(
            f"{publisher.storage.url}/{BINDING_FILE} is damaged; restore it from a backup or choose another OUTPUT"
        ) from error
