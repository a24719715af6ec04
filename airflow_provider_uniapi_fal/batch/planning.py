"""What a try does about a whole batch: pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from airflow_provider_uniapi_fal.ledger.rows import Act, RowPolicy, RowState, Step, Try, decide_row

if TYPE_CHECKING:
    from airflow_provider_uniapi_fal.batch.requests import Row
    from airflow_provider_uniapi_fal.ledger.record import Seen

#: Steps in which something of a row is still owed: a job that may run, or a result that is paid for.
_OWED = {Step.INTENT, Step.SUBMITTED, Step.OUT_OF_SIGHT, Step.SUCCEEDED, Step.UNLANDED}


@dataclass
class Plan:
    """
    What a try does about each row.

    :param post: rows to submit
    :param watch: rows whose jobs are watched
    :param taken_up: those of them whose wait an earlier try had given up
    :param land: keys of rows whose results are there
    :param problems: why nothing may be done at all
    :param warnings: what the log should say
    """

    post: list[Row] = field(default_factory=list)
    watch: list[RowState] = field(default_factory=list)
    taken_up: list[RowState] = field(default_factory=list)
    land: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def plan(
    rows: Sequence[Row],
    states: Mapping[str, RowState],
    this_try: Try,
    policy: RowPolicy,
    seen: Mapping[str, Seen],
) -> Plan:
    """
    Decide about each row of a batch.

    :param seen: what the gateway says of the jobs that are to be looked for, by the rows' keys
    """
    made = Plan()
    for row in rows:
        state = states.get(row.key)
        decision = decide_row(
            state, asked=row.fingerprint, this_try=this_try, policy=policy, seen=seen.get(row.key)
        )
        if decision.act is Act.REFUSE:
            made.problems.append(f"row {row.key!r}: {decision.why}")
            continue
        if state is not None and decision.changed and decision.act is not Act.POST:
            if not row.keyed:
                why = "it is known by its place only, and asks for something else than what was submitted"
                made.problems.append(f"row {row.key}: {why}")
                continue
            made.warnings.append(f"Row {row.key!r} asks for something else than what was submitted for it.")
        if decision.act is Act.POST:
            made.post.append(row)
        elif state is not None and decision.act is Act.WATCH:
            made.watch.append(state)
            if decision.taken_up:
                made.taken_up.append(state)
        elif decision.act is Act.LAND:
            made.land.append(row.key)
    known = {row.key for row in rows}
    for key, state in states.items():
        if key in known:
            continue
        if state.step in _OWED:
            made.problems.append(f"row {key!r}: it is in the table no more, but a job was submitted for it")
        elif state.step is Step.DELIVERED:
            made.warnings.append(f"Row {key!r} was landed by an earlier try, but is in the table no more.")
    return made
