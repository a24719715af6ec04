"""Reading server-sent events, and what is known of a gateway's streams."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_uniapi_fal.protocol import streaming
from airflow_provider_uniapi_fal.protocol.streaming import EventReader, Gateway, Trust

NOW = 100.0

statuses = st.lists(
    st.dictionaries(st.text(max_size=8), st.text(max_size=20) | st.integers() | st.none(), max_size=4),
    max_size=6,
)


def read(text: bytes, cuts: list[int]) -> list[bytes]:
    reader, events, begin = EventReader(), [], 0
    for cut in [*sorted(cuts), len(text)]:
        events += reader.feed(text[begin:cut])
        begin = max(begin, cut)
    return events


@given(statuses, st.sampled_from(["\n", "\r\n", "\r"]), st.lists(st.integers(0, 400), max_size=12))
def test_events_are_the_same_however_their_bytes_are_cut(
    sent: list[dict[str, object]], end: str, cuts: list[int]
) -> None:
    text = "".join(f": comment{end}{end}id: 7{end}data: {json.dumps(each)}{end}{end}" for each in sent)
    # A last carriage return may still be half of a line's end: it is read with the next bytes.
    found = read(f"{text}:{end}".encode(), cuts)
    assert [json.loads(event) for event in found] == sent


@given(st.binary(max_size=300), st.lists(st.integers(0, 300), max_size=8))
def test_nothing_breaks_the_reading(text: bytes, cuts: list[int]) -> None:
    for event in read(text, cuts):
        assert b"\r" not in event


def test_data_over_several_lines_is_one_event() -> None:
    assert EventReader().feed(b'data: {"a":\ndata:1}\n\n') == [b'{"a":\n1}']


def test_a_byte_order_mark_and_comments_are_no_data() -> None:
    assert EventReader().feed(b"\xef\xbb\xbfdata: 1\n\n: 15 seconds\n\n:\n\nevent: x\n\n") == [b"1"]


def test_an_event_that_did_not_end_is_none() -> None:
    assert EventReader().feed(b"data: 1\n") == []


def test_what_is_too_long_is_skipped_and_memory_stays_bounded() -> None:
    reader = EventReader()
    for _ in range(40):
        assert reader.feed(b"data: " + b"x" * 100_000) == []
        assert len(reader._rest) <= streaming.MAX_EVENT + 200_000
    assert reader.feed(b"\n\ndata: 2\n\n") == [b"2"]
    for _ in range(40):
        assert reader.feed(b"data: " + b"x" * 100_000 + b"\n") == []
    assert sum(map(len, reader._data)) <= streaming.MAX_EVENT
    assert reader.feed(b"\ndata: 3\n\n") == [b"3"]


def test_auto_lets_one_job_find_out_and_polls_the_others() -> None:
    gateway = Gateway()
    assert gateway.trust("auto", NOW) is Trust.TRIAL
    gateway.tries()
    assert gateway.trust("auto", NOW) is Trust.NONE
    gateway.told()
    gateway.trial_ended()
    assert gateway.trust("auto", NOW) is Trust.FULL


def test_a_stream_that_goes_on_is_enough_for_the_others_but_not_after_one_that_came_to_nothing() -> None:
    gateway = Gateway()
    gateway.tries()
    gateway.flows()
    assert gateway.trust("auto", NOW) is Trust.FULL
    for _ in range(streaming.MAX_CUTS):
        gateway.cut(NOW)
    gateway.trial_ended()
    later = NOW + streaming.FIRST_REST
    gateway.flows()
    gateway.tries()
    assert gateway.trust("auto", later) is Trust.NONE
    gateway.told()
    assert gateway.trust("auto", later) is Trust.FULL


def test_a_trial_that_told_nothing_leaves_room_for_the_next() -> None:
    gateway = Gateway()
    gateway.tries()
    gateway.trial_ended()
    assert gateway.trust("auto", NOW) is Trust.TRIAL


def test_a_refusal_is_remembered_for_a_while_and_holds_for_stream_as_well() -> None:
    gateway = Gateway()
    gateway.failed(NOW)
    for by in streaming.WAYS:
        assert gateway.trust(by, NOW + streaming.FORGET_SECONDS - 1) is Trust.NONE
    assert gateway.trust("auto", NOW + streaming.FORGET_SECONDS) is Trust.TRIAL
    assert gateway.trust("stream", NOW + streaming.FORGET_SECONDS) is Trust.FULL


def test_streams_cut_off_in_a_row_are_given_up_and_a_whole_one_starts_anew() -> None:
    gateway = Gateway()
    for _ in range(streaming.MAX_CUTS - 1):
        gateway.cut(NOW)
    gateway.told()
    assert gateway.trust("auto", NOW) is Trust.FULL
    for _ in range(streaming.MAX_CUTS - 1):
        gateway.cut(NOW)
        # Nobody is left to the stream alone, and nobody without it.
        assert gateway.trust("auto", NOW) is gateway.trust("stream", NOW) is Trust.TRIAL
    gateway.cut(NOW)
    for by in streaming.WAYS:
        assert gateway.trust(by, NOW) is Trust.NONE


def test_streams_that_are_cut_off_are_tried_again_soon_and_less_and_less_often() -> None:
    gateway, now, rests = Gateway(), NOW, []
    for _ in range(6):
        for _ in range(streaming.MAX_CUTS):
            gateway.cut(now)
        begin = now
        while gateway.trust("stream", now) is Trust.NONE:
            now += 1.0
        rests.append(now - begin)
    assert rests == [60.0, 240.0, 960.0, 3600.0, 3600.0, 3600.0]
    gateway.told()
    for _ in range(streaming.MAX_CUTS):
        gateway.cut(now)
    assert gateway.trust("stream", now + rests[0]) is Trust.TRIAL


def test_poll_never_streams() -> None:
    gateway = Gateway()
    gateway.told()
    assert gateway.trust("poll", NOW) is Trust.NONE
